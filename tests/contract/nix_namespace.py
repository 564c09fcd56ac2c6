"""A mount namespace in which /nix is a folder of the test: the operator's store, as its pod has it.

The process in it is any user. Python and this checkout may lie under a home of mode 0700: they are shown there at their
own paths, under an otherwise empty home. Another root file system may be given, for another version of Nix: then only
these, Python and what the caller names are of this one.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# $1 store, $2 uid, $3 a folder for mounts on the way, then paths to keep visible, `--`, and the command.
_SCRIPT = r"""
store=$1 uid=$2 aside=$3
shift 3
mount --bind "$store" /nix
number=0
hide=
for path; do
  shift
  test "$path" != -- || break
  number=$((number + 1))
  mkdir "$aside/$number"
  mount --rbind "$path" "$aside/$number"
  set -- "$@"
  eval "kept_$number=\$path"
  top=/$(echo "$path" | cut -d/ -f2)
  case " $hide " in *" $top "*) ;; *) hide="$hide $top" ;; esac
done
for top in $hide; do mount -t tmpfs -o mode=0755 tmpfs "$top"; done
while test $number -gt 0; do
  eval "path=\$kept_$number"
  mkdir -p "$path"
  mount --move "$aside/$number" "$path"
  number=$((number - 1))
done
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all --no-new-privs "$@"
"""

# $1 root file system, $2 store, $3 uid, $4 a folder for mounts on the way, $5 where the dynamic linker has to look too,
# then paths to show, `--`, and the command.
# The root of the namespace is exchanged: in a mere chroot(2) the kernel lets nobody make a user namespace
# (kernel/user_namespace.c, `current_chrooted`), which bubblewrap has to.
_SCRIPT_IN_ROOT = r"""
lower=$1 store=$2 uid=$3 aside=$4 libraries=$5
shift 5
mount -t tmpfs -o mode=0755 tmpfs "$aside"
mkdir -m 0755 "$aside/changes" "$aside/work" "$aside/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$aside/changes,workdir=$aside/work" overlay "$aside/root"
root=$aside/root
mkdir -p "$root/nix" "$root/proc" "$root/dev" "$root/sys" "$root/before"
mount --bind "$store" "$root/nix"
for each in proc dev sys; do mount --rbind "/$each" "$root/$each"; done
for path; do
  shift
  test "$path" != -- || break
  if test -d "$path"; then
    mkdir -p "$root$path"
  else
    mkdir -p "$root${path%/*}"
    touch "$root$path"
  fi
  mount --rbind "$path" "$root$path"
  chmod a+x "$root/$(echo "$path" | cut -d/ -f2)"
done
echo "$libraries" >"$root/etc/ld.so.conf.d/python.conf"
/usr/sbin/chroot "$root" /sbin/ldconfig
here=$PWD
cd "$root"
/usr/sbin/pivot_root . before
cd "$here"
umount -l /before
rmdir /before
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all --no-new-privs "$@"
"""


def command(argv: Sequence[str], *, store: Path, uid: int, aside: Path) -> list[str]:
    """The command line that runs `argv` there. Needs root. `store` becomes /nix; `aside` is an empty folder."""
    make_mount_point()
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", _SCRIPT, "sh"),
        *(str(store), str(uid), str(aside)),
        *_hidden_from_others((Path(sys.base_prefix), Path(sys.prefix), REPOSITORY)),
        "--",
        *argv,
    ]


def command_in_root(
    root: Path, argv: Sequence[str], *, store: Path, uid: int, aside: Path, shown: Sequence[Path]
) -> list[str]:
    """As `command`, in the root file system `root`, which stays as it is. `shown`: what else is to be seen there, each
    at its own path; the working folder has to be among all that."""
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", _SCRIPT_IN_ROOT, "sh"),
        *(str(root), str(store), str(uid), str(aside), str(sysconfig.get_config_var("LIBDIR"))),
        *map(str, _outermost((*_python(), REPOSITORY, *shown))),
        "--",
        *argv,
    ]


def _python() -> list[Path]:
    """The environment and the installation below it; of Debian's own Python not all of /usr."""
    base = Path(sys.base_prefix)
    installed = [Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))] if base == Path("/usr") else [base]
    return [Path(sys.prefix), *installed]


def _outermost(paths: Sequence[Path]) -> list[Path]:
    return sorted({path for path in paths if not set(path.parents) & set(paths)})


def make_mount_point() -> None:
    """/nix, empty: Debian's nix-bin does not bring it, and a bind mount needs it."""
    Path("/nix").mkdir(exist_ok=True)


def _hidden_from_others(paths: Sequence[Path]) -> list[str]:
    """Those that lie under a folder which other users may not enter; none inside another."""
    hidden = {path for path in paths if any(not folder.stat().st_mode & 0o001 for folder in (path, *path.parents))}
    return sorted(str(path) for path in hidden if not hidden & set(path.parents))
