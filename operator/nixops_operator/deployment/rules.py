"""Security group rules: what an entry of the spec wants, what differs from what EC2 has, and in which order that may
change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from nixops_operator.api.deployment_spec import SecurityGroupEntry, SecurityGroupRule
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress, canonical_rule
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.cloud import SecurityGroup

SSH_PORT = 22
QUOTA = 60
"""Rules of one direction for IPv4, and as many for IPv6, that a group holds unless the account's quota was raised; a
rule that names a group or a prefix list counts for both (Amazon VPC User Guide, "Amazon VPC quotas")."""

ALL_IPV6 = Rule(Direction.EGRESS, "-1", None, None, PeerKind.IPV6, "::/0")
"""The second egress rule that EC2 puts into a new group of a VPC with an IPv6 block."""


@dataclass(frozen=True)
class Waiting:
    """A rule that names a group of the deployment which does not exist now."""

    place: str
    group: str


@dataclass(frozen=True)
class WantedRules:
    """All rules of an entry, canonical. What is wrong with one says nothing of the others."""

    rules: Mapping[Rule, str]  # rule → description
    places: Mapping[Rule, str]  # rule → its field in the spec
    accepted: frozenset[Rule] = frozenset()  # neither wanted nor in the way
    refused: tuple[InvalidSpec, ...] = ()  # rules that EC2 would refuse
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True)
class RuleChanges:
    """What makes a group's rules as wanted."""

    missing: Mapping[Rule, str] = field(default_factory=dict)  # rule → description
    surplus: tuple[tuple[str, Rule], ...] = ()  # rule id, rule; sorted
    descriptions: tuple[tuple[str, str], ...] = ()  # rule id → text that differs

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.descriptions)


def wanted_rules(entry: SecurityGroupEntry, own_id: str, group_ids: Mapping[str, Sequence[str]]) -> WantedRules:
    """All rules of an entry for its group `own_id`. `group_ids`: entry name → `sg-…`, of groups that exist; while one
    takes the place of another, an entry has both, and members of either are meant.
    """
    found: dict[Rule, str] = {}
    places: dict[Rule, str] = {}
    refused: list[InvalidSpec] = []
    waiting: list[Waiting] = []
    directions = ((Direction.INGRESS, entry.ingress), (Direction.EGRESS, entry.egress or ()))
    for direction, rules in directions:
        for number, given in enumerate(rules):
            place = f"spec.securityGroups[{entry.name}].{direction.value}[{number}]"
            missing = [name for name in given.groups if not name.startswith("sg-") and not group_ids.get(name)]
            waiting += [Waiting(place, name) for name in missing]
            peers = _peers(given, own_id, (*group_ids.get(entry.name, ()), own_id), group_ids)
            try:
                canonical = list(_canonical(direction, given, peers))
            except ValueError as error:
                refused.append(InvalidSpec(place, str(error)))
                continue
            text = given.description.strip()  # as EC2 keeps it (terraform-provider-aws issue 2831)
            for rule in canonical:
                places.setdefault(rule, place)
                if found.setdefault(rule, text) != text:
                    message = "says the same as another rule with another description; keep one of them"
                    refused.append(InvalidSpec(place, message))
    if entry.egress is None:
        found[allow_all_egress()] = ""
        accepted = frozenset({ALL_IPV6})
    else:
        accepted = frozenset()
    return WantedRules(found, places, accepted, tuple(refused), tuple(waiting))


def _peers(
    given: SecurityGroupRule, own_id: str, siblings: Sequence[str], group_ids: Mapping[str, Sequence[str]]
) -> Iterator[tuple[PeerKind, str]]:
    yield from ((PeerKind.IPV4, cidr) for cidr in given.cidrs)
    yield from ((PeerKind.IPV6, cidr) for cidr in given.ipv6_cidrs)
    yield from ((PeerKind.PREFIX_LIST, prefix_list) for prefix_list in given.prefix_lists)
    for name in given.groups:
        yield from ((PeerKind.GROUP, peer) for peer in ([name] if name.startswith("sg-") else group_ids.get(name, ())))
    if given.include_self:
        yield from ((PeerKind.GROUP, peer) for peer in dict.fromkeys((own_id, *siblings)))


