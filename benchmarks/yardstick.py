"""How dear a piece of work was. On a machine that others use, too, the same work takes more CPU, by their share of the
caches and of the other half of a core; a figure of such a run is compared after it is divided by this."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PERIOD = 0.5  # seconds between two samples of some milliseconds
PIECE = json.dumps({f"key {number}": {"list": [number] * 10, "text": "x" * 40} for number in range(60)})
TIMES = 20


class Yardstick:
    """Samples of one piece of work: seconds of CPU."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def take(self) -> None:
        began = time.thread_time()
        for _ in range(TIMES):
            json.dumps(json.loads(PIECE))
        self.samples.append(time.thread_time() - began)

    def factor(self) -> float:
        """The mean of the samples, by the cheapest of them; 1 on a machine of one's own."""
        return sum(self.samples) / len(self.samples) / min(self.samples)


@asynccontextmanager
async def held_beside() -> AsyncIterator[Yardstick]:
    """Sampled while inside."""
    yardstick = Yardstick()
    yardstick.take()

    async def sample() -> None:
        while True:
            await asyncio.sleep(PERIOD)
            yardstick.take()

    task = asyncio.create_task(sample())
    try:
        yield yardstick
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
