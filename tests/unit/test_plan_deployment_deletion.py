"""The way out of a deployment: from every phase, whatever the spec says, and never while something may be left."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.deployment.desired import Leaving, parse, read_deployment
from nixops_operator.deployment.key_pairs import DeleteKeyPair, KeepKey
from nixops_operator.deployment.machines import DeleteMachine, RetainMachine, is_to_be_retained
from nixops_operator.deployment.observed import GroupUse, Observed, ObservedMachine
from nixops_operator.deployment.retained import RetainThing
from nixops_operator.deployment.security_groups import DeleteGroup, RevokeRules
from nixops_operator.deployment.status import status
from nixops_operator.ec2.rules import Direction
from nixops_operator.errors import Blocked, InvalidSpec, NotYet, Retry
from nixops_operator.parsed import ParsedSpecs
from nixops_operator.planning import after_failure
from nixops_operator.verdict import Outcome
from unit.builders import ACCOUNT, NOON, OTHER_ACCOUNT, condition, ready, stamp, wedged
from unit.builders_deployment import (
    GROUPS,
    KEY_NAME,
    LONG_AGO,
    RETAINED,
    SSH,
    body,
    child,
    conditions_told,
    deployment,
    fields_of,
    gone,
    group,
    key_pair,
    kinds,
    leaving,
    network,
    plan,
    rule,
    tags,
    taken,
)

SHOP = deployment()
LEAVING = leaving(ready())
KEEPING = leaving(ready(), deletionPolicy="Retain")
WEB = child(SHOP)
UNUSED = GroupUse()
FREE = {"sg-http": UNUSED, "sg-ssh": UNUSED}
EMPTY = network(groups=(), key_pairs=())
TAGGED = network(
    groups=tuple(replace(one, tags={**one.tags, **RETAINED}) for one in GROUPS), key_pairs=(key_pair(**RETAINED),)
)


@pytest.mark.parametrize(
    ("given", "observed", "expected", "outcome"),
    [
        pytest.param(LEAVING, gone(WEB), (DeleteMachine(WEB.key, WEB.uid),), Outcome.DELETING, id="machines first"),
        pytest.param(
            LEAVING,
            gone(child(SHOP, deleting=True)),
            (),
            Outcome.DELETING,
            id="machines on their way out are waited for",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(uses=FREE, key_pairs=())),
            (DeleteGroup("sg-http"), DeleteGroup("sg-ssh")),
            Outcome.DELETING,
            id="then groups that nothing uses",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(uses={"sg-http": GroupUse(("eni-1 (i-1)",)), "sg-ssh": UNUSED}, key_pairs=())),
            (DeleteGroup("sg-ssh"),),
            Outcome.DELETING,
            id="a group in use waits, the others go",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(key_pairs=())),
            (),
            Outcome.DELETING,
            id="a group of which it is not known whether it is in use waits",
        ),
        pytest.param(
            LEAVING,
            gone(
                network=network(
                    groups=(GROUPS[0], group(SSH, rule(22, peer="sg-http"))),
                    uses={"sg-http": GroupUse((), ("sg-ssh",)), "sg-ssh": GroupUse(("eni-1",), ())},
                    key_pairs=(),
                ),
            ),
            (RevokeRules("sg-ssh", Direction.INGRESS, ("sgr-ssh-1",)),),
            Outcome.DELETING,
            id="our own rules that name a group go before it",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(uses={"sg-http": GroupUse((), ("sg-alien",)), "sg-ssh": UNUSED}, key_pairs=())),
            (DeleteGroup("sg-ssh"),),
            Outcome.DELETING,
            id="others' rules that name a group are not touched",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(groups=())),
            (DeleteKeyPair(KEY_NAME),),
            Outcome.DELETING,
            id="key pairs, which nothing keeps",
        ),
        pytest.param(LEAVING, gone(network=EMPTY), (), Outcome.GONE, id="then it goes"),
        pytest.param(LEAVING, gone(network=TAGGED), (), Outcome.GONE, id="what was let go of before stays"),
        pytest.param(
            KEEPING,
            gone(network=network()),
            (RetainThing("key-1"), RetainThing("sg-http"), RetainThing("sg-ssh")),
            Outcome.DELETING,
            id="Retain: tagged as let go",
        ),
        pytest.param(KEEPING, gone(network=TAGGED), (), Outcome.GONE, id="Retain: let go once it is tagged"),
        pytest.param(
            leaving({"accountId": None}), Observed(), (), Outcome.GONE, id="nothing was ever made: no credentials"
        ),
        pytest.param(
            LEAVING,
            gone(network=network(error=Blocked(Reason.AUTH_FAILURE, "wrong"))),
            (),
            Outcome.WEDGED,
            id="credentials gone: a person is told",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(error=Retry(Reason.THROTTLED, "slow down"))),
            (),
            Outcome.DELETING,
            id="throttled",
        ),
        pytest.param(
            LEAVING,
            gone(network=network(error=NotYet("looking at EC2"))),
            (),
            Outcome.LOOKING,
            id="not looked again yet: what was told stands",
        ),
        pytest.param(
            leaving(),
            gone(network=network(error=NotYet("looking at EC2"))),
            (),
            Outcome.DELETING,
            id="not looked yet, and nothing told",
        ),
        pytest.param(
            LEAVING,
            gone(network=replace(EMPTY, account_id=OTHER_ACCOUNT)),
            (),
            Outcome.WEDGED,
            id="another account proves nothing",
        ),
    ],
)
def test_the_way_out(given, observed, expected, outcome):
    assert taken(given, observed) == expected
    assert plan(given, observed).verdict.outcome is outcome


# --- nothing may be left ----------------------------------------------------------------------------------------------


def asked_for(at, name="nixops-x-http-y", kind="SecurityGroup"):
    return {"creations": [{"name": name, "kind": kind, "calledAt": stamp(at)}]}


GROUP = {"securityGroups": [{"name": "http", "groupId": "sg-http", "vpcId": "vpc-1"}]}
PAIR = {"keyPairs": [{"name": "main", "keyName": KEY_NAME}]}
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("status", "observed", "outcome"),
    [
        pytest.param(asked_for(NOON), EMPTY, Outcome.DELETING, id="made a moment ago, not shown yet"),
        pytest.param(
            asked_for(NOON - 5 * MINUTE),
            replace(EMPTY, missing_for={"nixops-x-http-y": MINUTE}),
            Outcome.DELETING,
            id="the last look began too early",
        ),
        pytest.param(
            asked_for(NOON - 6 * MINUTE),
            replace(EMPTY, missing_for={"nixops-x-http-y": 0 * MINUTE}),
            Outcome.DELETING,
            id="one empty look",
        ),
        pytest.param(
            asked_for(NOON - 6 * MINUTE),
            replace(EMPTY, missing_for={"nixops-x-http-y": MINUTE}),
            Outcome.GONE,
            id="proven absent",
        ),
        pytest.param(
            asked_for(NOON - 5 * MINUTE, KEY_NAME, "KeyPair"), EMPTY, Outcome.DELETING, id="a key pair, not shown yet"
        ),
        pytest.param(GROUP, EMPTY, Outcome.DELETING, id="a group that was shown before, missed by one look"),
        pytest.param(
            GROUP, replace(EMPTY, missing_for={"sg-http": MINUTE}), Outcome.GONE, id="a group deleted by hand"
        ),
        pytest.param(PAIR, EMPTY, Outcome.DELETING, id="a key pair that was shown before, missed by one look"),
        pytest.param(PAIR, replace(EMPTY, missing_for={KEY_NAME: MINUTE}), Outcome.GONE, id="one deleted by hand"),
        pytest.param({**GROUP, **PAIR}, TAGGED, Outcome.GONE, id="let go of: it is there, and stays"),
    ],
)
def test_what_may_exist_is_waited_for(status, observed, outcome):
    """Made, and the deployment deleted within the lag of looks by tag: the group was left behind."""
    given = leaving({**ready(), **status})

    assert plan(given, gone(network=observed)).verdict.outcome is outcome


def test_with_retain_too_what_may_exist_is_waited_for():
    given = leaving({**ready(), **asked_for(NOON)}, deletionPolicy="Retain")

    assert plan(given, gone(network=TAGGED)).verdict.outcome is Outcome.DELETING


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        pytest.param(network(uses=FREE, key_pairs=()), ["DeleteGroup", "ForgetThing"] * 2, id="groups"),
        pytest.param(network(groups=()), ["DeleteKeyPair", "ForgetThing"], id="key pairs"),
    ],
)
def test_what_ec2_answered_to_have_deleted_is_not_waited_for(observed, expected):
    assert kinds(plan(LEAVING, gone(network=observed)).steps) == expected


# --- whatever the spec says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"machines": [{"name": "web", "activation": {"timeout": "0s"}}]}, id="refused by the model"),
        pytest.param({"machines": "many", "defaults": 7, "keyPairs": None}, id="of no known form"),
        pytest.param({"description": "x" * 70_000}, id="larger than the limit"),
        pytest.param({"unknownField": True}, id="with a field of a later release"),
    ],
)
def test_a_spec_that_nobody_can_read_blocks_no_deletion(spec):
    written = body(ready(), deleting=True)
    written["spec"] = {"aws": written["spec"]["aws"], **spec}

    given = read_deployment(written)

    assert isinstance(given, Leaving)
    assert given.aws is not None
    assert given.aws.region == "us-west-2"
    assert plan(given, gone(network=EMPTY)).verdict.outcome is Outcome.GONE


def test_a_policy_that_nobody_can_read_destroys_nothing():
    given = leaving(ready(), deletionPolicy="Perhaps")

    assert kinds(taken(given, gone(network=network()))) == ["RetainThing"] * 3


def test_a_living_deployment_with_that_spec_is_told_of_it_in_each_pass():
    written = body(ready(), machines=(), unknownField=True)
    parsed = ParsedSpecs(parse, kept=8)

    for _ in range(2):
        with pytest.raises(InvalidSpec, match="unknownField"):
            read_deployment(written, parsed.of)


def test_a_spec_is_parsed_once_for_a_generation():
    parsed = ParsedSpecs(parse, kept=8)
    first, second = (read_deployment(body(), parsed.of) for _ in range(2))
    edited = read_deployment(body(generation=2), parsed.of)

    assert first.children is second.children
    assert edited.children is not first.children


# --- orphans ----------------------------------------------------------------------------------------------------------


def test_while_machines_are_being_orphaned_none_is_touched():
    """`kubectl delete --cascade=orphan` terminated the instances."""
    given = leaving(ready(), finalizers=(names.FINALIZER, "orphan"))
    found = plan(given, gone(WEB))

    assert found.steps == ()
    assert found.verdict.outcome is Outcome.DELETING


def test_what_orphans_use_stays():
    observed = gone(orphans=("shop-web",), going_keys=("shop-main-ssh",))

    assert taken(LEAVING, observed) == (
        KeepKey("shop-main-ssh"),
        RetainThing("key-1"),
        RetainThing("sg-http"),
        RetainThing("sg-ssh"),
    )


# --- Retain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "of_web", "is_told"),
    [("Retain", {"deletionPolicy": "Delete"}, True), ("Delete", {"deletionPolicy": "Retain"}, False)],
)
def test_a_machine_named_as_a_replica_of_another_entry_has_its_own_policy(policy, of_web, is_told):
    entries = ({"name": "web", **of_web}, {"name": "web-1"})
    labels = {**WEB.body["metadata"]["labels"], names.MACHINE_LABEL: "web-1"}
    body = {**WEB.body, "metadata": {**WEB.body["metadata"], "name": "shop-web-1", "labels": labels}}
    seen = ObservedMachine(body)

    told = is_to_be_retained(leaving(ready(), deletionPolicy=policy, machines=entries), seen)

    assert told is is_told


@pytest.mark.parametrize(
    ("fields", "spec", "told"),
    [
        pytest.param({"deletionPolicy": "Retain"}, {}, True, id="the deployment says so"),
        pytest.param({"deletionPolicy": "Retain"}, {"deletionPolicy": "Retain"}, False, id="it knows"),
        pytest.param({}, {"deletionPolicy": "Retain"}, False, id="it says so itself"),
        pytest.param({}, {}, False, id="nobody does"),
        pytest.param(
            {"deletionPolicy": "Retain", "machines": ({"name": "web", "deletionPolicy": "Delete"},)},
            {"deletionPolicy": "Delete"},
            False,
            id="its own entry says Delete",
        ),
        pytest.param({"defaults": {"deletionPolicy": "Retain"}}, {}, True, id="the defaults say so"),
    ],
)
def test_machines_are_told_that_their_instances_stay(fields, spec, told):
    """They read their own spec when they go: Retain that came just before the deletion, or after it, counts too."""
    given = leaving(ready(), **fields)
    seen = child(SHOP, spec={**WEB.body["spec"], **spec})

    expected = RetainMachine(seen.key, seen.uid) if told else DeleteMachine(seen.key, seen.uid)
    assert taken(given, gone(seen))[0] == expected


def refused_since(since, generation=1):
    return {"conditions": [condition("InfrastructureReady", "False", "AccessDenied", generation, since)]}


@pytest.mark.parametrize(
    ("status", "minutes", "outcome"),
    [
        pytest.param({}, 0, Outcome.DELETING, id="not tried yet"),
        pytest.param(wedged(LONG_AGO), 5, Outcome.DELETING, id="its machines were refused for long: not tried yet"),
        pytest.param(refused_since(NOON), 4.9, Outcome.DELETING, id="less than five minutes"),
        pytest.param(refused_since(LONG_AGO), 4.9, Outcome.DELETING, id="refused long before the deletion"),
        pytest.param(refused_since(NOON, 0), 5, Outcome.DELETING, id="not tried for this generation"),
        pytest.param(refused_since(NOON), 5, Outcome.GONE, id="five minutes"),
    ],
)
def test_retain_lets_go_of_what_cannot_be_tagged_after_a_while(status, minutes, outcome):
    given = leaving({**ready(), **status}, deletionPolicy="Retain")
    found = plan(given, gone(network=network(key_pairs=())), NOON + timedelta(minutes=minutes))

    assert found.verdict.outcome is outcome
    assert kinds(found.steps) == ([] if outcome is Outcome.GONE else ["RetainThing"] * 2)
    if outcome is Outcome.GONE:
        assert "sg-http, sg-ssh" in found.verdict.message


REFUSED = Blocked(Reason.AUTH_FAILURE, "wrong")


@pytest.mark.parametrize(
    ("status", "minutes", "outcome"),
    [
        pytest.param({}, 0, Outcome.WEDGED, id="a passing refusal is waited out"),
        pytest.param(refused_since(NOON), 4.9, Outcome.WEDGED, id="less than five minutes"),
        pytest.param(wedged(NOON), 5, Outcome.WEDGED, id="its machines were refused"),
        pytest.param(refused_since(NOON), 5, Outcome.GONE, id="five minutes"),
    ],
)
def test_retain_lets_go_without_credentials_after_a_while(status, minutes, outcome):
    """The remedy that a wedged deletion names must work."""
    given = leaving({**ready(), **status}, deletionPolicy="Retain")

    verdict = plan(given, gone(network=network(error=REFUSED)), NOON + timedelta(minutes=minutes)).verdict

    assert (verdict.outcome, verdict.reason) == (outcome, Reason.AUTH_FAILURE)
    assert f"account {ACCOUNT}" in verdict.message


def test_nothing_is_let_go_of_while_machines_are_there():
    given = leaving({**ready(), **refused_since(LONG_AGO)}, deletionPolicy="Retain")
    later = NOON + timedelta(minutes=6)

    assert plan(given, gone(child(SHOP, deleting=True)), later).verdict.outcome is Outcome.DELETING
    assert (
        plan(given, gone(child(SHOP, deleting=True), network=network(error=REFUSED)), later).verdict.outcome
        is Outcome.WEDGED
    )


@pytest.mark.parametrize(
    "seen",
    [pytest.param(network(), id="tagging is refused"), pytest.param(network(error=REFUSED), id="all is refused")],
)
def test_keys_are_kept_before_anything_is_let_go_of(seen):
    given = leaving({**ready(), **refused_since(NOON)}, deletionPolicy="Retain")
    found = plan(given, gone(network=seen, going_keys=("shop-main-ssh",)), NOON + timedelta(minutes=6))

    assert found.verdict.outcome is Outcome.DELETING
    assert found.steps == (KeepKey("shop-main-ssh"),)


def test_the_wait_begins_with_the_first_refusal():
    """The condition from whose age it is judged is written by a refused try alone."""
    given = leaving({**ready(), **refused_since(LONG_AGO, 1)}, deletionPolicy="Retain")
    found = plan(given, gone(network=network(key_pairs=())))
    refused = replace(found, findings=tuple(after_failure(one, REFUSED) for one in found.findings))

    assert "InfrastructureReady" not in conditions_told(LEAVING, gone(WEB))
    told = status(given, gone(network=network(key_pairs=())), refused, NOON)
    assert any(one["type"] == "InfrastructureReady" and one["status"] == "False" for one in told["conditions"])


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_machine_whose_deletion_is_stuck_is_named():
    """Waiting for a machine that waits for a person is no progress; whoever looks at the deployment must read why."""
    wedged_machine = {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "False", "AuthFailure"), condition("Stalled", "True", "AuthFailure")],
    }
    stuck = child(SHOP, deleting=True, status=wedged_machine)

    verdict = plan(LEAVING, gone(stuck)).verdict

    assert (verdict.outcome, verdict.reason) == (Outcome.WEDGED, Reason.AUTH_FAILURE)
    assert verdict.message == f"{stuck.name}: as before"


@pytest.mark.parametrize(
    ("use", "words"),
    [
        pytest.param(GroupUse(("eni-1 (i-1)",)), "sg-http is used by eni-1 (i-1)", id="interfaces"),
        pytest.param(GroupUse((), ("sg-alien",)), "sg-alien", id="others' rules"),
    ],
)
def test_the_wait_for_a_group_names_what_holds_it(use, words):
    seen = network(groups=(GROUPS[0],), key_pairs=(), uses={"sg-http": use})

    assert words in plan(LEAVING, gone(network=seen)).verdict.message


def test_a_deletion_is_told():
    assert conditions_told(LEAVING, gone(WEB)) == {
        "Ready": "False/Deleting",
        "Reconciling": "True/Deleting",
        "CredentialsReady": "True/Succeeded",
    }
    assert "machines" not in fields_of(LEAVING, gone(WEB))


def test_things_of_others_are_none_of_its_business():
    stranger = group(SSH, tags=tags("ssh", **{names.CLUSTER_TAG: "another"}))

    assert names.is_ours(GROUPS[0].tags, GROUPS[0].tags[names.CLUSTER_TAG], LEAVING.uid)
    assert not names.is_ours(stranger.tags, GROUPS[0].tags[names.CLUSTER_TAG], LEAVING.uid)
