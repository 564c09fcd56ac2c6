# boot.loader: which system the machine boots. The loader of a lab machine is one file,
# /boot/nixos-entry, that holds the path of a toplevel; the machine starts what it names.
{ config, lib, pkgs, ... }:
let
  cfg = config.boot.loader;
  inherit (lib) mkOption mkEnableOption types;
  devices = lib.unique (cfg.grub.devices ++ lib.optional (cfg.grub.device != "") cfg.grub.device);
in
{
  options.boot.loader = {
    grub = {
      enable = mkOption { type = types.bool; default = true; };
      device = mkOption { type = types.str; default = ""; };
      devices = mkOption { type = types.listOf types.str; default = [ ]; };
      efiSupport = mkOption { type = types.bool; default = false; };
      efiInstallAsRemovable = mkOption { type = types.bool; default = false; };
      configurationLimit = mkOption { type = types.int; default = 100; };
      extraConfig = mkOption { type = types.lines; default = ""; };
    };
    systemd-boot.enable = mkEnableOption "the systemd-boot EFI boot manager";
    systemd-boot.configurationLimit = mkOption { type = types.nullOr types.int; default = null; };
    efi.canTouchEfiVariables = mkOption { type = types.bool; default = false; };
    timeout = mkOption { type = types.nullOr types.int; default = 5; };
  };
  options.system.build.installBootLoader = mkOption { type = types.package; internal = true; };
  config = {
    boot.loader.grub.enable = lib.mkIf cfg.systemd-boot.enable (lib.mkDefault false);
    assertions = [
      {
        assertion = !cfg.grub.enable || devices != [ ];
        message = "You must set the option ‘boot.loader.grub.devices’ or 'boot.loader.grub.mirroredBoots' to make the system bootable.";
      }
    ];
    system.build.installBootLoader = pkgs.writeShellScript "install-boot-loader.sh" ''
      # $1: the toplevel that boots next. The rename makes a cut leave the old entry or the new one.
      set -eu
      ${lib.optionalString config.test.stc.bootLoaderFails ''
        echo "failed to install the boot loader: no space left on device" >&2
        exit 1
      ''}
      mkdir -p /boot
      printf '%s\n' "$1" >/boot/.nixos-entry.new
      mv -f /boot/.nixos-entry.new /boot/nixos-entry
    '';
  };
}
