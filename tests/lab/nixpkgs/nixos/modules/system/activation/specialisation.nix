# specialisation.<name>.configuration: variants of the system, under `specialisation/` of the toplevel.
{ lib, config, extendModules, ... }:
let
  inherit (lib) mkOption types;
  variant = types.submodule ({ config, ... }: {
    options = {
      inheritParentConfig = mkOption { type = types.bool; default = true; };
      configuration = mkOption { type = types.deferredModule; default = { }; };
    };
  });
  # A variant has no variants of its own.
  toplevel = v: (extendModules { modules = [ v.configuration { specialisation = lib.mkOverride 0 { }; } ]; }).config.system.build.toplevel;
in
{
  options.specialisation = mkOption { type = types.attrsOf variant; default = { }; };
  options.system.build.specialisations = mkOption { type = types.attrsOf types.package; internal = true; };
  config.assertions = lib.mapAttrsToList
    (name: v: { assertion = v.inheritParentConfig; message = "specialisation.${name}: the miniature nixpkgs only has variants that inherit their parent's configuration."; })
    config.specialisation;
  config.system.build.specialisations = builtins.mapAttrs (_: toplevel) config.specialisation;
}
