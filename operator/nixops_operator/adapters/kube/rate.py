"""At most so many requests a second, so that a busy operator leaves the API server to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class RateLimit:
    """A token bucket. `wait()` returns when the caller may go; callers go in the order in which they came."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval = 1 / per_second
        self._allowance = (burst - 1) * self._interval
        self._monotonic = monotonic
        self._sleep = sleep
        self._next = float("-inf")

    async def wait(self) -> None:
        now = self._monotonic()
        # The bucket as one number: the moment at which the next token falls due, at most `burst` tokens in the past.
        due = max(self._next, now - self._allowance)
        self._next = due + self._interval
        if due > now:
            await self._sleep(due - now)
