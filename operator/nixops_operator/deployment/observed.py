"""What a pass over a deployment sees, as values. `observe` fills them in; checks and `status` are functions of them.

An error in a part says that nothing is known of it, never that nothing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from nixops_operator import names
from nixops_operator.api.conditions import Condition, Truth, find_condition
from nixops_operator.api.reasons import ConditionType
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import KeyPair, SecurityGroup
from nixops_operator.facts.kube import Body, Key, key_of
from nixops_operator.in_use import SeenSecret


@dataclass(frozen=True)
class GroupUse:
    """What keeps a security group from being deleted. `error`: it is not known."""

    interfaces: tuple[str, ...] = ()
    naming_groups: tuple[str, ...] = ()  # ids of other groups with rules that name it
    error: OperatorError | None = None

    @property
    def is_unused(self) -> bool:
        """Whether no machine's traffic passes it."""
        return self.error is None and not self.interfaces


@dataclass(frozen=True)
class ObservedNetwork:
    """EC2, as far as it concerns one deployment. `error`: nothing is known."""

    error: OperatorError | None = None
    account_id: str = ""
    cluster_id: str = ""
    default_vpc: str | None = None
    default_vpc_error: OperatorError | None = None
    groups: tuple[SecurityGroup, ...] = ()  # that carry our cluster and uid; by name
    key_pairs: tuple[KeyPair, ...] = ()
    uses: Mapping[str, GroupUse] = field(default_factory=dict)  # of groups that nothing names: group id → use
    others: Mapping[str, SecurityGroup | None] = field(default_factory=dict)
    """Groups of others beside which a machine is about to lose SSH, by id, as far as they are known."""
    attached: Mapping[str, frozenset[str]] = field(default_factory=dict)  # child's uid → groups of its live instance
    looked_at: datetime | None = None  # when the newest complete look at groups and key pairs began
    missing_for: Mapping[str, timedelta | None] = field(default_factory=dict)
    """Name of a group or key pair that should be there → how long complete looks in a row have missed it; None: the
    newest one shows it, or there was none."""

    def use(self, group_id: str) -> GroupUse | None:
        return self.uses.get(group_id)

    def shows(self, name: str) -> bool:
        """Whether there is a group of ours with that name or id, or a key pair with that name, in EC2."""
        return any(name in (thing.name, thing.id) for thing in self.things)

    @property
    def things(self) -> tuple[SecurityGroup | KeyPair, ...]:
        """All of them."""
        return (*self.groups, *self.key_pairs)


@dataclass(frozen=True)
class ObservedKey:
    """The private key behind one entry of keyPairs. `public_key` None: `error` says why, or its Secret does not exist
    and is ours to make."""

    public_key: str | None = None
    error: OperatorError | None = None


@dataclass(frozen=True)
class ObservedMachine:
    """One NixMachine."""

    body: Body = field(repr=False)

    @property
    def key(self) -> Key:
        return key_of(self.body)

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    @property
    def labels(self) -> Mapping[str, str]:
        return self.body["metadata"].get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.body["metadata"].get("annotations") or {}

    @property
    def machine(self) -> str:
        """Its name in its deployment."""
        return self.labels.get(names.MACHINE_LABEL, self.name)

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
        return self.condition(ConditionType.READY)

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

    def condition(self, kind: ConditionType) -> Condition | None:
        return find_condition(self.body, kind)

    def _says(self, kind: ConditionType) -> bool:
        condition = self.condition(kind)
        return condition is not None and condition.status is Truth.TRUE


@dataclass(frozen=True)
class Obstacle:
    """An object that stands where a machine of ours is to be."""

    name: str
    is_going: bool  # of an earlier life of this deployment, or in deletion: it makes place by itself
    whose: str  # for people


@dataclass(frozen=True)
class Observed:
    """Everything that one pass sees."""

    network: ObservedNetwork | None = None  # None: the deployment has nothing in EC2
    keys: Mapping[str, ObservedKey] = field(default_factory=dict)  # entry name → key; empty on the way out
    going_keys: tuple[str, ...] = ()  # Secrets of keys that are to stay, but would go with the deployment
    children: tuple[ObservedMachine, ...] = ()  # that this very deployment controls; by name
    obstacles: Mapping[str, Obstacle] = field(default_factory=dict)  # object's name → what stands there
    secret: SeenSecret | None = None  # with the credentials that its things in EC2 were made with
    orphans: tuple[str, ...] = ()  # names of machines that were ours and go on living without us; on the way out

    def child(self, name: str) -> ObservedMachine | None:
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> Mapping[str, ObservedMachine]:
        """A pass asks for each of up to 256 children several times."""
        return {child.name: child for child in self.children}
