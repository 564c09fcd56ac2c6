# fileSystems and swapDevices: declared and checked; the lab's machine brings its own disk.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  fileSystem = { name, ... }: {
    options = {
      mountPoint = mkOption { type = types.str; default = name; };
      device = mkOption { type = types.nullOr types.str; default = null; };
      label = mkOption { type = types.nullOr types.str; default = null; };
      fsType = mkOption { type = types.str; default = "auto"; };
      options = mkOption { type = types.listOf types.str; default = [ "defaults" ]; };
      autoResize = mkOption { type = types.bool; default = false; };
      autoFormat = mkOption { type = types.bool; default = false; };
      neededForBoot = mkOption { type = types.bool; default = false; };
      noCheck = mkOption { type = types.bool; default = false; };
      depends = mkOption { type = types.listOf types.str; default = [ ]; };
    };
  };
in
{
  options = {
    fileSystems = mkOption {
      type = (if lib.isOf2020 then types.loaOf else types.attrsOf) (types.submodule fileSystem);
      default = { };
    };
    swapDevices = mkOption { type = types.listOf types.attrs; default = [ ]; };
  };
  config.assertions = [
    {
      assertion = config.fileSystems ? "/";
      message = "The ‘fileSystems’ option does not specify your root file system.";
    }
    {
      assertion = lib.all (fs: fs.device != null || fs.label != null || fs.fsType == "tmpfs") (lib.attrValues config.fileSystems);
      message = "A file system in ‘fileSystems’ names neither a device nor a label.";
    }
  ];
}
