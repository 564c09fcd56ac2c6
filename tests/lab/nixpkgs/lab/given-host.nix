# The configuration of the lab's given host, hardware included, as nixos-generate-config would leave it.
{
  fileSystems."/" = { device = "/dev/vda1"; fsType = "ext4"; };
  boot.loader.grub.enable = true;
  boot.loader.grub.device = "/dev/vda";
  networking.hostName = "given-host";
  services.openssh.enable = true;
}
