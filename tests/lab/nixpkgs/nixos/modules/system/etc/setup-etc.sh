#!/bin/bash
# Brings /etc in line with $1/etc and $1/manifest (lines TARGET|MODE|USER|GROUP; mode `symlink` or octal).
# Safe to repeat and to cut: the manifest names a file before the file is there.
set -u
new=$1
etc=${NIXOS_ETC:-/etc}
state=${NIXOS_STATE:-/var/lib/nixos}
mkdir -p "$state/etc-saved" "$etc"
old=$state/etc-manifest
touch "$old"
failed=0

declare -A wanted=() ours=()
while IFS='|' read -r target _; do wanted[$target]=1; done <"$new/manifest"
while read -r target; do ours[$target]=1; done <"$old"
{
  printf '%s\n' "${!ours[@]}" "${!wanted[@]}" | sed '/^$/d' | sort -u
} >"$old.new" && mv "$old.new" "$old"

ln -sfn "$new/etc" "$etc/.static.new" && mv -T "$etc/.static.new" "$etc/static"

# Debian's file makes room once; what an earlier generation put there is not kept.
set_aside() {
  local target=$1 file=$etc/$1
  [ -e "$file" ] || [ -L "$file" ] || return 0
  [ -z "${ours[$target]-}" ] || return 0
  mkdir -p "$state/etc-saved/$(dirname "$target")"
  mv -T "$file" "$state/etc-saved/$target"
}

while IFS='|' read -r target mode user group; do
  file=$etc/$target
  if [ -d "$file" ] && [ ! -L "$file" ]; then
    echo "warning: /etc/$target is a folder: it stays, the file of this system is not linked" >&2
    failed=1
    continue
  fi
  [ -d "${file%/*}" ] || mkdir -p "${file%/*}"
  if [ "$mode" = symlink ]; then
    [ -L "$file" ] && [ "$(readlink "$file")" = "/etc/static/$target" ] && continue
    set_aside "$target"
    ln -s "/etc/static/$target" "$file.nixos-new" && mv -fT "$file.nixos-new" "$file" || failed=1
  else
    if [ ! -L "$file" ] && [ -f "$file" ] && [ -n "${ours[$target]-}" ] && cmp -s "$new/etc/$target" "$file"; then :; else
      set_aside "$target"
      cp --remove-destination "$new/etc/$target" "$file.nixos-new" && mv -fT "$file.nixos-new" "$file" || failed=1
    fi
    chmod "$mode" "$file" && chown "$user:$group" "$file" || failed=1
  fi
done <"$new/manifest"

for target in "${!ours[@]}"; do
  [ -z "${wanted[$target]-}" ] || continue
  rm -f "$etc/$target"
  if [ -e "$state/etc-saved/$target" ] || [ -L "$state/etc-saved/$target" ]; then
    mkdir -p "$(dirname "$etc/$target")"
    mv -T "$state/etc-saved/$target" "$etc/$target"
  else
    folder=$(dirname "$target")
    # An empty `.wants` folder of ours goes with its last link; others may belong to Debian.
    case $folder in *.wants | *.requires) rmdir --ignore-fail-on-non-empty "$etc/$folder" 2>/dev/null || true ;; esac
  fi
done

if [ "${#wanted[@]}" -gt 0 ]; then printf '%s\n' "${!wanted[@]}" | sort; fi >"$old.new"
mv "$old.new" "$old"
exit $failed
