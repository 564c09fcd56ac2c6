"""Waiting for what the world is bound to reach: asked again and again up to a deadline, never slept for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_EVERY = 0.25  # seconds
LIMIT = 90.0  # seconds; far above what an undisturbed machine takes, so that a slow one fails nothing


def eventually(question: Callable[[], T | None], what: str, limit: float = LIMIT, last: object = None) -> T:
    """The first answer that is not empty, None or False. Fails the test after `limit` seconds, with `what` and what
    `last()` says then."""
    deadline = time.monotonic() + limit
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            seen = last() if callable(last) else last
            raise AssertionError(f"{what}: not within {limit:.0f} s" + (f"; last seen: {seen}" if seen else ""))
        time.sleep(LOOK_EVERY)
