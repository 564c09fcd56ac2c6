"""A node on which no builder could be confined is tried again: its disk may have been full, or its settings changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from nixops_operator.errors import OperatorError

log = logging.getLogger(__name__)

FIRST_AFTER = timedelta(seconds=30)
"""Doubled up to the next."""
LONGEST_PAUSE = timedelta(minutes=10)


async def until_builders_work(probe: Callable[[], Awaitable[None]], said: str) -> None:
    """Call `probe` until it raises no OperatorError any more. `said`: what it raised before; the log tells a cause
    once."""
    pause = FIRST_AFTER
    while True:
        await asyncio.sleep(pause.total_seconds())
        pause = min(2 * pause, LONGEST_PAUSE)
        try:
            await probe()
        except OperatorError as error:
            if error.message != said:
                said = error.message
                log.warning("still nothing is built here: %s", said)
        else:
            log.info("builders work now: with build.on Auto the operator builds from here on")
            return
