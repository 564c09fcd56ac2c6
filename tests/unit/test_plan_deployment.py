"""What machines share comes first and goes last; what is refused keeps nothing else from being done; drift is repaired
without a word against the machines that serve."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from nixops_operator import names
from nixops_operator.account import RecordAccount
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment.creations import RecordCreation
from nixops_operator.deployment.key_pairs import DeleteKeyPair, GenerateKey, ImportKeyPair, KeepKey
from nixops_operator.deployment.machines import CreateMachine, DeleteMachine, ReplaceMachineSpec
from nixops_operator.deployment.observed import GroupUse, ObservedKey
from nixops_operator.deployment.security_groups import AuthorizeRules, CreateGroup, DeleteGroup, RevokeRules
from nixops_operator.ec2.rules import Direction
from nixops_operator.errors import Blocked, InvalidSpec, NotYet, Retry
from nixops_operator.holds import Holds
from nixops_operator.planning import after_failure
from nixops_operator.verdict import Outcome
from unit.builders import ACCOUNT, NOON, OTHER_ACCOUNT, condition, ready, stamp
from unit.builders_deployment import (
    GROUPS,
    HTTP,
    KEY_NAME,
    LONG_AGO,
    PUBLIC_KEY,
    RETAINED,
    SSH,
    child,
    child_uid,
    conditions_told,
    deployment,
    fields_of,
    group,
    group_name,
    key_pair,
    kinds,
    machine,
    network,
    plan,
    rule,
    sees,
    tags,
    taken,
    wanted_child,
)

SAID_TWICE = [{"fromPort": 22, "toPort": 22, "cidrs": ["0.0.0.0/0"], "description": text} for text in ("SSH", "ssh")]
SHOP = deployment()
SERVING = deployment(ready())
REPORTING = deployment(ready(), driftPolicy="Report")
OLD_GROUP = group({"name": "old", "description": "Old"}, rule(81))
UNUSED = GroupUse()
WEB = wanted_child(SHOP).name
BOTH = (
    CreateGroup("http", group_name(HTTP), "Web", "vpc-1"),
    CreateGroup("ssh", group_name(SSH), "SSH", "vpc-1"),
)


def retrying(desired):
    conditions = [condition("Ready", "False"), condition("Reconciling")]
    return child(desired, status={"conditions": conditions, "observedGeneration": 1})


@pytest.mark.parametrize(
    ("desired", "observed", "expected"),
    [
        pytest.param(
            deployment({"accountId": None}),
            sees(SHOP, network=network(groups=(), key_pairs=())),
            (RecordAccount(ACCOUNT),),
            id="the account is written down before anything is made in it",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(key_pairs=()), keys={"main": ObservedKey()}),
            (GenerateKey("main"),),
            id="the private key lies in a Secret before EC2 hears of it",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(key_pairs=())),
            (ImportKeyPair("main", KEY_NAME, PUBLIC_KEY),),
            id="the public half is imported",
        ),
        pytest.param(SHOP, sees(SHOP, network=network(groups=())), BOTH, id="groups are made"),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(group(HTTP), group(SSH)))),
            (
                AuthorizeRules("sg-http", Direction.INGRESS, ((rule(80), ""),)),
                AuthorizeRules("sg-ssh", Direction.INGRESS, ((rule(22), ""),)),
            ),
            id="the rules",
        ),
        pytest.param(
            SHOP, sees(SHOP, network=network(), children=()), (CreateMachine(wanted_child(SHOP)),), id="the machines"
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(groups=(), key_pairs=()), children=()),
            (ImportKeyPair("main", KEY_NAME, PUBLIC_KEY), *BOTH, CreateMachine(wanted_child(SHOP))),
            id="none of these waits for another",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, spec={"suspend": True}),)),
            (ReplaceMachineSpec(child(SERVING).key, child_uid(WEB), wanted_child(SERVING)),),
            id="a machine edited by hand is put back",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, labels={names.MACHINE_LABEL: "other"}),)),
            (ReplaceMachineSpec(child(SERVING).key, child_uid(WEB), wanted_child(SERVING)),),
            id="a label edited by hand is put back",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, deleting=True),)),
            (),
            id="a machine on its way out is waited for",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP, rule(80), rule(81)), GROUPS[1]))),
            (RevokeRules("sg-http", Direction.INGRESS, ("sgr-http-2",)),),
            id="a rule added by hand is revoked",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP, rule(81)), GROUPS[1]))),
            (AuthorizeRules("sg-http", Direction.INGRESS, ((rule(80), ""),), spare=("sgr-http-1",)),),
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
            (DeleteGroup(OLD_GROUP.id),),
            id="a group of no entry goes",
        ),
        pytest.param(
            SERVING,
            sees(
                SERVING,
                network=network(
                    groups=(*GROUPS, replace(OLD_GROUP, tags=tags("old", **RETAINED))), uses={OLD_GROUP.id: UNUSED}
                ),
            ),
            (),
            id="one that was let go of stays",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(key_pairs=(key_pair(), key_pair("old", "gone")))),
            (DeleteKeyPair("old"),),
            id="a key pair of no entry goes",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(key_pairs=(key_pair(), key_pair("old", "gone", **RETAINED)))),
            (),
            id="one that was let go of stays, too",
        ),
        pytest.param(
            SERVING,
            sees(
                SERVING,
                network=network(key_pairs=(key_pair("old"),)),
                keys={"main": ObservedKey(error=Retry(Reason.PROGRESSING_WITH_RETRY, "not read"))},
            ),
            (),
            id="no key pair goes while the key of its entry is not known",
        ),
        pytest.param(SERVING, sees(SERVING, network=network()), (), id="in sync: nothing"),
    ],
)
def test_the_next_steps_of_a_deployment(desired, observed, expected):
    assert taken(desired, observed) == expected


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
            Outcome.REPORTED,
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
            sees(SERVING, network=network(error=NotYet("looking at EC2"))),
            Outcome.LOOKING,
            Reason.PROGRESSING_WITH_RETRY,
            id="a process that has not looked yet says nothing",
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
            sees(SERVING, network=network(account_id=OTHER_ACCOUNT, groups=())),
            Outcome.STALLED,
            Reason.ACCESS_DENIED,
            id="another account's credentials",
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
        pytest.param(
            deployment({**ready(), "conditions": [condition("Reconciling", since=LONG_AGO)]}),
            sees(SHOP, network=network(groups=(GROUPS[0],))),
            Outcome.STALLED,
            Reason.PROGRESS_DEADLINE_EXCEEDED,
            id="work without an end within the deadline",
        ),
        pytest.param(SERVING, sees(SERVING, network=network()), Outcome.IN_SYNC, Reason.SUCCEEDED, id="in sync"),
        pytest.param(
            deployment({"accountId": None}, groups=(), key_pairs=(), machines=()),
            sees(deployment(groups=(), key_pairs=(), machines=())),
            Outcome.IN_SYNC,
            Reason.SUCCEEDED,
            id="nothing wanted",
        ),
    ],
)
def test_how_a_deployment_stands(desired, observed, outcome, reason):
    verdict = plan(desired, observed).verdict

    assert (verdict.outcome, verdict.reason) == (outcome, reason)


# --- independence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "observed", "still"),
    [
        pytest.param(
            SHOP,
            sees(SHOP, network=network(error=Blocked(Reason.AUTH_FAILURE, "wrong")), children=()),
            ["CreateMachine"],
            id="credentials",
        ),
        pytest.param(
            SHOP,
            sees(
                SHOP,
                network=network(groups=(), key_pairs=()),
                keys={"main": ObservedKey(error=Blocked(Reason.SECRET_NOT_FOUND, "no"))},
                children=(),
            ),
            ["CreateGroup", "CreateGroup", "CreateMachine"],
            id="a key",
        ),
        pytest.param(
            deployment(groups=({**SSH, "name": "bad", "ingress": SAID_TWICE}, SSH)),
            sees(
                deployment(groups=(SSH,)),
                network=network(groups=(group({**SSH, "name": "bad"}), group(SSH)), key_pairs=()),
                children=(),
            ),
            ["ImportKeyPair", "AuthorizeRules", "AuthorizeRules", "CreateMachine"],
            id="a rule that says the same as another in other words",
        ),
        pytest.param(
            SHOP,
            sees(SHOP, network=network(default_vpc=None, groups=()), children=()),
            ["CreateMachine"],
            id="a missing VPC",
        ),
    ],
)
def test_what_is_refused_keeps_nothing_else_from_being_done(desired, observed, still):
    assert kinds(taken(desired, observed)) == still
    assert plan(desired, observed).verdict.outcome is Outcome.STALLED


def test_a_refused_step_holds_none_of_its_siblings():
    """A hold used to be kept per type of step: rules of one bad group were tried over and over, those of a good one
    never."""
    bad, good = (
        AuthorizeRules("sg-a", Direction.INGRESS, ((rule(80), ""),)),
        AuthorizeRules("sg-b", Direction.INGRESS, ((rule(80), ""),)),
    )
    holds: Holds[str] = Holds()

    holds.failed("shop", 1, bad, Blocked(Reason.QUOTA_EXCEEDED, "full"), 0.0)

    assert holds.held("shop", 1, bad, 1.0) is not None
    assert holds.held("shop", 1, good, 1.0) is None


# --- intents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network_", "calls"),
    [
        pytest.param(network(groups=()), BOTH, id="groups"),
        pytest.param(network(key_pairs=()), (ImportKeyPair("main", KEY_NAME, PUBLIC_KEY),), id="a key pair"),
    ],
)
def test_each_call_that_makes_something_is_written_down_first(network_, calls):
    """Made, and the object deleted within the lag of EC2's looks by tag: nothing would know of it."""
    found = [finding.steps for finding in plan(SHOP, sees(SHOP, network=network_)).findings if finding.steps]

    assert [steps[-1] for steps in found] == list(calls)
    for intent, call in found:
        assert isinstance(intent, RecordCreation)
        assert intent.name == call.name
        assert intent.held_with == (call.identity,)


