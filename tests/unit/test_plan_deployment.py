"""What machines share comes first and goes last; drift is repaired without a word against the machines that serve."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.deployment import plan as deployment_plan
from nixops_operator.deployment import steps
from nixops_operator.deployment.observed import GroupUse, ObservedKey
from nixops_operator.deployment.plan import Plan, groups_to_go
from nixops_operator.deployment.status import status
from nixops_operator.ec2.rules import Direction
from nixops_operator.errors import Blocked, InvalidSpec, Retry
from nixops_operator.verdict import Outcome
from unit.builders import (
    ACCOUNT,
    CLUSTER,
    GROUPS,
    HTTP,
    KEY_NAME,
    NOON,
    OTHER_ACCOUNT,
    PATIENCE_WITH_REFUSALS,
    PUBLIC_KEY,
    SSH,
    UID,
    child,
    condition,
    deployment,
    group,
    key_pair,
    network,
    ready,
    rule,
    sees,
    told,
    wedged,
)

SHOP = deployment()
SERVING = deployment(ready())
REPORTING = deployment(ready(), driftPolicy="Report")
OLD_GROUP = group({"name": "old", "description": "Old"}, rule(81))
UNUSED = GroupUse((), ())


def plan(desired, observed, now: datetime = NOON) -> Plan:
    return deployment_plan.plan(desired, observed, now)


def group_name(entry) -> str:
    return names.security_group_name(CLUSTER, UID, entry["name"], "vpc-1", entry["description"])


def retrying(desired):
    conditions = [condition("Ready", "False"), condition("Reconciling")]
    return child(desired, status={"conditions": conditions, "observedGeneration": 1})


def wanted_child(desired, machine: str = "web"):
    return next(one for one in desired.children if one.machine == machine)


@pytest.mark.parametrize(
    ("desired", "observed", "taken"),
    [
        pytest.param(
            deployment({"accountId": None}),
            sees(SHOP, network=network(groups=(), key_pairs=()), children=(), keys={"main": ObservedKey()}),
            (steps.RecordAccount(ACCOUNT),),
            id="the account is written down first",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(), key_pairs=()), children=(), keys={"main": ObservedKey()}),
            (steps.GenerateKey("main"),),
            id="the private key lies in a Secret before EC2 hears of it",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(), key_pairs=()), children=()),
            (steps.ImportKeyPair("main", KEY_NAME, PUBLIC_KEY),),
            id="the public half is imported",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=()), children=()),
            (
                steps.CreateGroup("http", group_name(HTTP), "Web", "vpc-1"),
                steps.CreateGroup("ssh", group_name(SSH), "SSH", "vpc-1"),
            ),
            id="all groups before any rule: they may name each other",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(group(HTTP), group(SSH))), children=()),
            (
                steps.AuthorizeRules("sg-http", Direction.INGRESS, ((rule(80), ""),)),
                steps.AuthorizeRules("sg-ssh", Direction.INGRESS, ((rule(22), ""),)),
            ),
            id="the rules",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(), children=()),
            (steps.CreateMachine(wanted_child(SHOP)),),
            id="the machines",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, spec={"suspend": True}),)),
            (steps.ReplaceMachineSpec(wanted_child(SERVING)),),
            id="a machine edited by hand is put back",
        ),
        pytest.param(
            SERVING,
            sees(
                SERVING,
                network=network(),
                children=(child(SERVING, metadata={"name": "shop-web", "generation": 1, "labels": {}}),),
            ),
            (steps.ReplaceMachineSpec(wanted_child(SERVING)),),
            id="a label taken off by hand is put back",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=()),
            (steps.CreateMachine(wanted_child(SERVING)),),
            id="a machine deleted by hand is made again",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, deleting=True),)),
            (),
            id="a machine on its way out is waited for",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(key_pairs=())),
            (steps.ImportKeyPair("main", KEY_NAME, PUBLIC_KEY),),
            id="a key pair deleted by hand is imported again",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP), group(SSH, rule(22))))),
            (steps.AuthorizeRules("sg-http", Direction.INGRESS, ((rule(80), ""),)),),
            id="a rule revoked by hand is added again",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP, rule(80), rule(81)), group(SSH, rule(22))))),
            (steps.RevokeRules("sg-http", Direction.INGRESS, ("sgr-http-2",)),),
            id="a rule added by hand is revoked",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP, rule(81)), group(SSH, rule(22))))),
            (steps.AuthorizeRules("sg-http", Direction.INGRESS, ((rule(80), ""),)),),
            id="missing rules come before surplus ones go",
        ),
        pytest.param(REPORTING, sees(REPORTING, network=network(key_pairs=())), (), id="Report: a key pair stays away"),
        pytest.param(
            REPORTING,
            sees(REPORTING, network=network(groups=(group(HTTP), GROUPS[1]))),
            (),
            id="Report: a rule stays away",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(*GROUPS, OLD_GROUP), uses={OLD_GROUP.id: UNUSED})),
            (steps.DeleteGroup(OLD_GROUP.id),),
            id="a group of no entry goes",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(key_pairs=(key_pair(), key_pair("old")))),
            (steps.DeleteKeyPair("old"),),
            id="a key pair of no entry goes",
        ),
        pytest.param(SERVING, sees(SERVING, network=network()), (), id="in sync: nothing"),
    ],
)
def test_the_next_step_of_a_deployment(desired, observed, taken):
    assert plan(desired, observed).steps == taken


@pytest.mark.parametrize(
    ("desired", "observed", "outcome", "reason"),
    [
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP), GROUPS[1]))),
            Outcome.REPAIRING,
            Reason.SECURITY_GROUP_DRIFT,
            id="drift of a rule is repaired, the deployment stays Ready",
        ),
        pytest.param(
            REPORTING,
            sees(REPORTING, network=network(groups=(group(HTTP), GROUPS[1]))),
            Outcome.IN_SYNC,
            Reason.SECURITY_GROUP_DRIFT,
            id="drift of a rule is told, the deployment stays Ready",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(group(HTTP), GROUPS[1]))),
            Outcome.WORKING,
            Reason.PROVISIONING,
            id="a rule that never was is no drift",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(error=Blocked(Reason.SECRET_NOT_FOUND, "Secret aws does not exist"))),
            Outcome.STALLED,
            Reason.SECRET_NOT_FOUND,
            id="AWS Secret missing",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(error=Retry(Reason.THROTTLED, "slow down"))),
            Outcome.RETRYING,
            Reason.THROTTLED,
            id="throttled",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(account_id=OTHER_ACCOUNT)),
            Outcome.STALLED,
            Reason.ACCESS_DENIED,
            id="another account's credentials",
        ),
        pytest.param(
            deployment(ready(), suspend=True),
            sees(SERVING, network=network(groups=())),
            Outcome.SUSPENDED,
            Reason.SUSPENDED,
            id="suspended",
        ),
        pytest.param(
            replace(SERVING, invalid=InvalidSpec("spec.machines[0].target", "missing"), children=()),
            sees(SERVING, network=network()),
            Outcome.STALLED,
            Reason.INVALID_SPEC,
            id="a machine's settings make no spec",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), keys={"main": ObservedKey()}),
            Outcome.STALLED,
            Reason.SECRET_NOT_FOUND,
            id="a lost private key is not silently made anew",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), keys={"main": ObservedKey(error=Blocked(Reason.SECRET_NOT_FOUND, "no"))}),
            Outcome.STALLED,
            Reason.SECRET_NOT_FOUND,
            id="a private key of the user's own is missing",
        ),
        pytest.param(
            deployment(groups=(HTTP,)),
            sees(deployment(groups=(HTTP,)), network=network(groups=(group(HTTP, rule(80), rule(22)),))),
            Outcome.STALLED,
            Reason.CHANGE_FORBIDDEN,
            id="rules that would lock the operator out are not carried out",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(default_vpc=None)),
            Outcome.STALLED,
            Reason.INVALID_SPEC,
            id="no default VPC",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, truth="Unknown"),)),
            Outcome.WORKING,
            Reason.SUCCEEDED,
            id="a machine works: the deployment works, in its words",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(retrying(SERVING),)),
            Outcome.RETRYING,
            Reason.SUCCEEDED,
            id="a machine retries: the deployment retries",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, truth="False"),)),
            Outcome.DRIFT_REPORTED,
            Reason.SUCCEEDED,
            id="a machine whose drift is only reported: nothing is under way",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, status={"observedGeneration": -1}),)),
            Outcome.WORKING,
            Reason.ROLLING_OUT,
            id="a machine that nobody has looked at yet",
        ),
        pytest.param(SERVING, sees(SERVING, network=network()), Outcome.IN_SYNC, Reason.SUCCEEDED, id="in sync"),
        pytest.param(
            deployment({"accountId": None}, groups=(), key_pairs=(), machines=()),
            sees(deployment(groups=(), key_pairs=(), machines=()), network=None, children=()),
            Outcome.IN_SYNC,
            Reason.SUCCEEDED,
            id="nothing wanted",
        ),
    ],
)
def test_how_a_deployment_stands(desired, observed, outcome, reason):
    verdict = plan(desired, observed).verdict

    assert (verdict.outcome, verdict.reason) == (outcome, reason)


# --- the way out ------------------------------------------------------------------------------------------------------

LEAVING = deployment(ready(), deleting=True)
RETAINED = deployment(ready(), deleting=True, deletionPolicy="Retain")


@pytest.mark.parametrize(
    ("desired", "observed", "taken", "outcome"),
    [
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network()),
            (steps.DeleteMachine("shop-web"),),
            Outcome.DELETING,
            id="machines first",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(), children=(child(LEAVING, deleting=True),)),
            (),
            Outcome.DELETING,
            id="machines on their way out are waited for",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(uses={"sg-http": UNUSED, "sg-ssh": UNUSED}), children=()),
            (steps.DeleteGroup("sg-http"), steps.DeleteGroup("sg-ssh")),
            Outcome.DELETING,
            id="then groups that nothing uses",
        ),
        pytest.param(
            LEAVING,
            sees(
                LEAVING,
                network=network(uses={"sg-http": GroupUse(("eni-1 (i-1)",), ()), "sg-ssh": UNUSED}),
                children=(),
            ),
            (steps.DeleteGroup("sg-ssh"),),
            Outcome.DELETING,
            id="a group in use waits, the others go",
        ),
        pytest.param(
            LEAVING,
            sees(
                LEAVING,
                network=network(
                    groups=(GROUPS[0], group(SSH, rule(22, peer="sg-http"))),
                    uses={"sg-http": GroupUse((), ("sg-ssh",)), "sg-ssh": GroupUse(("eni-1",), ())},
                ),
                children=(),
            ),
            (steps.RevokeRules("sg-ssh", Direction.INGRESS, ("sgr-ssh-1",)),),
            Outcome.DELETING,
            id="our own rules that name a group go before it",
        ),
        pytest.param(
            LEAVING,
            sees(
                LEAVING, network=network(uses={"sg-http": GroupUse((), ("sg-alien",)), "sg-ssh": UNUSED}), children=()
            ),
            (steps.DeleteGroup("sg-ssh"),),
            Outcome.DELETING,
            id="others' rules that name a group are not touched",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(groups=()), children=()),
            (steps.DeleteKeyPair(KEY_NAME),),
            Outcome.DELETING,
            id="then key pairs",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(groups=(), key_pairs=()), children=()),
            (),
            Outcome.GONE,
            id="then it goes",
        ),
        pytest.param(
            RETAINED,
            sees(RETAINED, network=network(), children=()),
            (steps.Retain(("sg-http", "sg-ssh", "key-1")),),
            Outcome.DELETING,
            id="Retain: tagged as let go",
        ),
        pytest.param(
            deployment({"accountId": None}, deleting=True),
            sees(LEAVING, network=None, children=()),
            (),
            Outcome.GONE,
            id="nothing was ever made",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(error=Blocked(Reason.AUTH_FAILURE, "wrong")), children=()),
            (),
            Outcome.WEDGED,
            id="credentials gone: a person is told",
        ),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network(account_id=OTHER_ACCOUNT), children=()),
            (),
            Outcome.WEDGED,
            id="another account proves nothing",
        ),
    ],
)
def test_the_way_out(desired, observed, taken, outcome):
    found = plan(desired, observed)

    assert found.steps == taken
    assert found.verdict.outcome is outcome


def test_a_machine_whose_deletion_is_stuck_is_named():
    """Waiting for a machine that waits for a person is no progress; whoever looks at the deployment must read why."""
    status = {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "False", "AuthFailure"), condition("Stalled", "True", "AuthFailure")],
    }
    stuck = child(LEAVING, deleting=True, status=status)

    verdict = plan(LEAVING, sees(LEAVING, network=network(), children=(stuck,))).verdict

    assert (verdict.outcome, verdict.reason) == (Outcome.WEDGED, Reason.AUTH_FAILURE)
    assert verdict.message == f"{stuck.name}: as before"


def test_the_wait_for_a_group_names_what_holds_it():
    uses = {"sg-http": GroupUse(("eni-1 (i-1)",), ()), "sg-ssh": GroupUse((), ("sg-alien",))}

    message = plan(LEAVING, sees(LEAVING, network=network(uses=uses), children=())).verdict.message

    assert "sg-http is used by eni-1 (i-1)" in message
    assert "sg-alien" in message


REFUSED = Blocked(Reason.AUTH_FAILURE, "wrong")


@PATIENCE_WITH_REFUSALS
def test_retain_lets_go_without_credentials_after_a_while(status, minutes, outcome):
    """The remedy that a wedged deletion names must work."""
    retained = deployment({**ready(), **status}, deleting=True, deletionPolicy="Retain")
    observed = sees(retained, network=network(error=REFUSED), children=())

    verdict = plan(retained, observed, NOON + timedelta(minutes=minutes)).verdict

    assert (verdict.outcome, verdict.reason) == (outcome, Reason.AUTH_FAILURE)
    assert f"account {ACCOUNT}" in verdict.message


@pytest.mark.parametrize("deleting", [False, True])
def test_what_is_retained_keeps_its_key(deleting):
    """Before the deletion already: the garbage collector may come first, as with a foreground deletion."""
    retained = deployment(ready(), deleting=deleting, deletionPolicy="Retain")
    refused = network(error=REFUSED) if deleting else network()

    found = plan(retained, sees(retained, network=refused, going_keys=("shop-key",)), NOON)

    assert found.steps == (steps.KeepKeys(("shop-key",)),)
    assert found.verdict.outcome is (Outcome.DELETING if deleting else Outcome.WORKING)


def test_retain_lets_go_of_what_cannot_be_tagged_after_a_while():
    retained = deployment({**ready(), **wedged(NOON)}, deleting=True, deletionPolicy="Retain")
    observed = sees(retained, network=network(key_pairs=()), children=())

    early = plan(retained, observed, NOON + timedelta(minutes=4.9))
    late = plan(retained, observed, NOON + timedelta(minutes=5))

    assert early.steps == (steps.Retain(("sg-http", "sg-ssh")),)
    assert (late.verdict.outcome, late.steps) == (Outcome.GONE, ())
    assert "sg-http, sg-ssh" in late.verdict.message


def test_retained_things_are_let_go_once_they_are_tagged():
    tagged = tuple(replace(one, tags={**one.tags, names.RETAINED_TAG: "true"}) for one in GROUPS)

    found = plan(RETAINED, sees(RETAINED, network=network(groups=tagged, key_pairs=()), children=()))

    assert found.verdict.outcome is Outcome.GONE


@pytest.mark.parametrize(
    ("desired", "expected"),
    [
        pytest.param(SERVING, ("sg-old",), id="those of no entry"),
        pytest.param(LEAVING, ("sg-http", "sg-ssh", "sg-old"), id="all, in deletion"),
        pytest.param(RETAINED, (), id="none, if they are retained"),
        pytest.param(deployment(suspend=True), (), id="none, while suspended"),
    ],
)
def test_groups_that_are_to_go(desired, expected):
    assert groups_to_go(desired, sees(desired, network=network(groups=(*GROUPS, OLD_GROUP)), children=())) == expected


def test_nothing_goes_before_its_replacement_serves():
    wider = deployment(ready(), machines=("web",))
    surplus = replace(child(wider), body={**child(wider).body, "metadata": {"name": "shop-old", "generation": 1}})
    not_yet = sees(wider, network=network(), children=(surplus, child(wider, truth="Unknown")))
    serving = sees(wider, network=network(), children=(surplus, child(wider)))

    assert plan(wider, not_yet).steps == ()
    assert plan(wider, serving).steps == (steps.DeleteMachine("shop-old"),)


# --- status -----------------------------------------------------------------------------------------------------------


def conditions(desired, observed) -> dict[str, str]:
    return told(status(desired, observed, plan(desired, observed), NOON))


@pytest.mark.parametrize(
    ("desired", "observed", "expected"),
    [
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {
                "Ready": "True/SecurityGroupDrift",
                "Reconciling": "True/SecurityGroupDrift",
                "UpToDate": "False/SecurityGroupDrift",
            },
            id="drift, Enforce: Ready stays True",
        ),
        pytest.param(
            REPORTING,
            sees(REPORTING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {"Ready": "True/Succeeded", "UpToDate": "False/SecurityGroupDrift"},
            id="drift, Report: Ready stays True",
        ),
        pytest.param(
            deployment(ready(1), generation=2),
            sees(SERVING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {"Ready": "Unknown/Provisioning", "Reconciling": "True/Provisioning"},
            id="new spec: Unknown from the first look",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(error=Blocked(Reason.AUTH_FAILURE, "wrong"))),
            {"CredentialsReady": "False/AuthFailure", "Stalled": "True/AuthFailure"},
            id="wrong credentials",
        ),
        pytest.param(SERVING, sees(SERVING, network=network()), {"Ready": "True/Succeeded"}, id="in sync"),
        pytest.param(
            LEAVING,
            sees(LEAVING, network=network()),
            {"Ready": "False/Deleting", "Reconciling": "True/Deleting"},
            id="deleting",
        ),
    ],
)
def test_conditions_of_a_deployment(desired, observed, expected):
    found = conditions(desired, observed)

    assert {kind: found.get(kind) for kind in expected} == expected
    assert not {"Reconciling", "Stalled"} <= found.keys()


def test_machines_are_counted():
    two = deployment(ready(), machines=("web", "db"))
    observed = sees(two, network=network(), children=(child(two, "db", truth="False"), child(two, "web")))

    counted = status(two, observed, plan(two, observed), NOON)["machines"]

    assert counted == {"desired": 2, "updated": 1, "ready": 1, "unavailable": 1, "summary": "1/2"}


def test_a_revision_is_current_once_all_machines_run_it():
    half = sees(SHOP, network=network(), children=(child(SHOP, truth="Unknown"),))
    whole = sees(SHOP, network=network())

    before = status(SHOP, half, plan(SHOP, half), NOON)["revision"]
    after = status(SHOP, whole, plan(SHOP, whole), NOON)["revision"]

    assert set(before) == {"target"}
    assert after == {"current": before["target"], "target": before["target"]}
