"""Objects of the Kubernetes API as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Body = Mapping[str, Any]
"""An object as the API server sent it, without `metadata.managedFields`."""


class Kind(StrEnum):
    """Our kinds, by plural (as in URLs)."""

    DEPLOYMENT = "nixdeployments"
    MACHINE = "nixmachines"

    @property
    def object_kind(self) -> str:
        return {"nixdeployments": "NixDeployment", "nixmachines": "NixMachine"}[self.value]


@dataclass(frozen=True, order=True)
class Key:
    """What the queue knows of an object."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.object_kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True)
class OwnerReference:
    """The controlling owner of something that we create."""

    kind: Kind
    name: str
    uid: str


@dataclass(frozen=True)
class Event:
    """Something worth telling in `kubectl describe`. `type` is Normal or Warning."""

    key: Key
    uid: str
    type: str
    reason: str
    message: str
