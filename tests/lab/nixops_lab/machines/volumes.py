"""What is in volumes: sparse files that outlive machines, each behind a loop device while a machine has it.

A loop device has the same name in a machine as outside, /dev/loop3, since the kernel tells it to all; the names that an
instance's disks have are links to it (settings/usr/sbin/lab-disk). One that is taken away is free first: the kernel
lets nobody open a device exclusively that is mounted, in whatever namespace, or otherwise held (open(2), O_EXCL).
"""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

from nixops_lab.machines.spec import MachineError

GIB = 1 << 30
FREE_SECONDS = 10.0


class VolumeFiles:
    """One file a volume, below `folder`, by the volume's id. All need root; none is for the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # as the kernel tells it

    def plug(self, volume_id: str, gib: int) -> str:
        """The kernel's name of its loop device, as loop3. Makes what is missing; empty at first."""
        file = self._file(volume_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as content:
            content.truncate(gib * GIB)
        return loop_of(file) or Path(_succeed("losetup", "--find", "--show", str(file))).name

    def unplug(self, volume_id: str) -> bool:
        """False while something uses it. Plugged nowhere: True."""
        device = loop_of(self._file(volume_id))
        if device is None:
            return True
        if _is_in_use(device):
            return False
        _succeed("losetup", "--detach", f"/dev/{device}")
        return loop_of(self._file(volume_id)) is None

    def resize(self, volume_id: str, gib: int) -> None:
        """Whoever has it sees it at once. One that was never plugged has no size yet."""
        file = self._file(volume_id)
        if not file.exists():
            return
        os.truncate(file, gib * GIB)
        if (device := loop_of(file)) is not None:
            _succeed("losetup", "--set-capacity", f"/dev/{device}")

    def copy(self, volume_id: str, copy_id: str) -> None:
        """As it is now, also while it is in use. What was never plugged is empty."""
        if self._file(volume_id).exists():
            _succeed("cp", "--sparse=always", str(self._file(volume_id)), str(self._file(copy_id)))

    def remove(self, volume_id: str) -> None:
        """With what is in it. Safe to repeat."""
        self._file(volume_id).unlink(missing_ok=True)

    def _file(self, volume_id: str) -> Path:
        return self._folder / volume_id


def loop_of(file: Path) -> str | None:
    """The kernel's name of the loop device over that file."""
    return next((name for name, backing in _loops().items() if backing == str(file)), None)


def clear(folder: Path) -> None:
    """Takes away all files below `folder`, and their loop devices, which nothing may use any more than a moment."""
    deadline = time.monotonic() + FREE_SECONDS
    for name, backing in _loops().items():
        if not backing.startswith(f"{folder.resolve()}/"):
            continue
        # The kernel unmounts what was in a namespace some time after its last process has ended.
        while _is_in_use(name):
            if time.monotonic() > deadline:
                raise MachineError(f"/dev/{name}, which is {backing}, is still in use")
            time.sleep(0.02)
        _succeed("losetup", "--detach", f"/dev/{name}")
    shutil.rmtree(folder, ignore_errors=True)


def _loops() -> dict[str, str]:
    """Kernel's name of each loop device that is in use → its file."""
    found = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[backing.parent.parent.name] = backing.read_text().rstrip("\n").removesuffix(" (deleted)")
        except OSError:  # it went while we read
            continue
    return found


def _is_in_use(device: str) -> bool:
    try:
        os.close(os.open(f"/dev/{device}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def _succeed(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()
