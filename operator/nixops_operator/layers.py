"""The two layers that are around every effect of the process: the fence and the audit."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nixops_operator.api.reasons import Reason
from nixops_operator.effects import Layer
from nixops_operator.errors import Retry
from nixops_operator.metrics import Metrics

log = logging.getLogger(__name__)


def fence(is_leading: Callable[[], bool]) -> Layer:
    """Refuses to change anything once another operator may hold the Lease. Its layer raises Retry."""

    @asynccontextmanager
    async def layer(effect: str) -> AsyncIterator[None]:
        if not is_leading():
            raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{effect} refused: the Lease may be another operator's")
        yield

    return layer


def audit(metrics: Metrics) -> Layer:
    """One record and one measurement per effect, whatever becomes of it."""

    @asynccontextmanager
    async def layer(effect: str) -> AsyncIterator[None]:
        began, result = time.monotonic(), "ok"
        try:
            yield
        except BaseException as error:
            result = type(error).__name__
            raise
        finally:
            seconds = time.monotonic() - began
            metrics.effects.labels(effect, result).inc()
            metrics.effect_seconds.labels(effect).observe(seconds)
            log.info("effect", extra={"effect": effect, "result": result, "seconds": round(seconds, 3)})

    return layer
