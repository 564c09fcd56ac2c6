# nixpkgs.*: which package set the modules receive as `pkgs`.
{ config, lib, ... }:
let
  cfg = config.nixpkgs;
  platform = lib.types.coercedTo lib.types.str (system: { inherit system; }) lib.types.attrs;
in
{
  options.nixpkgs = {
    system = lib.mkOption { type = lib.types.str; description = "The system to build for, x86_64-linux for example."; };
    hostPlatform = lib.mkOption { type = platform; default = { inherit (cfg) system; }; };
    buildPlatform = lib.mkOption { type = platform; default = cfg.hostPlatform; };
    config = lib.mkOption { type = lib.types.attrs; default = { }; };
    overlays = lib.mkOption { type = lib.types.listOf lib.types.raw; default = [ ]; };
    pkgs = lib.mkOption {
      type = lib.types.raw;
      default = import ../../.. { inherit (cfg.hostPlatform) system; inherit (cfg) config overlays; };
    };
  };
  config._module.args.pkgs = cfg.pkgs;
}
