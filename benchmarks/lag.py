"""How late an event loop is: asked from inside, since nobody else can see it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PERIOD = 0.02  # seconds between samples; at 50 a second they cost about 0.2 % of a core


@asynccontextmanager
async def recorded() -> AsyncIterator[list[tuple[float, float]]]:
    """(the loop's time, seconds late), while inside; written to the file `LAGS` at the end, if that is set, which shows
    from the beginning that the loop runs."""
    samples: list[tuple[float, float]] = []
    _write(samples)
    recorder = asyncio.create_task(_record(samples))
    try:
        yield samples
    finally:
        recorder.cancel()
        _write(samples)


def _write(samples: list[tuple[float, float]]) -> None:
    if "LAGS" in os.environ:
        Path(os.environ["LAGS"]).write_text(json.dumps(samples))


async def _record(samples: list[tuple[float, float]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PERIOD
        await asyncio.sleep(PERIOD)
        now = loop.time()
        samples.append((now, now - due))


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of none."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0
