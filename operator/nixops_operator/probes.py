"""Whether the process is healthy, ready, and how it fares in figures: what /healthz, /readyz and /metrics say.

Every question has an answer from the first moment on: while another operator holds the Lease, which may be for days,
the process is healthy, not ready, and tells its metrics. None asks AWS, a host or the API server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from nixops_operator import job_names
from nixops_operator.composition import Core
from nixops_operator.exits import Ended, Exit
from nixops_operator.facts.kube import Key, Kind

PASS_IS_OLD = timedelta(seconds=60)  # unhealthy
PASS_IS_STUCK = timedelta(seconds=120)  # exit 13
LAG_IS_BAD = timedelta(seconds=5)
LAG_PERIOD = timedelta(milliseconds=100)  # between two measurements: short, so that few blocks of the loop are missed


class Probes:
    """`passes`: key → loop time at which its running pass began; empty until there are workers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.passes: Mapping[Key, float] = {}
        self._resynced_at: float | None = None
        self._lag = 0.0

    def resynced(self) -> None:
        """Everything that exists was listed just now."""
        self._resynced_at = asyncio.get_running_loop().time()

    def healthy(self) -> str | None:
        """None, or why a new process would do better."""
        patience = 3 * max(self._core.chosen.resync_period.total_seconds(), 20)
        if self._resync_age() > patience:
            return f"no resync for {self._resync_age():.0f} s"
        if self._oldest_pass() > PASS_IS_OLD.total_seconds():
            return f"a pass has been running for {self._oldest_pass():.0f} s"
        if self._lag > LAG_IS_BAD.total_seconds():
            return f"the event loop is {self._lag:.1f} s late"
        return None

    def ready(self) -> str | None:
        """None, or why nothing is reconciled."""
        if not self._core.is_leading:
            return "the Lease is not held"
        return None if self._resynced_at is not None else "the first lists are not complete"

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
        core, metrics = self._core, self._core.metrics
        metrics.queue_depth.set(len(core.queue))
        metrics.leader.set(int(core.is_leading))
        metrics.resync_age.set(self._resync_age())
        metrics.queue_oldest.set(core.queue.oldest())
        objects, jobs = Counter(key.kind for key in core.cache.known()), core.jobs.running()
        for kind in Kind:
            metrics.objects.labels(kind.object_kind).set(objects[kind])
        for job in job_names.KINDS:
            metrics.jobs_running.labels(job).set(jobs.get(job, 0))
        return metrics.text()

    async def measure_lag(self) -> None:
        """For ever: how late the event loop is. Raises Ended (`PASS_STUCK`) when a pass does not end."""
        loop, period = asyncio.get_running_loop(), LAG_PERIOD.total_seconds()
        while True:
            due = loop.time() + period
            await asyncio.sleep(period)
            self._lag = loop.time() - due
            self._core.metrics.loop_lag.observe(self._lag)
            if self._oldest_pass() > PASS_IS_STUCK.total_seconds():
                raise Ended(Exit.PASS_STUCK, "a pass has not ended for two minutes")

    def _oldest_pass(self) -> float:
        now = asyncio.get_running_loop().time()
        return max((now - began for began in self.passes.values()), default=0.0)

    def _resync_age(self) -> float:
        return asyncio.get_running_loop().time() - self._resynced_at if self._resynced_at is not None else 0.0