CREATION = {"name": group_name(HTTP), "kind": "SecurityGroup", "calledAt": stamp(LONG_AGO)}


@pytest.mark.parametrize(
    ("network_", "kept"),
    [
        pytest.param(network(groups=(GROUPS[1],)), [CREATION], id="not shown, and not missed for long enough"),
        pytest.param(
            network(groups=(GROUPS[1],), missing_for={group_name(HTTP): timedelta(minutes=2)}), [], id="proven absent"
        ),
        pytest.param(network(), [], id="shown"),
    ],
)
def test_a_creation_is_remembered_until_ec2_shows_it(network_, kept):
    desired = deployment({"creations": [CREATION]})

    assert fields_of(desired, sees(desired, network=network_))["creations"] == kept


def test_a_creation_is_remembered_while_nothing_is_known_of_ec2():
    desired = deployment({"creations": [CREATION]})
    blind = network(error=Retry(Reason.THROTTLED, "slow down"))

    assert "creations" not in fields_of(desired, sees(desired, network=blind))


# --- keys that are to stay --------------------------------------------------------------------------------------------

KEPT = names.key_pair_secret("shop", "main")


@pytest.mark.parametrize(
    ("status", "network_", "expected"),
    [
        pytest.param(ready(), network(), ["KeepKey"], id="imported: at once, the garbage collector may come first"),
        pytest.param(
            ready(), network(key_pairs=()), ["RecordCreation", "KeepKey", "ImportKeyPair"], id="with the import"
        ),
    ],
)
def test_what_is_retained_keeps_its_key(status, network_, expected):
    """A Secret that nobody owns is known as ours by its key alone, so its name in EC2 is written down before."""
    desired = deployment(status, deletionPolicy="Retain")

    found = plan(desired, sees(desired, network=network_, going_keys=(KEPT,)))

    assert kinds(found.steps) == expected
    assert KeepKey(KEPT) in found.steps


