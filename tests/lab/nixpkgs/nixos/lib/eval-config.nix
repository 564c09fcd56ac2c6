# A NixOS evaluation: { system, modules, specialArgs, extraArgs, baseModules, check, prefix, lib, pkgs, … }
# → { config, options, pkgs, lib, extendModules, _module }, as nixpkgs' nixos/lib/eval-config.nix.
{ system ? builtins.currentSystem
, modules
, specialArgs ? { }
, extraArgs ? { }
, extraModules ? [ ]
, baseModules ? import ../modules/module-list.nix
, check ? true
, prefix ? [ ]
, lib ? import ../../lib
, pkgs ? null
}:
let
  given = {
    _file = ./eval-config.nix;
    config = {
      _module.args = extraArgs // { inherit baseModules extraModules modules; };
      nixpkgs = lib.optionalAttrs (system != null) { system = lib.mkDefault system; }
        // lib.optionalAttrs (pkgs != null) { pkgs = lib.mkDefault pkgs; };
    };
  };
  evaluated = lib.evalModules {
    inherit prefix check;
    class = "nixos";
    specialArgs = { modulesPath = toString ../modules; } // specialArgs;
    modules = baseModules ++ extraModules ++ [ given ] ++ modules;
  };
  withExtras = result: {
    inherit (result) config options _module;
    inherit lib;
    inherit (result._module.args) pkgs;
    extendModules = arguments: withExtras (result.extendModules arguments);
  };
in
withExtras evaluated
