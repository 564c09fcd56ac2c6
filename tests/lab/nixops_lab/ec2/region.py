"""Everything that exists in one region, and what of it a caller can see."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol, TypeVar

from nixops_lab.ec2 import ids
from nixops_lab.ec2.filters import page
from nixops_lab.ec2.knobs import Panel
from nixops_lab.ec2.network import Network
from nixops_lab.ec2.records import (
    ElasticAddress,
    Group,
    GroupRule,
    Instance,
    Interface,
    KeyPair,
    PlacementGroup,
    Snapshot,
    Volume,
)
from nixops_lab.ec2.rules import ALL_IPV4_OUT, ALL_IPV6_OUT, RuleKey
from nixops_lab.ec2.tag_book import TagBook, Tags
from nixops_lab.ec2.tokens import TokenLedger


class Dated(Protocol):
    """A record with an id and a time of creation."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> float: ...


Record = TypeVar("Record", bound=Dated)


@dataclass
class Region:
    """The state of one region: id → record for each kind. `chance` decides the order of answers."""

    name: str
    panel: Panel
    new_ids: ids.Ids
    network: Network
    chance: Random
    instances: dict[str, Instance] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    rules: dict[str, GroupRule] = field(default_factory=dict)
    addresses: dict[str, ElasticAddress] = field(default_factory=dict)
    key_pairs: dict[str, KeyPair] = field(default_factory=dict)
    placement_groups: dict[str, PlacementGroup] = field(default_factory=dict)
    tags: TagBook = field(default_factory=TagBook)
    tokens: TokenLedger = field(default_factory=TokenLedger)
    # Instance id → what it was before each change, and when that ended.
    _past: dict[str, list[tuple[float, Instance]]] = field(default_factory=dict)

    def adopt_network(self, network: Network) -> None:
        """Take the network as it is now; every VPC gets its `default` group.

        The group admits its own members only. Where the VPC gets an IPv6 block, the group lets IPv6 out as well, unless
        somebody has changed what it lets out: VPC User Guide, "Default security groups for your VPCs".
        """
        with_new_block = network.ipv6_vpcs - self.network.ipv6_vpcs
        self.network = network
        for group in [group for group in self.groups.values() if group.name == "default"]:
            egress = [rule.key for rule in self.rules_of(group.id) if rule.key.is_egress]
            if group.vpc_id in with_new_block and egress == [ALL_IPV4_OUT]:
                self.add_rule(group.id, ALL_IPV6_OUT, None, self.panel.clock())
        with_default = {group.vpc_id for group in self.groups.values() if group.name == "default"}
        for vpc_id in network.vpcs:
            if vpc_id not in with_default:
                group = Group(self.new_ids.new("sg"), "default", "default VPC security group", vpc_id, 0.0)
                self.groups[group.id] = group
                self.add_rule(group.id, RuleKey(False, "-1", None, None, "group", group.id), None, group.created_at)
                self.let_all_out(group)

    def add_rule(self, group_id: str, key: RuleKey, description: str | None, created_at: float) -> GroupRule:
        """Store one rule under a new id."""
        rule = GroupRule(self.new_ids.new("sgr"), group_id, key, description, created_at)
        self.rules[rule.id] = rule
        return rule

    def let_all_out(self, group: Group) -> None:
        """What a new group lets out: everything, IPv6 where its VPC has some."""
        self.add_rule(group.id, ALL_IPV4_OUT, None, group.created_at)
        if group.vpc_id in self.network.ipv6_vpcs:
            self.add_rule(group.id, ALL_IPV6_OUT, None, group.created_at)

    def rules_of(self, group_id: str) -> list[GroupRule]:
        """All rules of a group, both directions."""
        return [rule for rule in self.rules.values() if rule.group_id == group_id]

    def rules_shown(self, group_id: str) -> list[GroupRule]:
        """The rules of a group that are old enough to be shown."""
        return list(self.visible({rule.id: rule for rule in self.rules_of(group_id)}).values())

    def default_group(self, vpc_id: str) -> Group:
        """The group named `default` of a VPC."""
        return next(g for g in self.groups.values() if g.vpc_id == vpc_id and g.name == "default")

    def elastic_address_of(self, instance_id: str) -> ElasticAddress | None:
        """The elastic address that is associated with an instance."""
        return next((one for one in self.addresses.values() if one.instance_id == instance_id), None)

    # What answers show: EC2 is eventually consistent.

    def visible(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """The records that are old enough to be shown, and to be named in a call."""
        horizon = self._shown_until()
        return {record.id: record for record in records.values() if record.created_at <= horizon}

    def is_indexed(self, record: Dated) -> bool:
        """Whether a look-up other than by id finds the record: those lag longer."""
        return record.created_at <= self._indexed_until()

    def tags_shown(self, resource: str) -> Tags:
        """The tags in an answer that shows the resource."""
        return self.tags.as_of(resource, self._shown_until())

    def tags_indexed(self, resource: str) -> Tags:
        """The tags that filters know."""
        return self.tags.as_of(resource, self._indexed_until())

    def seen(self, instance: Instance) -> Instance:
        """The instance as answers show it now: perhaps as it was a while ago."""
        horizon = self.panel.clock() - self.panel.knobs.visibility_states
        return next((before for ended, before in self._past.get(instance.id, []) if ended > horizon), instance)

    def paged(
        self, records: Iterable[Record], params: Mapping[str, Any], ids_parameter: str, most: int = 1000
    ) -> tuple[Sequence[Record], str | None]:
        """One page of an answer, in an order that says nothing, and the token of the next. `most`: of one page."""
        return page(records, lambda record: record.id, self.draw, params, ids_parameter, most)

    def shuffled(self, records: Iterable[Record]) -> Sequence[Record]:
        """An answer without pages, in an order that says nothing."""
        return self.paged(records, {}, "")[0]

    def draw(self) -> str:
        """A text that nobody can foresee, the same sequence for the same seed."""
        return f"{self.chance.getrandbits(64):016x}"

    def _shown_until(self) -> float:
        return self.panel.clock() - self.panel.knobs.visibility_ids

    def _indexed_until(self) -> float:
        return self.panel.clock() - max(self.panel.knobs.visibility_ids, self.panel.knobs.visibility_tags)

    def change(self, instance_id: str, **changes: object) -> None:
        """Replace fields of an instance; what it was is remembered."""
        before = self.instances[instance_id]
        self._past.setdefault(instance_id, []).append((self.panel.clock(), before))
        self.instances[instance_id] = replace(before, **changes)  # type: ignore[arg-type]

    def forget_expired(self) -> None:
        """Drop terminated instances and their interfaces whose time is over."""
        now, knobs = self.panel.clock(), self.panel.knobs
        for instance in list(self.instances.values()):
            if instance.terminated_at is not None and instance.terminated_at + knobs.terminated_visible_seconds <= now:
                del self.instances[instance.id]
                self._past.pop(instance.id, None)
                self.tags.forget(instance.id)
        for interface in list(self.interfaces.values()):
            if interface.terminated_at is not None and interface.terminated_at + knobs.interface_release_seconds <= now:
                del self.interfaces[interface.id]
                self.tags.forget(interface.id)

    def group_ids_of(self, instance: Instance) -> tuple[str, ...]:
        """The groups of the instance's interface; none once it is terminated."""
        interface = self.interfaces.get(instance.interface_id)
        return () if interface is None or instance.terminated_at is not None else interface.group_ids
