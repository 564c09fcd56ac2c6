"""Everything that exists in one region, and what of it a caller can see."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from nixops_lab.ec2 import ids
from nixops_lab.ec2.knobs import Panel
from nixops_lab.ec2.network import Network
from nixops_lab.ec2.records import Group, GroupRule, Instance, Interface, KeyPair, Volume
from nixops_lab.ec2.rules import ALL_TRAFFIC_OUT, RuleKey
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
    """The state of one region: id → record for each kind, resource id → tags."""

    name: str
    panel: Panel
    new_ids: ids.Ids
    network: Network
    seed: int
    instances: dict[str, Instance] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    rules: dict[str, GroupRule] = field(default_factory=dict)
    key_pairs: dict[str, KeyPair] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: TokenLedger = field(default_factory=TokenLedger)

    def adopt_network(self, network: Network) -> None:
        """Take the network as it is now; every VPC gets its `default` group.

        The group admits its own members only: VPC User Guide, "Default security groups for your VPCs".
        """
        self.network = network
        with_default = {group.vpc_id for group in self.groups.values() if group.name == "default"}
        for vpc_id in network.vpcs:
            if vpc_id not in with_default:
                group = Group(self.new_ids.new("sg"), "default", "default VPC security group", vpc_id, 0.0)
                self.groups[group.id] = group
                self.add_rule(group.id, RuleKey(False, "-1", None, None, "group", group.id), None)
                self.add_rule(group.id, ALL_TRAFFIC_OUT, None)

    def add_rule(self, group_id: str, key: RuleKey, description: str | None) -> GroupRule:
        """Store one rule under a new id."""
        rule = GroupRule(self.new_ids.new("sgr"), group_id, key, description)
        self.rules[rule.id] = rule
        return rule

    def rules_of(self, group_id: str) -> list[GroupRule]:
        """All rules of a group, both directions."""
        return [rule for rule in self.rules.values() if rule.group_id == group_id]

    def default_group(self, vpc_id: str) -> Group:
        """The group named `default` of a VPC."""
        return next(g for g in self.groups.values() if g.vpc_id == vpc_id and g.name == "default")

    def visible(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """The records that are old enough to be shown: EC2 is eventually consistent."""
        horizon = self.panel.clock() - self.panel.knobs.visibility_seconds
        return {record.id: record for record in records.values() if record.created_at <= horizon}

    def shuffled(self, records: Iterable[Record]) -> list[Record]:
        """In an order that says nothing, but stays the same from page to page. EC2 promises no order."""
        return sorted(records, key=lambda record: hashlib.sha256(f"{self.seed}/{record.id}".encode()).digest())

    def forget_expired(self) -> None:
        """Drop terminated instances and their interfaces whose time is over."""
        now, knobs = self.panel.clock(), self.panel.knobs
        for instance in list(self.instances.values()):
            if instance.terminated_at is not None and instance.terminated_at + knobs.terminated_visible_seconds <= now:
                del self.instances[instance.id]
                self.tags.pop(instance.id, None)
        for interface in list(self.interfaces.values()):
            if interface.terminated_at is not None and interface.terminated_at + knobs.interface_release_seconds <= now:
                del self.interfaces[interface.id]
                self.tags.pop(interface.id, None)

    def group_ids_of(self, instance: Instance) -> tuple[str, ...]:
        """The groups of the instance's interface; none once it is terminated."""
        interface = self.interfaces.get(instance.interface_id)
        return () if interface is None or instance.terminated_at is not None else interface.group_ids
