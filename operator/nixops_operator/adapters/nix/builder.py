"""The builder's sandbox, as a command line.

It has the operator's store, and Nix' own sandbox inside this one shows each build only its inputs. What a build may
take says limits.py; what it writes is not counted: see disk.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nixops_operator.adapters.nix.bubblewrap import PROCESSES, ROOT_PROCESSES, SHUT, SHUT_OFF
from nixops_operator.adapters.nix.limits import FIRST_TO_GO


def builder_conf(*, max_jobs: int, silent_seconds: int, log_bytes: int, sandbox_paths: Sequence[str]) -> str:
    """nix.conf of the builders."""
    return f"""\
build-users-group =
experimental-features =
max-jobs = {max_jobs}
builders =
substituters =
substitute = false
plugin-files =
# Each build in namespaces of its own, with only its inputs: it can change neither the store nor another build.
sandbox = true
sandbox-fallback = false
sandbox-paths = {" ".join(sandbox_paths)}
max-silent-time = {silent_seconds}
max-build-log-size = {log_bytes}
# Collecting garbage is a decision; it does not happen in the middle of a build.
min-free = 0
"""


def builder(
    *, memory: int, processes: int, scratch: Path, conf_fd: int, is_root: bool, command: Sequence[str]
) -> list[str]:
    """The command line of one build.

    `memory`: bytes of data of each process. `processes`: with their threads, of the whole build. `scratch`: an existing
    private folder, on a disk that has room for builds. `is_root`: whether root runs it.
    """
    return [
        *FIRST_TO_GO,
        *("prlimit", f"--data={memory}", "--core=0", "--"),
        *(ROOT_PROCESSES if is_root else PROCESSES),
        *SHUT_OFF,
        *("--ro-bind-data", str(conf_fd), "/conf/nix.conf"),
        *("--bind", str(scratch), "/tmp"),  # noqa: S108 - the sandbox' own
        *("--bind", "/nix", "/nix"),
        *SHUT,
        "--",
        *("prlimit", f"--nproc={processes}", "--"),
        *command,
    ]
