# services.openssh: sshd.service, its host keys and /etc/ssh/sshd_config.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.openssh;
  inherit (lib) mkOption types;
  shown = v: if v == true then "yes" else if v == false then "no" else if builtins.isList v then lib.concatMapStringsSep " " toString v else toString v;
  hostKey = types.submodule {
    config._module.freeformType = types.attrsOf types.unspecified;
    options = {
      path = mkOption { type = types.str; };
      type = mkOption { type = types.str; };
    };
  };
in
{
  imports = [
    (lib.mkRenamedOptionModule [ "services" "openssh" "permitRootLogin" ] [ "services" "openssh" "settings" "PermitRootLogin" ])
    (lib.mkRenamedOptionModule [ "services" "openssh" "passwordAuthentication" ] [ "services" "openssh" "settings" "PasswordAuthentication" ])
  ];
  options.services.openssh = {
    enable = mkOption { type = types.bool; default = false; };
    package = mkOption { type = types.package; default = pkgs.openssh; };
    ports = mkOption { type = types.listOf types.port; default = [ 22 ]; };
    openFirewall = mkOption { type = types.bool; default = true; };
    startWhenNeeded = mkOption { type = types.bool; default = false; };
    hostKeys = mkOption {
      type = types.listOf hostKey;
      default = [ { type = "ed25519"; path = "/etc/ssh/ssh_host_ed25519_key"; } ];
    };
    authorizedKeysFiles = mkOption { type = types.listOf types.str; default = [ ]; };
    extraConfig = mkOption { type = types.lines; default = ""; };
    settings = mkOption {
      default = { };
      type = types.submodule {
        config._module.freeformType = types.attrsOf (types.nullOr (types.oneOf [ types.bool types.int types.str (types.listOf types.str) ]));
        options = {
          PermitRootLogin = mkOption { type = types.nullOr (types.enum [ "yes" "without-password" "prohibit-password" "forced-commands-only" "no" ]); default = "prohibit-password"; };
          PasswordAuthentication = mkOption { type = types.nullOr types.bool; default = false; };
          KbdInteractiveAuthentication = mkOption { type = types.nullOr types.bool; default = false; };
          # No session per login: a machine of the lab has no user managers.
          UsePAM = mkOption { type = types.nullOr types.bool; default = false; };
          X11Forwarding = mkOption { type = types.nullOr types.bool; default = false; };
        };
      };
    };
  };
  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall cfg.ports;
    services.openssh.authorizedKeysFiles = [ "%h/.ssh/authorized_keys" "/etc/ssh/authorized_keys.d/%u" ];
    environment.etc."ssh/sshd_config".text =
      lib.concatMapStrings (port: "Port ${toString port}\n") cfg.ports
      + lib.concatMapStrings (key: "HostKey ${key.path}\n") cfg.hostKeys
      + "AuthorizedKeysFile ${toString cfg.authorizedKeysFiles}\n"
      + "SetEnv PATH=/run/wrappers/bin:/root/.nix-profile/bin:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:/usr/sbin:/usr/bin\n"
      + "Subsystem sftp internal-sftp\n"
      + lib.concatStrings (lib.mapAttrsToList (name: v: lib.optionalString (v != null) "${name} ${shown v}\n") cfg.settings)
      + cfg.extraConfig;
    systemd.services.sshd = {
      description = "SSH Daemon";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      stopIfChanged = false;
      path = [ cfg.package ];
      restartTriggers = [ (builtins.hashString "sha256" config.environment.etc."ssh/sshd_config".text) ];
      preStart = lib.concatMapStrings (key: ''
        if ! [ -s ${lib.escapeShellArg key.path} ]; then
          rm -f ${lib.escapeShellArg key.path}
          mkdir -p "$(dirname ${lib.escapeShellArg key.path})"
          ssh-keygen -q -t ${lib.escapeShellArg key.type} -f ${lib.escapeShellArg key.path} -N ""
        fi
      '') cfg.hostKeys;
      serviceConfig = {
        ExecStart = "/usr/sbin/sshd -D -f /etc/ssh/sshd_config";
        ExecReload = "/bin/kill -HUP $MAINPID";
        # Sessions live on when the daemon is restarted.
        KillMode = "process";
        Restart = "always";
        Type = "notify";
        RuntimeDirectory = "sshd";
        RuntimeDirectoryPreserve = true;
      };
    };
  };
}
