#!/bin/bash
# make.sh TOOLS STORAGE BASE WORK CONTEXT NAME [FOLDER:PLACE…]: builds the Dockerfile in CONTEXT as image NAME.
# Called in mount and pid namespaces of its own: what it mounts ends with it. Needs root.
#   TOOLS    a root file system with buildah; an own layer in memory lies over it
#   STORAGE  buildah's images and layers; kept, so that a step whose inputs are the same is not done again
#   BASE     the base image's root file system, in a folder that is named after its content
#   WORK     a folder: id, image.tar and root/ come into it, as far as the files want-archive and want-root lie there
#   FOLDER   in WORK, mounted at PLACE while the Dockerfile's commands run
set -euo pipefail
tools=$1 storage=$2 base=$3 work=$4 context=$5 name=$6
shift 6
say() { echo "I: $*"; }
over=$work/over
mkdir -p "$over" "$storage"
mount -t tmpfs tmpfs "$over"
mkdir "$over/upper" "$over/work" "$over/root"
root=$over/root
mount -t overlay overlay -o "lowerdir=$tools,upperdir=$over/upper,workdir=$over/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mkdir -p "$root/base" "$root/context" "$root/storage" "$root/scratch"
mount --bind -o ro "$base" "$root/base"
mount --bind -o ro "$context" "$root/context"
mount --bind "$storage" "$root/storage"
mount --bind "$work" "$root/scratch"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/hosts "$root/etc/hosts"

# chroot: the weakest isolation, and the only one that needs nothing of the machine. What runs is Debian's and ours.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay _CONTAINERS_USERNS_CONFIGURED='' TMPDIR=/scratch/tmp HOME=/root
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$work/tmp"
b() { chroot "$root" buildah --root /storage/root --runroot /storage/run "$@"; }

base_name=docker.io/library/debian:trixie-slim
if [ "$(cat "$storage/base" 2>/dev/null || true)" != "${base##*/}" ]; then
  say "base image $base_name"
  container=$(b from scratch)
  b add --quiet "$container" /base / >/dev/null
  b config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$container"
  b commit --quiet --rm "$container" "$base_name" >/dev/null
  echo "${base##*/}" >"$storage/base"
fi

volumes=()
for volume; do volumes+=("--volume=/scratch/${volume%%:*}:${volume#*:}"); done
# Limits as they are here: buildah would raise them, which takes a capability that root in a container lacks.
limits=("--ulimit=nofile=$(ulimit -Sn):$(ulimit -Hn)" "--ulimit=nproc=$(ulimit -Su):$(ulimit -Hu)")
b build --layers --pull=never --network=host "${limits[@]//unlimited/-1}" "${volumes[@]}" \
  --tag "$name" --file /context/Dockerfile /context 2>&1 |
  sed --unbuffered --regexp-extended 's/^(\[[0-9/]+\] )?STEP (.{1,90}).*/I: step \2/'
b images --quiet "$name" >"$work/id"

if [ -e "$work/want-root" ]; then
  say "its root file system"
  container=$(b from --pull=never "$name")
  mkdir "$work/root"
  cp --archive --reflink=auto "$root$(b mount "$container")/." "$work/root/"
  b umount "$container" >/dev/null
  b rm "$container" >/dev/null
fi
if [ -e "$work/want-archive" ]; then
  say "its archive"
  b push --quiet --disable-compression "$name" "oci-archive:/scratch/image.tar:$name"
fi
rm -r "$work/tmp"
umount --recursive "$over"
rmdir "$over"
