# boot.{kernelPackages,kernelParams,…}: what the links kernel, initrd, kernel-modules and kernel-params of
# a toplevel hold. A machine whose booted links differ from these needs a reboot.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.boot = {
    kernelPackages = mkOption { type = types.raw; default = pkgs.linuxPackages; };
    kernelParams = mkOption { type = types.listOf types.str; default = [ ]; };
    kernelModules = mkOption { type = types.listOf types.str; default = [ ]; };
    extraModulePackages = mkOption { type = types.listOf types.package; default = [ ]; };
    initrd.availableKernelModules = mkOption { type = types.listOf types.str; default = [ ]; };
    initrd.kernelModules = mkOption { type = types.listOf types.str; default = [ ]; };
    kernel.sysctl = mkOption { type = types.attrsOf (types.nullOr (types.oneOf [ types.bool types.str types.int ])); default = { }; };
    growPartition = mkOption { type = types.bool; default = false; };
  };
  options.hardware.enableRedistributableFirmware = mkOption { type = types.bool; default = false; };
  options.system.build = {
    kernel = mkOption { type = types.package; internal = true; };
    initialRamdisk = mkOption { type = types.package; internal = true; };
  };
  config = {
    boot.kernelParams = [ "loglevel=4" ];
    system.build.kernel = config.boot.kernelPackages.kernel;
    system.build.initialRamdisk = pkgs.fileTree "initrd" {
      "initrd".text = lib.concatLines ([ config.system.build.kernel.version ] ++ config.boot.initrd.availableKernelModules ++ config.boot.initrd.kernelModules);
    };
    environment.etc."sysctl.d/60-nixos.conf" = lib.mkIf (config.boot.kernel.sysctl != { }) {
      text = lib.concatStrings (lib.mapAttrsToList (name: v: lib.optionalString (v != null) "${name}=${if v == false then "0" else toString v}\n") config.boot.kernel.sysctl);
    };
  };
}
