"""Security groups and public addresses as nftables rules. Pure: values in, text for `nft -f` out.

A packet to a machine meets its ingress chain as the last thing before the machine's wire, with the source that the
machine will see; a packet from a machine meets its egress chain first, with the destination that the machine wrote.
Both are in the lab's namespace: root in the machine cannot reach them. What is not allowed is dropped in silence, so a
missing rule is felt as a time-out (VPC User Guide, "Security groups": stateful, allow rules only).
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network

from nixops_lab.machines.spec import MachineError, Rule

TABLE = "inet ec2lab"
WIRE = "vm-"
"""First letters of every machine's interface in the lab's namespace."""

# Priorities: conntrack -200, destination NAT -100, source NAT 100 (nftables wiki, "Netfilter hooks").
EMPTY_TABLE = f"""\
table {TABLE} {{}}
delete table {TABLE}
table {TABLE} {{
    map public {{ type ipv4_addr : ipv4_addr; }}
    map private {{ type ipv4_addr : ipv4_addr; }}
    set reached {{ type ipv4_addr . ipv4_addr; }}
    map ingress {{ type ifname : verdict; }}
    map egress {{ type ifname : verdict; }}
    chain from_machine {{
        type filter hook prerouting priority -150; policy accept;
        iifname != "{WIRE}*" accept
        ct state established,related accept
        iifname vmap @egress
        drop
    }}
    chain to_machine {{
        type filter hook postrouting priority 200; policy accept;
        oifname != "{WIRE}*" accept
        meta nfproto ipv4 ct direction original ct original ip daddr . ip daddr != @reached drop
        ct state established,related accept
        oifname vmap @ingress
        drop
    }}
    chain enter_public {{
        type nat hook prerouting priority -100;
        dnat ip to ip daddr map @public
    }}
    chain dial_public {{
        type nat hook output priority -100;
        dnat ip to ip daddr map @public
    }}
    chain leave_public {{
        type nat hook postrouting priority 100;
        ct status dnat snat ip to ip saddr map @private
        oifname != "{WIRE}*" snat ip to ip saddr map @private
    }}
}}
"""


def add_machine(wire: str, private_address: str) -> str:
    """A machine behind interface `wire`: nothing in, everything out, as with a new security group."""
    return (
        f"add chain {TABLE} in_{wire}\n"
        f"add chain {TABLE} out_{wire}\n"
        f'add element {TABLE} ingress {{ "{wire}" : jump in_{wire} }}\n'
        f'add element {TABLE} egress {{ "{wire}" : jump out_{wire} }}\n'
        f"add rule {TABLE} out_{wire} ip saddr {private_address} accept\n"
        f"add element {TABLE} reached {{ {private_address} . {private_address} }}\n"
    )


def remove_machine(wire: str, private_address: str) -> str:
    return (
        f"delete element {TABLE} reached {{ {private_address} . {private_address} }}\n"
        f'delete element {TABLE} ingress {{ "{wire}" }}\n'
        f'delete element {TABLE} egress {{ "{wire}" }}\n'
        f"delete chain {TABLE} in_{wire}\n"
        f"delete chain {TABLE} out_{wire}\n"
    )


def set_rules(wire: str, private_address: str, ingress: Sequence[Rule], egress: Sequence[Rule]) -> str:
    """All rules of one machine at once: no packet sees half of them."""
    lines = [f"flush chain {TABLE} in_{wire}", f"flush chain {TABLE} out_{wire}"]
    lines += [f"add rule {TABLE} in_{wire} {match}" for rule in ingress for match in matches(rule, "saddr")]
    # A machine speaks with its own address only: the source/destination check of an ENI.
    lines += [
        f"add rule {TABLE} out_{wire} ip saddr {private_address} {match}"
        for rule in egress
        for match in matches(rule, "daddr")
        if match.startswith("ip ")
    ]
    return "\n".join(lines) + "\n"


def move_public_addresses(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """From one `{public: private}` of all machines to another, in one step.

    A connection ends with the address it was made to, also one that is established: its packets are for nobody.
    """
    lines = []
    for verb, pairs in (("delete", old.items() - new.items()), ("add", new.items() - old.items())):
        for public, private in sorted(pairs):
            lines.append(f"{verb} element {TABLE} public {{ {public} : {private} }}")
            lines.append(f"{verb} element {TABLE} private {{ {private} : {public} }}")
            lines.append(f"{verb} element {TABLE} reached {{ {public} . {private} }}")
    return "".join(f"{line}\n" for line in lines)


def matches(rule: Rule, direction: str) -> Iterable[str]:
    """One nft statement for each network of `rule`; `direction` is `saddr` or `daddr`."""
    for cidr in rule.cidrs:
        network = ip_network(cidr, strict=False)
        family = "ip" if network.version == 4 else "ip6"
        yield " ".join([f"{family} {direction} {network}", *protocol(rule), "accept"])


def protocol(rule: Rule) -> list[str]:
    """The part of a rule above IP. Raises MachineError for a protocol that EC2 does not know."""
    name = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}.get(rule.protocol, rule.protocol)
    if name == "-1":
        return []
    if name in ("tcp", "udp"):
        if rule.from_port in (None, -1):
            return [f"meta l4proto {name}"]
        return [f"{name} dport {rule.from_port}-{rule.from_port if rule.to_port is None else rule.to_port}"]
    if name in ("icmp", "icmpv6"):
        return [
            f"meta l4proto {name}",
            *(
                f"{name} {part} {value}"
                for part, value in (("type", rule.from_port), ("code", rule.to_port))
                if value not in (None, -1)
            ),
        ]
    if name.isdecimal() and int(name) < 256:
        return [f"meta l4proto {name}"]
    raise MachineError(f"security group rule with protocol {rule.protocol!r}")
