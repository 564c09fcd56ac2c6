"""Security groups as each machine feels them: the union of its groups' rules, group peers as addresses."""

import asyncio

from nixops_lab.ec2.cloud import Hosts
from nixops_lab.ec2.records import GroupRule, Instance
from nixops_lab.ec2.region import Region
from nixops_lab.machines import Rule

Doors = tuple[tuple[Rule, ...], tuple[Rule, ...]]


def doors(region: Region, instance: Instance) -> Doors:
    """Ingress and egress rules of one instance, in a fixed order.

    A group as peer means the private addresses of its members: VPC User Guide, "Security group referencing".
    """
    groups = set(region.group_ids_of(instance))
    rules = sorted((rule for rule in region.rules.values() if rule.group_id in groups), key=lambda rule: repr(rule.key))
    ingress = dict.fromkeys(_rule(region, rule) for rule in rules if not rule.key.is_egress)
    egress = dict.fromkeys(_rule(region, rule) for rule in rules if rule.key.is_egress)
    return tuple(rule for rule in ingress if rule.cidrs), tuple(rule for rule in egress if rule.cidrs)


def _rule(region: Region, rule: GroupRule) -> Rule:
    key = rule.key
    if key.peer_kind == "group":
        cidrs = tuple(sorted(f"{address}/32" for address in _members(region, key.peer)))
    else:
        cidrs = (key.peer,)
    return Rule(protocol=key.protocol, from_port=key.from_port, to_port=key.to_port, cidrs=cidrs)


def _members(region: Region, group_id: str) -> list[str]:
    return [
        interface.private_address
        for interface in region.interfaces.values()
        if group_id in interface.group_ids and interface.terminated_at is None
    ]


class Firewall:
    """Tells the machines their rules, each only when they changed."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._applied: dict[str, Doors | None] = {}
        self._lock = asyncio.Lock()

    def admit(self, name: str) -> None:
        """The machine exists from now on."""
        self._applied.setdefault(name, None)

    async def forget(self, name: str) -> None:
        """The machine is going: when this returns, it is told nothing any more."""
        async with self._lock:
            self._applied.pop(name, None)

    async def apply(self, region: Region) -> None:
        """Bring all machines of the region up to date; when it returns, the rules are felt."""
        async with self._lock:
            for instance in list(region.instances.values()):
                if instance.id not in self._applied:
                    continue
                wanted = doors(region, instance)
                if self._applied[instance.id] != wanted:
                    await self._hosts.set_rules(instance.id, *wanted)
                    self._applied[instance.id] = wanted
