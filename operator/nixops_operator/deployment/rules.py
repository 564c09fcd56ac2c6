"""Security group rules: what an entry of the spec wants, and what differs from what EC2 has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nixops_operator.api.deployment_spec import SecurityGroupEntry, SecurityGroupRule
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress, canonical_rule
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.cloud import SecurityGroup

SSH_PORT = 22


@dataclass(frozen=True)
class RuleChanges:
    """What makes a group's rules as wanted. Missing ones are added before surplus ones go."""

    missing: Mapping[Rule, str]  # rule → description
    surplus: tuple[tuple[str, Rule], ...]  # rule id, rule; sorted
    descriptions: tuple[tuple[str, str], ...]  # rule id → text that differs

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.descriptions)


def wanted_rules(entry: SecurityGroupEntry, group_ids: Mapping[str, str]) -> dict[Rule, str]:
    """All rules of an entry, canonical, with their descriptions. `group_ids`: entry name → `sg-…`, of groups that
    exist.

    Raises InvalidSpec where EC2 would refuse a rule, or two say the same with different descriptions.
    """
    wanted: dict[Rule, str] = {}
    directions = ((Direction.INGRESS, entry.ingress), (Direction.EGRESS, entry.egress or ()))
    for direction, rules in directions:
        for place, given in enumerate(rules):
            field = f"spec.securityGroups[{entry.name}].{direction.value}[{place}]"
            try:
                found = list(_canonical(direction, given, group_ids, group_ids[entry.name]))
            except ValueError as error:
                raise InvalidSpec(field, str(error)) from None
            except KeyError as error:
                raise InvalidSpec(field, f"group {error} is none of spec.securityGroups; name an sg-… id") from None
            for rule in found:
                if wanted.setdefault(rule, given.description) != given.description:
                    raise InvalidSpec(field, "says the same as another rule with another description; keep one of them")
    if entry.egress is None:
        wanted[allow_all_egress()] = ""
    return wanted


def _canonical(
    direction: Direction, given: SecurityGroupRule, group_ids: Mapping[str, str], own_id: str
) -> Iterator[Rule]:
    is_icmp = given.icmp_type is not None or given.icmp_code is not None
    ports = (given.icmp_type, given.icmp_code) if is_icmp else (given.from_port, given.to_port)
    peers: list[tuple[PeerKind, str]] = [(PeerKind.IPV4, cidr) for cidr in given.cidrs]
    peers += [(PeerKind.IPV6, cidr) for cidr in given.ipv6_cidrs]
    peers += [(PeerKind.PREFIX_LIST, prefix_list) for prefix_list in given.prefix_lists]
    peers += [(PeerKind.GROUP, g if g.startswith("sg-") else group_ids[g]) for g in given.groups]
    if given.include_self:
        peers.append((PeerKind.GROUP, own_id))
    for kind, peer in peers:
        yield canonical_rule(direction, given.protocol, *ports, kind, peer)


def changes(wanted: Mapping[Rule, str], group: SecurityGroup) -> RuleChanges:
    """The difference as sets; order and grouping in either side's answer mean nothing."""
    present = {observed.rule: observed for observed in group.rules}
    return RuleChanges(
        missing={rule: text for rule, text in sorted(wanted.items()) if rule not in present},
        surplus=tuple(sorted((seen.id, rule) for rule, seen in present.items() if rule not in wanted)),
        descriptions=tuple(
            sorted(
                (seen.id, wanted[rule])
                for rule, seen in present.items()
                if wanted.get(rule, seen.description) != seen.description
            )
        ),
    )


def admits_ssh(rules: Iterable[Rule], port: int = SSH_PORT) -> bool:
    """Whether any ingress rule lets somebody reach that TCP port."""
    return any(_covers(rule, port) for rule in rules)


def _covers(rule: Rule, port: int) -> bool:
    if rule.direction is not Direction.INGRESS:
        return False
    if rule.protocol == "-1":
        return True
    in_range = rule.from_port is not None and rule.to_port is not None and rule.from_port <= port <= rule.to_port
    return rule.protocol == "tcp" and in_range
