"""EC2's rules as nftables statements."""

import pytest

from nixops_lab.machines import MachineError, Rule
from nixops_lab.machines.firewall import matches, move_public_addresses, set_rules

ANYWHERE = ("0.0.0.0/0",)


@pytest.mark.parametrize(
    ("rule", "statements"),
    [
        pytest.param(Rule("tcp", 22, 22, ANYWHERE), ["ip saddr 0.0.0.0/0 tcp dport 22-22 accept"], id="one port"),
        pytest.param(Rule("udp", 1, 9, ANYWHERE), ["ip saddr 0.0.0.0/0 udp dport 1-9 accept"], id="port range"),
        pytest.param(Rule("6", 80, 80, ANYWHERE), ["ip saddr 0.0.0.0/0 tcp dport 80-80 accept"], id="protocol number"),
        pytest.param(Rule("tcp", -1, -1, ANYWHERE), ["ip saddr 0.0.0.0/0 meta l4proto tcp accept"], id="all ports"),
        pytest.param(Rule("-1", None, None, ANYWHERE), ["ip saddr 0.0.0.0/0 accept"], id="all protocols"),
        pytest.param(
            Rule("icmp", 8, -1, ANYWHERE),
            ["ip saddr 0.0.0.0/0 meta l4proto icmp icmp type 8 accept"],
            id="one ICMP type",
        ),
        pytest.param(Rule("icmp", -1, -1, ANYWHERE), ["ip saddr 0.0.0.0/0 meta l4proto icmp accept"], id="all of ICMP"),
        pytest.param(
            Rule("icmpv6", 128, 0, ("::/0",)),
            ["ip6 saddr ::/0 meta l4proto icmpv6 icmpv6 type 128 icmpv6 code 0 accept"],
            id="ICMPv6 type and code",
        ),
        pytest.param(
            Rule("50", None, None, ANYWHERE), ["ip saddr 0.0.0.0/0 meta l4proto 50 accept"], id="other number"
        ),
        pytest.param(
            Rule("tcp", 22, 22, ("10.0.0.1/32", "fd00::/8")),
            ["ip saddr 10.0.0.1/32 tcp dport 22-22 accept", "ip6 saddr fd00::/8 tcp dport 22-22 accept"],
            id="a statement for each network",
        ),
        pytest.param(
            Rule("tcp", 22, 22, ("10.1.2.3/8",)), ["ip saddr 10.0.0.0/8 tcp dport 22-22 accept"], id="host bits are cut"
        ),
        pytest.param(Rule("tcp", 22, 22, ()), [], id="no network, nobody"),
    ],
)
def test_a_rule_becomes_statements(rule: Rule, statements: list[str]) -> None:
    assert list(matches(rule, "saddr")) == statements


@pytest.mark.parametrize("protocol", ["sctp", "256", "-2", ""])
def test_a_protocol_that_is_none_is_refused(protocol: str) -> None:
    with pytest.raises(MachineError, match="security group rule with protocol"):
        list(matches(Rule(protocol, None, None, ANYWHERE), "saddr"))


def test_new_rules_replace_all_old_ones_in_one_script() -> None:
    script = set_rules("vm-1", "172.31.0.4", [Rule("tcp", 22, 22, ANYWHERE)], [Rule("-1", None, None, ANYWHERE)])
    assert script.splitlines() == [
        "flush chain inet ec2lab in_vm-1",
        "flush chain inet ec2lab out_vm-1",
        "add rule inet ec2lab in_vm-1 ip saddr 0.0.0.0/0 tcp dport 22-22 accept",
        "add rule inet ec2lab out_vm-1 ip saddr 172.31.0.4 ip daddr 0.0.0.0/0 accept",
    ]


def test_a_public_address_that_moves_leaves_its_old_machine_and_reaches_the_new_one() -> None:
    old = {"198.51.100.7": "172.31.0.4", "198.51.100.9": "172.31.0.6"}
    new = {"198.51.100.7": "172.31.0.5", "198.51.100.9": "172.31.0.6"}
    assert move_public_addresses(old, new).splitlines() == [
        "delete element inet ec2lab public { 198.51.100.7 : 172.31.0.4 }",
        "delete element inet ec2lab private { 172.31.0.4 : 198.51.100.7 }",
        "delete element inet ec2lab reached { 198.51.100.7 . 172.31.0.4 }",
        "add element inet ec2lab public { 198.51.100.7 : 172.31.0.5 }",
        "add element inet ec2lab private { 172.31.0.5 : 198.51.100.7 }",
        "add element inet ec2lab reached { 198.51.100.7 . 172.31.0.5 }",
    ]
