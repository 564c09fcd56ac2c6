"""From an entry of securityGroups to the rules that EC2 is to have, and the difference to those that it has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nixops_operator.api.deployment_spec import SecurityGroupEntry
from nixops_operator.deployment.rules import (
    ALL_IPV6,
    QUOTA,
    Move,
    Waiting,
    WantedRules,
    admits_ssh,
    changes,
    next_move,
    wanted_rules,
)
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.facts.cloud import ObservedRule
from unit.builders_deployment import HTTP, group, rule

IDS = {"web": ("sg-web",), "db": ("sg-db",)}


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
    assert set(wanted_rules(entry(given), "sg-web", IDS).rules) == wanted | {allow_all_egress()}


def test_egress_is_aws_own_when_absent_and_nothing_when_empty():
    assert set(wanted_rules(entry(), "sg-web", IDS).rules) == {allow_all_egress()}
    assert wanted_rules(entry(egress=[]), "sg-web", IDS).rules == {}


@pytest.mark.parametrize(
    ("fields", "surplus"),
    [
        pytest.param({}, (), id="egress absent: everything may go out, over IPv6, too"),
        pytest.param({"egress": []}, (allow_all_egress(), ALL_IPV6), id="egress empty: nothing may"),
    ],
)
def test_what_aws_lets_out_over_ipv6_is_not_revoked(fields, surplus):
    """EC2 puts the second rule into a new group where the VPC has an IPv6 block: accepted, and never asked for."""
    wanted = wanted_rules(entry(**fields), "sg-web", IDS)
    seen = group(HTTP)
    seen = replace(seen, rules=(*seen.rules, ObservedRule("sgr-6", ALL_IPV6, "")))

    found = changes(wanted, seen)

    assert {one for _, one in found.surplus} == set(surplus)
    assert ALL_IPV6 not in found.missing
    assert ALL_IPV6 not in changes(wanted, group(HTTP)).missing


def test_the_same_rule_twice_is_one_rule():
    twice = entry(port(80, cidrs=["10.0.0.0/8"]), port(80, cidrs=["10.9.9.9/8"]))

    assert len(wanted_rules(twice, "sg-web", IDS).rules) == 2


def test_a_rule_that_is_refused_is_named_and_keeps_no_other_away():
    first = port(80, cidrs=["10.0.0.0/8"], description="one")
    same = port(80, cidrs=["10.0.0.0/8"], description="two")
    last = port(443, cidrs=["10.0.0.0/8"])

    found = wanted_rules(entry(first, same, last), "sg-web", IDS)

    (error,) = found.refused
    assert "securityGroups[web].ingress[1]" in error.message
    assert {rule(80, peer="10.0.0.0/8"), rule(443, peer="10.0.0.0/8")} <= found.rules.keys()


def test_a_rule_that_names_a_group_which_does_not_exist_waits_for_it():
    """Report, and a group deleted by hand: it used to be told as `InvalidSpec: … is none of spec.securityGroups`."""
    found = wanted_rules(entry(port(80, groups=["gone", "db"])), "sg-web", IDS)

    assert found.waiting == (Waiting("spec.securityGroups[web].ingress[0]", "gone"),)
    assert rule(80, peer="sg-db") in found.rules
    assert found.refused == ()


def test_while_one_group_takes_the_place_of_another_members_of_both_are_meant():
    ids = {"web": ("sg-web", "sg-before"), "db": ("sg-db", "sg-db-before")}

    found = wanted_rules(entry(port(80, groups=["db"], self=True)), "sg-before", ids)

    peers = {one.peer for one in found.rules if one.peer_kind is PeerKind.GROUP}
    assert peers == {"sg-web", "sg-before", "sg-db", "sg-db-before"}


def wanting(rules: dict[Rule, str]) -> WantedRules:
    return WantedRules(rules, {})


def test_equal_sets_differ_in_nothing():
    seen = group(HTTP, rule(80), rule(443))
    wanted = wanting({rule(443): "", allow_all_egress(): "", rule(80): ""})

    assert not changes(wanted, seen)


def test_differences_are_told_apart():
    seen = group(HTTP, rule(80), rule(81))

    found = changes(wanting({rule(80): "a text", rule(82): "", allow_all_egress(): ""}), seen)

    assert found.missing == {rule(82): ""}
    assert found.surplus == (("sgr-http-2", rule(81)),)
    assert found.descriptions == (("sgr-http-1", "a text"),)


# --- the order of changes ---------------------------------------------------------------------------------------------


def hosts(number: int, net: int = 1, at: int = 80) -> list[Rule]:
    return [rule(at, peer=f"10.{net}.0.{place}/32") for place in range(number)]


def run(present: list[Rule], wanted: list[Rule], quota: int = 60) -> list[Move]:
    """The moves from one set of rules to another, carried out on a group that keeps the quota and SSH open."""
    moves = []
    had_ssh = admits_ssh(present)
    for _ in range(200):
        seen = group(HTTP, *present)
        change = changes(wanting({allow_all_egress(): "", **dict.fromkeys(wanted, "")}), seen)
        if not change:
            return moves
        move = next_move(Direction.INGRESS, change, (one.rule for one in seen.rules))
        assert move.revoked or move.added
        gone = {one.rule for one in seen.rules if one.id in move.revoked}
        present = [one for one in present if one not in gone]
        assert admits_ssh(present) or not (had_ssh and admits_ssh(wanted))
        present = [*present, *move.added]
        assert len(present) <= quota, "RulesPerSecurityGroupLimitExceeded"
        moves.append(move)
    raise AssertionError("no end")


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        pytest.param(hosts(40), hosts(40, net=2), id="forty others"),
        pytest.param([*hosts(59), rule(22)], [*hosts(59, net=2), rule(22)], id="sixty, and SSH stays"),
        pytest.param([*hosts(59), rule(22)], [*hosts(59, net=2), rule(22, peer="10.0.0.0/8")], id="SSH changes, too"),
        pytest.param(hosts(60, at=22), hosts(60, net=2, at=22), id="sixty for SSH"),
        pytest.param(hosts(60), [rule(22)], id="SSH comes into a full group"),
        pytest.param([rule(22), rule(80)], [rule(22, peer="10.0.0.0/8")], id="few"),
        pytest.param(hosts(60), [], id="all go"),
    ],
)
def test_any_set_becomes_any_other_within_the_quota_and_without_closing_ssh(present, wanted):
    """Forty rules replaced by forty others never ended: the additions met the quota first."""
    run(present, wanted)


def test_with_room_for_all_missing_rules_come_before_surplus_ones_go():
    first, second = run([rule(22), rule(80)], [rule(22), rule(443)])

    assert (first.revoked, first.added) == ((), (rule(443),))
    assert (len(second.revoked), second.added) == (1, ())


def test_what_is_over_the_quota_by_itself_is_asked_for_all_the_same():
    """The account's quota may have been raised; if not, EC2 says so in its own words."""
    change = changes(wanting(dict.fromkeys([*hosts(61), allow_all_egress()], "")), group(HTTP))

    assert len(next_move(Direction.INGRESS, change, ()).added) == QUOTA


@pytest.mark.parametrize(
    ("kept", "late", "revoked"),
    [
        pytest.param({"sgr-http-1"}, set(), ("sgr-http-2",), id="kept"),
        pytest.param(set(), {"sgr-http-1"}, ("sgr-http-2",), id="late, with nothing missing"),
        pytest.param(set(), set(), ("sgr-http-1", "sgr-http-2"), id="free"),
    ],
)
def test_rules_that_carry_ssh_can_be_held_back(kept, late, revoked):
    seen = group(HTTP, rule(22), rule(80))
    change = changes(wanting({allow_all_egress(): ""}), seen)

    assert next_move(Direction.INGRESS, change, (one.rule for one in seen.rules), kept, late) == Move(revoked)


# --- SSH --------------------------------------------------------------------------------------------------------------


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
