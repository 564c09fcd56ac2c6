# environment.systemPackages: the programs under /run/current-system/sw.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    environment.systemPackages = mkOption { type = types.listOf types.package; default = [ ]; };
    environment.defaultPackages = mkOption { type = types.listOf types.package; default = [ ]; };
    environment.pathsToLink = mkOption { type = types.listOf types.str; default = [ ]; };
    system.path = mkOption { type = types.package; internal = true; };
  };
  config = {
    environment.systemPackages = (with pkgs; [
      bash coreutils curl diffutils findutils gawk gnugrep gnused gnutar gzip iproute2 iputils
      nix openssh procps shadow systemd util-linux
    ]) ++ config.environment.defaultPackages;
    environment.pathsToLink = [ "/bin" "/etc/profile.d" "/lib/systemd" "/share" ];
    system.path = pkgs.buildEnv {
      name = "system-path";
      paths = config.environment.systemPackages;
      inherit (config.environment) pathsToLink;
    };
  };
}
