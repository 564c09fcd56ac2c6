# The package set: { system ? …, config ? { }, overlays ? [ ] } → pkgs.
#
# Almost every package is a set of links to the programs of the Debian machine that the system runs on:
# the store path is real, is copied and activated as on NixOS, and weighs nothing.
{ system ? localSystem.system
, localSystem ? { system = builtins.currentSystem; }
, config ? { }
, overlays ? [ ]
, ...
}:
let
  lib = import ./lib;
  firstOverlay = final: _: import ./pkgs/builders.nix { inherit lib system; pkgs = final; };
  packages = final: _: import ./pkgs/packages.nix { inherit lib; pkgs = final; };
  root = _: _: {
    inherit lib system config overlays;
    path = ./.;
  };
  layers = [ root firstOverlay packages ] ++ overlays;
  pkgs = builtins.foldl' (prev: overlay: prev // overlay pkgs prev) { } layers;
in
pkgs
