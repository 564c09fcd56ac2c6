"""What the two boxes have in common: their interface, their limits, and the program that evaluates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from nixops_operator.errors import OperatorError


class BoxKind(StrEnum):
    """As in the settings."""

    LANDLOCK = "Landlock"
    NAMESPACES = "Namespaces"


@dataclass(frozen=True)
class EvaluationLimits:
    """Of one evaluation. Real systems take 0.5-4.5 GB and up to 46 s of CPU."""

    memory: int = 4 * 1024**3  # bytes of address space, of each process
    timeout: timedelta = timedelta(minutes=5)
    cpu: timedelta = timedelta(minutes=4)
    disk: int = 256 * 1024**2  # bytes of the files that it makes, derivations and its store's data base among them
    processes: int = 256  # with their threads; the collector of Nix has one thread per processor

    @property
    def disk_message(self) -> str:
        return f"the evaluation makes more than {self.disk // 1024**2} MiB of files (setting nix.evaluation.disk)"


@dataclass
class Running:
    """A program in a box. `root`: what it puts before store paths, where they mean its own store. `known`: paths of
    its store that an earlier evaluation of the tenant brought into ours; it exports all others. Who takes in what it
    exports adds them. `over`: what to raise of a limit that the box itself ended the program for."""

    process: asyncio.subprocess.Process
    root: str = ""
    known: set[str] = field(default_factory=set)
    over: OperatorError | None = None


ENVIRONMENT = frozenset(
    {
        *("PATH", "HOME", "USER", "TMPDIR", "NIX_CONF_DIR", "NIX_REMOTE", "GC_NPROCS", "IN", "OUT", "GUARD"),
        *("PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"),  # of shells and interpreters
    }
)
"""Names of the variables that there are in a box, none of them the operator's."""


class Box(Protocol):
    """Evaluates nothing before `probe.probe` said that it holds."""

    @property
    def kind(self) -> BoxKind: ...

    def run(
        self, command: Sequence[str] | None, sources: Sequence[str], registration: bytes, tenant: str | None
    ) -> AbstractAsyncContextManager[Running]:
        """A program with three pipes. On leaving, nothing of it runs any more, and its files are gone, but for what is
        kept for this tenant's next; that goes, too, if the caller leaves with an error.

        `command`: None for EVALUATION; or a program in the place of Nix, as if Nix had been broken into. `sources`:
        store paths that it may read. `registration`: what `nix-store --dump-db` says of them. `tenant`: None for a
        store of its own.

        Raises OSError if it could not be started, Retry if the sources could not be laid into the box.
        """
        ...

    async def forget(self) -> None:
        """Remove what it keeps for other times, of sources and of stores. Nothing runs in it meanwhile."""
        ...

    def not_made(self, said: str) -> bool:
        """Whether a program's last word is that of a box that could not be made."""
        ...


# By default Nix reads host files, environment and network in evaluation, and runs builders for it; each line shuts one.
EVALUATOR_CONF = """\
build-users-group =
experimental-features =
# No host file, environment variable or current system; fetchers need a hash.
pure-eval = true
# Only what is in the store and allowed; no address at all.
restrict-eval = true
allowed-uris =
# A builder in the middle of an evaluation would see what an evaluation must not.
allow-import-from-derivation = false
max-jobs = 0
builders =
substituters =
substitute = false
flake-registry =
use-registries = false
accept-flake-config = false
plugin-files =
show-trace = true
# The data base lives as long as the box: it need not outlive a power cut, and a log beside it only takes room.
fsync-metadata = false
use-sqlite-wal = false
gc-reserved-space = 0
"""

# stdin: the expression. stdout: the value as one line of JSON; the store paths that are not known, one a line,
# references first; an empty line; exports that hold them in that order, a thousand each, because a command line takes
# no more than some 20,000. Nothing at all if the evaluation failed. An error leaves half a JSON behind: only the exit
# status counts. Nix ends the JSON's line itself from 2.20 on; without that, sed leaves the line that it writes open.
#
# $IN holds `registration`, `sources` and `known` (paths, one a line), $OUT is a place for this script's own files. "$@"
# is put before each program that meets the expression or what came of it, $GUARD before what would outlive the script.
#
# The last lines of stderr are CPU_MARK and what the shell's `times` says. The kernel kills who is over the limit of CPU
# with the same signal as who is in its way when memory ends: the milder SIGXCPU is taken, by Nix' garbage collector.
CPU_MARK = "@cpu"
_SCRIPT = r"""
set -e
trap 'echo @cpu >&2; times >&2' EXIT
if test -s "$IN/registration"; then "$@" nix-store --load-db <"$IN/registration"; fi
"$@" nix-instantiate --eval --strict --json --read-write-mode --log-format internal-json - >"$OUT/value"
sed -e h -e 's/^{"drvPath":"\([^"]*\)".*/\1/w '"$OUT/drv" -e g -e '$a\' "$OUT/value"
if test -s "$OUT/drv"; then
  read -r drv <"$OUT/drv" || test -n "$drv"
  "$@" nix-store --query --requisites "$drv" >"$OUT/closure"
  cat "$IN/sources" "$IN/known" | grep -vxFf - "$OUT/closure" >"$OUT/new" || test $? = 1
  cat "$OUT/new"
  echo
  $GUARD xargs -r -n 1000 "$@" nix-store --export <"$OUT/new"
fi
"""
EVALUATION = ("sh", "-c", _SCRIPT, "sh")
"""Its further arguments are what is put before each program of Nix."""
