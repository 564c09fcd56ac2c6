# nix.settings: /etc/nix/nix.conf.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  atom = types.nullOr (types.oneOf [ types.bool types.int types.float types.str types.path types.package ]);
  show = v: if builtins.isList v then lib.concatMapStringsSep " " show v else lib.generators.mkValueStringDefault { } v;
in
{
  options.nix = {
    enable = mkOption { type = types.bool; default = true; };
    package = mkOption { type = types.package; default = pkgs.nix; };
    extraOptions = mkOption { type = types.lines; default = ""; };
    settings = mkOption {
      default = { };
      type = types.submodule {
        freeformType = types.attrsOf (types.either atom (types.listOf atom));
        options = {
          substituters = mkOption { type = types.listOf types.str; default = [ ]; };
          trusted-public-keys = mkOption { type = types.listOf types.str; default = [ ]; };
          trusted-users = mkOption { type = types.listOf types.str; default = [ "root" ]; };
          require-sigs = mkOption { type = types.bool; default = true; };
          sandbox = mkOption { type = types.either types.bool (types.enum [ "relaxed" ]); default = false; };
        };
      };
    };
  };
  config = lib.mkIf config.nix.enable {
    # The machine has no build users and no network: it takes what is copied to it.
    nix.settings.build-users-group = lib.mkDefault "";
    environment.etc."nix/nix.conf".text =
      lib.concatStrings (lib.mapAttrsToList (name: value: "${name} = ${show value}\n") config.nix.settings) + config.nix.extraOptions;
  };
}
