"""An event loop whose seconds are those of a processor of its own, however many programs share it.

    it works   ── the clock shows the CPU that the process has used
    it waits   ── the clock jumps to when the first of what it waits for is due
    a thread works for it ── the clock shows the CPU of that

So a wait of 20 ms is 20 ms long, a piece of work as long as the CPU that it took, and what other programs do meanwhile
counts for nothing; but that the same work takes more CPU where caches are shared.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
LOOK = 0.001  # seconds of anybody's clock, after which threads at work are looked at again


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0
        self.threads = 0  # that work for the loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        if self.threads:
            return super().select(min(timeout, LOOK))
        found = super().select(0)
        if not found:
            self.skipped += max(timeout, 0.0)
        return found


class CpuClockLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._own = _Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return time.process_time() + self._own.skipped

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        self._own.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: asyncio.Future[Any]) -> None:
        self._own.threads -= 1


def run(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in such a loop."""
    with asyncio.Runner(loop_factory=CpuClockLoop) as runner:
        return runner.run(work)
