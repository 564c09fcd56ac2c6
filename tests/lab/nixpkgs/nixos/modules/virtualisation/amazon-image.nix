# What an EC2 instance needs: root file system, boot loader, sshd. A machine's configuration imports it
# as "${modulesPath}/virtualisation/amazon-image.nix".
{ lib, ... }:
{
  options.ec2 = {
    hvm = lib.mkOption { type = lib.types.bool; default = true; internal = true; };
    efi = lib.mkOption { type = lib.types.bool; default = false; internal = true; };
  };
  config = {
    fileSystems."/" = {
      device = "/dev/disk/by-label/nixos";
      fsType = "ext4";
      autoResize = true;
    };
    boot.growPartition = true;
    boot.kernelParams = [ "console=ttyS0,115200n8" "random.trust_cpu=on" "panic=1" "boot.panic_on_fail" ];
    boot.loader.grub.device = lib.mkDefault "/dev/xvda";
    boot.loader.timeout = 1;
    services.openssh.enable = true;
    services.openssh.settings.PermitRootLogin = "prohibit-password";
    networking.hostName = lib.mkDefault "";
  };
}
