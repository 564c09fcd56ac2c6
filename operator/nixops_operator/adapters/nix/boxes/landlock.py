"""The box of Landlock and a filter of system calls, both put on by setpriv(1): it needs nothing of the node but a
kernel that has Landlock, no namespace and no capability.

Its files are those of one folder:

    in      read-only: nix.conf, `registration`, `sources`, `known`, the filters.
    out     what the script keeps for itself. What evaluates has not even that.
    work    the store (`local?root=`; see stores.py), home and temporary files.

The script runs in an outer box, which lets it start programs; Nix in an inner one, which does not. So nothing of an
evaluation can be left behind: it has one process, that cannot leave its session, and that the kernel ends with its
parent (PR_SET_PDEATHSIG), as the script with the operator.

There is one network, process and user table with the operator. What guards them is the filter (seccomp.py); Landlock
keeps other processes' memory, environment and open files away (its hook is asked wherever ptrace(2) would be).

Which Landlock: ABI 2 (Linux 5.19) at least, as Nix moves what it stores between folders; with ABI 3 (6.2) truncating is
guarded by Landlock, too, and not by the filter alone. Nothing of later ABIs is needed: the filter refuses sockets,
signals and foreign devices' controls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixops_operator.adapters.nix.boxes.box import (
    EVALUATION,
    EVALUATOR_CONF,
    Box,
    BoxKind,
    EvaluationLimits,
    Running,
)
from nixops_operator.adapters.nix.boxes.folders import LockedFolder, is_real
from nixops_operator.adapters.nix.boxes.seccomp import ARCHITECTURES, seccomp_filter
from nixops_operator.adapters.nix.boxes.stores import KeptStores
from nixops_operator.adapters.nix.boxes.trees import Trees
from nixops_operator.adapters.nix.child import child
from nixops_operator.adapters.nix.disk import Disk, DiskLowError, free_bytes
from nixops_operator.adapters.nix.limits import FIRST_TO_GO, evaluation_limits
from nixops_operator.adapters.nix.programs import NixFailedError, output_of
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry

OLDEST_ABI = 2
_ABI_OF_TRUNCATE = 3
_CREATE_RULESET, _VERSION_FLAG = 444, 1  # include/uapi/linux/landlock.h

_READ = "read-file,read-dir"
_PATH = "/usr/bin:/bin"
# With /usr merged, these are links into it.
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_LOOK_EVERY = 0.2  # seconds; a fast disk takes some 100 MB in that time
_COUNT_EVERY = 2.0
"""Seconds between two counts of all files, which take 10 ms for a system's two thousand derivations: a twentieth of a
processor, if done at each look. Sooner where the disk has lost a noticeable part of what an evaluation may write."""
_NOTICEABLE = 16
_OPEN_FILES = 1024
_OF_A_KEPT_STORE = "use-sqlite-wal = true\n"
"""Where most is there already, the data base is asked and not written to. Without a log beside it, each question makes
and removes a folder as a lock (Nix, src/libstore/sqlite.cc: unix-dotfile); and the log stays small."""
_SCRIPT_OF_THIS_OPERATOR = 'test "$PPID" = "$0" || exit 1; exec "$@"'
"""A script whose operator died before the kernel was asked to end it, too, has another parent already."""

_IN_ITS_PLACE = ("sh", "-c", '"$@"; exit $?', "sh")
"""A child of a shell, as Nix is."""


class Landlock(Box):
    """See the module."""

    def __init__(self, folder: Path, limits: EvaluationLimits, disk: Disk, environment: Mapping[str, str]) -> None:
        """`folder`: for boxes and copies of their sources, on a disk with room for them. `environment`: of the program
        that copies."""
        self._folder = folder = folder.resolve()
        self._limits = limits
        self._disk = disk
        self._abi = landlock_abi()
        self._machine = os.uname().machine
        self._trees = Trees(folder, environment)
        self._stores = KeptStores(folder)
        self._stores_in_use = asyncio.Lock()

    @property
    def kind(self) -> BoxKind:
        return BoxKind.LANDLOCK

    @contextlib.asynccontextmanager
    async def run(
        self, command: Sequence[str] | None, sources: Sequence[str], registration: bytes, tenant: str | None
    ) -> AsyncIterator[Running]:
        async with self._place() as place:
            known = await self._furnished(place, sources, registration, tenant)
            # What fails in a store that was kept is made once more without anything that was there before.
            async with self._trees.lent(sources, place.store, tenant, unseen=bool(known)):
                argv = [*self._outer(place), *self._within(place, command)]
                async with _whole_session(argv, self._environment(place)) as process:
                    running = Running(process, root=str(place.root), known=set(known))
                    watch = asyncio.ensure_future(self._watch(running, place, sources))
                    try:
                        yield running
                    finally:
                        watch.cancel()
                        await asyncio.wait({watch})
            if tenant is not None:
                async with self._stores_in_use:
                    await asyncio.to_thread(self._keep_store, tenant, place, sources, running.known)

    async def forget(self) -> None:
        await self._trees.clear()
        async with self._stores_in_use:
            await asyncio.to_thread(self._stores.clear)

    def not_made(self, said: str) -> bool:
        return said.startswith("setpriv:")

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[_Place]:
        folder = await asyncio.to_thread(LockedFolder.new, self._folder)
        try:
            yield _Place(folder.path)
        finally:
            await asyncio.shield(asyncio.to_thread(folder.remove))

    async def _furnished(
        self, place: _Place, sources: Sequence[str], registration: bytes, tenant: str | None
    ) -> frozenset[str]:
        """What is known of the store that is there now."""
        known: frozenset[str] = frozenset()
        place.work.mkdir()
        if tenant is not None:
            async with self._stores_in_use:
                known = await asyncio.to_thread(self._stores.take, tenant, place.root)
        await asyncio.to_thread(self._furnish, place, sources, registration, known)
        return known

    def _furnish(self, place: _Place, sources: Sequence[str], registration: bytes, known: frozenset[str]) -> None:
        for folder in (place.given, place.kept, place.store, place.home):
            folder.mkdir(parents=True, exist_ok=True)
        (place.given / "known").write_text("".join(f"{path}\n" for path in known))
        (place.given / "nix.conf").write_text(EVALUATOR_CONF + (_OF_A_KEPT_STORE if known else ""))
        (place.given / "registration").write_bytes(registration)
        (place.given / "sources").write_text("".join(f"{source}\n" for source in sources))
        for name, may_fork in (("outer", True), ("inner", False)):
            (place.given / name).write_bytes(seccomp_filter(self._machine, may_fork=may_fork))

    def _keep_store(self, tenant: str, place: _Place, sources: Sequence[str], known: Iterable[str]) -> None:
        """For this tenant's next evaluation, if it leaves that one half of its room."""
        with contextlib.suppress(OSError):
            left = any(os.path.lexists(place.store / Path(source).name) for source in sources)
            if is_real(place.store) and not left and _size_of(place.root, ()) <= self._limits.disk // 2:
                self._stores.keep(tenant, place.root, frozenset(known))

    def _environment(self, place: _Place) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(place.home),
            "TMPDIR": str(place.home),
            "USER": "nobody",
            "NIX_CONF_DIR": str(place.given),
            "NIX_REMOTE": f"local?root={place.root}",
            # The collector looks for the number of processors in /proc, which is not there.
            "GC_NPROCS": str(len(os.sched_getaffinity(0))),
            "IN": str(place.given),
            "OUT": str(place.kept),
            "GUARD": "setpriv --pdeathsig KILL --",
        }

    def _outer(self, place: _Place) -> list[str]:
        limits = self._limits
        write = self._write_rights()
        rules = [
            *(rule(f"execute,{_READ}", folder) for folder in _PROGRAMS if not os.path.islink(folder)),  # noqa: PTH114
            rule("read-file,write-file", "/dev/null"),
            rule("read-file", "/dev/urandom"),
            rule(_READ, place.given),
            *(rule(f"{_READ},{write}", folder) for folder in (place.kept, place.work)),
        ]
        return [
            *FIRST_TO_GO,
            *evaluation_limits(limits.memory, int(limits.cpu.total_seconds()), limits.disk)[:-1],
            *(f"--nofile={_OPEN_FILES}", "--"),
            *("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all"),
            # Else whatever root starts has all capabilities again.
            *(("--bounding-set=-all",) if os.geteuid() == 0 else ()),
            *("--landlock-access", f"fs:execute,{_READ},{write},make-char,make-block"),
            *(part for one in rules for part in ("--landlock-rule", one)),
            *("--seccomp-filter", str(place.given / "outer"), "--"),
            *("sh", "-c", _SCRIPT_OF_THIS_OPERATOR, str(os.getpid())),
        ]

    def _within(self, place: _Place, command: Sequence[str] | None) -> list[str]:
        inner = self._inner(place)
        return [*EVALUATION, *inner] if command is None else [*_IN_ITS_PLACE, *inner, *command]

    def _inner(self, place: _Place) -> list[str]:
        write = self._write_rights()
        rules = (rule(write, place.work), rule("write-file", "/dev/null"))
        return [
            *("setpriv", "--pdeathsig", "KILL", "--landlock-access", f"fs:{write}"),
            *(part for one in rules for part in ("--landlock-rule", one)),
            # One more, because the filter forbids what the first has done.
            *("--", "setpriv", "--seccomp-filter", str(place.given / "inner"), "--"),
        ]

    def _write_rights(self) -> str:
        rights = "write-file,remove-dir,remove-file,make-dir,make-reg,make-sym,make-sock,make-fifo,refer"
        return f"{rights},truncate" if self._abi >= _ABI_OF_TRUNCATE else rights

    async def _watch(self, running: Running, place: _Place, sources: Sequence[str]) -> None:
        """End the program when it takes more than its files or processes may, or the disk is low for all."""
        lent = {Path(source).name for source in sources}
        counted_at, free = 0.0, 0
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now, free_now = time.monotonic(), _free(place.folder)
            counts = now - counted_at >= _COUNT_EVERY or free - free_now > self._limits.disk // _NOTICEABLE
            if counts:
                counted_at, free = now, free_now
            running.over = await asyncio.to_thread(self._over, running.process.pid, place, lent if counts else None)
            if running.over is not None:
                await asyncio.to_thread(_end_session, running.process.pid)
                return

    def _over(self, session: int, place: _Place, lent: set[str] | None) -> Blocked | Retry | None:
        """`lent`: what is not to be counted of its files; None to count none."""
        limits = self._limits
        try:
            self._disk.check_free()
        except (DiskLowError, OSError) as error:
            return Retry(Reason.EVALUATING, str(error))
        members = tuple(_members(session))
        if sum(member.threads for member in members) > limits.processes:
            return Blocked(Reason.EVALUATION_FAILED, f"the evaluation has more than {limits.processes} processes")
        if lent is None:
            return None
        try:
            written = _size_of(place.folder, lent) + sum(_unlinked(member.pid) for member in members)
        except OSError as error:
            # Nix makes no folder that cannot be read, and none so deep: whoever does so hides what they write.
            text = f"the evaluation makes files that cannot be counted: {error.strerror}"
            return Blocked(Reason.EVALUATION_FAILED, text)
        return Blocked(Reason.EVALUATION_FAILED, limits.disk_message) if written > limits.disk else None


