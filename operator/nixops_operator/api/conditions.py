"""Conditions as values, and how a new set replaces the old one in an object's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from nixops_operator.api.reasons import ConditionType, Reason

MESSAGE_LIMIT = 1024
"""Characters; the CRD refuses more."""

_FIRST = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)
_ORDER = {kind: place for place, kind in enumerate((*_FIRST, *(k for k in ConditionType if k not in _FIRST)))}
_ONLY_WHILE_TRUE = frozenset({ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.PAUSED})


class Truth(StrEnum):
    """A condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


_TYPES, _REASONS, _TRUTHS = frozenset(ConditionType), frozenset(Reason), frozenset(Truth)


@dataclass(frozen=True)
class Condition:
    """One condition as a pass wants it; when it changed last is known only beside the previous one."""

    type: ConditionType
    status: Truth
    reason: Reason
    message: str
    observed_generation: int

    def as_dict(self) -> dict[str, Any]:
        """As in an object's status, without lastTransitionTime; a message beyond the limit ends in `…`."""
        message = self.message if len(self.message) <= MESSAGE_LIMIT else self.message[: MESSAGE_LIMIT - 1] + "…"
        return {
            "type": self.type.value,
            "status": self.status.value,
            "observedGeneration": self.observed_generation,
            "reason": self.reason.value,
            "message": message,
        }


def conditions_of(body: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions of an object; those with words that this release does not know are left out."""
    return tuple(_read(entry) for entry in _entries(body) if entry.get("type") in _TYPES and _is_known(entry))


def find_condition(body: Mapping[str, Any], kind: ConditionType) -> Condition | None:
    """The object's condition of that type. Passes ask this of each child, many times: the others are not read."""
    return next((_read(entry) for entry in _entries(body) if entry.get("type") == kind and _is_known(entry)), None)


def _entries(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (body.get("status") or {}).get("conditions") or ()


def _is_known(entry: Mapping[str, Any]) -> bool:
    return entry.get("reason") in _REASONS and entry.get("status") in _TRUTHS


def _read(entry: Mapping[str, Any]) -> Condition:
    return Condition(
        ConditionType(entry["type"]),
        Truth(entry["status"]),
        Reason(entry["reason"]),
        entry.get("message", ""),
        entry.get("observedGeneration", -1),
    )


def changed_at(entry: Mapping[str, Any]) -> datetime | None:
    """When that condition changed last; None for what is no time. Whoever may write the status may have changed it, and
    the API server's `date-time` takes `00:00:00x5z` and `+99:99`, too (kube-openapi, pkg/validation/strfmt)."""
    try:
        moment = datetime.fromisoformat(entry.get("lastTransitionTime") or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def merge_conditions(
    previous: Sequence[Mapping[str, Any]], wanted: Sequence[Condition], now: datetime
) -> list[dict[str, Any]]:
    """`wanted` as a status' list: Ready, Reconciling and Stalled first, then the rest in ConditionType's order.

    A condition whose status did not change keeps its lastTransitionTime, if that is one; one that is not wanted is
    dropped, and so are Reconciling, Stalled and Paused when they are not True (kstatus: they exist only while True).
    `now` is aware.
    """
    since = {
        entry["type"]: (entry["status"], entry["lastTransitionTime"])
        for entry in previous
        if changed_at(entry) is not None
    }
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    merged = []
    for condition in sorted(wanted, key=lambda condition: _ORDER[condition.type]):
        if condition.type in _ONLY_WHILE_TRUE and condition.status is not Truth.TRUE:
            continue
        status, changed = since.get(condition.type.value, (None, None))
        merged.append(
            condition.as_dict()
            | {"lastTransitionTime": changed if changed and status == condition.status.value else stamp}
        )
    return merged
