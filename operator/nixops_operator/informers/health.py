"""A machine's health checks, each asked at its own times over the held connection, and never from inside a pass.

An answer that does not come, because the connection is cut, says nothing about health: the check stands as it stood.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from nixops_operator.errors import OperatorError
from nixops_operator.facts.health import Check, CheckResult
from nixops_operator.ports.host import Host

log = logging.getLogger(__name__)

ANSWER_MARGIN = 30.0
"""Seconds above a check's own time limit, for the connection."""


class HealthLook:
    """The checks of what one machine runs. `subject`: what that is; something else there begins another look. Made
    inside a running loop; its tasks end with `end`."""

    def __init__(
        self, subject: str, checks: tuple[Check, ...], host: Callable[[], Host], wake: Callable[[], None]
    ) -> None:
        self.subject = subject
        self.checks = checks
        self._host = host
        self._wake = wake
        self._results = {check.name: CheckResult(check.name) for check in checks}
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._ask_for_ever(check), name=f"check {check.name}") for check in checks]

    @property
    def results(self) -> tuple[CheckResult, ...]:
        """In the order of the checks."""
        return tuple(self._results.values())

    def end(self) -> Iterable[asyncio.Task[None]]:
        """Asks no more. The tasks, to be waited for."""
        for task in self._tasks:
            task.cancel()
        return self._tasks

    async def _ask_for_ever(self, check: Check) -> None:
        await asyncio.sleep(check.initial_delay.total_seconds())
        while True:
            try:
                async with asyncio.timeout(check.timeout.total_seconds() + ANSWER_MARGIN):
                    failure = await self._host().probe(check.probe, check.timeout)
            except (OperatorError, TimeoutError) as error:
                log.debug("check %s: no answer: %s", check.name, error)
            except Exception:
                log.exception("check %s", check.name)
            else:
                self._see(check, failure)
            await asyncio.sleep(check.period.total_seconds())

    def _see(self, check: Check, failure: str) -> None:
        before = self._results[check.name]
        after = self._results[check.name] = before.after(check, failure)
        if after.standing is not before.standing:
            self._wake()
