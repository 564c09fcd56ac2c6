"""A mount namespace in which /nix is a folder of the test: the operator's store, as its pod has it.

The process in it is any user. Python and this checkout may lie under a home of mode 0700: they are shown there at their
own paths, under an otherwise empty home.
"""

from __future__ import annotations

import sys
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


def make_mount_point() -> None:
    """/nix, empty: Debian's nix-bin does not bring it, and a bind mount needs it."""
    Path("/nix").mkdir(exist_ok=True)


def _hidden_from_others(paths: Sequence[Path]) -> list[str]:
    """Those that lie under a folder which other users may not enter; none inside another."""
    hidden = {path for path in paths if any(not folder.stat().st_mode & 0o001 for folder in (path, *path.parents))}
    return sorted(str(path) for path in hidden if not hidden & set(path.parents))
