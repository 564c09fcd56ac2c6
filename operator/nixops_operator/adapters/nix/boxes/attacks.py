"""A program that tries what must fail in a box, as Nix would that was broken into. It runs alone, with nothing but
Python's standard library; the same program outside of a box shows that each attack does work.

stdin: a JSON object of what there is to attack:

    file, folder      the operator's: a readable file that holds `secret`, a writable folder with an empty file `empty`
    pid               a process of the operator's, with `secret` in its environment
    descriptor        an open descriptor of that process
    tcp, unix, abstract   where somebody listens: a port of 127.0.0.1, a socket's path, an abstract name without its NUL
    udp               a port of 127.0.0.1 that sends back what it gets
    shm               the key of a System V segment
    secret            what must not be seen
    groups            which attacks, of GROUPS

stdout: one JSON object: `got` (attack → what was got, null if it was refused), `environment` (names of variables),
`namespaces` (kind → identity).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Attack = Callable[[], object]
"""Raises OSError or Refused if it was refused; else what was got, if that can be shown."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_IS_X86 = os.uname().machine == "x86_64"
# Of x86_64, or of asm-generic (Linux, include/uapi/asm-generic/unistd.h).
_TKILL, _TGKILL, _SIGQUEUE = (200, 234, 129) if _IS_X86 else (130, 131, 138)
_PTRACE, _READV, _PRLIMIT = (101, 310, 302) if _IS_X86 else (117, 270, 261)
_UNSHARE, _ADD_KEY, _SHMGET = (272, 248, 29) if _IS_X86 else (97, 217, 194)
_PIDFD_SEND, _IO_URING_SETUP, _PIDFD_OPEN, _PIDFD_GETFD = 424, 425, 434, 438
_QUIET = int(signal.SIGURG)  # ignored unless somebody wants it
_PR_SET_PDEATHSIG, _CLONE_NEWUSER, _USER_KEYRING = 1, 0x10000000, -4


def _call(number: int, *arguments: Any) -> int:
    """A system call. Raises OSError."""
    result: int = _LIBC.syscall(number, *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Refused(Exception):
    """An attack that came to nothing without an error."""


def _refuse() -> None:
    raise Refused


def _is_another(pid: int, secret: str) -> bool:
    try:
        return secret not in Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return False


def _files(target: dict[str, Any]) -> dict[str, Attack]:
    file, folder, secret = Path(target["file"]), Path(target["folder"]), target["secret"]
    beside = folder / "attack"

    def read() -> object:
        if secret not in (text := file.read_text()):
            raise Refused
        return text

    def append() -> None:
        with file.open("a") as opened:
            opened.write(" ")

    def away_and_back() -> None:
        file.rename(beside)
        beside.rename(file)

    def remove() -> None:
        beside.hardlink_to(file)
        file.unlink()
        beside.rename(file)

    def link_into_the_box() -> None:
        here = Path(os.environ.get("TMPDIR", "/tmp"), "attack")  # noqa: S108 - the box' own
        here.hardlink_to(file)
        here.unlink()

    def mode() -> None:
        before = file.stat().st_mode
        file.chmod(before ^ 0o111)
        if file.stat().st_mode == before:
            raise Refused

    def times() -> None:
        before = file.stat().st_mtime_ns
        os.utime(file, ns=(1, before - 10**9))
        if file.stat().st_mtime_ns == before:
            raise Refused

    return {
        "read a file of the operator's": read,
        "list a folder of the operator's": lambda: list(folder.iterdir()),
        "write to a file of the operator's": append,
        "make a file in a folder of the operator's": lambda: (folder / "made").write_text(""),
        "make a folder in one of the operator's": lambda: (folder / "folder").mkdir(exist_ok=True),
        "link a file of the operator's into the box": link_into_the_box,
        "move a file of the operator's": away_and_back,
        "remove a file of the operator's": remove,
        "truncate a file of the operator's": lambda: os.truncate(file, file.stat().st_size),
        # A file without content: what this does to it cannot be seen.
        "truncate what it opens to read": lambda: os.close(os.open(folder / "empty", os.O_RDONLY | os.O_TRUNC)),
        "change the mode of a file of the operator's": mode,
        "change the times of a file of the operator's": times,
    }


def _processes(target: dict[str, Any]) -> dict[str, Attack]:
    pid, descriptor = int(target["pid"]), int(target["descriptor"])

    def text_of(name: str) -> str:
        if not (text := Path(f"/proc/{pid}/{name}").read_text(errors="replace")):
            raise Refused
        return text

    def open_memory() -> None:
        Path(f"/proc/{pid}/mem").open("rb").close()

    def read_memory() -> None:
        buffer = ctypes.create_string_buffer(8)
        here, there = struct.pack("QQ", ctypes.addressof(buffer), 8), struct.pack("QQ", 0, 8)
        try:
            _call(_READV, pid, ctypes.c_char_p(here), 1, ctypes.c_char_p(there), 1, 0)
        except OSError as error:
            if error.errno != errno.EFAULT:  # it was allowed to look; nothing lies at address 0
                raise

    def trace() -> None:
        seize, detach = 0x4206, 17
        _call(_PTRACE, seize, pid, 0, 0)
        with contextlib.suppress(OSError):  # it runs on; the kernel lets go of it when this program ends
            _call(_PTRACE, detach, pid, 0, 0)

    def queue() -> None:
        information = struct.pack("iii", _QUIET, 0, -1) + bytes(116)
        _call(_SIGQUEUE, pid, _QUIET, ctypes.c_char_p(information))

    def by_the_kernel() -> None:
        reading, writing = os.pipe()
        try:
            fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
            if fcntl.fcntl(reading, fcntl.F_GETOWN) != pid:
                raise Refused
        finally:
            os.close(reading)
            os.close(writing)

    attacks: dict[str, Attack] = {
        "read the operator's environment": lambda: text_of("environ"),
        "read the operator's command line": lambda: text_of("cmdline"),
        "read the operator's state": lambda: text_of("status"),
        "open the operator's memory": open_memory,
        "read the operator's memory": read_memory,
        "see what the operator has open": lambda: Path(f"/proc/{pid}/fd/{descriptor}").readlink(),
        "see the operator's root": lambda: Path(f"/proc/{pid}/root").readlink(),
        "trace the operator": trace,
        "take an open file of the operator's": lambda: _call(_PIDFD_GETFD, _call(_PIDFD_OPEN, pid, 0), descriptor, 0),
        "signal the operator (kill)": lambda: os.kill(pid, _QUIET),
        "signal the operator (tkill)": lambda: _call(_TKILL, pid, _QUIET),
        "signal the operator (tgkill)": lambda: _call(_TGKILL, pid, pid, _QUIET),
        "signal the operator (rt_sigqueueinfo)": queue,
        "signal the operator (pidfd_send_signal)": lambda: _call(
            _PIDFD_SEND, _call(_PIDFD_OPEN, pid, 0), _QUIET, None, 0
        ),
        "signal the operator (F_SETOWN)": by_the_kernel,
        "see the operator's limits": lambda: _call(_PRLIMIT, pid, 7, None, ctypes.create_string_buffer(16)),
        "bind the operator to a processor": lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
        "give the operator another priority": lambda: os.setpriority(
            os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)
        ),
        "attach the operator's shared memory": lambda: _call(_SHMGET, int(target["shm"]), 0, 0),
    }
    # With a table of processes of its own, the box may have another one of that number.
    return dict.fromkeys(attacks, _refuse) if _is_another(pid, target["secret"]) else attacks


