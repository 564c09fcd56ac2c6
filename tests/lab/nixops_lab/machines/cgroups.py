"""A cgroup for each machine in every mounted hierarchy, and so the sure knowledge which processes are the machine's.

Two systemds in one cgroup take each other's units apart. A host may have one hierarchy (v2) or a dozen (v1 controllers,
`name=systemd`, and v2 for nothing but processes: systemd's "hybrid" layout). A parent may be gone and a pid may have
been given again, but no process leaves its machine's cgroup: so a machine is ended, also after a crash, by its cgroup.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from nixops_lab.machines.spec import MachineError

END_SECONDS = 10.0


def hierarchies(mounts: str) -> list[Path]:
    """Mount points of all cgroup hierarchies in the text of /proc/self/mounts; those in /sys, for whoever has a root of
    his own below this one has them once more, and takes them away again."""
    rows = [line.split() for line in mounts.splitlines()]
    return [Path(row[1]) for row in rows if row[2] in ("cgroup", "cgroup2") and row[1].startswith("/sys/")]


def mounted() -> list[Path]:
    """The hierarchies of this host, as seen here. Raises MachineError if there is none."""
    found = hierarchies(Path("/proc/self/mounts").read_text())
    if not found:
        raise MachineError(
            "no cgroup hierarchy is mounted here: enter a network namespace with `nsenter --net=…`; "
            "`ip netns exec` hides /sys/fs/cgroup behind a fresh /sys"
        )
    return found


class MachineCgroups:
    """The cgroup `group`/`machine` in each hierarchy. `group` is the lab's name."""

    def __init__(self, group: str, machine: str) -> None:
        self._name = machine
        self.folders = [hierarchy / group / machine for hierarchy in mounted()]

    def create(self) -> None:
        """Safe to repeat."""
        for folder in self.folders:
            if not folder.parent.exists():
                folder.parent.mkdir()
                _take_processors(folder.parent)
                _offer_controllers(folder.parent)
            if not folder.exists():
                folder.mkdir()
                _take_processors(folder)

    def pids(self) -> list[int]:
        """All processes of the machine, its nspawn included."""
        found: set[int] = set()
        for folder in self.folders:
            for below, _, _ in os.walk(folder):
                try:
                    lines = (Path(below) / "cgroup.procs").read_text().split()
                except OSError:  # ENOENT, ENODEV: the cgroup went while we read
                    continue
                found.update(map(int, lines))
        # 0: a process that has no number here (cgroups(7)). For kill(2) that would be the caller's own group.
        return sorted(found - {0})

    def leader(self) -> int | None:
        """Pid of the machine's init, once it is past nspawn's own preparations."""
        for pid in self.pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if is_leader(status):
                return pid
        return None

    async def end(self) -> None:
        """SIGKILL to all, until none is left; then the cgroups go. Safe to repeat."""
        deadline = time.monotonic() + END_SECONDS
        while pids := self.pids():
            if time.monotonic() > deadline:
                raise MachineError(f"{self._name}: processes survive SIGKILL: {pids}")
            for pid in pids:
                _kill(pid)
            await asyncio.sleep(0.01)
        await self._remove(deadline)

    def _remove_folders(self) -> None:
        for folder in self.folders:
            for below, _, _ in os.walk(folder, topdown=False):
                Path(below).rmdir()

    async def _remove(self, deadline: float) -> None:
        # A cgroup stays busy for a moment after its last process.
        while True:
            try:
                self._remove_folders()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MachineError(f"{self._name}: cgroup stays: {error}") from error
                await asyncio.sleep(0.01)
            else:
                return


def is_leader(status: str) -> bool:
    """Is it the first process of a pid namespace directly below ours? `status` is the text of /proc/PID/status.

    Before it becomes init it is nspawn, still on its way into the machine.
    """
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    numbers = fields.get("NSpid", "").split()
    return len(numbers) == 2 and numbers[1] == "1" and fields["Name"].strip() not in ("systemd-nspawn", "(sd-init)")


def groups(prefix: str) -> list[str]:
    """Names of the machines that have a cgroup in the lab `prefix`, in any hierarchy."""
    return sorted({folder.name for hierarchy in mounted() for folder in (hierarchy / prefix).glob("*/")})


def remove_group(group: str) -> None:
    """The lab's own cgroups, once no machine has one. Safe to repeat."""
    for hierarchy in mounted():
        if (hierarchy / group).exists():
            (hierarchy / group).rmdir()


def _take_processors(folder: Path) -> None:
    # v1 cpuset: a new cgroup has no processors and no memory and so takes no process (kernel, cgroup-v1/cpusets.rst).
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (folder / name).exists() and not (folder / "cgroup.controllers").exists():
            (folder / name).write_text((folder.parent / name).read_text())


def _offer_controllers(folder: Path) -> None:
    # v2: what the parent offers is offered to the machines (kernel, cgroup-v2.rst, "Top-down Constraint").
    if (folder / "cgroup.controllers").exists():
        for controller in (folder / "cgroup.controllers").read_text().split():
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
