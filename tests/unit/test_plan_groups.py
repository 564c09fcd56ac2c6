"""Security groups: two of one entry, references of the user's, and SSH that never closes in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.deployment.observed import GroupUse
from nixops_operator.deployment.security_groups import (
    AuthorizeRules,
    CreateGroup,
    DeleteGroup,
    DescribeRules,
    RevokeRules,
    others_to_ask_about,
)
from nixops_operator.ec2.rules import Direction, PeerKind, Rule
from nixops_operator.errors import NotYet
from nixops_operator.verdict import Outcome
from unit.builders import ready
from unit.builders_deployment import (
    GROUPS,
    HTTP,
    SSH,
    child,
    child_uid,
    deployment,
    group,
    group_name,
    network,
    plan,
    rule,
    sees,
    taken,
)

SERVING = deployment(ready())
WEB = child_uid("shop-web")
UNUSED, USED = GroupUse(), GroupUse(("eni-1 (i-1)",))
INGRESS = Direction.INGRESS

# --- a changed description -------------------------------------------------------------------------------------------

BEFORE = {**HTTP, "description": "Before"}


def earlier(*rules, **fields):
    """The group of the entry as it was described before; ids say nothing about age."""
    return group(BEFORE, *rules, id=fields.pop("id", "sg-zzz"), **fields)


@pytest.mark.parametrize(
    ("groups", "uses", "expected"),
    [
        pytest.param(
            (earlier(rule(80)), GROUPS[1]),
            {"sg-zzz": USED},
            (CreateGroup("http", group_name(HTTP), "Web", "vpc-1"),),
            id="another description is another group",
        ),
        pytest.param(
            (earlier(rule(80), rule(81)), *GROUPS),
            {"sg-zzz": USED},
            (RevokeRules("sg-zzz", INGRESS, ("sgr-http-2",)),),
            id="rules are narrowed in the one that machines still use",
        ),
        pytest.param(
            (earlier(), *GROUPS),
            {"sg-zzz": USED},
            (AuthorizeRules("sg-zzz", INGRESS, ((rule(80), ""),)),),
            id="and added there",
        ),
        pytest.param(
            (earlier(rule(80), rule(81), id="sg-aaa"), *GROUPS),
            {"sg-aaa": USED},
            (RevokeRules("sg-aaa", INGRESS, ("sgr-http-2",)),),
            id="whatever its id",
        ),
        pytest.param(
            (earlier(rule(80)), *GROUPS),
            {"sg-zzz": UNUSED},
            (DeleteGroup("sg-zzz"),),
            id="it goes when nothing uses it",
        ),
        pytest.param((earlier(rule(80)), *GROUPS), {"sg-zzz": USED}, (), id="not before"),
        pytest.param(
            (earlier(rule(80)), *GROUPS),
            {"sg-zzz": GroupUse(error=NotYet("looking"))},
            (),
            id="nor while it is not known",
        ),
        pytest.param(
            (earlier(rule(80)), GROUPS[1]),
            {"sg-zzz": UNUSED},
            (CreateGroup("http", group_name(HTTP), "Web", "vpc-1"),),
            id="nor before its successor exists",
        ),
        pytest.param(
            (earlier(rule(80)), GROUPS[0], group(SSH, rule(22), rule(80, peer="sg-zzz"))),
            {"sg-zzz": GroupUse((), ("sg-ssh",))},
            (RevokeRules("sg-ssh", INGRESS, ("sgr-ssh-2",)),),
            id="our own rules that name it go first",
        ),
        pytest.param(
            (earlier(rule(80)), *GROUPS),
            {"sg-zzz": GroupUse((), ("sg-alien",))},
            (),
            id="others' rules that name it are not touched",
        ),
    ],
)
def test_two_groups_of_one_entry(groups, uses, expected):
    assert taken(SERVING, sees(SERVING, network=network(groups=groups, uses=uses))) == expected


# --- references -------------------------------------------------------------------------------------------------------

MIXED = {
    "name": "http",
    "description": "Web",
    "ingress": [
        {"fromPort": 80, "toPort": 80, "cidrs": ["0.0.0.0/0"]},
        {"fromPort": 81, "toPort": 81, "groups": ["sg-0123456789abcdef0"]},
        {"fromPort": 82, "toPort": 82, "prefixLists": ["pl-0123456789abcdef0"]},
        {"fromPort": 83, "toPort": 83, "groups": ["ssh"]},
    ],
}


def test_each_reference_is_asked_for_by_itself():
    """A typing error in one id used to keep all rules of the group away, for an hour of Reconciling."""
    desired = deployment(groups=(MIXED, SSH))
    found = plan(desired, sees(desired, network=network(groups=(group(MIXED), GROUPS[1]))))

    steps = [finding.steps for finding in found.findings if finding.steps]
    assert all(len(one) == 1 for one in steps)
    asked = {step.reference: (step.place, [one.from_port for one, _ in step.rules]) for (step,) in steps}
    assert asked == {
        "": ("", [80]),
        "sg-0123456789abcdef0": ("spec.securityGroups[http].ingress[1]", [81]),
        "pl-0123456789abcdef0": ("spec.securityGroups[http].ingress[2]", [82]),
        "sg-ssh": ("", [83]),
    }


def test_a_missing_reference_does_not_keep_surplus_rules():
    desired = deployment(ready(), groups=(MIXED, SSH))
    there = group(MIXED, rule(80), rule(99), rule(82, peer="pl-0123456789abcdef0"), rule(83, peer="sg-ssh"))

    steps = taken(desired, sees(desired, network=network(groups=(there, GROUPS[1]))))

    assert RevokeRules("sg-http", INGRESS, ("sgr-http-2",)) in steps


def test_under_report_a_group_deleted_by_hand_is_a_difference_and_no_error():
    """It was told as `InvalidSpec: group 'ssh' is none of spec.securityGroups`, and rules of the others were left."""
    peers = {**HTTP, "ingress": [{"fromPort": 80, "toPort": 80, "groups": ["ssh"]}]}
    desired = deployment(ready(), groups=(peers, SSH), driftPolicy="Report")
    found = plan(desired, sees(desired, network=network(groups=(group(peers),))))

    assert found.verdict.outcome is Outcome.REPORTED
    assert found.steps == ()
    assert any("security group ssh does not exist" in one.message for one in found.differences)
    assert any("waits for group ssh" in one.message for one in found.differences)


# --- SSH --------------------------------------------------------------------------------------------------------------

ONLY_HTTP = (HTTP,)
MOVED = ({**HTTP, "ingress": []}, SSH)


@pytest.mark.parametrize(
    ("groups", "seen", "attached", "revoked", "outcome", "reason"),
    [
        pytest.param(
            ONLY_HTTP,
            (group(HTTP, rule(80), rule(22)),),
            {},
            (),
            Outcome.STALLED,
            Reason.CHANGE_FORBIDDEN,
            id="no declared rule admits SSH: the one there stays",
        ),
        pytest.param(
            ONLY_HTTP,
            (group(HTTP, rule(80), rule(22), rule(99)),),
            {},
            ("sgr-http-3",),
            Outcome.STALLED,
            Reason.CHANGE_FORBIDDEN,
            id="and others go all the same",
        ),
        pytest.param(
            MOVED,
            (group(HTTP, rule(22)), group(SSH)),
            {WEB: frozenset({"sg-http", "sg-ssh"})},
            (),
            Outcome.REPAIRING,
            Reason.ROLLING_OUT,
            id="moved to another group: not before it is there",
        ),
        pytest.param(
            MOVED,
            (group(HTTP, rule(22)), group(SSH, rule(22))),
            {WEB: frozenset({"sg-http"})},
            (),
            Outcome.REPAIRING,
            Reason.ROLLING_OUT,
            id="nor before the machine is in that group",
        ),
        pytest.param(
            MOVED,
            (group(HTTP, rule(22)), group(SSH, rule(22))),
            {WEB: frozenset({"sg-http", "sg-ssh"})},
            ("sgr-http-1",),
            Outcome.REPAIRING,
            Reason.SECURITY_GROUP_DRIFT,
            id="then it goes",
        ),
        pytest.param(
            MOVED,
            (group(HTTP, rule(22)), group(SSH, rule(22))),
            {WEB: frozenset({"sg-http", "sg-of-somebody"})},
            (),
            Outcome.REPAIRING,
            Reason.ROLLING_OUT,
            id="beside others' group: not before it is known whether that admits it",
        ),
        pytest.param(
            ONLY_HTTP,
            (GROUPS[0], group(SSH, rule(22))),
            {WEB: frozenset({"sg-http", "sg-ssh"})},
            (),
            Outcome.STALLED,
            Reason.CHANGE_FORBIDDEN,
            id="the group that admits it is not declared any more",
        ),
        pytest.param(
            (HTTP, SSH),
            (*GROUPS, group({"name": "admin", "description": "Admin"}, rule(22))),
            {WEB: frozenset({"sg-admin"})},
            (),
            Outcome.REPAIRING,
            Reason.ROLLING_OUT,
            id="another one admits it",
        ),
    ],
)
def test_ssh_never_closes(groups, seen, attached, revoked, outcome, reason):
    desired = deployment(ready(), groups=groups)
    found = plan(desired, sees(desired, network=network(groups=seen, attached=attached)))

    gone = tuple(rule_id for step in found.steps if isinstance(step, RevokeRules) for rule_id in step.rule_ids)
    assert gone == revoked
    assert (found.verdict.outcome, found.verdict.reason) == (outcome, reason)


SOMEBODY = "sg-0123456789abcdef0"
IN_BOTH = {"instanceType": "t3.small", "keyPair": "main", "securityGroups": ["http", SOMEBODY]}
BESIDE = {"name": "web", "target": {"ec2": IN_BOTH}}


@pytest.mark.parametrize(
    ("others", "revoked", "outcome"),
    [
        pytest.param({}, (), Outcome.REPAIRING, id="not looked at yet"),
        pytest.param({SOMEBODY: group(SSH, rule(22))}, ("sgr-http-2",), Outcome.REPAIRING, id="it admits SSH"),
        pytest.param({SOMEBODY: group(SSH, rule(80))}, (), Outcome.STALLED, id="it does not"),
        pytest.param({SOMEBODY: None}, (), Outcome.STALLED, id="there is none"),
    ],
)
def test_beside_a_group_of_others_ssh_closes_only_where_that_admits_it(others, revoked, outcome):
    """It was taken for granted: the operator locked itself out of every machine that is also in the default group."""
    desired = deployment(ready(), groups=ONLY_HTTP, machines=(BESIDE,))
    seen = network(groups=(group(HTTP, rule(80), rule(22)),), others=others)
    attached = {WEB: frozenset({"sg-http", SOMEBODY})}
    observed = sees(desired, network=replace(seen, attached=attached))

    found = plan(desired, observed)
    gone = tuple(rule_id for step in found.steps if isinstance(step, RevokeRules) for rule_id in step.rule_ids)
    assert (gone, found.verdict.outcome) == (revoked, outcome)
    assert others_to_ask_about(desired, observed) == {SOMEBODY}


def test_a_machine_that_is_to_be_in_no_group_of_ours_is_judged_where_it_is_moved():
    """It goes to the VPC's default group, of which the deployment knows nothing."""
    bare = {**BESIDE, "target": {"ec2": {**IN_BOTH, "securityGroups": []}}}
    desired = deployment(ready(), machines=(bare,))
    seen = network(attached={WEB: frozenset({"sg-http", "sg-ssh"})})

    assert plan(desired, sees(desired, network=seen)).verdict.outcome is Outcome.IN_SYNC


