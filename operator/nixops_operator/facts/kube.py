"""Objects of the Kubernetes API as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from nixops_operator.api.group import GROUP

Body = Mapping[str, Any]
"""An object as the API server sent it, without `metadata.managedFields`."""


class Kind(StrEnum):
    """Our kinds, by plural (as in URLs)."""

    DEPLOYMENT = "nixdeployments"
    MACHINE = "nixmachines"

    @property
    def object_kind(self) -> str:
        return {"nixdeployments": "NixDeployment", "nixmachines": "NixMachine"}[self.value]


_OBJECT_KINDS = {kind.object_kind: kind for kind in Kind}


class Key(NamedTuple):
    """What the queue knows of an object."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.object_kind}/{self.namespace}/{self.name}"


def key_of(body: Body) -> Key:
    """The key of one of our objects."""
    return Key(_OBJECT_KINDS[body["kind"]], body["metadata"]["namespace"], body["metadata"]["name"])


@dataclass(frozen=True)
class OwnerReference:
    """The controlling owner of an object, of one of our kinds and in the object's own namespace."""

    kind: Kind
    name: str
    uid: str


def controller_of(body: Body) -> OwnerReference | None:
    """The controlling owner, if it is of our group.

    A reference says no more than that somebody wrote it. It has no namespace and means the object's own (Kubernetes,
    "Owners and Dependents"); whether such an owner exists is seen when it is looked up by place and uid.
    """
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            kind = _OBJECT_KINDS.get(reference["kind"])
            if kind is None or reference["apiVersion"].partition("/")[0] != GROUP:
                return None
            return OwnerReference(kind, reference["name"], reference["uid"])
    return None


def is_controlled_by(body: Body, owner: Body) -> bool:
    """Whether `owner`, an object of ours, controls `body`: same namespace; kind, name and uid as the reference says."""
    metadata = owner["metadata"]
    return body["metadata"]["namespace"] == metadata["namespace"] and controller_of(body) == OwnerReference(
        _OBJECT_KINDS[owner["kind"]], metadata["name"], metadata["uid"]
    )


@dataclass(frozen=True)
class Page:
    """A part of a list; what is on none of its pages did not exist at `version`."""

    bodies: list[Body]
    version: int


@dataclass(frozen=True)
class Secret:
    """A Secret as it was when it was read. `data` is decoded; it is in no repr, and belongs in no log, status, Event,
    argv or environment."""

    name: str
    uid: str
    resource_version: str
    data: Mapping[str, bytes] = field(repr=False)
    owner_uids: frozenset[str] = frozenset()
    type: str = "Opaque"
    is_immutable: bool = False
    deleted_at: datetime | None = None  # when its deletion was asked for; finalizers hold it
    finalizers: tuple[str, ...] = ()

    @property
    def is_deleting(self) -> bool:
        return self.deleted_at is not None


@dataclass(frozen=True)
class Event:
    """Something worth telling in `kubectl describe`. `type` is Normal or Warning."""

    key: Key
    uid: str
    type: str
    reason: str
    message: str
