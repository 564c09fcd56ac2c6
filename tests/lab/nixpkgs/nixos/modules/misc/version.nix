# system.stateVersion, system.nixos.*, and /etc/os-release.
{ config, lib, options, ... }:
let
  cfg = config.system.nixos;
  inherit (lib) mkOption types;
in
{
  options.system = {
    stateVersion = mkOption {
      type = types.str;
      default = cfg.release;
      description = "The release whose defaults the machine's stateful data were made with.";
    };
    configurationRevision = mkOption { type = types.nullOr types.str; default = null; };
    nixos = {
      release = mkOption { type = types.str; default = lib.trivial.release; };
      versionSuffix = mkOption { type = types.str; default = lib.trivial.versionSuffix; internal = true; };
      version = mkOption { type = types.str; default = cfg.release + cfg.versionSuffix; internal = true; };
      codeName = mkOption { type = types.str; default = lib.trivial.codeName; readOnly = true; };
      tags = mkOption { type = types.listOf types.str; default = [ ]; };
      label = mkOption {
        type = types.strMatching "[a-zA-Z0-9:_\\.-]*";
        default = lib.concatStringsSep "-" (lib.naturalSort cfg.tags ++ [ cfg.version ]);
      };
      distroId = mkOption { type = types.str; default = "nixos"; internal = true; };
      distroName = mkOption { type = types.str; default = "NixOS"; internal = true; };
    };
  };
  config = {
    warnings = lib.optional (!lib.isOf2020 && options.system.stateVersion.highestPrio == 1500)
      "system.stateVersion is not set, defaulting to ${config.system.stateVersion}. Read why this matters on https://nixos.org/manual/nixos/stable/options.html#opt-system.stateVersion.";
    environment.etc."os-release".text = ''
      ANSI_COLOR="0;38;2;126;186;228"
      BUILD_ID="${cfg.version}"
      DEFAULT_HOSTNAME=nixos
      ID=${cfg.distroId}
      ID_LIKE=""
      NAME=${cfg.distroName}
      PRETTY_NAME="${cfg.distroName} ${cfg.release} (${cfg.codeName})"
      VERSION="${cfg.release} (${cfg.codeName})"
      VERSION_CODENAME=${lib.toLower cfg.codeName}
      VERSION_ID="${cfg.release}"
    '';
  };
}
