# users.{users,groups}: accounts, made and removed by the activation script.
#
# Debian's own accounts stay: only what an earlier generation declared is removed, as the lists in
# /var/lib/nixos say (declarative-users and declarative-groups, as on NixOS).
{ config, lib, pkgs, ... }:
let
  cfg = config.users;
  inherit (lib) mkOption types;

  user = { name, config, ... }: {
    options = {
      name = mkOption { type = types.str; default = name; };
      description = mkOption { type = types.str; default = ""; };
      uid = mkOption { type = types.nullOr types.int; default = null; };
      isSystemUser = mkOption { type = types.bool; default = false; };
      isNormalUser = mkOption { type = types.bool; default = false; };
      group = mkOption { type = types.str; default = ""; };
      extraGroups = mkOption { type = types.listOf types.str; default = [ ]; };
      home = mkOption { type = types.path; default = "/var/empty"; };
      createHome = mkOption { type = types.bool; default = false; };
      homeMode = mkOption { type = types.strMatching "[0-7]{1,5}"; default = "700"; };
      shell = mkOption { type = types.nullOr (types.either types.package types.path); default = "/usr/sbin/nologin"; };
      hashedPassword = mkOption { type = types.nullOr types.str; default = null; };
      packages = mkOption { type = types.listOf types.package; default = [ ]; };
      openssh.authorizedKeys.keys = mkOption { type = types.listOf types.singleLineStr; default = [ ]; };
      openssh.authorizedKeys.keyFiles = mkOption { type = types.listOf types.path; default = [ ]; };
    };
    config = lib.mkIf config.isNormalUser {
      group = lib.mkDefault "users";
      createHome = lib.mkDefault true;
      home = lib.mkDefault "/home/${config.name}";
      shell = lib.mkDefault "/bin/bash";
    };
  };
  group = { name, ... }: {
    options = {
      name = mkOption { type = types.str; default = name; };
      gid = mkOption { type = types.nullOr types.int; default = null; };
      members = mkOption { type = types.listOf types.str; default = [ ]; };
    };
  };

  id = n: if n == null then "" else toString n;
  shell = u: if u.shell == null then "/usr/sbin/nologin" else u.shell.shellPath or (toString u.shell);
  groupLine = g: lib.concatStringsSep "|" [ g.name (id g.gid) ];
  extraGroupsOf = u: lib.unique (u.extraGroups ++ lib.mapAttrsToList (_: g: g.name) (lib.filterAttrs (_: g: lib.elem u.name g.members) cfg.groups));
  userLine = u: lib.concatStringsSep "|" [
    u.name (id u.uid) u.group (lib.concatStringsSep "," (extraGroupsOf u)) u.home (shell u)
    (lib.boolToString u.createHome) u.homeMode (lib.boolToString u.isSystemUser) (if u.hashedPassword == null then "*" else u.hashedPassword) u.description
  ];
  lines = f: set: lib.concatStrings (lib.mapAttrsToList (_: x: f x + "\n") set);
  accounts = pkgs.fileTree "users-groups" {
    "groups".text = lines groupLine cfg.groups;
    "users".text = lines userLine (removeAttrs cfg.users [ "root" ]);
    "apply" = { text = builtins.readFile ./update-users-groups.sh; executable = true; };
  };
in
{
  options.users = {
    users = mkOption { type = types.attrsOf (types.submodule user); default = { }; };
    groups = mkOption { type = types.attrsOf (types.submodule group); default = { }; };
    mutableUsers = mkOption { type = types.bool; default = true; };
  };
  config = {
    users.users.root = { uid = 0; group = "root"; isSystemUser = true; home = lib.mkDefault "/root"; shell = lib.mkDefault "/bin/bash"; };
    users.groups = {
      root.gid = 0;
      keys.gid = 96;
      users.gid = 100;
    };
    assertions = lib.concatLists (lib.mapAttrsToList
      (name: u: [
        {
          assertion = (u.isSystemUser || u.isNormalUser) && !(u.isSystemUser && u.isNormalUser);
          message = "Exactly one of users.users.${name}.isSystemUser and users.users.${name}.isNormalUser must be set.";
        }
        {
          assertion = u.group != "";
          message = "users.users.${name}.group is unset. This used to default to\nnogroup, but this is unsafe. For example you can create a group\nfor this user with:\nusers.users.${name}.group = \"${name}\";\nusers.groups.${name} = {};";
        }
      ])
      cfg.users);
    environment.etc = lib.mapAttrs' (_: u: lib.nameValuePair "ssh/authorized_keys.d/${u.name}" {
      # A copy owned by root: sshd's StrictModes looks at each folder on the way.
      mode = "0444";
      text = lib.concatStrings (map (key: key + "\n") (u.openssh.authorizedKeys.keys ++ map builtins.readFile u.openssh.authorizedKeys.keyFiles));
    }) (lib.filterAttrs (_: u: u.openssh.authorizedKeys.keys != [ ] || u.openssh.authorizedKeys.keyFiles != [ ]) cfg.users);
    system.activationScripts.users = "${accounts}/apply ${accounts}";
    # Others name this one to come after the groups.
    system.activationScripts.groups = lib.stringAfter [ "users" ] "";
  };
}
