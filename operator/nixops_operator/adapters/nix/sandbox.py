"""The two sandboxes, as command lines: one for evaluation, one for builds. Both from bubblewrap(1) and prlimit(1).

Neither has a network, the caller's environment, its processes or its files. The evaluator does not even have the
store: its /nix is empty but for its sources, read-only, and what it makes comes out as a stream (see exported.py).
A builder has the store, and Nix' own sandbox inside this one shows each build only its inputs.

What they may take, without any right to make control groups, of which the operator's pod has but the one it lives in:

    memory      of each process: address space of an evaluation (RLIMIT_AS), data of a builder (RLIMIT_DATA; runtimes
                such as those of Go and Java reserve address space that they never use). All processes together are
                held by the pod's limit alone; its killer finds them before the operator (choom(1)), where it may
                choose: with cgroup v2 Kubernetes lets it take the whole container (`memory.oom.group`).
    processes   and threads of one sandbox (RLIMIT_NPROC; set inside the user namespace, where Linux 5.14 and newer
                count what runs in it and below, and not all of that user's). For root the kernel counts none.
    time        CPU and wall of an evaluation; wall and silence of a build.
    disk        evaluations write to memory of a bounded size. What builds write is not counted: see disk.py.
    output      of an evaluation, and the log of each build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EVALUATOR_DISK = 256 * 1024**2
"""Bytes of /nix and of /tmp in an evaluator's memory-backed file systems, each, and of one file that it writes."""

_EVALUATOR_PROCESSES = 256  # the collector of Nix has one thread per processor
_HOME_SIZE = 16 * 1024**2  # bytes of the home and of /dev/shm, each

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
# The data base lives as long as the sandbox.
fsync-metadata = false
"""

# stdin: the expression. stdout: the value as one line of JSON; store paths, one a line, references first; an empty
# line; exports that hold them in that order, a thousand each, because a command line takes no more than some 20,000.
# Nothing at all if the evaluation failed. An error leaves half a JSON behind: only the exit status counts. Nix ends the
# JSON's line itself from 2.20 on.
#
# The last lines of stderr are CPU_MARK and what the shell's `times` says. The kernel kills who is over the limit of CPU
# with the same signal as who is in its way when memory ends: the milder SIGXCPU is taken, by Nix' garbage collector.
CPU_MARK = "@cpu"
EVALUATION = (
    "sh",
    "-c",
    r"""
set -e
trap 'echo @cpu >&2; times >&2' EXIT
if test -s /run/registration; then nix-store --load-db </run/registration; fi
nix-instantiate --eval --strict --json --read-write-mode --log-format internal-json - >/tmp/value
cat /tmp/value
test -z "$(tail -c 1 /tmp/value)" || echo
drv=$(sed -n 's/^{"drvPath":"\([^"]*\)".*/\1/p' /tmp/value)
if test -n "$drv"; then
  nix-store --query --requisites "$drv" | grep -vxFf /run/sources >/tmp/paths
  cat /tmp/paths
  echo
  xargs -n 1000 nix-store --export </tmp/paths
fi
""",
)


def evaluator(
    *,
    memory: int,
    cpu_seconds: int,
    sources: Sequence[str],
    conf_fd: int,
    registration_fd: int,
    sources_fd: int,
    command: Sequence[str],
) -> list[str]:
    """The command line of one evaluation.

    `memory`: bytes of address space of each process. `sources`: store paths, bound read-only. The file descriptors
    are readable and inherited: nix.conf, `nix-store --dump-db` of the sources, and their paths, one a line.
    `command`: EVALUATION, or any other program to run in its place.
    """
    return [
        *_FIRST_TO_GO,
        *("prlimit", f"--as={memory}", f"--cpu={cpu_seconds}", f"--fsize={EVALUATOR_DISK}", "--core=0", "--"),
        *_PROCESSES,
        *_BWRAP,
        *("--ro-bind-data", str(conf_fd), "/conf/nix.conf"),
        *("--ro-bind-data", str(registration_fd), "/run/registration"),
        *("--ro-bind-data", str(sources_fd), "/run/sources"),
        *("--size", str(EVALUATOR_DISK), "--tmpfs", "/tmp"),  # noqa: S108 - the sandbox' own
        *("--size", str(EVALUATOR_DISK), "--tmpfs", "/nix"),
        *(part for source in sources for part in ("--ro-bind", source, source)),
        *_SHUT,
        "--",
        *("prlimit", f"--nproc={_EVALUATOR_PROCESSES}", "--"),
        *command,
    ]


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
        *_FIRST_TO_GO,
        *("prlimit", f"--data={memory}", "--core=0", "--"),
        *(_ROOT_PROCESSES if is_root else _PROCESSES),
        *_BWRAP,
        *("--ro-bind-data", str(conf_fd), "/conf/nix.conf"),
        *("--bind", str(scratch), "/tmp"),  # noqa: S108 - the sandbox' own
        *("--bind", "/nix", "/nix"),
        *_SHUT,
        "--",
        *("prlimit", f"--nproc={processes}", "--"),
        *command,
    ]


# A view of the sandbox' own processes only. The kernel lets Nix' sandbox inside mount one more /proc only where the one
# above it is shown whole, and for root bubblewrap covers parts of its own (bubblewrap.c, cover_proc_dirs): there
# unshare(1) makes it. Either way all processes end with the first one.
_PROCESSES = ("bwrap", "--unshare-pid", "--proc", "/proc")
_ROOT_PROCESSES = (
    *("unshare", "--pid", "--mount-proc", "--propagation", "private", "--fork", "--kill-child", "--"),
    *("bwrap", "--bind", "/proc", "/proc"),
)
_BWRAP = (
    *("--unshare-user", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session", "--uid", "65532", "--gid", "65532"),
    *("--clearenv", "--setenv", "HOME", "/homeless", "--setenv", "USER", "nobody"),
    *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "NIX_CONF_DIR", "/conf", "--setenv", "NIX_REMOTE", "local"),
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--dev", "/dev", "--size", str(_HOME_SIZE), "--tmpfs", "/dev/shm"),  # noqa: S108 - the sandbox' own
    *("--dir", "/run", "--size", str(_HOME_SIZE), "--tmpfs", "/homeless", "--chdir", "/homeless"),
)
# What is mounted, is: the folders around it are memory, and have no size of their own.
_SHUT = ("--remount-ro", "/dev", "--remount-ro", "/")
_FIRST_TO_GO = ("choom", "-n", "1000", "--")
