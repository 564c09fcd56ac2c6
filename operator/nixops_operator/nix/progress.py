"""From Nix' activity events to a short text for people."""

from __future__ import annotations

from typing import Any

# Nix, src/libutil/logging.hh: ActivityType; a result of type 105 is resProgress, its fields done, expected, running,
# failed.
_COPY_PATHS = 103
_BUILDS = 104
_COUNTED = {_BUILDS: "built", _COPY_PATHS: "copied"}


class Counter:
    """Follows the activities of one Nix process."""

    def __init__(self) -> None:
        self._activities: dict[int, str] = {}

    def text_after(self, event: dict[str, Any]) -> str | None:
        """`34 of 120 built` (or `copied`) if this event says so; None if it is about something else."""
        match event:
            case {"action": "start", "id": int(activity), "type": int(kind)} if kind in _COUNTED:
                self._activities[activity] = _COUNTED[kind]
            case {"action": "stop", "id": int(activity)}:
                self._activities.pop(activity, None)
            case {"action": "result", "type": 105, "id": int(activity), "fields": [int(done), int(expected), *_]}:
                if expected > 0 and (verb := self._activities.get(activity)) is not None:
                    return f"{done} of {expected} {verb}"
        return None
