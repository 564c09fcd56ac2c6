"""A volume is made once, attached before the system is activated, and let go of after the system without it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator import job_names, names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.cloud import InstanceState, Volume, VolumeSettings
from nixops_operator.jobs import Done, Failed, Running
from nixops_operator.machine import steps
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.planning import Plan
from nixops_operator.verdict import Outcome
from unit.builders import (
    COPIED,
    NEW,
    NOON,
    OLD,
    UID,
    cloud,
    ec2_machine,
    host,
    instance,
    launch,
    planned,
    ran,
    ready,
    seen,
    stamp,
)

SETTINGS = VolumeSettings(10, "gp3", None, None, None)
SHOWN = VolumeSettings(10, "gp3", 3000, 125, encrypted=False)
TAGS = {names.UID_TAG: UID, names.ENTRY_TAG: "data"}
FREE = Volume("vol-1", "available", "us-west-2a", SHOWN, TAGS)
THERE = replace(FREE, state="in-use", instance_id="i-1", device="/dev/sdf", attachment="attached")
ENTRY = {"name": "data", "device": "/dev/sdf", "size": 10}
DETACH = job_names.detach("i-1", "vol-1")


def record(age: timedelta = timedelta(0), **changes: Any) -> dict[str, Any]:
    known = {
        "name": "data",
        "attempt": 1,
        "token": "v1-data",
        "zone": "us-west-2a",
        "settings": json.dumps(vars(SETTINGS), sort_keys=True),
        "deletionPolicy": "Retain",
        "calledAt": stamp(NOON - age),
        "volumeId": "vol-1",
    }
    return {key: value for key, value in (known | changes).items() if value is not None}


def machine(*entries: dict[str, Any], records: tuple[dict[str, Any], ...] = (), **spec: Any) -> Any:
    known = launch(instance="i-1") | ran() | ready() | {"volumes": list(records)}
    return ec2_machine(known, target={"ec2": {"instanceType": "t3.small", "volumes": list(entries)}}, **spec)


def plan_of(desired: Any, *volumes: Volume, jobs: Any = None, on: Any = None, **fields: Any) -> Plan:
    shown = cloud(instance(), volumes=volumes, volumes_looked_at=NOON, **fields)
    return planned(desired, seen(shown, on or host(), jobs=COPIED | (jobs or {})))


def kinds(plan: Plan) -> list[str]:
    return [type(one).__name__ for one in plan.steps]


def test_the_intent_is_written_before_ec2_is_asked():
    (step,) = plan_of(machine(ENTRY)).steps

    assert isinstance(step, steps.RecordVolume)
    assert (step.volume.attempt, step.volume.zone, step.volume.volume_id) == (1, "us-west-2a", None)
    assert json.loads(step.volume.settings) == vars(SETTINGS)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(timedelta(seconds=30), ["CreateVolume"], id="noted within a minute"),
        pytest.param(timedelta(minutes=2), ["RecordVolume", "CreateVolume"], id="later: noted anew"),
    ],
)
def test_what_was_asked_for_is_asked_for_again_by_the_same_token(age, expected):
    assert kinds(plan_of(machine(ENTRY, records=(record(age, volumeId=None),)))) == expected


def test_what_was_made_by_a_lost_call_is_recorded_and_not_made_again():
    (step,) = plan_of(machine(ENTRY, records=(record(volumeId=None),)), FREE).steps

    assert isinstance(step, steps.RecordVolume)
    assert step.volume.volume_id == "vol-1"


def test_two_of_one_entry_are_told_and_none_is_taken():
    plan = plan_of(machine(ENTRY, records=(record(volumeId=None),)), FREE, replace(FREE, id="vol-2"))

    assert (plan.steps, plan.verdict.reason) == ((), Reason.LAUNCH_AMBIGUOUS)


@pytest.mark.parametrize(
    ("age", "missing_for", "expected"),
    [
        pytest.param(timedelta(minutes=1), timedelta(seconds=90), [], id="EC2 may still show what it made"),
        pytest.param(timedelta(minutes=7), None, [], id="not looked at for long enough"),
        pytest.param(timedelta(minutes=7), timedelta(seconds=90), ["RecordVolume"], id="it has made nothing"),
    ],
)
def test_other_values_wait_until_it_is_known_what_the_former_ones_made(age, missing_for, expected):
    other = ENTRY | {"size": 20}
    plan = plan_of(machine(other, records=(record(age, volumeId=None),)), volumes_missing_for={"data": missing_for})

    assert kinds(plan) == expected
    assert all(one.volume.attempt == 2 for one in plan.steps if isinstance(one, steps.RecordVolume))


def test_a_lost_volume_is_told_and_none_is_made_in_its_place():
    gone = {"data": timedelta(minutes=2)}
    plan = plan_of(machine(ENTRY, records=(record(timedelta(hours=1)),)), volumes_missing_for=gone)

    assert (plan.steps, plan.verdict.outcome, plan.verdict.reason) == ((), Outcome.STALLED, Reason.NOT_FOUND)


def test_a_recorded_volume_without_our_tags_is_left_alone():
    plan = plan_of(machine(ENTRY, records=(record(),)), volumes_of_others=frozenset({"vol-1"}))

    assert (plan.steps, plan.verdict.reason) == ((), Reason.ADOPTION_CONFLICT)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        pytest.param(FREE, [steps.AttachVolume("vol-1", "i-1", "/dev/sdf")], id="free: attached"),
        pytest.param(THERE, [], id="there"),
        pytest.param(replace(THERE, attachment="attaching"), [], id="on its way"),
        pytest.param(replace(THERE, instance_id="i-0"), [], id="still at the instance before: waited for"),
        pytest.param(replace(FREE, state="creating"), [], id="being made"),
        pytest.param(replace(FREE, zone="us-west-2b"), [], id="in another zone: never"),
        pytest.param(replace(THERE, device="/dev/sdg"), [], id="at another device: left there"),
    ],
)
def test_it_is_attached_where_it_can_be(volume, expected):
    assert list(plan_of(machine(ENTRY, records=(record(),)), volume).steps) == expected


def test_a_volume_of_another_zone_is_told():
    plan = plan_of(machine(ENTRY, records=(record(),)), replace(FREE, zone="us-west-2b"))

    assert plan.verdict.reason is Reason.CHANGE_FORBIDDEN
    assert "is in us-west-2b and cannot be attached to i-1 in us-west-2a" in plan.verdict.message


@pytest.mark.parametrize(
    ("volume", "is_activated"),
    [
        pytest.param(THERE, True, id="attached"),
        pytest.param(replace(THERE, attachment="attaching"), False, id="attaching"),
        pytest.param(replace(THERE, instance_id="i-0"), False, id="attached to another"),
    ],
)
def test_no_system_is_activated_before_its_volumes_are_there(volume, is_activated):
    plan = plan_of(
        machine(ENTRY, records=(record(),)), volume, jobs={job_names.copy("i-1", NEW): Done(None)}, on=host(OLD, OLD)
    )

    assert ("RecordActivation" in kinds(plan)) is is_activated


def test_one_that_was_detached_by_hand_hinders_nothing_that_runs():
    plan = plan_of(machine(ENTRY, records=(record(),), driftPolicy="Report"), FREE)

    assert (plan.steps, plan.verdict.outcome) == ((), Outcome.REPORTED)


def test_a_larger_size_is_carried_out_and_another_policy_written_down():
    entry = ENTRY | {"size": 20, "deletionPolicy": "Delete"}
    plan = plan_of(machine(entry, records=(record(),)), THERE)

    assert kinds(plan) == ["RecordVolume", "ModifyVolume"]
    assert plan.steps[0].volume.deletion_policy == "Delete"


def test_encryption_is_for_life():
    plan = plan_of(machine(ENTRY | {"encrypted": True}, records=(record(),)), THERE)

    assert (plan.steps, plan.verdict.reason) == ((), Reason.CHANGE_FORBIDDEN)


# Off the spec.


def test_what_left_the_spec_is_detached_when_the_system_without_it_runs():
    off = machine(records=(record(),))

    assert plan_of(off, THERE).steps == (steps.DetachVolume(DETACH, "vol-1", "i-1", "/dev/sdf"),)
    assert "DetachVolume" not in kinds(plan_of(off, THERE, on=host(OLD, OLD)))


def test_one_that_is_in_use_on_the_machine_is_waited_for():
    in_use = Failed(Retry(Reason.PENDING, "vol-1 is in use on the machine (/data)"), is_due=False)

    assert plan_of(machine(records=(record(),)), THERE, jobs={DETACH: Running("")}).steps == ()
    plan = plan_of(machine(records=(record(),)), THERE, jobs={DETACH: in_use})
    assert (plan.steps, "in use on the machine (/data)" in plan.verdict.message) == ((), True)


def test_one_that_was_tagged_as_let_go_is_forgotten():
    plan = plan_of(machine(records=(record(),)), volumes_of_others=frozenset({"vol-1"}))

    assert plan.steps == (steps.ForgetVolume("data"),)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("Retain", [steps.RetainVolume("vol-1"), steps.ForgetVolume("data")], id="Retain: tagged"),
        pytest.param("Delete", [steps.DeleteVolume("vol-1", "data"), steps.ForgetVolume("data")], id="Delete"),
        pytest.param("Destroy", [steps.RetainVolume("vol-1"), steps.ForgetVolume("data")], id="unreadable: it stays"),
    ],
)
def test_once_it_is_free_its_policy_counts(policy, expected):
    assert list(plan_of(machine(records=(record(deletionPolicy=policy),)), FREE).steps) == expected


# The machine goes.


def leaving(*records: dict[str, Any], **spec: Any) -> Any:
    known = launch(instance="i-1") | {"volumes": list(records)}
    return ec2_machine(known, deleting=True, **spec)


def way_out(desired: Any, *volumes: Volume, **fields: Any) -> Plan:
    dead = cloud(instance(state=InstanceState.TERMINATED), volumes=volumes, volumes_looked_at=NOON, **fields)
    return planned(desired, seen(dead))


@pytest.mark.parametrize(
    ("policy", "of_machine", "expected"),
    [
        pytest.param("Delete", "Delete", ["DeleteVolume", "ForgetVolume"], id="deleted"),
        pytest.param("Retain", "Delete", ["RetainVolume", "ForgetVolume"], id="its own policy keeps it"),
        pytest.param("Delete", "Retain", ["RetainVolume", "ForgetVolume"], id="the machine's policy keeps it"),
    ],
)
def test_what_becomes_of_the_volumes_of_a_deleted_machine(policy, of_machine, expected):
    desired = leaving(record(deletionPolicy=policy), deletionPolicy=of_machine)

    assert kinds(way_out(desired, FREE)) == expected


def test_the_instance_goes_first():
    running: ObservedCloud = cloud(instance(), volumes=(THERE,), volumes_looked_at=NOON)

    assert kinds(planned(leaving(record(deletionPolicy="Delete")), seen(running))) == ["TerminateInstance"]


def test_a_volume_that_is_still_attached_is_waited_for():
    plan = way_out(leaving(record(deletionPolicy="Delete")), replace(THERE, attachment="detaching"))

    assert (plan.steps, plan.verdict.outcome) == ((), Outcome.DELETING)


@pytest.mark.parametrize(
    ("age", "missing_for", "expected"),
    [
        pytest.param(timedelta(minutes=1), None, [], id="EC2 may still show it"),
        pytest.param(timedelta(minutes=7), timedelta(minutes=2), ["ForgetVolume"], id="there is none"),
    ],
)
def test_a_volume_that_may_have_been_made_is_waited_for(age, missing_for, expected):
    plan = way_out(leaving(record(age, volumeId=None)), volumes_missing_for={"data": missing_for})

    assert kinds(plan) == expected
    assert plan.verdict.outcome is Outcome.DELETING


def test_what_cannot_be_looked_at_holds_the_machine():
    assert way_out(leaving(record()), volumes_error=Retry(Reason.PROGRESSING_WITH_RETRY, "no")).verdict.outcome is (
        Outcome.DELETING
    )


def test_without_volumes_the_machine_goes():
    assert way_out(leaving()).verdict.outcome is Outcome.GONE
