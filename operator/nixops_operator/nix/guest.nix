# What every machine gets besides its own modules.
#
# request (see entry.nix)  →  NixOS module
request:
{
  config,
  lib,
  pkgs,
  modulesPath,
  ...
}:
let
  # Options of NixOps' deployment.keys that hold a secret, or the way to one (NixOps manual, "Managing keys").
  secretOptions = [
    "text"
    "keyFile"
    "keyCommand"
  ];
  keysWithContent = lib.filter (
    key:
    let
      given = config.deployment.keys.${key};
    in
    lib.isAttrs given && lib.any (option: (given.${option} or null) != null) secretOptions
  ) (lib.attrNames (config.deployment.keys or { }));
in
{
  _file = "the guest module of nixops-operator";

  # File systems, boot loader and sshd of an EC2 machine, as NixOps' EC2 backend imports them.
  imports = lib.optional request.isEc2 "${modulesPath}/virtualisation/amazon-image.nix";

  # A configuration written for NixOps evaluates unchanged.
  options.deployment = lib.mkOption {
    type = lib.types.submodule { freeformType = lib.types.attrsOf lib.types.anything; };
    default = { };
    description = "Options of NixOps. They have no effect: the NixMachine says where and how a machine is deployed.";
  };

  config = {
    assertions = map (key: {
      assertion = false;
      message = "deployment.keys.${key} gives the content of a key in Nix, where it would become world-readable in the store: remove it";
    }) keysWithContent;

    warnings = lib.optional (config.deployment != { })
      "deployment.{${lib.concatStringsSep ", " (lib.attrNames config.deployment)}} of NixOps has no effect: the NixMachine's spec decides";

    # Lets the host tell of a changed system by itself, instead of being asked.
    environment.systemPackages = [ pkgs.inotify-tools ];

    nix.settings.trusted-public-keys = [ request.trustedPublicKey ];

    # Weaker than a plain definition (100), stronger than a default (1000): NixOps' own priority for it.
    networking.hostName = lib.mkOverride 900 request.name;

    system.stateVersion = lib.mkDefault request.stateVersion;
  };
}
