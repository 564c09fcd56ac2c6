# systemd.tmpfiles.rules: lines of tmpfiles.d(5); switch-to-configuration applies them.
{ config, lib, ... }:
{
  options.systemd.tmpfiles.rules = lib.mkOption { type = lib.types.listOf lib.types.str; default = [ ]; };
  config.environment.etc."tmpfiles.d/00-nixos.conf".text = lib.concatLines config.systemd.tmpfiles.rules;
}