# --- what goes --------------------------------------------------------------------------------------------------------


def test_nothing_goes_before_its_replacement_serves():
    surplus = machine(replace(wanted_child(SERVING), name="shop-old", machine="old"))
    not_yet = sees(SERVING, network=network(), children=(surplus, child(SERVING, truth="Unknown")))
    serving = sees(SERVING, network=network(), children=(surplus, child(SERVING)))

    assert plan(SERVING, not_yet).steps == ()
    assert plan(SERVING, serving).steps == (DeleteMachine(surplus.key, child_uid("shop-old")),)


# --- status -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "observed", "expected"),
    [
        pytest.param(
            SERVING,
            sees(SERVING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {
                "Ready": "True/SecurityGroupDrift",
                "Reconciling": "True/SecurityGroupDrift",
                "InfrastructureReady": "True/Succeeded",
                "UpToDate": "False/SecurityGroupDrift",
            },
            id="drift, Enforce: Ready stays True",
        ),
        pytest.param(
            REPORTING,
            sees(REPORTING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {"Ready": "True/Succeeded", "UpToDate": "False/SecurityGroupDrift", "Reconciling": None},
            id="drift, Report: Ready stays True",
        ),
        pytest.param(
            deployment(ready(1), generation=2),
            sees(SERVING, network=network(groups=(group(HTTP), GROUPS[1]))),
            {
                "Ready": "Unknown/Provisioning",
                "Reconciling": "True/Provisioning",
                "InfrastructureReady": "False/Provisioning",
            },
            id="new spec: Unknown from the first look",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(error=Blocked(Reason.AUTH_FAILURE, "wrong"))),
            {
                "CredentialsReady": "False/AuthFailure",
                "Stalled": "True/AuthFailure",
                "InfrastructureReady": "Unknown/AuthFailure",
                "UpToDate": "Unknown/AuthFailure",
            },
            id="wrong credentials: nothing is known to be up to date",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(error=Retry(Reason.THROTTLED, "slower"))),
            {"CredentialsReady": "Unknown/Throttled", "InfrastructureReady": "Unknown/Throttled"},
            id="EC2 does not answer: nothing is known of the credentials",
        ),
        pytest.param(
            replace(SERVING, invalid=InvalidSpec("spec.machines[0].target", "missing"), children=()),
            sees(SERVING, network=network()),
            {"Stalled": "True/InvalidSpec", "UpToDate": "Unknown/InvalidSpec"},
            id="stalled: nothing is known to be up to date, either",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network(), children=(child(SERVING, truth="Unknown"),)),
            {"UpToDate": "Unknown/Succeeded"},
            id="a machine that is worked on",
        ),
        pytest.param(
            SERVING,
            sees(
                SERVING,
                network=network(),
                children=(
                    child(
                        SERVING,
                        status={
                            "observedGeneration": 1,
                            "conditions": [condition("Ready"), condition("UpToDate", "False", "InstanceDrift")],
                        },
                    ),
                ),
            ),
            {"Ready": "True/Succeeded", "UpToDate": "False/InstanceDrift"},
            id="a machine that is not up to date",
        ),
        pytest.param(
            SERVING,
            sees(SERVING, network=network()),
            {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"},
            id="in sync",
        ),
    ],
)
def test_conditions_of_a_deployment(desired, observed, expected):
    found = conditions_told(desired, observed)

    assert {kind: found.get(kind) for kind in expected} == expected
    assert not {"Reconciling", "Stalled"} <= found.keys()


