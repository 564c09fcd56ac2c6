#!/bin/bash
# inside.sh LOWER NODE NAME ADDRESS: the node's first process, in mount, pid, cgroup, uts and ipc namespaces of its own.
#   LOWER    a root file system with containerd and what it needs; read-only
#   NODE     the node's folder: etc/ is laid over LOWER's, images/ are imported, containerd/, kubelet/ and log/ are kept
set -euo pipefail
lower=$1 node=$2 name=$3 address=$4
root=$node/root
mount --make-rprivate /
mkdir -p "$root" "$node"/{upper,work,containerd,kubelet,log,images}
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$node/upper,workdir=$node/work" "$root"
mkdir -p "$root"/{images,var/lib/containerd,var/lib/kubelet,var/log}
# What holds overlays of its own cannot lie on one.
for place in containerd kubelet; do mount --bind "$node/$place" "$root/var/lib/$place"; done
mount --bind "$node/log" "$root/var/log"
mount --bind -o ro "$node/images" "$root/images"
cp -r "$node/etc/." "$root/etc/"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  # The root of the namespace may hold no processes once it offers controllers (kernel, cgroup-v2.rst).
  mkdir "$root/sys/fs/cgroup/init"
  xargs -rn1 <"$root/sys/fs/cgroup/cgroup.procs" >"$root/sys/fs/cgroup/init/cgroup.procs" || true
  sed 's/ / +/g; s/^/+/' "$root/sys/fs/cgroup/cgroup.controllers" >"$root/sys/fs/cgroup/cgroup.subtree_control"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  awk '$3 == "cgroup" { print $2 }' /proc/self/mounts | grep '^/sys/fs/cgroup/' | while read -r hierarchy; do
    controller=${hierarchy##*/}
    option=$controller
    if [ "$controller" = systemd ]; then option=none,name=systemd; fi
    mkdir -p "$root/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$option" cgroup "$root/sys/fs/cgroup/$controller"
  done
fi
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root"/run/{lock,old,proc}
mount -t tmpfs tmpfs "$root/tmp"
# The kubelet sets tunables of the whole machine (pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables) unless
# they are as it wants them: it is shown them so. The second /proc stays whole: while one is covered in part, the kernel
# lets no user namespace mount its own (mount_too_revealing() in fs/namespace.c).
mount -t proc proc "$root/run/proc"
for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=${tunable%=*} value=${tunable#*=}
  [ "$(cat "/proc/sys/$file")" = "$value" ] || {
    shown=$root/run/tunable-${file//\//.}
    echo "$value" >"$shown"
    mount --bind "$shown" "$root/proc/sys/$file"
  }
done
hostname "$name"
# Not chroot: `kubectl exec` joins the mount namespace by setns(2), which leads to the namespace's own root.
cd "$root"
pivot_root . run/old
cd /
umount --lazy /run/old
mount --make-rshared /
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

containerd >/var/log/containerd.log 2>&1 &
kubeconfig=/etc/kubernetes/scheduler.kubeconfig
kube-scheduler --kubeconfig=$kubeconfig --authentication-kubeconfig=$kubeconfig --authorization-kubeconfig=$kubeconfig \
  --bind-address=127.0.0.1 --leader-elect=false >/var/log/kube-scheduler.log 2>&1 &
until [ -S /run/containerd/containerd.sock ] && ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in /images/*.tar; do ctr --namespace=k8s.io images import --local "$image"; done >/var/log/import.log 2>&1
kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
  --hostname-override="$name" --node-ip="$address" --v=2 >/var/log/kubelet.log 2>&1 &
# One of them ended: so does the node.
wait -n
