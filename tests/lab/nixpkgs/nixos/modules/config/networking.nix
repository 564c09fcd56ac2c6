# networking.{hostName,domain,extraHosts,hosts}: the machine's name and /etc/hosts. Addresses and routes
# come from the lab, as from a cloud.
{ config, lib, ... }:
let
  cfg = config.networking;
  inherit (lib) mkOption types;
in
{
  options.networking = {
    hostName = mkOption {
      type = types.strMatching "^$|^[[:alnum:]]([[:alnum:]_-]{0,61}[[:alnum:]])?$";
      default = "nixos";
    };
    domain = mkOption { type = types.nullOr types.str; default = null; };
    fqdn = mkOption { type = types.str; default = cfg.hostName + lib.optionalString (cfg.domain != null) ".${cfg.domain}"; };
    hosts = mkOption { type = types.attrsOf (types.listOf types.str); default = { }; };
    extraHosts = mkOption { type = types.lines; default = ""; };
    useDHCP = mkOption { type = types.bool; default = true; };
    nameservers = mkOption { type = types.listOf types.str; default = [ ]; };
  };
  config = {
    networking.hosts = {
      "127.0.0.1" = [ "localhost" ];
      "::1" = [ "localhost" ];
      "127.0.0.2" = lib.mkIf (cfg.hostName != "") (lib.unique [ cfg.fqdn cfg.hostName ]);
    };
    environment.etc.hostname = lib.mkIf (cfg.hostName != "") { text = cfg.hostName + "\n"; };
    environment.etc.hosts.text =
      lib.concatStrings (lib.mapAttrsToList (address: names: "${address} ${lib.concatStringsSep " " names}\n") cfg.hosts)
      + lib.optionalString (cfg.extraHosts != "") "${cfg.extraHosts}\n";
    # At boot systemd takes the name from /etc/hostname; without systemd this may be an image's root in
    # a chroot, where the name would be the builder's.
    system.activationScripts.hostname = lib.mkIf (cfg.hostName != "") (lib.stringAfter [ "etc" ] ''
      if [ -d /run/systemd/system ]; then hostname ${lib.escapeShellArg cfg.hostName}; fi
    '');
  };
}
