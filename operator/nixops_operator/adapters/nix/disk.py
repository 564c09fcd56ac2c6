"""The disks that store and scratch folder lie on. Nobody may fill them: with them the operator's whole store stands
still, and everybody's machines with it.

A user without rights cannot give a build a quota of its own. So what is left is watched: below a reserve nothing
begins, and builds that run are ended.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_LOOK_EVERY = 2.0  # seconds; a fast disk takes some GB in that time
# As Nix, SQLite and bubblewrap put it.
_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
_FULL_DISK = "the operator's disk is full"
_WAY_OUT = (
    "garbage is collected, and this is tried again by itself; if it stays, give that volume more room (in the chart: "
    "store.sizeLimit, a larger store.existingClaim, scratch.sizeLimit), or set nix.build.on to Target"
)


class DiskLowError(Exception):
    """The text says where, and what to do. It is the same as long as that lasts."""


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there. Raises OSError."""
    return shutil.disk_usage(folder).free


class Disk:
    """See the module. `reserve`: bytes that stay free."""

    def __init__(self, folders: Sequence[Path], reserve: int, free: Callable[[Path], int] = free_bytes) -> None:
        self._folders = folders
        self._reserve = reserve
        self._free = free

    def check(self) -> None:
        """Raises DiskLowError if less than the reserve (setting nix.build.freeDisk) is free."""
        for folder in self._folders:
            free = self._free(folder)
            if free < self._reserve:
                raise DiskLowError(f"{_FULL_DISK}: less than {_size(self._reserve)} is free at {folder}; {_WAY_OUT}")

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled as soon as less than the reserve is free: DiskLowError."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_EVERY))[0]:
                self.check()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

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
