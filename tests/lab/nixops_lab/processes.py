"""Processes that outlive the command that started them, known by pid and start time.

A pid alone is no name: the kernel gives it again. Pid, start time (clock ticks since boot, field 22 of proc(5)'s
`stat`) and
boot id together are one process for ever.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def boot_id() -> str:
    """Different after every boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Recorded:
    """One process of one boot."""

    pid: int
    start_time: int
    boot: str


@dataclass(frozen=True)
class Stat:
    """What proc(5)'s `stat` says: `state` is its letter (`Z`: ended, not yet waited for)."""

    state: str
    parent: int
    start_time: int


def parse_stat(text: str) -> Stat:
    """`text` is the content of /proc/PID/stat.

    The second field is the program's name and may hold spaces and parentheses.
    """
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(state=fields[0], parent=int(fields[1]), start_time=int(fields[19]))


def stat(pid: int) -> Stat | None:
    """None: there is no such process."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def record(pid: int) -> Recorded | None:
    """The name for ever of the process that has `pid` now; None if there is none."""
    seen = stat(pid)
    return None if seen is None else Recorded(pid, seen.start_time, boot_id())


def is_alive(process: Recorded) -> bool:
    """False also for one that has ended and was not waited for, and for a stranger under the same pid."""
    seen = stat(process.pid)
    return (
        seen is not None and seen.state != "Z" and seen.start_time == process.start_time and process.boot == boot_id()
    )


def children(pid: int) -> list[int]:
    """Pids of the living children, ascending."""
    seen = {int(entry.name): stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return sorted(other for other, its in seen.items() if its is not None and its.parent == pid and its.state != "Z")


def send(process: Recorded, number: signal.Signals) -> bool:
    """Signals this very process; False if it is gone.

    Through a pidfd that is opened before the identity is checked: the pid cannot change hands in between.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
            return True
        return False
    finally:
        os.close(handle)


def wait_gone(processes: Iterable[Recorded], limit: float) -> list[Recorded]:
    """Waits up to `limit` seconds; returns those that still live."""
    deadline = time.monotonic() + limit
    left = [process for process in processes if is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if is_alive(process)]
    return left


def end(processes: Sequence[Recorded], grace: float) -> None:
    """Asks with SIGTERM, waits up to `grace` seconds, then SIGKILL. Returns when they are gone. Safe to repeat."""
    for process in processes:
        send(process, signal.SIGTERM)
    for process in wait_gone(processes, grace):
        send(process, signal.SIGKILL)
    if left := wait_gone(processes, 10):
        raise TimeoutError(f"still there 10 s after SIGKILL: {[process.pid for process in left]}")


def start(
    argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> Recorded:
    """Starts a process in a session of its own, with stdout and stderr appended to `log`, and returns at once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        started = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    # Not waited for, it has its entry in /proc even if it ended at once.
    recorded = record(started.pid)
    assert recorded is not None
    # It outlives this command on purpose; without this line the garbage collector would warn about that.
    started.returncode = 0
    return recorded


def end_session(leader: int) -> None:
    """SIGTERM to the process group of a child of ours that leads its own session and was not waited for yet."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
