# What every machine gets besides its own modules.
#
# request (see entry.nix)  →  NixOS module
#
# Serves every nixpkgs from 20.09 on. What a release calls something is seen from the options and functions that its
# tree has, never from its number: between releases, and in forks, the number says nothing.
request:
{
  lib,
  options,
  pkgs,
  modulesPath,
  ...
}:
let
  stateVersion =
    if request.stateVersion != null then
      request.stateVersion
    else
      throw "system.stateVersion is not set, and a host that was not made by the operator cannot be asked for it: say in a module with which release its NixOS was first installed, as in system.stateVersion = \"${lib.trivial.release}\"";
in
{
  _file = "the guest module of nixops-operator";

  # File systems, boot loader and sshd of an EC2 machine, as NixOps' EC2 backend imports them.
  imports = lib.optional request.isEc2 "${modulesPath}/virtualisation/amazon-image.nix";

  config = {
    # Lets the host tell of a changed system by itself, instead of being asked.
    environment.systemPackages = [ pkgs.inotify-tools ];

    # nix.settings is of 22.05 (NixOS manual, "Release 22.05"); before, each setting had an option of its own.
    nix =
      if options.nix ? settings then
        { settings.trusted-public-keys = [ request.trustedPublicKey ]; }
      else
        { binaryCachePublicKeys = [ request.trustedPublicKey ]; };

    # Weaker than a plain definition (100), stronger than a default (1000): NixOps' own priority for it.
    networking.hostName = lib.mkOverride 900 request.name;

    # Between the option's own default (1500) and mkDefault (1000), with which modules of nixpkgs define it
    # (nixos/modules/installer/cd-dvd/installation-cd-base.nix): two that are equally strong would conflict.
    system.stateVersion = lib.mkOverride 1400 stateVersion;
  };
}
