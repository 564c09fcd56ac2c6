#!/bin/sh
# One boot of one machine. Runs in a mount and a network namespace of its own and becomes systemd-nspawn, so all that it
# mounts goes with it. Arguments: folder of the machine, root file system, name, host name, private address, gateway, how
# many disks it has, these, and the machine's cgroups.
set -eu
folder=$1 root=$2 name=$3 host=$4 address=$5 gateway=$6
left=$7
shift 7
disks=
while [ "$left" -gt 0 ]; do disks="$disks $1"; left=$((left - 1)); shift; done
for cgroup; do echo $$ >"$cgroup/cgroup.procs"; done
echo ready
read -r plugged # the wire is there
exec >>"$folder/console" 2>&1 </dev/null
mount -t overlay overlay -o "lowerdir=$root/layer:$root/debian,upperdir=$folder/disk,workdir=$folder/work" "$folder/root"
# Where /run is no tmpfs, nspawn refuses to clean up here after itself.
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
ip link set lo up
ip address add "$address/32" dev eth0
ip link set eth0 up
ip route add default via "$gateway" dev eth0 onlink
# --keep-unit, --register=no: there may be no systemd outside. A prepared network namespace costs CAP_NET_ADMIN unless
# asked for (systemd-nspawn(1), --private-network).
exec systemd-nspawn --quiet --register=no --keep-unit --machine="$name" --hostname="$host" --directory="$folder/root" \
  --network-namespace-path=/proc/self/ns/net --capability=CAP_NET_ADMIN --kill-signal=SIGRTMIN+4 \
  --resolv-conf=off --timezone=off --link-journal=no --console=read-only /sbin/lab-init $disks
