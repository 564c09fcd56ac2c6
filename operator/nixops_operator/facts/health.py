"""Health checks as values: what is asked on a machine, and how the answers stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum


@dataclass(frozen=True)
class HttpProbe:
    """GET over plain HTTP at the machine's loopback address; redirections are not followed."""

    port: int
    host: str  # of the Host header alone
    path: str  # begins with `/`, printable ASCII
    expect_status: int


@dataclass(frozen=True)
class TcpProbe:
    port: int


@dataclass(frozen=True)
class UnitsProbe:
    units: tuple[str, ...]


@dataclass(frozen=True)
class ExecProbe:
    command: tuple[str, ...]


Probe = HttpProbe | TcpProbe | UnitsProbe | ExecProbe


@dataclass(frozen=True)
class Check:
    """A probe, and how often it is made."""

    name: str
    probe: Probe
    initial_delay: timedelta
    period: timedelta
    timeout: timedelta
    failure_threshold: int

    @property
    def decided_within(self) -> timedelta:
        """How long it takes at most until it has passed once, or has failed often enough."""
        return self.initial_delay + self.failure_threshold * (self.period + self.timeout)


class Standing(Enum):
    UNKNOWN = "not asked often enough"
    PASSES = "passes"
    FAILS = "has failed as often in a row as counts"


@dataclass(frozen=True)
class CheckResult:
    """How one check stands since the machine runs the system that it runs."""

    name: str
    standing: Standing = Standing.UNKNOWN
    failures: int = 0  # in a row
    words: str = ""  # of FAILS: why, as it was when it began to count

    def after(self, check: Check, failure: str) -> CheckResult:
        """With one more answer. `failure`: empty if it passed."""
        if not failure:
            return CheckResult(self.name, Standing.PASSES)
        failures = min(self.failures + 1, check.failure_threshold)
        if failures < check.failure_threshold:
            return CheckResult(self.name, self.standing, failures, self.words)
        words = self.words if self.standing is Standing.FAILS else failure
        return CheckResult(self.name, Standing.FAILS, failures, words)
