"""Everything that a spec can say of an instance is in one table, and nothing that is declared is silently not so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydantic.alias_generators import to_camel

from nixops_operator import names, reference
from nixops_operator.api.deployment_spec import KeyPairEntry, SecurityGroupEntry, SecurityGroupRule
from nixops_operator.api.field_types import SpecModel
from nixops_operator.api.machine_spec import Ec2Target
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment.fields import KEY_PAIRS, RULES, SECURITY_GROUPS, Field
from nixops_operator.facts.cloud import LaunchRequest, MetadataOptions
from nixops_operator.machine import steps
from nixops_operator.machine.attributes import (
    ATTRIBUTES,
    OF_OTHER_CHECKS,
    Change,
    declare,
    differences,
    launch_request,
)
from nixops_operator.machine.declared import Declared, Resolved
from nixops_operator.planning import SOON
from nixops_operator.verdict import Outcome
from unit.builders import DECLARED, cloud, ec2_machine, host, instance, launch, planned, ran, ready, seen, status_of

RUNNING = launch(instance="i-1") | ran() | ready() | {"appliedTagKeys": ["team"]}


def test_every_field_of_the_spec_is_one_row():
    of_rows = {row.field for row in ATTRIBUTES} | set(OF_OTHER_CHECKS)
    assert sorted(of_rows) == sorted(to_camel(name) for name in Ec2Target.model_fields)


@pytest.mark.parametrize(
    ("rows", "model"),
    [
        pytest.param(KEY_PAIRS, KeyPairEntry, id="key pairs"),
        pytest.param(SECURITY_GROUPS, SecurityGroupEntry, id="security groups"),
        pytest.param(RULES, SecurityGroupRule, id="rules"),
    ],
)
def test_every_field_of_what_a_deployment_has_in_ec2_is_one_row(rows: Mapping[str, Field], model: type[SpecModel]):
    assert sorted(rows) == sorted(field.alias or name for name, field in model.model_fields.items())


def test_every_part_of_a_launch_but_the_host_key_is_read_off_a_row():
    asked = {field.name for field in fields(LaunchRequest)} - {"user_data"}

    assert {row.launched_as for row in ATTRIBUTES} - {None} == asked


def test_every_row_that_is_carried_out_has_its_call():
    is_carried_out = (Change.ONLINE, Change.STOPPED_ONLY)
    compared = [row for row in ATTRIBUTES if row.told is None]  # the others have a check and steps of their own
    assert all((row.carry_out is not None) == (row.change in is_carried_out) for row in compared)


def test_the_user_documentation_has_the_rows_as_they_are(capsys: pytest.CaptureFixture[str]):
    assert reference.main(["--check", str(Path(__file__).parents[2])]) == 0, capsys.readouterr().err


def test_a_launch_says_what_is_declared_and_nothing_of_the_rest():
    declared = Declared({"instanceType": "t3.small", "image": "ami-1", "subnetId": "subnet-1", "tags": {"a": "b"}})

    assert launch_request(declared, "data") == LaunchRequest(
        image_id="ami-1", instance_type="t3.small", subnet_id="subnet-1", user_data="data", tags={"a": "b"}
    )


def test_equal_declarations_have_one_digest_whatever_the_attempt():
    again = DECLARED.but(tags={names.ATTEMPT_TAG: "2"})

    assert again.digest == DECLARED.digest
    assert DECLARED.but(instanceType="t3.large").digest != DECLARED.digest


@pytest.mark.parametrize(
    ("declared", "outcome", "reason", "step"),
    [
        pytest.param(
            DECLARED.but(subnetId="subnet-2"),
            Outcome.STALLED,
            Reason.CHANGE_FORBIDDEN,
            None,
            id="subnet: refused",
        ),
        pytest.param(
            DECLARED.but(securityGroups=("sg-2",)),
            Outcome.REPAIRING,
            Reason.SECURITY_GROUP_DRIFT,
            steps.SetAttribute("i-1", "securityGroups", ("sg-2",)),
            id="security groups: put right",
        ),
        pytest.param(
            DECLARED.but(tags={"team": "web"}),
            Outcome.REPAIRING,
            Reason.TAG_DRIFT,
            steps.SetAttribute("i-1", "tags", (("team", "web"),)),
            id="tags: put right",
        ),
        pytest.param(
            DECLARED.but(monitoring=True),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "monitoring", True),
            id="monitoring: put right",
        ),
        pytest.param(
            DECLARED.but(sourceDestCheck=False),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "sourceDestCheck", False),
            id="source and destination check: put right",
        ),
        pytest.param(
            DECLARED.but(metadata=MetadataOptions(hop_limit=2)),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "metadata", MetadataOptions(hop_limit=2)),
            id="metadata service: put right",
        ),
        pytest.param(
            DECLARED.but(instanceProfile="web"),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "instanceProfile", "web"),
            id="instance profile: put right",
        ),
        pytest.param(
            DECLARED.but(terminationProtection=True),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "terminationProtection", True),
            id="termination protection: put right",
        ),
        pytest.param(
            DECLARED.but(stopProtection=True),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "stopProtection", True),
            id="stop protection: put right",
        ),
        pytest.param(
            DECLARED.but(shutdownBehavior="terminate"),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "shutdownBehavior", "terminate"),
            id="shutdown behaviour: put right",
        ),
        pytest.param(
            DECLARED.but(credits="standard"),
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT,
            steps.SetAttribute("i-1", "credits", "standard"),
            id="credits: put right",
        ),
        pytest.param(
            DECLARED.but(publicIp=False), Outcome.IN_SYNC, Reason.SUCCEEDED, None, id="public address: next launch"
        ),
        pytest.param(DECLARED.but(image="ami-2"), Outcome.IN_SYNC, Reason.SUCCEEDED, None, id="image: next launch"),
        pytest.param(DECLARED.but(keyPair="k"), Outcome.IN_SYNC, Reason.SUCCEEDED, None, id="key: next launch"),
    ],
)
def test_a_declared_field_is_put_right_refused_or_told(declared, outcome, reason, step):
    """Edited tags, images, types and groups left Ready=True and UpToDate=True behind."""
    known = {"termination_protection": False, "stop_protection": False, "shutdown_behavior": "stop"}
    (found,) = differences(declared, instance(public_ip=True, credits="unlimited", **known))

    assert (found.outcome, found.reason, found.condition) == (outcome, reason, ConditionType.UP_TO_DATE)
    assert found.steps == (() if step is None else (step,))
    assert found.message


def test_an_instance_as_declared_differs_in_nothing():
    assert differences(DECLARED, instance()) == ()


def test_what_is_not_known_is_not_compared():
    assert differences(Declared(), instance()) == ()


def test_what_was_not_looked_at_differs_in_nothing():
    declared = DECLARED.but(
        terminationProtection=True, stopProtection=True, shutdownBehavior="stop", credits="standard"
    )

    assert differences(declared, instance()) == ()


def test_an_elastic_address_says_nothing_of_ec2_s_own():
    assert differences(DECLARED.but(publicIp=True), instance(public_ip=None)) == ()


def test_what_ec2_still_works_on_is_no_success_yet():
    (found,) = differences(DECLARED.but(metadata=MetadataOptions()), instance(metadata_pending=True))

    assert (found.outcome, found.steps, found.look_again) == (Outcome.REPAIRING, (), SOON)
    assert "is being changed" in found.message


def test_of_a_metadata_service_that_is_off_nothing_else_counts():
    off = MetadataOptions(endpoint="disabled")

    assert differences(DECLARED.but(metadata=off), instance(metadata=replace(off, hop_limit=2))) == ()


@pytest.mark.parametrize(
    ("has_run", "endpoint"),
    [
        pytest.param(False, "enabled", id="the machine has yet to read its host key there"),
        pytest.param(True, "disabled", id="it has run"),
    ],
)
def test_the_metadata_service_is_switched_off_only_once_the_machine_has_its_host_key(has_run, endpoint):
    ec2 = Ec2Target(instanceType="t3.small", metadata={"endpoint": False})

    assert declare(ec2, Resolved(has_run=has_run))["metadata"].endpoint == endpoint


def test_tags_of_others_are_left_alone():
    assert differences(DECLARED.but(tags={"a": "b"}), instance(tags={"a": "b", "owner": "somebody"})) == ()


def test_a_forbidden_change_is_not_ready():
    desired, observed = ec2_machine(RUNNING), seen(cloud(instance(instance_type="t3.nano")), host())

    conditions = {one["type"]: one for one in status_of(desired, observed)["conditions"]}

    assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("False", "ChangeForbidden")
    assert "t3.nano" in conditions["UpToDate"]["message"]


def test_all_differences_are_told_at_once():
    declared = DECLARED.but(securityGroups=("sg-2",), monitoring=True)

    conditions = {
        one["type"]: one
        for one in status_of(ec2_machine(RUNNING), seen(cloud(instance(), declared=declared), host()))["conditions"]
    }

    assert "monitoring" in conditions["UpToDate"]["message"]
    assert "security groups" in conditions["UpToDate"]["message"]
    assert conditions["Ready"]["status"] == "True"


def test_what_counts_at_the_next_launch_is_told_beside_up_to_date():
    observed = seen(cloud(instance(), declared=DECLARED.but(image="ami-2")), host())

    conditions = {one["type"]: one for one in status_of(ec2_machine(RUNNING), observed)["conditions"]}

    assert (conditions["UpToDate"]["status"], conditions["Ready"]["status"]) == ("True", "True")
    assert "ami-2 counts at the next launch" in conditions["UpToDate"]["message"]


def test_a_refused_group_change_keeps_no_configuration_out():
    """The walk goes on to the host: one refused SetSecurityGroups kept a new system from being activated."""
    observed = seen(cloud(instance(), declared=DECLARED.but(securityGroups=("sg-2",))), host("/nix/store/old"))

    kinds = [type(step) for step in planned(ec2_machine(launch(instance="i-1")), observed).steps]

    assert kinds == [steps.SetAttribute, steps.Copy]


@pytest.mark.parametrize(
    ("named", "now", "then", "outcome"),
    [
        pytest.param("sg-2", True, False, Outcome.STALLED, id="the declared one lets nobody in"),
        pytest.param("sg-2", None, False, Outcome.STALLED, id="and it is not known whether the present one does"),
        pytest.param("ssh", True, False, Outcome.REPAIRING, id="a deployment's may get its rules in a moment"),
        pytest.param("sg-2", False, False, None, id="nobody gets in now, either"),
        pytest.param("sg-2", True, True, None, id="it lets somebody in"),
        pytest.param("sg-2", True, None, None, id="it is in it, or it is not known"),
    ],
)
def test_a_machine_is_not_moved_to_groups_in_which_nobody_reaches_it(named, now, then, outcome):
    """Other groups in the spec, none of them with a rule for SSH: the operator locked itself out, and could not have
    been told by the rules of any group that there is."""
    declared = DECLARED.but(securityGroups=("sg-2",))
    world = cloud(instance(), declared=declared, admits_ssh=now, others_admit_ssh=then)
    target = {"ec2": {"instanceType": "t3.small", "securityGroups": [named]}}
    found = planned(ec2_machine(RUNNING, target=target), seen(world, host()))

    about = [one for one in found.findings if "security groups" in one.message]
    if outcome is None:
        assert [one.steps for one in about] == [(steps.SetAttribute("i-1", "securityGroups", ("sg-2",)),)]
    else:
        assert [(one.outcome, one.steps) for one in about] == [(outcome, ())]
        assert "no rule of the declared ones lets anybody reach it on port 22" in about[0].message


@pytest.mark.parametrize(
    ("applied", "on_instance", "expected"),
    [
        pytest.param(["team"], {}, [steps.RecordTagKeys(())], id="gone from EC2 already: only forgotten"),
        pytest.param(["team"], {"team": "web"}, [steps.RemoveTags(("i-1",), ("team",))], id="taken off"),
        pytest.param([], {"team": "web"}, [], id="somebody else's tag: left alone"),
    ],
)
def test_a_tag_that_leaves_the_spec_is_taken_off_if_it_was_ours(applied, on_instance, expected):
    desired = ec2_machine(RUNNING | {"appliedTagKeys": applied})

    found = planned(desired, seen(cloud(instance(tags=on_instance)), host()))

    assert list(found.steps) == expected


def test_which_tags_are_ours_is_written_down_before_they_are_set():
    desired = ec2_machine(RUNNING, target={"ec2": {"instanceType": "t3.small", "tags": {"team": "web", "new": "x"}}})
    declared = DECLARED.but(tags={"team": "web", "new": "x"})

    found = planned(desired, seen(cloud(instance(tags={"team": "web"}), declared=declared), host()))

    assert found.steps == (steps.RecordTagKeys(("new", "team")), steps.SetAttribute("i-1", "tags", (("new", "x"),)))


SET_ON = steps.SetAttribute("i-1", "terminationProtection", True)
SET_OFF = steps.SetAttribute("i-1", "terminationProtection", False)
NOTED, FORGOTTEN = steps.RecordFields(("terminationProtection",)), steps.RecordFields(())


@pytest.mark.parametrize(
    ("said", "applied", "shown", "expected"),
    [
        pytest.param(True, [], False, [NOTED, SET_ON], id="declared: noted first, then set"),
        pytest.param(True, ["terminationProtection"], False, [SET_ON], id="noted already"),
        pytest.param(True, [], True, [NOTED], id="it is so already: only noted"),
        pytest.param(None, ["terminationProtection"], True, [SET_OFF], id="it has left the spec: undone"),
        pytest.param(None, ["terminationProtection"], False, [FORGOTTEN], id="undone: forgotten"),
        pytest.param(None, ["terminationProtection"], None, [], id="not looked at: waited for"),
        pytest.param(None, [], True, [], id="somebody else's: left alone"),
    ],
)
def test_what_leaves_the_spec_goes_back_if_it_was_ours(said, applied, shown, expected):
    ec2 = {"instanceType": "t3.small", "tags": {"team": "web"}}
    if said is not None:
        ec2["terminationProtection"] = said
    desired = ec2_machine(RUNNING | {"appliedFields": applied}, target={"ec2": ec2})
    declared = declare(desired.spec.target.ec2, Resolved(applied=desired.applied_fields))
    observed = cloud(
        instance(termination_protection=shown, tags={"team": "web"}),
        declared=DECLARED.but(terminationProtection=declared["terminationProtection"]),
    )

    assert list(planned(desired, seen(observed, host())).steps) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("Enforce", [SET_ON], id="Enforce"),
        pytest.param("Report", [], id="Report"),
    ],
)
def test_a_protection_taken_off_by_hand_is_put_back_or_told(policy, expected):
    ec2 = {"instanceType": "t3.small", "tags": {"team": "web"}, "terminationProtection": True}
    status = RUNNING | {"appliedFields": ["terminationProtection"]}
    desired = ec2_machine(status, target={"ec2": ec2}, driftPolicy=policy)
    shown = instance(termination_protection=False, tags={"team": "web"})
    observed = seen(cloud(shown, declared=DECLARED.but(terminationProtection=True)), host())

    assert list(planned(desired, observed).steps) == expected
    told = {one["type"]: one for one in status_of(desired, observed)["conditions"]}
    assert (told["UpToDate"]["status"], told["Ready"]["status"]) == ("False", "True")
    assert "termination protection" in told["UpToDate"]["message"]
