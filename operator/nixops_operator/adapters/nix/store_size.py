"""How much room the store takes: what the kubelet counts against the limit of an emptyDir."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path

from nixops_operator.adapters.nix.disk import free_bytes
from nixops_operator.adapters.nix.programs import output_of

_MEASURED_EVERY = timedelta(minutes=10)
_GROWN = 1024**3
"""Bytes that the disk may lose before it is measured anew."""
# Files come and go meanwhile, which du complains of.
_DU = 'nice -n 19 du --summarize --one-file-system --block-size=1 "$0" 2>/dev/null || true'


class StoreSize:
    """To read a whole store takes seconds. So it is not read each time: in between it has grown by no more than what
    its disk has lost."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        free: Callable[[Path], int] = free_bytes,
        measure: Callable[[], Awaitable[int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._free = free
        self._measure = measure or self._read
        self._clock = clock
        self._known: tuple[int, int, float] | None = None  # bytes, what was free then, and when that was

    async def now(self) -> int:
        """Bytes on disk; rather too many than too few. Raises OSError, NixFailedError."""
        free = self._free(self._folder)
        if self._known is not None:
            size, free_then, then = self._known
            grown = max(free_then - free, 0)
            if grown < _GROWN and self._clock() - then < _MEASURED_EVERY.total_seconds():
                return size + grown
        size = await self._measure()
        self._known = (size, free, self._clock())
        return size

    async def _read(self) -> int:
        return int((await output_of(("sh", "-c", _DU, str(self._folder)), self._environment)).split()[0])
