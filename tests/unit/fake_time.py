"""An event loop whose clock jumps: what waits for time waits no time at all, and in the right order.

run(test())                 # hours of waiting pass in milliseconds
await asyncio.sleep(3600)   # inside: the clock is an hour later, and everything due before has run
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class EverythingWaitsError(Exception):
    """No callback is ready and none is scheduled: a real loop would wait for ever."""


class HotLoopError(Exception):
    """Callbacks follow each other without end while no time passes: a real loop would keep a processor busy."""


ROUNDS_AT_ONE_TIME = 3_000  # an arbitrary number, far beyond what real work at one instant takes


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: when the loop has nothing to do until some time, it is that time."""

    now = 0.0
    rounds = 0  # since the time changed last

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        self.rounds += 1
        if self.rounds > ROUNDS_AT_ONE_TIME:
            self.rounds = 0  # what ends now may need some more
            raise HotLoopError
        if not found and timeout is None:
            raise EverythingWaitsError
        if not found and timeout is not None and timeout > 0:
            self.now += timeout
            self.rounds = 0
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """See the module. `start`: what its clock shows first, in seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self._jumping = _JumpingSelector()
        self._jumping.now = start
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def hold(self, seconds: float) -> None:
        self._jumping.now += seconds


def pass_time(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """As a callback does that holds the loop for so long: meanwhile nothing else runs."""
    assert isinstance(loop, JumpingLoop)
    loop.hold(seconds)


def run(work: Coroutine[Any, Any, T], start: float = 0.0) -> T:
    """As asyncio.run, in a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(start)) as runner:
        return runner.run(work)
