# What the host needs to boot, as `nixos-generate-config --show-hardware-config` prints it there; replace it by yours.
{
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.grub.device = "/dev/sda";

  # Without it the host could not be reached after the switch.
  services.openssh.enable = true;
}
