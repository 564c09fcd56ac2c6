#!/bin/sh
# assemble.sh DEST [RELEASE]: makes the complete tree at DEST, valgrind's HTML manual included. RELEASE is written to its
# .version: with 20.09 its options and messages are those of 2020.
#
# The manual comes from Debian's `valgrind` package by way of apt, and is kept under
# ${XDG_CACHE_HOME:-~/.cache}/nixops-lab. DEST appears in one step and, for one version of the package,
# always with the same bytes; an older DEST is replaced.
set -eu
umask 022
[ $# -eq 1 ] || [ $# -eq 2 ] || { echo "usage: $0 DEST [RELEASE]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$1")"
dest=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nixops-lab

docs=$cache/valgrind-html
mkdir -p "$cache"
# Several labs may come up at once, none with the manual yet.
exec 9>"$cache/valgrind-html.lock"
flock 9
if [ ! -e "$docs/index.html" ]; then
  work=$(mktemp -d "$cache/valgrind.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # As root apt drops to user _apt for the download, who cannot enter a private cache.
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download valgrind >&2) || {
    echo "assemble.sh: cannot download Debian's valgrind package: run \`apt-get update\`, check the network" >&2
    exit 1
  }
  dpkg-deb -x "$work"/valgrind_*.deb "$work/root"
  [ -e "$work/root/usr/share/doc/valgrind/html/index.html" ] || { echo "assemble.sh: the package has no html/index.html" >&2; exit 1; }
  rm -rf "$docs"
  mv "$work/root/usr/share/doc/valgrind/html" "$docs"
fi
exec 9>&-

new=$dest.new.$$
rm -rf "$new"
mkdir -p "$new/pkgs/valgrind"
for part in .version default.nix lib lab nixos pkgs; do cp -R "$here/$part" "$new/"; done
cp -RL "$docs" "$new/pkgs/valgrind/html"
[ $# -eq 1 ] || printf '%s' "$2" >"$new/.version"
find "$new" -type d -exec chmod 0755 {} +
find "$new" -type f -exec chmod 0644 {} +
old=$dest.old.$$
[ ! -e "$dest" ] || mv -T "$dest" "$old"
mv -T "$new" "$dest"
rm -rf "$old"