def test_groups_of_others_are_not_asked_about_while_ours_admit_ssh():
    desired = deployment(ready(), groups=(HTTP, SSH))
    attached = {WEB: frozenset({"sg-http", "sg-ssh", SOMEBODY})}
    seen = network(groups=(GROUPS[0], group(SSH, rule(22), rule(99))), attached=attached)

    assert others_to_ask_about(desired, sees(desired, network=seen)) == frozenset()


def test_a_differing_description_is_written():
    worded = {**HTTP, "ingress": [{**HTTP["ingress"][0], "description": "all"}]}
    desired = deployment(ready(), groups=(worded, SSH))

    assert taken(desired, sees(desired, network=network())) == (DescribeRules("sg-http", (("sgr-http-1", "all"),)),)


def test_both_directions_are_compared():
    out = Rule(Direction.EGRESS, "tcp", 443, 443, PeerKind.IPV4, "0.0.0.0/0")
    narrow = {**HTTP, "egress": [{"fromPort": 443, "toPort": 443, "cidrs": ["0.0.0.0/0"]}]}
    desired = deployment(ready(), groups=(narrow, SSH))

    assert taken(desired, sees(desired, network=network())) == (
        AuthorizeRules("sg-http", Direction.EGRESS, ((out, ""),), spare=("sgr-http-0",)),
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(NotYet("looking for the default VPC"), Outcome.WORKING, id="not asked yet"),
        pytest.param(None, Outcome.STALLED, id="there is none"),
    ],
)
def test_without_a_default_vpc_groups_that_name_none_cannot_be_made(error, expected):
    desired = deployment()
    seen = network(default_vpc=None, default_vpc_error=error)

    assert plan(desired, sees(desired, network=seen)).verdict.outcome is expected


def test_a_machine_that_is_to_be_made_has_no_ssh_to_lose():
    desired = deployment(groups=(HTTP,))
    fresh = network(groups=(group(HTTP, rule(80)),))

    assert plan(desired, sees(desired, network=fresh, children=())).verdict.outcome is Outcome.WORKING
    assert plan(desired, replace(sees(desired, network=fresh), children=(child(desired),))).verdict.outcome is (
        Outcome.IN_SYNC
    )