def _canonical(direction: Direction, given: SecurityGroupRule, peers: Iterable[tuple[PeerKind, str]]) -> Iterator[Rule]:
    is_icmp = given.icmp_type is not None or given.icmp_code is not None
    ports = (given.icmp_type, given.icmp_code) if is_icmp else (given.from_port, given.to_port)
    for kind, peer in peers:
        yield canonical_rule(direction, given.protocol, *ports, kind, peer)


def changes(wanted: WantedRules, group: SecurityGroup) -> RuleChanges:
    """The difference as sets; order and grouping in either side's answer mean nothing."""
    present = {observed.rule: observed for observed in group.rules}
    kept = wanted.rules.keys() | wanted.accepted
    return RuleChanges(
        missing={rule: text for rule, text in sorted(wanted.rules.items()) if rule not in present},
        surplus=tuple(sorted((seen.id, rule) for rule, seen in present.items() if rule not in kept)),
        descriptions=tuple(
            sorted(
                (seen.id, wanted.rules[rule])
                for rule, seen in present.items()
                if rule in wanted.rules and wanted.rules[rule] != seen.description
            )
        ),
    )


# --- the order of changes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """What may change now in one direction of a group: `revoked` goes before `added` comes."""

    revoked: tuple[str, ...] = ()  # rule ids
    added: tuple[Rule, ...] = ()
    spare: tuple[str, ...] = ()
    """Ids of surplus rules that may go before what is added, too, where EC2 finds less room than is counted here: a
    prefix list weighs its most entries, which are not known, and quotas differ."""


def next_move(
    direction: Direction,
    change: RuleChanges,
    present: Iterable[Rule],
    kept: Set[str] = frozenset(),
    late: Set[str] = frozenset(),
) -> Move:
    """The next changes on the way to what is wanted. Missing rules come before surplus ones go; where the quota has no
    room for both, surplus rules that carry no SSH make room first, then all but one of those that do.

    `kept`: ids of surplus rules that must not go. `late`: of those that go only to make room, and never all of them.
    """
    missing = [rule for rule in change.missing if rule.direction is direction]
    surplus = [one for one in change.surplus if one[1].direction is direction and one[0] not in kept]
    there = {rule for rule in present if rule.direction is direction}
    free = _free(there, surplus, late)
    if not missing:
        gone = tuple(rule_id for rule_id, _ in surplus if rule_id not in late)
        return Move(revoked=gone, spare=tuple(rule_id for rule_id, _ in free if rule_id not in gone))
    missing.sort(key=lambda rule: not admits_ssh([rule]))
    revoked = _room_for(missing, there, free)
    left = there - {rule for _, rule in revoked}
    return Move(
        tuple(rule_id for rule_id, _ in revoked),
        # A set that is over the quota by itself is asked for all the same: the account's quota may be higher.
        tuple(_fitting(missing, left) or missing),
        tuple(rule_id for rule_id, _ in free[len(revoked) :]),
    )


def _free(there: Set[Rule], surplus: Sequence[tuple[str, Rule]], late: Set[str]) -> list[tuple[str, Rule]]:
    """Surplus rules that may make room, those that carry SSH last; of these one stays."""
    others = [one for one in surplus if one[0] not in late and not admits_ssh([one[1]])]
    carrying = [one for one in surplus if one not in others]
    is_carried_on = not late and admits_ssh(there - {rule for _, rule in surplus})
    return [*others, *(carrying if is_carried_on else carrying[1:])]


def _room_for(missing: Sequence[Rule], there: Set[Rule], free: Sequence[tuple[str, Rule]]) -> list[tuple[str, Rule]]:
    """As few of the first ones of `free` as make room for all that is missing."""
    revoked: list[tuple[str, Rule]] = []
    left = set(there)
    for one in free:
        if _fits([*left, *missing]):
            break
        revoked.append(one)
        left.discard(one[1])
    return revoked


def _fitting(missing: Sequence[Rule], left: Set[Rule]) -> list[Rule]:
    added: list[Rule] = []
    for rule in missing:
        if _fits([*left, *added, rule]):
            added.append(rule)
    return added


def _fits(rules: Iterable[Rule]) -> bool:
    rules = list(rules)
    return all(sum(rule.peer_kind is not other for rule in rules) <= QUOTA for other in (PeerKind.IPV4, PeerKind.IPV6))


# --- SSH ----------------------------------------------------------------------------------------------------------


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
