"""Metrics of one operator, in a registry of their own: several operators may live in one test process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 30, 120, 600)


class Metrics:
    """Names and labels are part of the contract with dashboards and alerts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.effects = Counter(
            "nixops_effects_total", "Calls that change something", ["effect", "result"], registry=self.registry
        )
        self.effect_seconds = Histogram(
            "nixops_effect_seconds", "How long they took", ["effect"], buckets=_SECONDS, registry=self.registry
        )
        self.queue_depth = Gauge("nixops_queue_depth", "Keys that wait for a pass", registry=self.registry)
        self.jobs_running = Gauge("nixops_jobs_running", "Jobs under way", ["job"], registry=self.registry)
        self.objects = Gauge("nixops_objects", "Objects known", ["kind"], registry=self.registry)
        self.leader = Gauge("nixops_leader", "1 while this process holds the Lease", registry=self.registry)
        self.resync_age = Gauge("nixops_resync_age_seconds", "Since the last complete resync", registry=self.registry)
        self.loop_lag = Gauge("nixops_loop_lag_seconds", "How late the event loop was, last", registry=self.registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
