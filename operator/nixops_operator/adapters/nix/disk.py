"""The disks that store and scratch folder lie on. Nobody may fill them: with them the operator's whole store stands
still, and everybody's machines with it.

A user without rights cannot give a build a quota of its own. So what is left is watched: below a reserve nothing
begins, and builds that run are ended. So it is where a volume has a limit beyond which the kubelet evicts the pod: the
build ends before it, and not everything with it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nixops_operator.adapters.nix.folder_size import FolderSize

T = TypeVar("T")

_LOOK_EVERY = 2.0  # seconds; a fast disk takes some GB in that time
# As Nix, SQLite and bubblewrap put it.
_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
_FULL_DISK = "the operator's disk is full"
_AGAIN = "garbage is collected, and this is tried again by itself; if it stays, "
_ELSEWHERE = ", or set nix.build.on to Target"
_WAY_OUT = (
    f"{_AGAIN}give that volume more room (in the chart: "
    f"store.sizeLimit, a larger store.existingClaim, scratch.sizeLimit){_ELSEWHERE}"
)
_SHARE = 20
"""One part in so many of a volume is its reserve, if that is less than the reserve of a disk. The store is collected
long before (store_room.py)."""


class DiskLowError(Exception):
    """The text says where, and what to do. It is the same as long as that lasts."""


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there. Raises OSError."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Volume:
    """A folder that may take no more than `limit` bytes, whatever its disk has. `setting` is where that is said,
    `value` where the chart has it from."""

    folder: Path
    size: FolderSize
    limit: int
    setting: str
    value: str


class Disk:
    """See the module. `reserve`: bytes that stay free."""

    def __init__(
        self,
        folders: Sequence[Path],
        reserve: int,
        volumes: Sequence[Volume] = (),
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._folders = folders
        self._reserve = reserve
        self._volumes = volumes
        self._free = free

    def check_free(self) -> None:
        """Raises DiskLowError if less than the reserve (setting nix.build.freeDisk) is free; OSError."""
        for folder in self._folders:
            free = self._free(folder)
            if free < self._reserve:
                raise DiskLowError(f"{_FULL_DISK}: less than {_size(self._reserve)} is free at {folder}; {_WAY_OUT}")

    async def check(self) -> None:
        """As `check_free`, and raises DiskLowError if less than a reserve is left of a volume. Takes seconds now and
        then; evaluations, which are many and small, do without."""
        self.check_free()
        for volume in self._volumes:
            reserve = min(self._reserve, volume.limit // _SHARE)
            if await volume.size.exceeds(volume.limit - reserve):
                raise DiskLowError(
                    f"{_FULL_DISK}: less than {_size(reserve)} is left at {volume.folder} of the "
                    f"{_size(volume.limit)} of the setting {volume.setting}, beyond which the kubelet evicts the pod; "
                    f"{_AGAIN}raise {volume.value} of the chart{_ELSEWHERE}"
                )

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled as soon as `check` raises, with what that raises."""
        task, guard = asyncio.ensure_future(work), asyncio.ensure_future(self._guard())
        try:
            await asyncio.wait({task, guard}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else guard.result()
        finally:
            task.cancel()
            guard.cancel()
            await asyncio.gather(task, guard, return_exceptions=True)

    async def _guard(self) -> NoReturn:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await self.check()

    def is_meant_by(self, text: str) -> bool:
        """Whether an error comes of a full disk."""
        return any(sign in text for sign in (*_FULL, _FULL_DISK))

    def explained(self, text: str) -> str | None:
        """What to say of an error that comes of a full disk of ours; None for any other error."""
        if not self.is_meant_by(text):
            return None
        left = ", ".join(f"{_size(self._free(folder))} at {folder}" for folder in self._folders)
        return f"{_FULL_DISK} (free: {left}): {text}; {_WAY_OUT}"


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count // 1024**2} MiB"
