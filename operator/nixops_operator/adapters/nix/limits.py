"""What boxes and builders may take, without any right to make control groups, of which the operator's pod has but the
one it lives in:

    memory      of each process: address space of an evaluation (RLIMIT_AS), data of a builder (RLIMIT_DATA; runtimes
                such as those of Go and Java reserve address space that they never use). All processes together are
                held by the pod's limit alone; its killer finds them before the operator (choom(1)), where it may
                choose: with cgroup v2 Kubernetes lets it take the whole container (`memory.oom.group`).
    processes   and threads of one sandbox (RLIMIT_NPROC; set inside the user namespace, where Linux 5.14 and newer
                count what runs in it and below, and not all of that user's; for root the kernel counts none). Where
                there is no user namespace, they are watched (boxes/landlock.py).
    time        CPU and wall of an evaluation; wall and silence of a build.
    disk        of an evaluation: its memory-backed file systems have a size, or its folder is watched. What builds
                write is not counted: see disk.py.
    output      of an evaluation, and the log of each build.
"""

from __future__ import annotations

FIRST_TO_GO = ("choom", "-n", "1000", "--")
"""Before a command line. Where memory ends, the kernel looks for the process with the greatest score."""


def evaluation_limits(memory: int, cpu_seconds: int, file_size: int) -> list[str]:
    """The command line's beginning that limits each process of an evaluation. Bytes, seconds, bytes."""
    return ["prlimit", f"--as={memory}", f"--cpu={cpu_seconds}", f"--fsize={file_size}", "--core=0", "--"]
