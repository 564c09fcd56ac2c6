# What every machine gets besides its own modules.
#
# request (see entry.nix)  →  NixOS module
#
# Serves every nixpkgs from 20.09 on. What a release calls something is seen from the options and functions that its
# tree has, never from its number: between releases, and in forks, the number says nothing.
request:
{
  config,
  lib,
  options,
  pkgs,
  modulesPath,
  ...
}:
let
  stateVersion =
    if request.stateVersion != null then
      request.stateVersion
    else
      throw "system.stateVersion is not set, and a host that was not made by the operator cannot be asked for it: say in a module with which release its NixOS was first installed, as in system.stateVersion = \"${lib.trivial.release}\"";

  # Active while the key's file exists. What starts before the operator has brought a key after a boot, and requires this
  # unit, waits for it. A key that comes after the activation is not waited for: the activation itself would be waiting.
  keyService =
    name: key:
    lib.nameValuePair "${name}-key" {
      description = "The key ${name}, as long as it is there";
      path = [ pkgs.inotify-tools ];
      # What requires it would be restarted with it, for another inotify-tools.
      restartIfChanged = false;
      preStart = lib.optionalString key.isFirst ''
        until [ -e "${key.path}" ]; do sleep 1; done
      '';
      # A new content takes the place of the old one by rename(2): the name is never gone meanwhile. The time limit is for
      # a file that goes between the test and the watch.
      script = ''
        while [ -e "${key.path}" ]; do
          inotifywait -qq -t 60 -e delete -e moved_from -e delete_self -e unmount "${dirOf key.path}" || sleep 1
        done
      '';
      serviceConfig = {
        TimeoutStartSec = "infinity";
      } // lib.optionalAttrs (!key.isFirst) { ExecCondition = "${pkgs.coreutils}/bin/test -e ${key.path}"; };
    };

  keyPath =
    name: key:
    lib.nameValuePair "${name}-key" {
      description = "Whether the key ${name} is there";
      wantedBy = [ "paths.target" ];
      pathConfig.PathExists = key.path;
    };
in
{
  _file = "the guest module of nixops-operator";

  # File systems, boot loader and sshd of an EC2 machine, as NixOps' EC2 backend imports them.
  imports = lib.optional request.isEc2 "${modulesPath}/virtualisation/amazon-image.nix";

  config = {
    # Lets the host tell of a changed system by itself, instead of being asked.
    environment.systemPackages = [ pkgs.inotify-tools ];

    # nix.settings is of 22.05 (NixOS manual, "Release 22.05"); before, each setting had an option of its own.
    nix =
      if options.nix ? settings then
        { settings.trusted-public-keys = [ request.trustedPublicKey ]; }
      else
        { binaryCachePublicKeys = [ request.trustedPublicKey ]; };

    systemd.services = lib.mapAttrs' keyService request.keys // {
      # A system that was booted for the first time and that nobody confirms is left by another boot. The folder, with
      # the agent in it, is the operator's; it is there only while a restart waits to be confirmed.
      nixops-guard = {
        description = "Return to the previous system unless the operator confirms this one";
        wantedBy = [ "multi-user.target" ];
        unitConfig.ConditionPathExists = "/var/lib/nixops/activation/active/state.rebooting";
        restartIfChanged = false;
        serviceConfig.Type = "oneshot";
        script = "exec ${pkgs.runtimeShell} /var/lib/nixops/activation/active/agent guard";
      };
    };
    systemd.paths = lib.mapAttrs' keyPath request.keys;

    # A key may have come before its user, which this activation makes; units that read it are started after this. The
    # operator's list is `<path> <mode> <user> <group> …`.
    system.activationScripts = lib.optionalAttrs (request.keys != { }) {
      nixops-keys = lib.stringAfter [ "users" "groups" ] ''
        if [ -e /var/lib/nixops/keys ]; then
          while read -r path mode user group rest; do
            if [ -f "$path" ]; then
              chown -h "$user:$group" "$path" 2>/dev/null || true
            fi
          done </var/lib/nixops/keys
        fi
      '';
    };

    # Of 23.11. With false and enableNg, which later releases have removed, 24.05 and 24.11 take the other program.
    assertions = lib.optional (options ? system.switch.enable) {
      assertion = config.system.switch.enable || (builtins.tryEval (config.system.switch.enableNg or false)).value;
      message = "system.switch.enable is false: nothing could make a machine run this system, or leave it again. Remove it, or the profile that says so (profiles/image-based-appliance.nix)";
    };

    # Weaker than a plain definition (100), stronger than a default (1000): NixOps' own priority for it.
    networking.hostName = lib.mkOverride 900 request.name;

    # Between the option's own default (1500) and mkDefault (1000), with which modules of nixpkgs define it
    # (nixos/modules/installer/cd-dvd/installation-cd-base.nix): two that are equally strong would conflict.
    system.stateVersion = lib.mkOverride 1400 stateVersion;
  };
}
