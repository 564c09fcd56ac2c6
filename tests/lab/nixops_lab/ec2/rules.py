"""The canonical form of security group rules. Pure: values in, values out.

Two rules are the same if their canonical forms are, whatever they were written like. Facts: EC2 API Reference,
"AuthorizeSecurityGroupIngress" and "IpPermission"; VPC User Guide, "Security group rules".
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixops_lab.ec2.errors import Ec2Error, invalid, missing

_NUMBERS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6", "all": "-1"}
_WITH_PORTS = ("tcp", "udp")
_WITH_TYPES = ("icmp", "icmpv6")
_DESCRIPTION_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-:/()#,@[]+=&;{}!$*"
)
MAX_DESCRIPTION = 255


@dataclass(frozen=True)
class RuleKey:
    """What makes a rule unique in its group. `peer_kind` is cidr4, cidr6, group or prefix-list."""

    is_egress: bool
    protocol: str
    from_port: int | None
    to_port: int | None
    peer_kind: str
    peer: str


# The egress rules of every new group, the second in a VPC with an IPv6 block: VPC User Guide, "Security groups".
ALL_IPV4_OUT = RuleKey(True, "-1", None, None, "cidr4", "0.0.0.0/0")
ALL_IPV6_OUT = RuleKey(True, "-1", None, None, "cidr6", "::/0")


def protocol(name: str) -> str:
    """-1, tcp, udp, icmp, icmpv6 or a number as decimal text."""
    lowered = name.lower()
    if lowered in {"-1", "tcp", "udp", "icmp", "icmpv6"}:
        return lowered
    decimal = str(int(lowered)) if lowered.isdecimal() else lowered
    if decimal in _NUMBERS:
        return _NUMBERS[decimal]
    if not decimal.isdecimal() or int(decimal) > 255:
        raise invalid(f"Invalid value '{name}' for IP protocol. Unknown protocol.")
    return decimal


def ports(proto: str, from_port: int | None, to_port: int | None) -> tuple[int | None, int | None]:
    """The port range, or ICMP's type and code; (None, None) for protocols that have neither."""
    if proto in _WITH_PORTS:
        if from_port is None or to_port is None:
            raise invalid("Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.")
        if from_port > to_port or from_port < 0 or to_port > 65535:
            raise invalid(f"Invalid TCP/UDP port range ({from_port}:{to_port})")
        return from_port, to_port
    if proto in _WITH_TYPES:
        icmp_type = -1 if from_port is None else from_port
        code = -1 if icmp_type == -1 or to_port is None else to_port
        if not (-1 <= icmp_type <= 255 and -1 <= code <= 255):
            raise invalid(f"ICMP type ({from_port}) or code ({to_port}) out of range")
        return icmp_type, code
    return None, None


def cidr(version: int, block: str) -> str:
    """Host bits masked, IPv6 compressed and in lower case. A bare address is refused: a block has a prefix length."""
    if "/" not in block:
        raise invalid(f"CIDR block {block} is malformed")
    network = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    try:
        return str(network(block, strict=False))
    except ValueError:
        raise invalid(f"CIDR block {block} is malformed") from None


def description(text: str | None) -> str | None:
    """None for an absent or empty one; at most 255 of the characters that EC2 allows, without blanks around them."""
    if not text:
        return None
    if len(text) > MAX_DESCRIPTION or not set(text) <= _DESCRIPTION_CHARACTERS:
        raise invalid(
            "Invalid rule description. Valid descriptions are strings less than 256 characters from the following "
            "set:  a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*"
        )
    return text.strip() or None


def canonical(
    permissions: Sequence[Mapping[str, Any]], *, is_egress: bool, group_of: Mapping[str, str]
) -> list[tuple[RuleKey, str | None]]:
    """One entry per peer: its key and description. Permissions as in `IpPermissions`.

    `group_of` gives a group's id for its id or name. Raises `InvalidGroup.NotFound` for peers that it lacks.
    """
    entries = []
    for permission in permissions:
        if "IpProtocol" not in permission:
            raise missing("IpProtocol")
        proto = protocol(permission["IpProtocol"])
        from_port, to_port = ports(proto, permission.get("FromPort"), permission.get("ToPort"))
        peers = _peers(permission, group_of)
        if not peers:
            raise missing("cidrIp, ipv6Ranges, groups or prefixListIds")
        entries += [
            (RuleKey(is_egress, proto, from_port, to_port, kind, peer), description(text)) for kind, peer, text in peers
        ]
    return entries


def _peers(permission: Mapping[str, Any], group_of: Mapping[str, str]) -> list[tuple[str, str, str | None]]:
    peers = [("cidr4", cidr(4, r.get("CidrIp", "")), r.get("Description")) for r in permission.get("IpRanges", [])]
    peers += [("cidr6", cidr(6, r.get("CidrIpv6", "")), r.get("Description")) for r in permission.get("Ipv6Ranges", [])]
    for pair in permission.get("UserIdGroupPairs", []):
        name = pair.get("GroupId") or pair.get("GroupName")
        if not name:
            raise missing("GroupId")
        if name not in group_of:
            raise Ec2Error("InvalidGroup.NotFound", f"The security group '{name}' does not exist")
        peers.append(("group", group_of[name], pair.get("Description")))
    for prefix_list in permission.get("PrefixListIds", []):
        raise Ec2Error(
            "InvalidPrefixListID.NotFound", f"The prefix list ID '{prefix_list.get('PrefixListId')}' does not exist"
        )
    return peers


def as_permissions(rules: Sequence[tuple[RuleKey, str | None]], owner: str) -> list[dict[str, Any]]:
    """The rules as `IpPermissions`: one entry per protocol and ports, peers of all kinds in it."""
    merged: dict[tuple[str, int | None, int | None], dict[str, Any]] = {}
    for key, text in rules:
        entry = merged.setdefault(
            (key.protocol, key.from_port, key.to_port),
            {
                "IpProtocol": key.protocol,
                "FromPort": key.from_port,
                "ToPort": key.to_port,
                "IpRanges": [],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "UserIdGroupPairs": [],
            },
        )
        match key.peer_kind:
            case "cidr4":
                entry["IpRanges"].append({"CidrIp": key.peer, "Description": text})
            case "cidr6":
                entry["Ipv6Ranges"].append({"CidrIpv6": key.peer, "Description": text})
            case "group":
                entry["UserIdGroupPairs"].append({"GroupId": key.peer, "UserId": owner, "Description": text})
    return list(merged.values())
