"""How the process may end. Whoever watches it reads the code: the chart's users see it as the pod's last exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    STOPPED = 0
    FAILED = 1
    CRDS_MISSING = 10
    LEASE_LOST = 11
    WATCH_DEAD = 12
    PASS_STUCK = 13
    UNSAFE = 14


class Ended(Exception):
    """The process is to end with this code."""

    def __init__(self, code: Exit, why: str) -> None:
        super().__init__(why)
        self.code = code
