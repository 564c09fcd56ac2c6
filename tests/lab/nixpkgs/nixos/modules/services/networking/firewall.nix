# networking.firewall: an nftables table `nixos-fw` that admits what is allowed and drops the rest.
{ config, lib, pkgs, ... }:
let
  cfg = config.networking.firewall;
  inherit (lib) mkOption types;
  ports = mkOption { type = types.listOf types.port; default = [ ]; apply = list: lib.naturalSort (lib.unique list); };
  range = types.submodule { options = { from = mkOption { type = types.port; }; to = mkOption { type = types.port; }; }; };
  ranges = mkOption { type = types.listOf range; default = [ ]; };
  accept = protocol: single: several:
    let all = map toString single ++ map (r: "${toString r.from}-${toString r.to}") several;
    in lib.optionalString (all != [ ]) "    ${protocol} dport { ${lib.concatStringsSep ", " all} } accept\n";
  ruleset = pkgs.writeText "firewall.nft" ''
    table inet nixos-fw
    delete table inet nixos-fw
    table inet nixos-fw {
      chain input {
        type filter hook input priority filter; policy drop;
        iifname { ${lib.concatMapStringsSep ", " (i: "\"${i}\"") cfg.trustedInterfaces} } accept
        ct state established,related accept
        ct state invalid drop
    ${accept "tcp" cfg.allowedTCPPorts cfg.allowedTCPPortRanges}${accept "udp" cfg.allowedUDPPorts cfg.allowedUDPPortRanges}${lib.optionalString cfg.allowPing "    icmp type echo-request accept\n"}    icmpv6 type != { nd-redirect, 139 } accept
      }
    }
  '';
in
{
  options.networking.firewall = {
    enable = mkOption { type = types.bool; default = true; };
    allowPing = mkOption { type = types.bool; default = true; };
    allowedTCPPorts = ports;
    allowedUDPPorts = ports;
    allowedTCPPortRanges = ranges;
    allowedUDPPortRanges = ranges;
    trustedInterfaces = mkOption { type = types.listOf types.str; default = [ ]; };
  };
  config = lib.mkIf cfg.enable {
    networking.firewall.trustedInterfaces = [ "lo" ];
    systemd.services.firewall = {
      description = "Firewall";
      wantedBy = [ "sysinit.target" ];
      wants = [ "network-pre.target" ];
      before = [ "network-pre.target" "shutdown.target" ];
      conflicts = [ "shutdown.target" ];
      unitConfig.DefaultDependencies = false;
      reloadIfChanged = true;
      path = [ pkgs.nftables ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${pkgs.nftables}/bin/nft -f ${ruleset}";
        ExecReload = "${pkgs.nftables}/bin/nft -f ${ruleset}";
        ExecStop = "${pkgs.nftables}/bin/nft delete table inet nixos-fw";
      };
    };
  };
}
