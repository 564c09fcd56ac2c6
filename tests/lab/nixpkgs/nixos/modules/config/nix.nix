# /etc/nix/nix.conf, from nix.settings; in the names of 2020 from an option for each setting.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.nix;
  atom = types.nullOr (types.oneOf [ types.bool types.int types.float types.str types.path types.package ]);
  show = v: if builtins.isList v then lib.concatMapStringsSep " " show v else lib.generators.mkValueStringDefault { } v;
  written = settings: lib.concatStrings (lib.mapAttrsToList (name: value: "${name} = ${show value}\n") settings);
  listOfStrings = default: mkOption { type = types.listOf types.str; inherit default; };
  # The machine has no build users and no network: it takes what is copied to it.
  noBuildUsers = "";
  names =
    if lib.isOf2020 then {
      options = {
        binaryCaches = listOfStrings [ ];
        binaryCachePublicKeys = listOfStrings [ ];
        trustedUsers = listOfStrings [ "root" ];
        requireSignedBinaryCaches = mkOption { type = types.bool; default = true; };
      };
      text = written {
        build-users-group = noBuildUsers;
        substituters = cfg.binaryCaches;
        trusted-public-keys = cfg.binaryCachePublicKeys;
        trusted-users = cfg.trustedUsers;
        require-sigs = cfg.requireSignedBinaryCaches;
      };
      config = { };
    }
    else {
      options.settings = mkOption {
        default = { };
        type = types.submodule {
          config._module.freeformType = types.attrsOf (types.either atom (types.listOf atom));
          options = {
            substituters = listOfStrings [ ];
            trusted-public-keys = listOfStrings [ ];
            trusted-users = listOfStrings [ "root" ];
            require-sigs = mkOption { type = types.bool; default = true; };
            sandbox = mkOption { type = types.either types.bool (types.enum [ "relaxed" ]); default = false; };
          };
        };
      };
      text = written cfg.settings;
      config.settings.build-users-group = lib.mkDefault noBuildUsers;
    };
in
{
  options.nix = {
    enable = mkOption { type = types.bool; default = true; };
    package = mkOption { type = types.package; default = pkgs.nix; };
    extraOptions = mkOption { type = types.lines; default = ""; };
  } // names.options;
  config = lib.mkIf cfg.enable {
    nix = names.config;
    environment.etc."nix/nix.conf".text = names.text + cfg.extraOptions;
  };
}
