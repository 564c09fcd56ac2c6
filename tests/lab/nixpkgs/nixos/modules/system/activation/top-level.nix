# system.build.toplevel: the folder that is a system; checks assertions and shows warnings on the way.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  build = config.system.build;
  failed = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  checked =
    if failed != [ ] then throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (message: "- ${message}") failed}"
    else lib.showWarnings config.warnings;

  init = ''
    #!/bin/bash
    # Process 1 of a machine that boots this system: activate, then hand over to systemd.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin
    systemConfig='@out@'
    ln -sfn "$systemConfig" /run/booted-system
    mkdir -p /nix/var/nix/gcroots
    ln -sfn /run/booted-system /nix/var/nix/gcroots/booted-system
    "$systemConfig/activate"
    exec /usr/lib/systemd/systemd "$@"
  '';

  toplevel = pkgs.runCommandLocal config.system.build.toplevelName
    {
      passAsFile = [ "activation" "dryActivation" "init" "switcher" "inhibitors" ];
      activation = config.system.activationScript;
      dryActivation = config.system.dryActivationScript;
      switcher = build.switchToConfiguration;
      inhibitors = build.switchInhibitors;
      kernelParams = toString config.boot.kernelParams;
      label = config.system.nixos.label;
      platform = pkgs.stdenv.hostPlatform.system;
      inherit init;
    } ''
    mkdir -p "$out/bin" "$out/specialisation"
    put() { sed "s|@out@|$out|g" "$1" >"$out/$2"; chmod +x "$out/$2"; }
    put "$activationPath" activate
    put "$dryActivationPath" dry-activate
    put "$initPath" init
    put "$switcherPath" bin/switch-to-configuration
    cp "$inhibitorsPath" "$out/switch-inhibitors"
    printf '%s' "$kernelParams" >"$out/kernel-params"
    printf '%s' "$label" >"$out/nixos-version"
    printf '%s' "$platform" >"$out/system"
    printf '%s' ${toString config.system.build.initInterfaceVersion} >"$out/init-interface-version"
    ln -s ${build.etc}/etc "$out/etc"
    ln -s ${config.system.path} "$out/sw"
    ln -s ${config.systemd.package} "$out/systemd"
    ln -s ${build.kernel}/bzImage "$out/kernel"
    ln -s ${build.kernel} "$out/kernel-modules"
    ln -s ${build.initialRamdisk}/initrd "$out/initrd"
    ${lib.concatStrings (lib.mapAttrsToList (name: variant: "ln -s ${variant} \"$out/specialisation/${name}\"\n") build.specialisations)}
  '';
in
{
  options.system.build = {
    toplevel = mkOption { type = types.package; readOnly = true; };
    toplevelName = mkOption { type = types.str; internal = true; };
    initInterfaceVersion = mkOption { type = types.int; internal = true; default = 2; };
  };
  options.system.name = mkOption { type = types.str; default = if config.networking.hostName == "" then "unnamed" else config.networking.hostName; };
  options.system.extraDependencies = mkOption { type = types.listOf types.path; default = [ ]; };
  config.system.build.toplevelName = "nixos-system-${config.system.name}-${config.system.nixos.label}";
  config.system.build.toplevel = checked toplevel;
}
