"""Who uses the operator's store, so that it is never collected under somebody's hands.

Nix itself protects what a process works with by temporary roots, in a file that is named after the process' number.
Builders have numbers of their own (a PID namespace each), so that two of them write the same file, and one protects
nothing. And what one process has found in the store, and the next one is to use, is protected by neither. So a
collection is alone with the store:

    collection is due ──► no build begins any more ──► those that run end ──► nothing else begins ──► alone
                            (hours, perhaps; everything else goes on)           (minutes)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

LENT_FOR = timedelta(hours=1)
"""How long a path stays for whoever was given it. Far longer than it takes to say what it is for: then other roots
hold it."""


class StoreUse:
    """See the module. Not for several event loops at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._builds = 0
        self._others = 0
        self._is_due = False
        self._is_collected = False
        self._changed = asyncio.Event()
        self._lent: dict[str, float] = {}  # path → until when

    @property
    def is_due(self) -> bool:
        """Whether a collection waits, or goes on."""
        return self._is_due

    @contextlib.asynccontextmanager
    async def briefly(self) -> AsyncIterator[None]:
        """For minutes at most. No collection begins meanwhile."""
        await self._until(lambda: not self._is_collected)
        self._others += 1
        try:
            yield
        finally:
            self._others -= 1
            self._tell()

    @contextlib.asynccontextmanager
    async def building(self) -> AsyncIterator[None]:
        """As long as it takes. No collection begins meanwhile."""
        await self._until(lambda: not self._is_due)
        self._builds += 1
        try:
            yield
        finally:
            self._builds -= 1
            self._tell()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else uses the store meanwhile. For one caller at a time."""
        self._is_due = True
        try:
            await self._until(lambda: not self._builds)
            self._is_collected = True
            await self._until(lambda: not self._others)
            yield
        finally:
            self._is_due = self._is_collected = False
            self._tell()

    def lend(self, path: str) -> str:
        """`path`, which is not collected for a while."""
        self._lent[path] = self._clock() + LENT_FOR.total_seconds()
        return path

    def lent(self) -> frozenset[str]:
        """What is not to be collected now."""
        now = self._clock()
        self._lent = {path: until for path, until in self._lent.items() if until > now}
        return frozenset(self._lent)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
