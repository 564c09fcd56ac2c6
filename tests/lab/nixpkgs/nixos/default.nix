# nix-build '<nixpkgs/nixos>': { configuration, system } → { config, options, pkgs, system }.
{ configuration, system ? builtins.currentSystem }:
let evaluated = import ./lib/eval-config.nix { inherit system; modules = [ configuration ]; };
in { inherit (evaluated) config options pkgs; system = evaluated.config.system.build.toplevel; }
