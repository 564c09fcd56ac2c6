#!/bin/sh
# Makes the layer between Debian and the machines' own disks: the lab's settings and the base systems, built and registered.
# Runs in a mount and a network namespace of its own. Arguments: folder (with layer/, work/, mnt/), Debian root, settings,
# nixpkgs, releases. Writes systems.json into the folder: {release: {kind: toplevel}}.
set -eu
umask 022
folder=$1 debian=$2 settings=$3 nixpkgs=$4
shift 4
root=$folder/mnt
mount -t overlay overlay -o "lowerdir=$debian,upperdir=$folder/layer,workdir=$folder/work" "$root"
cp -R --no-preserve=ownership "$settings/." "$root/"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/nixpkgs"
mount --bind -o ro "$nixpkgs" "$root/run/nixpkgs"

inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin NIX_REMOTE=local "$@"; }

# Each machine has its own.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/var/lib/systemd/random-seed" "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
inside systemctl --quiet enable apply-ec2-data.service
# What a machine of the lab has no use for, and would wait for at boot or at power-off.
inside systemctl --quiet mask systemd-logind.service console-getty.service getty.target getty-static.service \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-journal-flush.service systemd-random-seed.service \
  systemd-pstore.service systemd-user-sessions.service fstrim.timer dpkg-db-backup.timer e2scrub_all.timer \
  dev-hugepages.mount sys-fs-fuse-connections.mount grub-common.service modprobe@.service systemd-networkd.service systemd-networkd.socket

separator='{'
for release; do
  printf '%s"%s": {' "$separator" "$release"
  inner=
  for kind in ec2 host; do
    expression="((import /run/nixpkgs/lab/base-systems.nix).forRelease \"$release\").$kind"
    printf '%s"%s": "%s"' "$inner" "$kind" "$(inside nix-build --no-out-link --expr "$expression")"
    inner=', '
  done
  printf '}'
  separator=', '
done >"$folder/systems.json"
printf '}\n' >>"$folder/systems.json"
rm -rf "$root/root/.cache"
