"""Metrics of one operator, in a registry of their own: several operators may live in one test process."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nixops_operator.facts.kube import Key

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 30, 120, 600)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """Names and labels are part of the contract with dashboards and alerts.

    It is the work queue's meter (workqueue.Meter), too: what a worker takes from the queue and gives back is a pass.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.effects = self._counter("effects_total", "Calls that change something", "effect", "result")
        self.effect_seconds = self._histogram("effect_seconds", "How long they took", _SECONDS, "effect")
        self.reconcile_seconds = self._histogram("reconcile_seconds", "How long passes took", _SECONDS, "kind")
        self.retries = self._counter("reconcile_retries_total", "Passes after which it backs off", "kind")
        self.queue_seconds = self._histogram("queue_seconds", "How long keys waited for a pass", _SECONDS, "kind")
        self.queue_depth = self._gauge("queue_depth", "Keys that wait for a pass")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "How long the first of them has waited")
        self.jobs_running = self._gauge("jobs_running", "Jobs that work or wait for a place", "job")
        self.objects = self._gauge("objects", "Objects known", "kind")
        self.store_free = self._gauge("store_free_bytes", "What may still be written where the Nix store lies")
        self.store_used = self._gauge("store_used_bytes", "What the Nix store takes, where nix.store.maxSize is set")
        for unknown in (self.store_free, self.store_used):
            unknown.set(math.nan)  # 0 would be an alarm
        self.store_short = self._gauge("store_short", "1 while not even a collection of garbage brings room enough")
        self.store_collected = self._counter("store_collected_bytes_total", "Garbage that was collected")
        self.leader = self._gauge("leader", "1 while this process holds the Lease")
        self.resync_age = self._gauge("resync_age_seconds", "Since the last complete resync")
        self.loop_lag = self._histogram("loop_lag_seconds", "How late the event loop was", _LAG)

    def waited(self, key: Key, seconds: float) -> None:
        self.queue_seconds.labels(key.kind.object_kind).observe(seconds)

    def ran(self, key: Key, seconds: float) -> None:
        self.reconcile_seconds.labels(key.kind.object_kind).observe(seconds)

    def backed_off(self, key: Key) -> None:
        self.retries.labels(key.kind.object_kind).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"nixops_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"nixops_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"nixops_{name}", text, labels, buckets=buckets, registry=self.registry)
