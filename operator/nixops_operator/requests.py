"""Requests to look now: annotations that people and Flux set. Pure.

Two annotations mean the same. Each value counts once, whichever of them it stands in: what was handled last is told in
`status.lastHandledReconcileAt`, as Flux' tools expect, and the values that stood there then in `handledRequests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nixops_operator import names

LONGEST = 256
"""Characters of a request that count: as many as `status.lastHandledReconcileAt` holds."""
_ANNOTATIONS = (names.RECONCILE_ANNOTATION, names.FLUX_RECONCILE_ANNOTATION)


@dataclass(frozen=True)
class Requests:
    """Of one object. `new`: one that no pass has answered yet."""

    standing: tuple[str, ...] = ()
    new: str | None = None

    def answered(self) -> dict[str, Any]:
        """Status fields that say that `new` was answered; empty if there is none."""
        if self.new is None:
            return {}
        return {"lastHandledReconcileAt": self.new, "handledRequests": sorted(set(self.standing))}


def reboot_of(annotations: Mapping[str, str]) -> str:
    """What stands in the annotation that asks for a restart, answered or not; empty if there is none."""
    return annotations.get(names.REBOOT_ANNOTATION, "")[:LONGEST]


def requests_of(annotations: Mapping[str, str], status: Mapping[str, Any]) -> Requests:
    """The requests that stand in the annotations, compared with what the status says was handled."""
    # What is longer than a status field may be is told apart by its beginning.
    standing = tuple(annotations[name][:LONGEST] for name in _ANNOTATIONS if annotations.get(name))
    handled = {*(status.get("handledRequests") or ()), status.get("lastHandledReconcileAt")}
    return Requests(standing, next((value for value in standing if value not in handled), None))
