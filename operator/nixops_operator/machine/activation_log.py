"""From the output of switch-to-configuration to the one line that says what went wrong. Pure."""

from __future__ import annotations

import re

_LONGEST = 300
_TROUBLE = re.compile(r"error|fail|could not|cannot|refus|timed out|not found|denied", re.IGNORECASE)


def telling_line(log: str) -> str:
    """The first line that tells of trouble, at most 300 characters; empty if none does.

    The first, not the last: what follows is often its consequence, or the way back to the previous system.
    """
    for line in log.splitlines():
        if _TROUBLE.search(line):
            text = line.strip()
            return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return ""
