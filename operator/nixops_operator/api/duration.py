"""Durations as people write them: `30m`, `90s`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

PATTERN = r"^([0-9]+(s|m|h))+$"
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> timedelta:
    """`1h30m` → 90 minutes. Raises ValueError for anything that does not match PATTERN."""
    if not re.fullmatch(PATTERN.strip("^$"), text):
        raise ValueError(f"{text!r} is no duration; write 90s, 30m or 1h30m")
    return timedelta(seconds=sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)(s|m|h)", text)))
