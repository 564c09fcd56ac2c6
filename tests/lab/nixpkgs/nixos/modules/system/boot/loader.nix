# boot.loader: which system the machine boots. The default entry of a lab machine is the file /boot/nixos-entry, which
# holds the path of a toplevel. As with NixOS' GRUB there is a menu of all generations, from which `next_entry` in
# GRUB's environment chooses one for the next boot alone (GRUB manual, "grub-reboot").
{ config, lib, pkgs, ... }:
let
  cfg = config.boot.loader;
  inherit (lib) mkOption mkEnableOption types;
  # The default entry first, then the generations, the newest first: the form of NixOS' own.
  menu = ''
    entry() { printf 'menuentry "%s" --class nixos {\n  linux %s/kernel init=%s/init %s\n}\n\n' "$1" "$2" "$2" "$(cat "$2/kernel-params")"; }
    {
      printf '%s\n' 'if [ "''${next_entry}" ]; then' '  set default="''${next_entry}"' '  set next_entry=' '  save_env next_entry' 'fi'
      entry NixOS "$1"
      echo 'submenu "NixOS - All configurations" --class submenu {'
      find /nix/var/nix/profiles -maxdepth 1 -name 'system-*-link' | sort -t - -k 2 -n -r | head -n ${toString cfg.grub.configurationLimit} |
        while read -r link; do
          number=''${link##*system-} system=$(readlink -e "$link") version="($(cat "$link/nixos-version"))"
          name="NixOS - Configuration ''${number%-link}"
          if [ -n "$(ls "$system/specialisation")" ]; then
            echo "submenu \"$name $version\" --class submenu {"
            entry "$name - Default $version" "$system"
            for each in "$system"/specialisation/*; do entry "$name - (''${each##*/})" "$(readlink -e "$each")"; done
            echo '}'
          else
            entry "$name $version" "$system"
          fi
        done
      echo '}'
    } >/boot/grub/grub.cfg.tmp
    mv -f /boot/grub/grub.cfg.tmp /boot/grub/grub.cfg
  '';
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
      mkdir -p /boot/grub
      ${lib.optionalString cfg.grub.enable menu}
      printf '%s\n' "$1" >/boot/.nixos-entry.new
      mv -f /boot/.nixos-entry.new /boot/nixos-entry
    '';
  };
}
