"""Waits that began at a moment somebody wrote down, by a clock that may have been wrong. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta


def left(since: datetime, span: timedelta, now: datetime) -> timedelta | None:
    """What is left of a wait of `span`; None: it is over. All times are aware.

    So is one that seems to begin later than it can have begun: a clock that was ahead for a while must not have anybody
    wait until its time comes. A little ahead is what clocks of different nodes are.
    """
    if abs(now - since) >= span:
        return None
    return since + span - now
