"""From an entry of securityGroups to the rules that EC2 is to have, and the difference to those that it has."""

from __future__ import annotations

import json

import pytest

from nixops_operator.api.deployment_spec import SecurityGroupEntry
from nixops_operator.deployment.rules import admits_ssh, changes, wanted_rules
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.errors import InvalidSpec
from unit.builders import HTTP, group, rule

IDS = {"web": "sg-web", "db": "sg-db"}


def entry(*ingress: dict, **fields: object) -> SecurityGroupEntry:
    return SecurityGroupEntry.model_validate_json(
        json.dumps({"name": "web", "description": "Web", "ingress": list(ingress), **fields})
    )


def port(number: int, **peers: object) -> dict:
    return {"fromPort": number, "toPort": number, **peers}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        pytest.param(port(80, cidrs=["0.0.0.0/0"]), {rule(80)}, id="one peer"),
        pytest.param(
            port(80, cidrs=["10.0.0.0/8", "192.0.2.0/24"]),
            {rule(80, peer="10.0.0.0/8"), rule(80, peer="192.0.2.0/24")},
            id="one rule per peer",
        ),
        pytest.param(port(80, cidrs=["10.1.2.3/8"]), {rule(80, peer="10.0.0.0/8")}, id="host bits are masked"),
        pytest.param(port(80, groups=["db"]), {rule(80, peer="sg-db")}, id="a group of the deployment by its name"),
        pytest.param(port(80, groups=["sg-1234567"]), {rule(80, peer="sg-1234567")}, id="a group by its id"),
        pytest.param(port(80, self=True), {rule(80, peer="sg-web")}, id="the group itself"),
        pytest.param(
            {"protocol": "icmp", "icmpType": 8, "icmpCode": 0, "cidrs": ["0.0.0.0/0"]},
            {Rule(Direction.INGRESS, "icmp", 8, 0, PeerKind.IPV4, "0.0.0.0/0")},
            id="type and code of ICMP",
        ),
        pytest.param(
            {"protocol": "all", "ipv6Cidrs": ["::/0"]},
            {Rule(Direction.INGRESS, "-1", None, None, PeerKind.IPV6, "::/0")},
            id="everything over IPv6",
        ),
    ],
)
def test_wanted_rules_are_canonical(given, wanted):
    assert set(wanted_rules(entry(given), IDS)) == wanted | {allow_all_egress()}


def test_egress_is_aws_own_when_absent_and_nothing_when_empty():
    assert set(wanted_rules(entry(), IDS)) == {allow_all_egress()}
    assert wanted_rules(entry(egress=[]), IDS) == {}


def test_the_same_rule_twice_is_one_rule():
    assert len(wanted_rules(entry(port(80, cidrs=["10.0.0.0/8"]), port(80, cidrs=["10.9.9.9/8"])), IDS)) == 2


def test_the_same_rule_with_two_descriptions_is_refused_with_its_place():
    first = port(80, cidrs=["10.0.0.0/8"], description="one")
    second = port(80, cidrs=["10.0.0.0/8"], description="two")

    with pytest.raises(InvalidSpec, match=r"securityGroups\[web\].ingress\[1\]"):
        wanted_rules(entry(first, second), IDS)


def test_a_group_that_is_not_there_is_refused_with_its_place():
    with pytest.raises(InvalidSpec, match=r"ingress\[0\]"):
        wanted_rules(entry(port(80, groups=["none"])), IDS)


def test_equal_sets_differ_in_nothing():
    seen = group(HTTP, rule(80), rule(443))
    wanted = {rule(443): "", allow_all_egress(): "", rule(80): ""}

    assert not changes(wanted, seen)


def test_differences_are_told_apart():
    seen = group(HTTP, rule(80), rule(81))
    wanted = {rule(80): "a text", rule(82): "", allow_all_egress(): ""}

    found = changes(wanted, seen)

    assert found.missing == {rule(82): ""}
    assert found.surplus == (("sgr-http-2", rule(81)),)
    assert found.descriptions == (("sgr-http-1", "a text"),)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([rule(22)], True, id="the port"),
        pytest.param([Rule(Direction.INGRESS, "tcp", 1, 1024, PeerKind.IPV4, "10.0.0.0/8")], True, id="a range"),
        pytest.param([Rule(Direction.INGRESS, "-1", None, None, PeerKind.IPV4, "10.0.0.0/8")], True, id="everything"),
        pytest.param([rule(80)], False, id="another port"),
        pytest.param([rule(22, Direction.EGRESS)], False, id="the other direction"),
        pytest.param([Rule(Direction.INGRESS, "udp", 22, 22, PeerKind.IPV4, "0.0.0.0/0")], False, id="UDP"),
        pytest.param([], False, id="no rule"),
    ],
)
def test_whether_ssh_stays_open(rules, expected):
    assert admits_ssh(rules) is expected
