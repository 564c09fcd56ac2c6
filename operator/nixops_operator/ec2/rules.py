"""Security group rules in one canonical form, so that what a spec says and what EC2 answers can be compared as sets.

EC2 merges, reorders and rewrites what it is given (host bits masked, protocol numbers named, one IpPermission for
several grants), so both sides pass through the same functions. One rule has one peer. Sources: EC2 API Reference,
"IpPermission" and "SecurityGroupRule"; EC2 User Guide, "Security group rules".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class PeerKind(StrEnum):
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    PREFIX_LIST = "prefix-list"
    GROUP = "group"


@dataclass(frozen=True, order=True)
class Rule:
    """One canonical rule. Two equal rules are one rule to EC2; a description stands beside it, never in it.

    `from_port`, `to_port`: 0–65535 for tcp and udp; type and code for icmp and icmpv6 (-1 = all); None for every other
    protocol.
    """

    direction: Direction
    protocol: str  # tcp | udp | icmp | icmpv6 | -1 (all) | a number without leading zeros
    from_port: int | None
    to_port: int | None
    peer_kind: PeerKind
    peer: str  # a masked network, `pl-…`, or `sg-…`


_NUMBERS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6", "all": "-1"}
ALL_PROTOCOLS = "-1"


def canonical_protocol(text: str) -> str:
    """`TCP` and `6` are `tcp`, `all` is `-1`, `050` is `50`. Raises ValueError for names that EC2 does not know."""
    lowered = text.strip().lower()
    if lowered.isdigit():
        lowered = str(int(lowered))
        if int(lowered) > 255:
            raise ValueError(f"protocol number {lowered} is above 255")
    named = _NUMBERS.get(lowered, lowered)
    if named in ("tcp", "udp", "icmp", "icmpv6", "-1") or named.isdigit():
        return named
    raise ValueError(f"unknown protocol {text!r}; use tcp, udp, icmp, icmpv6, all or a number")


def canonical_ports(protocol: str, from_port: int | None, to_port: int | None) -> tuple[int | None, int | None]:
    """Ports (or ICMP type and code) of a canonical protocol. Raises ValueError where EC2 would refuse them."""
    if protocol in ("tcp", "udp"):
        if from_port is None or to_port is None:
            raise ValueError(f"{protocol} needs fromPort and toPort")
        if not 0 <= from_port <= to_port <= 65535:
            raise ValueError(f"ports {from_port}-{to_port} are not a range within 0-65535")
        return from_port, to_port
    if protocol in ("icmp", "icmpv6"):
        kind = -1 if from_port is None else from_port
        # EC2 has no "code c of any type": an unset type takes every code with it.
        return (kind, -1) if kind == -1 or to_port is None else (kind, to_port)
    return None, None


def canonical_network(text: str) -> tuple[PeerKind, str]:
    """`10.0.0.5/8` is `10.0.0.0/8`, a bare address is a /32 or /128, IPv6 is compressed and lower case. Raises
    ValueError."""
    network = ipaddress.ip_network(text.strip(), strict=False)
    return (PeerKind.IPV4 if network.version == 4 else PeerKind.IPV6), str(network)


def canonical_rule(
    direction: Direction, protocol: str, from_port: int | None, to_port: int | None, peer_kind: PeerKind, peer: str
) -> Rule:
    """One rule in canonical form. Raises ValueError with a text for people where EC2 would refuse it."""
    name = canonical_protocol(protocol)
    ports = canonical_ports(name, from_port, to_port)
    if peer_kind in (PeerKind.IPV4, PeerKind.IPV6):
        peer_kind, peer = canonical_network(peer)
    return Rule(direction, name, *ports, peer_kind, peer)


def allow_all_egress() -> Rule:
    """The egress rule that EC2 puts into every new group."""
    return Rule(Direction.EGRESS, ALL_PROTOCOLS, None, None, PeerKind.IPV4, "0.0.0.0/0")


def admits_port(rules: Iterable[Rule], port: int) -> bool:
    """Whether any ingress rule lets somebody reach that TCP port."""
    return any(_covers(rule, port) for rule in rules)


def _covers(rule: Rule, port: int) -> bool:
    if rule.direction is not Direction.INGRESS:
        return False
    if rule.protocol == ALL_PROTOCOLS:
        return True
    in_range = rule.from_port is not None and rule.to_port is not None and rule.from_port <= port <= rule.to_port
    return rule.protocol == "tcp" and in_range
