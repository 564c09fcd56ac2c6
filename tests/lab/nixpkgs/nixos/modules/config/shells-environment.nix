# environment.{variables,shellAliases}: a profile for login shells, with the system's programs in PATH.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.environment = {
    variables = mkOption { type = types.attrsOf (types.oneOf [ types.int types.str types.path ]); default = { }; };
    shellAliases = mkOption { type = types.attrsOf types.str; default = { }; };
  };
  config.environment.etc."profile.d/nixos.sh".text = ''
    export PATH=/root/.nix-profile/bin:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:$PATH
  ''
  + lib.concatStrings (lib.mapAttrsToList (name: value: "export ${name}=${lib.escapeShellArg value}\n") config.environment.variables)
  + lib.concatStrings (lib.mapAttrsToList (name: value: "alias ${name}=${lib.escapeShellArg value}\n") config.environment.shellAliases);
}
