"""What one NixDeployment asks for, and what its status remembers. Pure.

An object in deletion is read as Leaving: what was made must go whatever the spec says now, so only the little that the
way out needs is taken from it, and nothing there can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nixops_operator.api.deployment_spec import NixDeploymentSpec
from nixops_operator.api.machine_of_deployment import ChildMachine, machines_of
from nixops_operator.api.machine_spec import AwsSettings, DeletionPolicy
from nixops_operator.api.parse import parse_deployment
from nixops_operator.api.status import CreationStatus, KeyPairStatus, RevisionStatus, SecurityGroupStatus, read
from nixops_operator.deployment.revision import revision_of
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.kube import Body, Kind
from nixops_operator.objects import LeavingObject, ReconciledObject, head, is_leaving, is_paused, leaving_head
from nixops_operator.ready import was_reached
from nixops_operator.requests import Requests, requests_of


def creations_of(status: Body) -> tuple[CreationStatus, ...]:
    """The creations that a deployment's status lists."""
    found = (read(CreationStatus, one) for one in status.get("creations") or ())
    return tuple(one for one in found if one is not None)


class _Remembered(ReconciledObject):
    """What both forms take from the status."""

    @cached_property
    def creations(self) -> tuple[CreationStatus, ...]:
        """What was asked of EC2 and had not been shown by it."""
        return creations_of(self.status)

    @cached_property
    def key_pairs(self) -> tuple[KeyPairStatus, ...]:
        """The key pairs that EC2 has shown, one for each entry."""
        found = (read(KeyPairStatus, one) for one in self.status.get("keyPairs") or ())
        return tuple(one for one in found if one is not None)

    @cached_property
    def security_groups(self) -> tuple[SecurityGroupStatus, ...]:
        """The groups that EC2 has shown, one for each entry."""
        found = (read(SecurityGroupStatus, one) for one in self.status.get("securityGroups") or ())
        return tuple(one for one in found if one is not None)


@dataclass(frozen=True)
class Desired(_Remembered):
    """One NixDeployment as it is declared."""

    is_paused: bool
    spec: NixDeploymentSpec
    children: tuple[ChildMachine, ...]
    invalid: InvalidSpec | None  # why `children` could not be worked out
    revision: str  # short hash of all children's specs
    requests: Requests  # to look now

    @property
    def aws(self) -> AwsSettings:
        return self.spec.aws

    @property
    def needs_cloud(self) -> bool:
        return bool(self.spec.key_pairs or self.spec.security_groups) or self.account_id is not None

    @property
    def was_reached(self) -> bool:
        """Whether this very generation was ready once; what differs then is drift."""
        return was_reached(self.status, self.generation)

    @property
    def known_revision(self) -> RevisionStatus:
        return read(RevisionStatus, self.status.get("revision")) or RevisionStatus()


@dataclass(frozen=True)
class Leaving(_Remembered, LeavingObject):
    """One NixDeployment in deletion."""

    kept_machines: frozenset[str]  # names of entries that say Retain for themselves
    ended_machines: frozenset[str]  # names of entries that say Delete for themselves
    single_machines: frozenset[str]  # names of entries without replicas, which are the names of their machines
    is_orphaning: bool  # the garbage collector is still taking us off our machines (`--cascade=orphan`)

    @property
    def needs_cloud(self) -> bool:
        return self.account_id is not None


@dataclass(frozen=True)
class Parsed:
    """A spec with the machines that it asks for."""

    spec: NixDeploymentSpec
    children: tuple[ChildMachine, ...]
    invalid: InvalidSpec | None
    revision: str


def parse(body: Body) -> Parsed:
    """Raises InvalidSpec where the spec itself cannot be read; that of a machine is told in `invalid`."""
    spec = parse_deployment(body)
    try:
        children = machines_of(body)
    except InvalidSpec as error:
        return Parsed(spec, (), error, "")
    return Parsed(spec, children, None, revision_of(children))


def read_deployment(body: Body, spec_of: Callable[[Body], Parsed] = parse) -> Desired | Leaving:
    """A NixDeployment's body as a pass takes it. `spec_of` may remember.

    Raises InvalidSpec for a living one that this release refuses.
    """
    if is_leaving(body):
        return _leaving(body)
    known = head(body, Kind.DEPLOYMENT)
    found = spec_of(body)
    return Desired(
        **known,
        is_paused=is_paused(body, suspend=found.spec.suspend),
        spec=found.spec,
        children=found.children,
        invalid=found.invalid,
        revision=found.revision,
        requests=requests_of(body["metadata"].get("annotations") or {}, known["status"]),
    )


def _leaving(body: Body) -> Leaving:
    own = _own_policies(body.get("spec") or {})
    return Leaving(
        **leaving_head(body, Kind.DEPLOYMENT),
        kept_machines=frozenset(name for name, policy in own.items() if policy == DeletionPolicy.RETAIN),
        ended_machines=frozenset(name for name, policy in own.items() if policy == DeletionPolicy.DELETE),
        single_machines=_singles(body.get("spec") or {}),
        is_orphaning=ORPHAN_FINALIZER in (body["metadata"].get("finalizers") or ()),
    )


ORPHAN_FINALIZER = "orphan"
"""The API server puts it on an object that is deleted with `--cascade=orphan`; the garbage collector removes it once no
dependent names the object as an owner (Kubernetes, "Garbage Collection")."""


def _own_policies(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of `machines` → the deletionPolicy that it, or `defaults`, says. Whatever else is wrong with the spec."""
    defaults = spec.get("defaults")
    common = defaults.get("deletionPolicy") if isinstance(defaults, Mapping) else None
    return {str(entry.get("name")): entry.get("deletionPolicy", common) for entry in _entries(spec)}


def _singles(spec: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(entry.get("name")) for entry in _entries(spec) if entry.get("replicas") is None)


def _entries(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = spec.get("machines")
    return [entry for entry in (entries if isinstance(entries, list) else ()) if isinstance(entry, Mapping)]
