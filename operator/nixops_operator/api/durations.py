"""Durations as people write them in a spec: `90s`, `30m`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

DURATION_PATTERN = "^([0-9]+(s|m|h))+$"
_PART = re.compile(r"([0-9]+)([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_A_YEAR = timedelta(days=365)


def parse_duration(text: str, longest: timedelta = _A_YEAR) -> timedelta:
    """`1h30m` as a timedelta. Raises ValueError for other forms, for zero, and for more than `longest`."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is no duration; write it as 90s, 30m or 1h30m")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= longest.total_seconds():
        raise ValueError(f"{text} is not between 1s and {format_duration(longest)}")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as `duration`; parts of a second are dropped."""
    hours, rest = divmod(int(duration.total_seconds()), 3600)
    minutes, seconds = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