def test_all_differences_are_told():
    fields = fields_of(REPORTING, sees(REPORTING, network=network(groups=(group(HTTP), GROUPS[1]), key_pairs=())))
    message = next(one["message"] for one in fields["conditions"] if one["type"] == ConditionType.UP_TO_DATE)

    assert "key pair main" in message
    assert "security group http" in message


def test_a_mended_spec_is_not_judged_by_what_a_machine_said_of_the_old_one():
    """For 50 ms after a mended spec the deployment was Failed: the machine's Stalled spoke of what it had before."""
    failed = {
        "observedGeneration": 1,
        "conditions": [
            condition("Ready", "False", "EvaluationFailed"),
            condition("Stalled", "True", "EvaluationFailed"),
        ],
    }
    mended = deployment(generation=2)
    before = child(mended, spec={"configuration": "broken"}, status=failed)

    told = conditions_told(mended, sees(mended, network=network(), children=(before,)))

    assert "Stalled" not in told
    assert told["Ready"] == "Unknown/RollingOut"


def test_a_failed_write_of_one_machine_is_told():
    desired = deployment(ready(), machines=("web", "db"))
    found = plan(desired, sees(desired, network=network(), children=(child(desired, "db"),)))
    (creating,) = (one for one in found.findings if one.steps)

    told = replace(found, findings=(after_failure(creating, Blocked(Reason.ACCESS_DENIED, "quota")),)).verdict

    assert (told.outcome, told.reason) == (Outcome.STALLED, Reason.ACCESS_DENIED)


