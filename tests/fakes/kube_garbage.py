"""The garbage collector of the API in memory, as that of kube-controller-manager behaves.

Source: Kubernetes, "Garbage Collection", "Owners and Dependents", "Use Cascading Deletion in a Cluster", and
`pkg/controller/garbagecollector/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Propagation(StrEnum):
    """What becomes of an object's dependents when it is deleted; kubectl's `--cascade`."""

    BACKGROUND = "Background"
    FOREGROUND = "Foreground"
    ORPHAN = "Orphan"


FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
FINALIZERS = {Propagation.FOREGROUND: FOREGROUND, Propagation.ORPHAN: ORPHAN}
"""What the API server puts on an object that is deleted so; the collector takes it off when it has done its part."""

LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Thing:
    """An object or a Secret, as the collector sees it."""

    kind: str
    namespace: str
    name: str
    uid: str
    references: Sequence[Mapping[str, Any]]
    finalizers: Sequence[str]
    deleted_at: datetime | None
    delete: Callable[[Propagation], object]
    disown: Callable[[frozenset[str]], object]
    drop_finalizer: Callable[[str], object]


@dataclass(frozen=True)
class _View:
    """All that exists at a moment, and what the collector knows of what does not."""

    things: Mapping[str, Thing]
    gone: Mapping[str, datetime]
    is_seen: Callable[[datetime], bool]

    def owner(self, dependent: Thing, reference: Mapping[str, Any]) -> Thing | None:
        """What a reference means: an object of the dependent's own namespace, with that kind, name and uid."""
        owner = self.things.get(reference["uid"])
        named = (dependent.namespace, reference["kind"], reference["name"])
        return owner if owner is not None and (owner.namespace, owner.kind, owner.name) == named else None

    def dependents(self, owner: Thing) -> list[Thing]:
        return [
            thing
            for thing in self.things.values()
            if any(self.owner(thing, reference) is owner for reference in thing.references)
        ]

    def is_blocked(self, owner: Thing) -> bool:
        return any(
            reference.get("blockOwnerDeletion") and self.owner(thing, reference) is owner
            for thing in self.things.values()
            for reference in thing.references
        )


def collect(
    things: Callable[[], Sequence[Thing]], gone: Mapping[str, datetime], is_seen: Callable[[datetime], bool]
) -> None:
    """Work until nothing is left to do. `gone`: uid → when that object went; `is_seen`: whether the collector knows by
    now what happened at a moment."""
    while True:
        view = _View({thing.uid: thing for thing in things()}, gone, is_seen)
        due = [action for thing in view.things.values() for action in _due(thing, view)]
        if not due:
            return
        for action in due:
            action()


Action = Callable[[], object]


def _due(thing: Thing, view: _View) -> list[Action]:
    """What is to be done for this one."""
    if thing.deleted_at is not None:
        return _due_in_deletion(thing, view) if view.is_seen(thing.deleted_at) else []
    solid, absent, waiting = [], [], []
    for reference in thing.references:
        uid, owner = reference["uid"], view.owner(thing, reference)
        if owner is None:
            (absent if view.is_seen(view.gone.get(uid, LONG_AGO)) else solid).append(uid)
        elif FOREGROUND in owner.finalizers and owner.deleted_at is not None and view.is_seen(owner.deleted_at):
            waiting.append(uid)
        else:
            solid.append(uid)
    if not absent and not waiting:
        return []
    if solid:
        return [lambda: thing.disown(frozenset([*absent, *waiting]))]
    is_nested = waiting and view.dependents(thing)
    return [lambda: thing.delete(Propagation.FOREGROUND if is_nested else Propagation.BACKGROUND)]


def _due_in_deletion(owner: Thing, view: _View) -> list[Action]:
    if ORPHAN in owner.finalizers:
        disowned = [lambda one=one: one.disown(frozenset([owner.uid])) for one in view.dependents(owner)]
        return [*disowned, lambda: owner.drop_finalizer(ORPHAN)]
    if FOREGROUND in owner.finalizers and not view.is_blocked(owner):
        return [lambda: owner.drop_finalizer(FOREGROUND)]
    return []
