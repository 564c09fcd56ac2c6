# What the host needs to boot, as `nixos-generate-config --show-hardware-config` prints it there; replace it by yours.
{
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.grub.device = "/dev/sda";

  # Without it the host could not be reached after the switch.
  services.openssh.enable = true;

  # The release that NixOS was first installed with on the host, as its own /etc/nixos/configuration.nix says: it stays,
  # whatever the host is upgraded to.
  system.stateVersion = "25.11";
}