def _network(target: dict[str, Any]) -> dict[str, Attack]:
    def connect(family: int, address: tuple[str, int] | str | bytes) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.settimeout(2)
            made.connect(address)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(0.3)  # the answer comes at once, or the question did not arrive
            made.sendto(b"x", ("127.0.0.1", target["udp"]))
            made.recv(1)

    return {
        "reach a port": lambda: connect(socket.AF_INET, ("127.0.0.1", target["tcp"])),
        "send a datagram": send,
        "reach a socket by its path": lambda: connect(socket.AF_UNIX, target["unix"]),
        "reach an abstract socket": lambda: connect(socket.AF_UNIX, b"\0" + target["abstract"].encode()),
    }


def _kernel(_target: dict[str, Any]) -> dict[str, Attack]:
    def fork() -> None:
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def outlive() -> None:
        if _LIBC.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0:
            raise Refused

    user, key = ctypes.c_char_p(b"user"), ctypes.c_char_p(b"attack")
    return {
        "make namespaces": lambda: _call(_UNSHARE, _CLONE_NEWUSER),
        "make a socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "make an io_uring": lambda: _call(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120)),
        "start a process": fork,
        "choose its process group": lambda: os.setpgid(0, os.getpgid(os.getppid())),
        "leave its session": os.setsid,
        "outlive its parent": outlive,
        "keep a key in the kernel": lambda: _call(_ADD_KEY, user, key, ctypes.c_char_p(b"x"), 1, _USER_KEYRING),
    }


GROUPS = {"files": _files, "processes": _processes, "network": _network, "kernel": _kernel}
"""`kernel`: what only a box without namespaces of its own must refuse."""


def main() -> None:
    target = json.load(sys.stdin)
    got: dict[str, str | None] = {}
    for group in target["groups"]:
        for name, attack in GROUPS[group](target).items():
            try:
                got[name] = str(attack() or "done")
            except (OSError, Refused):
                got[name] = None
    namespaces = {}
    for kind in ("net", "pid", "mnt", "ipc", "user"):
        try:
            namespaces[kind] = str(Path(f"/proc/self/ns/{kind}").readlink())
        except OSError:
            namespaces[kind] = ""
    json.dump({"got": got, "environment": sorted(os.environ), "namespaces": namespaces}, sys.stdout)


if __name__ == "__main__":
    main()