@dataclass(frozen=True)
class _Place:
    folder: Path

    @property
    def given(self) -> Path:
        return self.folder / "in"

    @property
    def kept(self) -> Path:
        return self.folder / "out"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def home(self) -> Path:
        return self.work / "home"

    @property
    def root(self) -> Path:
        return self.work / "root"

    @property
    def store(self) -> Path:
        return self.root / "nix/store"


def rule(rights: str, path: Path | str) -> str:
    """A Landlock rule as setpriv(1) takes it."""
    return f"path-beneath:{rights}:{path}"


def landlock_abi() -> int:
    """Which Landlock the kernel has and this process may use; 0 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(version, 0)


async def why_no_landlock(environment: Mapping[str, str]) -> str | None:
    """What this box lacks here; None if nothing. Tried: the kernel (landlock(7)), the processor, setpriv(1)."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        return f"there is no filter of system calls for {machine}"
    if (abi := landlock_abi()) < OLDEST_ABI:
        if abi == 0:
            return (
                "the kernel has no Landlock, or a security profile forbids it (Linux 5.19 or newer, `lsm=…,landlock`)"
            )
        return f"the kernel's Landlock is of ABI {abi}; {OLDEST_ABI} is needed (Linux 5.19)"
    try:
        if "--landlock-access" in await output_of(("setpriv", "--help"), environment):
            return None
    except (NixFailedError, OSError) as error:
        return f"setpriv cannot be run: {error}"
    return "setpriv knows no Landlock (util-linux 2.41 or newer)"


