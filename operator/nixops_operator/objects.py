"""What a pass takes from an object of either kind, before it knows which. Pure.

One in deletion is read as a LeavingObject: what was made must go whatever the spec says now, so only the little that
the way out needs is taken from it, and nothing there can be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nixops_operator import names
from nixops_operator.api.machine_spec import AwsSettings, DeletionPolicy
from nixops_operator.api.parse import deletion_view
from nixops_operator.facts.kube import Body, Key, Kind


@dataclass(frozen=True)
class ReconciledObject:
    """The object itself, and what its status remembers."""

    key: Key
    uid: str
    generation: int
    status: Body = field(repr=False)

    @property
    def account_id(self) -> str | None:
        """The account in which something of ours may exist; None: nothing was ever made."""
        return self.status.get("accountId")


@dataclass(frozen=True)
class LeavingObject(ReconciledObject):
    """One in deletion."""

    deleted_at: datetime
    deletion_policy: DeletionPolicy | None  # None: nobody can read whether things are to be kept, so they are
    aws: AwsSettings | None  # None: nobody can read it

    @property
    def retains(self) -> bool:
        return self.deletion_policy is not DeletionPolicy.DELETE


def is_leaving(body: Body) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))


def is_paused(body: Body, *, suspend: bool) -> bool:
    """Whether a person said stop: in the spec, or by the annotation. Whatever stands there counts, as `True`, `yes` or
    nothing, but for `false`: who wrote it takes the machine for left alone, and Paused shows that it is."""
    return suspend or (body["metadata"].get("annotations") or {}).get(names.PAUSED_ANNOTATION, "false") != "false"


def head(body: Body, kind: Kind) -> dict[str, Any]:
    """The fields of a ReconciledObject."""
    metadata = body["metadata"]
    return {
        "key": Key(kind, metadata["namespace"], metadata["name"]),
        "uid": metadata["uid"],
        "generation": metadata["generation"],
        "status": body.get("status") or {},
    }


def leaving_head(body: Body, kind: Kind) -> dict[str, Any]:
    """The fields of a LeavingObject."""
    view = deletion_view(body)
    return head(body, kind) | {
        "deleted_at": datetime.fromisoformat(body["metadata"]["deletionTimestamp"]),
        "deletion_policy": view.policy,
        "aws": view.aws,
    }
