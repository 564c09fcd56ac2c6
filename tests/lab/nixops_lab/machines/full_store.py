"""Shell scripts that leave a running machine without room in /nix, and make room again. It moves to a file system in
memory, whose size and inodes can be changed at any time, and is there until the machine restarts."""

_TO_MEMORY = """set -eu
if ! mountpoint --quiet /nix; then
  mkdir -p /mnt/nix
  mount -t tmpfs -o size=2g,nr_inodes=500k,mode=755 tmpfs /mnt/nix
  cp -a /nix/. /mnt/nix
  mount --bind /mnt/nix /nix
fi
"""

NO_BYTE = f"""{_TO_MEMORY}
mount -o "remount,size=$(df --output=used -k /nix | tail -n 1 | tr -d ' ')k" /nix
"""
NO_INODE = f"""{_TO_MEMORY}
mount -o "remount,nr_inodes=$(df --output=iused /nix | tail -n 1 | tr -d ' ')" /nix
"""
FEW_BYTES = f"""{_TO_MEMORY}
mount -o "remount,size=$(($(df --output=used -k /nix | tail -n 1) + 64))k" /nix
"""
FEW_INODES = f"""{_TO_MEMORY}
mount -o "remount,nr_inodes=$(($(df --output=iused /nix | tail -n 1) + 20))" /nix
"""
ROOM = "mount -o remount,size=2g,nr_inodes=500k /nix"
