"""What a pass over a deployment wants and sees, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nixops_operator import names
from nixops_operator.api.conditions import Condition, Truth, find_condition
from nixops_operator.api.deployment_spec import NixDeploymentSpec
from nixops_operator.api.machine_of_deployment import ChildMachine
from nixops_operator.api.reasons import ConditionType
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import KeyPair, SecurityGroup
from nixops_operator.facts.kube import Body, Key, Kind


@dataclass(frozen=True)
class Desired:
    """One NixDeployment as it is declared."""

    key: Key
    uid: str
    generation: int
    is_deleting: bool
    deleted_at: datetime | None
    is_paused: bool
    spec: NixDeploymentSpec
    children: tuple[ChildMachine, ...]
    invalid: OperatorError | None  # why `children` could not be worked out
    reconcile_request: str | None
    status: Body = field(repr=False)

    @property
    def account_id(self) -> str | None:
        """The account in which something of ours may exist; None: nothing was ever made."""
        return self.status.get("accountId")

    @property
    def needs_cloud(self) -> bool:
        return bool(self.spec.key_pairs or self.spec.security_groups) or self.account_id is not None


def desired_deployment(
    body: Body, spec: NixDeploymentSpec, children: tuple[ChildMachine, ...], invalid: OperatorError | None
) -> Desired:
    """A NixDeployment's body and parsed spec as what a pass wants."""
    metadata = body["metadata"]
    status = body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    deleted = metadata.get("deletionTimestamp")
    request = annotations.get(names.RECONCILE_ANNOTATION) or annotations.get(names.FLUX_RECONCILE_ANNOTATION)
    return Desired(
        key=Key(Kind.DEPLOYMENT, metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata["generation"],
        is_deleting=deleted is not None,
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        is_paused=spec.suspend or annotations.get(names.PAUSED_ANNOTATION) == "true",
        spec=spec,
        children=children,
        invalid=invalid,
        reconcile_request=request if request != status.get("lastHandledReconcileAt") else None,
        status=status,
    )


@dataclass(frozen=True)
class GroupUse:
    """What keeps a security group from being deleted."""

    interfaces: tuple[str, ...]
    naming_groups: tuple[str, ...]  # ids of other groups with rules that name it


@dataclass(frozen=True)
class ObservedNetwork:
    """EC2, as far as it concerns one deployment. `error`: nothing is known."""

    error: OperatorError | None = None
    account_id: str = ""
    cluster_id: str = ""
    default_vpc: str | None = None
    groups: tuple[SecurityGroup, ...] = ()  # all that carry our uid
    key_pairs: tuple[KeyPair, ...] = ()
    uses: Mapping[str, GroupUse] = field(default_factory=dict)  # of groups that are to go: group id → use


@dataclass(frozen=True)
class ObservedKey:
    """The key behind one entry of keyPairs. `public_key` None: `error` says why, or its Secret is to be generated."""

    public_key: str | None = None
    error: OperatorError | None = None


@dataclass(frozen=True)
class ObservedMachine:
    """One NixMachine that this deployment controls."""

    body: Body = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def is_deleting(self) -> bool:
        return bool(self.body["metadata"].get("deletionTimestamp"))

    @property
    def is_observed(self) -> bool:
        """Whether its status speaks of its newest spec."""
        seen = (self.body.get("status") or {}).get("observedGeneration", -1)
        return bool(seen == self.body["metadata"]["generation"])

    @property
    def ready(self) -> Condition | None:
        return find_condition(self.body, ConditionType.READY)

    @property
    def is_ready(self) -> bool:
        ready = self.ready
        return self.is_observed and not self.is_deleting and ready is not None and ready.status is Truth.TRUE

    @property
    def is_stalled(self) -> bool:
        return self.is_observed and self._says(ConditionType.STALLED)

    @property
    def is_reconciling(self) -> bool:
        return self._says(ConditionType.RECONCILING)

    @property
    def is_paused(self) -> bool:
        return self._says(ConditionType.PAUSED)

    def _says(self, kind: ConditionType) -> bool:
        condition = find_condition(self.body, kind)
        return condition is not None and condition.status is Truth.TRUE


@dataclass(frozen=True)
class Observed:
    """Everything that one pass sees."""

    network: ObservedNetwork | None  # None: the deployment has nothing in EC2
    keys: Mapping[str, ObservedKey]  # entry name → key
    children: tuple[ObservedMachine, ...]  # by name
    going_keys: tuple[str, ...] = ()  # Secrets of keys that are to stay, but would go with the deployment

    def child(self, name: str) -> ObservedMachine | None:
        return next((child for child in self.children if child.name == name), None)
