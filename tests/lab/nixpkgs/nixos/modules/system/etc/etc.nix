# environment.etc: { "path" = { text | source, mode ? "symlink", user, group, enable } }.
#
# /etc/static points to the `etc` folder of the active system and the files in /etc are links through
# it, so that one rename changes all of them. A manifest says which are ours: what Debian brought is
# set aside while a file of ours takes its place, and comes back when ours goes.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  file = { name, config, ... }: {
    options = {
      enable = mkOption { type = types.bool; default = true; };
      target = mkOption { type = types.str; default = name; };
      text = mkOption { type = types.nullOr types.lines; default = null; };
      source = mkOption { type = types.path; };
      mode = mkOption { type = types.str; default = "symlink"; };
      user = mkOption { type = types.str; default = "+0"; };
      group = mkOption { type = types.str; default = "+0"; };
      uid = mkOption { type = types.int; default = 0; };
      gid = mkOption { type = types.int; default = 0; };
    };
    config.source = lib.mkIf (config.text != null) (lib.mkDefault (pkgs.writeText "etc-${builtins.baseNameOf name}" config.text));
  };
  files = builtins.filter (f: f.enable) (lib.attrValues config.environment.etc);
  # The text itself goes into the one derivation, unless somebody took another source for it.
  content = f: if f.text != null then { inherit (f) text; } else { source = "${f.source}"; };
  line = f: lib.concatStringsSep "|" [ f.target f.mode (lib.removePrefix "+" f.user) (lib.removePrefix "+" f.group) ];
in
{
  options = {
    environment.etc = mkOption { type = types.attrsOf (types.submodule file); default = { }; };
    system.build.etc = mkOption { type = types.package; internal = true; };
  };
  config = {
    system.build.etc = pkgs.fileTree "etc" (
      builtins.listToAttrs (map (f: lib.nameValuePair "etc/${f.target}" (content f)) files)
      // {
        "manifest".text = lib.concatLines (map line files);
        "apply" = { text = builtins.readFile ./setup-etc.sh; executable = true; };
      }
    );
    system.activationScripts.etc = lib.stringAfter [ "users" "groups" ] ''
      echo "setting up /etc..."
      ${config.system.build.etc}/apply ${config.system.build.etc}
    '';
  };
}
