"""The two layers that are around every effect of the process: the fence and the audit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from nixops_operator.api.reasons import Reason
from nixops_operator.effects import Layer
from nixops_operator.errors import Retry
from nixops_operator.metrics import Metrics

log = logging.getLogger(__name__)


def fence(is_leading: Callable[[], bool]) -> Layer:
    """Refuses to change anything once another operator may hold the Lease. Its layer raises Retry."""
    return lambda effect: _Fence(is_leading, effect)


def audit(metrics: Metrics) -> Layer:
    """One record and one measurement per effect, whatever becomes of it."""
    return lambda effect: _Audit(metrics, effect)


# Classes: they are around each write of each pass, and generators made into context managers cost three times as much.


class _Fence(AbstractAsyncContextManager[None]):
    def __init__(self, is_leading: Callable[[], bool], effect: str) -> None:
        self._is_leading = is_leading
        self._effect = effect

    async def __aenter__(self) -> None:
        if not self._is_leading():
            raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{self._effect} refused: the Lease may be another operator's")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Asked before, not after."""


class _Audit(AbstractAsyncContextManager[None]):
    def __init__(self, metrics: Metrics, effect: str) -> None:
        self._metrics = metrics
        self._effect = effect
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._began = time.monotonic()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._began
        result = "ok" if kind is None else kind.__name__
        self._metrics.effects.labels(self._effect, result).inc()
        self._metrics.effect_seconds.labels(self._effect).observe(seconds)
        log.info("effect", extra={"effect": self._effect, "result": result, "seconds": round(seconds, 3)})
