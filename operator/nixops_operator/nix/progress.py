"""From Nix' activity events to a short text for people."""

from __future__ import annotations

import re
from typing import Any

# Nix, src/libutil/logging.hh: ActivityType; a result of type 105 is resProgress, its fields done, expected, running,
# failed.
_COPY_PATHS = 103
_BUILDS = 104
_COUNTED = {_BUILDS: "built", _COPY_PATHS: "copied"}
# A copy to a daemon sends all paths as one stream, and tells how many only in words (src/libstore/store-api.cc).
_COPYING = re.compile(r"copying (?P<count>\d{1,9}) paths")
_MOVED = re.compile(r"@moved (?P<bytes>\d{1,18})")
_MIB = 1024**2


def moved(line: str) -> dict[str, Any] | None:
    """What ssh_to_socket.py says of the bytes that moved, as an event; None for any other line."""
    found = _MOVED.fullmatch(line)
    return {"action": "moved", "bytes": int(found["bytes"])} if found else None


class Counter:
    """Follows the activities of one Nix process."""

    def __init__(self) -> None:
        self._activities: dict[int, str] = {}
        self._paths: set[int] = set()  # activities that copy one path each
        self._copied = 0
        self._expected = 0
        self._bytes = 0

    def text_after(self, event: dict[str, Any]) -> str | None:
        """`34 of 120 built` (or `34 of 120 copied, 57 MiB sent`) if this event says that something moved; None if it is
        about something else."""
        match event:
            case {"action": "start", "id": int(activity), "type": int(kind)} if kind in _COUNTED:
                self._activities[activity] = _COUNTED[kind]
                if found := _COPYING.match(str(event.get("text", ""))):
                    self._expected = int(found["count"])
            case {"action": "start", "id": int(activity), "type": 100}:  # the copy of one path
                self._paths.add(activity)
            case {"action": "stop", "id": int(activity)}:
                self._activities.pop(activity, None)
                if activity in self._paths:
                    self._paths.discard(activity)
                    self._copied += 1
                    return self._copy()
            case {"action": "result", "type": 105, "id": int(activity), "fields": [int(done), int(expected), *_]}:
                if expected > 0 and (verb := self._activities.get(activity)) is not None:
                    return f"{done} of {expected} {verb}"
            case {"action": "moved", "bytes": int(count)}:
                self._bytes = count
                return self._copy()
        return None

    def _copy(self) -> str:
        if not self._expected:
            return "asking what the machine has"
        text = f"{self._copied} of {self._expected} copied"
        return f"{text}, {self._bytes // _MIB} MiB sent" if self._bytes >= _MIB else text