@contextlib.asynccontextmanager
async def _whole_session(argv: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """As `child`; and whatever of it outlives its first process is ended, too."""
    async with child(argv, environment) as process:
        try:
            yield process
        finally:
            await asyncio.shield(asyncio.to_thread(_end_session, process.pid))


@dataclass(frozen=True)
class _Member:
    pid: int
    threads: int


def _members(session: int) -> Iterator[_Member]:
    """Living processes of a session. What is in a box cannot leave it."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # Asked first: to read of hundreds of other processes takes longer than a small evaluation.
            if os.getsid(pid := int(entry.name)) != session:
                continue
            # proc_pid_stat(5); the name, in brackets, may hold anything.
            state, *fields = Path(entry.path, "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
            if state not in "ZX" and int(fields[2]) == session:
                yield _Member(pid, int(fields[16]))


def _end_session(session: int) -> None:
    while members := tuple(_members(session)):
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)


def _size_of(folder: Path | str, ignored: Iterable[str]) -> int:
    """Bytes on disk of all beneath it, without entries of these names. Raises OSError for what cannot be read."""
    size = 0
    folders = [str(folder)]
    while folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name in ignored:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return size


def _free(folder: Path) -> int:
    """Bytes; none if that cannot be told."""
    with contextlib.suppress(OSError):
        return free_bytes(folder)
    return 0


def _unlinked(pid: int) -> int:
    """Bytes of files that a process holds open and that have no name any more."""
    size = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                held = entry.stat()
                size += held.st_blocks * 512 if held.st_nlink == 0 else 0
    return size
