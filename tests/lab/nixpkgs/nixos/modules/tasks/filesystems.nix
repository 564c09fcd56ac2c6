# fileSystems: those on disks that a machine is given are mounted, and made where they are missing; its root is its own,
# whatever is said of it. swapDevices: declared only.
#
# NixOS writes /etc/fstab, of which systemd makes units, but for devices in a container it makes none
# (systemd-fstab-generator(8)): so they are units here. A container has no units of devices to wait for, either.
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
  ofDisks = builtins.filter
    (fs: fs.mountPoint != "/" && fs.device != null && lib.hasPrefix "/dev/" fs.device)
    (lib.attrValues config.fileSystems);

  mount = fs: {
    what = fs.device;
    where = fs.mountPoint;
    type = fs.fsType;
    options = lib.concatStringsSep "," fs.options;
    before = [ "local-fs.target" ];
    ${if builtins.elem "nofail" fs.options then "wantedBy" else "requiredBy"} = [ "local-fs.target" ];
  };
  mkfs = fs:
    let mountUnit = "${lib.escapeSystemdPath fs.mountPoint}.mount";
    in lib.nameValuePair "mkfs-${lib.escapeSystemdPath fs.device}" {
      description = "A file system on ${fs.device}, if there is none";
      requiredBy = [ mountUnit ];
      before = [ mountUnit ];
      unitConfig.DefaultDependencies = false;
      serviceConfig.Type = "oneshot";
      script = ''
        test -b ${fs.device}
        if [ -z "$(/usr/sbin/blkid --probe --match-tag TYPE --output value ${fs.device})" ]; then
          /usr/sbin/mkfs.${fs.fsType} ${fs.device}
        fi
      '';
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
  config.systemd.mounts = map mount ofDisks;
  config.systemd.services = builtins.listToAttrs (map mkfs (builtins.filter (fs: fs.autoFormat) ofDisks));
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