def test_machines_are_counted():
    two = deployment(ready(), machines=("web", "db"))
    observed = sees(two, network=network(), children=(child(two, "db", truth="False"), child(two, "web")))

    assert fields_of(two, observed)["machines"] == {
        "desired": 2,
        "updated": 1,
        "ready": 1,
        "unavailable": 1,
        "summary": "1/2",
    }


def test_a_revision_is_current_once_all_machines_run_it():
    half = sees(SHOP, network=network(), children=(child(SHOP, truth="Unknown"),))
    whole = sees(SHOP, network=network())

    before = fields_of(SHOP, half)["revision"]
    after = fields_of(SHOP, whole)["revision"]

    assert before == {"current": None, "target": before["target"], "previous": None}
    assert after == {"current": before["target"], "target": before["target"], "previous": None}


def test_the_status_names_the_group_that_is_meant_now():
    """Ids are random: the greater one is not the younger one."""
    earlier = group({**HTTP, "description": "Before"}, rule(80), id="sg-zzz")
    observed = sees(SERVING, network=network(groups=(earlier, *GROUPS)))

    assert {one["name"]: one["groupId"] for one in fields_of(SERVING, observed)["securityGroups"]} == {
        "http": "sg-http",
        "ssh": "sg-ssh",
    }


def test_a_group_that_a_look_misses_is_remembered_until_it_is_sure_that_it_has_gone():
    recorded = {"name": "http", "groupId": "sg-http", "vpcId": "vpc-1"}
    desired = deployment({**ready(), "securityGroups": [recorded]})
    missed = network(groups=(GROUPS[1],))
    lost = network(groups=(GROUPS[1],), missing_for={"sg-http": timedelta(minutes=1)})

    assert recorded in fields_of(desired, sees(desired, network=missed))["securityGroups"]
    assert recorded not in fields_of(desired, sees(desired, network=lost))["securityGroups"]


def test_now_is_not_asked_for_anything_twice():
    """The plan of equal values is equal: what it depends on is in them."""
    observed = sees(SHOP, network=network(groups=()))

    assert plan(SHOP, observed) == plan(SHOP, observed, NOON + timedelta(seconds=1))


def test_what_waits_for_others_before_it_goes_is_told():
    """Fewer replicas beside a machine that was broken for good: all stayed and cost, and nothing said why."""
    before = deployment(ready(), machines=("web", "batch"))
    seen = sees(SERVING, network=network(), children=(child(SERVING, truth="False"), child(before, "batch")))

    conditions = {one["type"]: one for one in fields_of(SERVING, seen)["conditions"]}
    assert taken(SERVING, seen) == ()
    assert conditions["UpToDate"]["status"] == "False"
    assert "batch is not declared any more, and goes once all machines are ready" in conditions["UpToDate"]["message"]
    assert "kubectl delete nixmachine shop-batch" in conditions["UpToDate"]["message"]

    seen = sees(REPORTING, network=network(), children=(child(REPORTING, truth="False"), child(before, "batch")))
    assert not any("Report" in one.message for one in plan(REPORTING, seen).differences)
