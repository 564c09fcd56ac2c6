#!/bin/sh
# A hook of mmdebstrap(1): installs one package of another release, with what it needs of that. dpkg runs as for what
# mmdebstrap installs itself. Arguments: folder of the root file system, PACKAGE/RELEASE.
set -eu
root=$1 name=${2%/*} release=${2#*/}
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG exec apt-get --yes --no-install-recommends --target-release="$release" \
  -oDir::Bin::dpkg=env -oDPkg::Options::=--unset=TMPDIR -oDPkg::Options::=dpkg -oDPkg::Chroot-Directory="$root" \
  install "$name"
