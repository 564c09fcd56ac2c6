"""How much room a folder takes: what the kubelet counts against the limit of an emptyDir."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path

from nixops_operator.adapters.nix.programs import NixFailedError, output_of

_MEASURED_EVERY = timedelta(minutes=10)
_OF_A_LIMIT = timedelta(minutes=1)
"""As often as the kubelet measures (its --volume-stats-agg-period): in ten minutes somebody else may have freed on that
disk what this folder has grown by."""
_GROWN = 1024**3
"""Bytes that the disk may lose before it is measured anew."""
# Files come and go meanwhile, which du complains of.
_DU = 'nice -n 19 du --summarize --one-file-system --block-size=1 "$0" 2>/dev/null || true'


class FolderSize:
    """To read a whole store takes seconds. So it is not read each time: in between it has grown by no more than what
    its disk has lost."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        free: Callable[[Path], int],
        measure: Callable[[], Awaitable[int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`free`: the bytes that are free where a folder lies."""
        self._folder = folder
        self._environment = environment
        self._free = free
        self._measure = measure or self._read
        self._clock = clock
        self._known: tuple[int, int, float] | None = None  # bytes, what was free then, and when that was
        self._reading = asyncio.Lock()

    async def now(self, no_older: timedelta = _MEASURED_EVERY) -> int:
        """Bytes on disk; rather too many than too few. `no_older`: than this is what it is reckoned from. Raises
        OSError."""
        async with self._reading:
            if self._known is not None:
                size, free_then, then = self._known
                grown = max(free_then - self._free(self._folder), 0)
                if grown < _GROWN and self._clock() - then < no_older.total_seconds():
                    return size + grown
            return await self._anew()

    async def exceeds(self, limit: int) -> bool:
        """Whether it takes more bytes than these: measured, and not merely reckoned from what others may have written.
        Raises OSError."""
        if await self.now(_OF_A_LIMIT) <= limit:
            return False
        async with self._reading:
            return await self._anew() > limit

    async def _anew(self) -> int:
        free = self._free(self._folder)
        size = await self._measure()
        self._known = (size, free, self._clock())
        return size

    async def _read(self) -> int:
        try:
            return int((await output_of(("sh", "-c", _DU, str(self._folder)), self._environment)).split()[0])
        except NixFailedError as error:
            raise OSError(f"the size of {self._folder} cannot be measured: {error}") from error
