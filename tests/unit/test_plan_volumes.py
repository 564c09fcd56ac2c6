"""A volume is made once, attached before the system is activated, and let go of after the system without it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator import job_names, names
from nixops_operator.absence import LOOK_AGAIN
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
        "grownGib": 10,
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


def test_what_ec2_does_not_show_is_not_looked_for_at_full_speed():
    plan = plan_of(machine(ENTRY, records=(record(),)))

    assert (plan.verdict.outcome, plan.verdict.look_again) == (Outcome.WORKING, LOOK_AGAIN)


def test_once_ec2_has_refused_all_calls_other_values_are_asked_for_at_once():
    (step,) = plan_of(machine(ENTRY | {"size": 20}, records=(record(volumeId=None, calledAt=None),))).steps

    assert isinstance(step, steps.RecordVolume)
    assert step.volume.attempt == 2


def test_a_recorded_volume_without_our_tags_is_left_alone():
    plan = plan_of(machine(ENTRY, records=(record(),)), volumes_of_others=frozenset({"vol-1"}))

    assert (plan.steps, plan.verdict.reason) == ((), Reason.ADOPTION_CONFLICT)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        pytest.param(FREE, [steps.AttachVolume("vol-1", "i-1", "/dev/sdf", "data")], id="free: attached"),
        pytest.param(THERE, [], id="there"),
        pytest.param(replace(THERE, attachment="attaching"), [], id="on its way"),
        pytest.param(replace(THERE, instance_id="i-9"), [], id="at somebody's instance: left there"),
        pytest.param(replace(FREE, state="creating"), [], id="being made"),
        pytest.param(replace(FREE, zone="us-west-2b"), [], id="in another zone: never"),
        pytest.param(replace(THERE, device="/dev/sdg"), [], id="at another device: left there"),
    ],
)
def test_it_is_attached_where_it_can_be(volume, expected):
    assert list(plan_of(machine(ENTRY, records=(record(),)), volume).steps) == expected


def test_one_that_is_still_at_the_instance_before_is_waited_for():
    before = instance("i-0", state=InstanceState.SHUTTING_DOWN)
    shown = cloud(instance(), before, volumes=(replace(THERE, instance_id="i-0"),), volumes_looked_at=NOON)
    plan = planned(machine(ENTRY, records=(record(),)), seen(shown, host(), jobs=COPIED))

    assert (plan.steps, plan.verdict.outcome) == ((), Outcome.WORKING)


def test_one_that_somebody_has_attached_elsewhere_is_told_with_where_and_what_to_do():
    """It was waited for, every two seconds, for ever."""
    plan = plan_of(machine(ENTRY, records=(record(),)), replace(THERE, instance_id="i-9"))

    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.ADOPTION_CONFLICT)
    assert "is attached to i-9, which is not this machine's" in plan.verdict.message
    assert "detach it there" in plan.verdict.message
    assert plan.verdict.look_again is None


def test_one_at_another_device_is_told_with_a_way_on_that_costs_no_data():
    """Off the spec and on again it would be deleted, or be another, empty one."""
    message = plan_of(machine(ENTRY, records=(record(),)), replace(THERE, device="/dev/sdg")).verdict.message

    assert "detach it from i-1 to have it attached as declared" in message
    assert "off the spec" not in message


FRESH = {"name": "fresh", "device": "/dev/sdf", "size": 10}
NEXT = replace(FREE, id="vol-2", tags=TAGS | {names.ENTRY_TAG: "fresh"})


def test_a_renamed_entry_waits_for_the_device_that_the_former_one_has():
    plan = plan_of(machine(FRESH, records=(record(), record(name="fresh", volumeId="vol-2"))), THERE, NEXT)

    assert kinds(plan) == ["DetachVolume"]
    assert "is attached as /dev/sdf when vol-1, which was volume data, is detached" in plan.verdict.message


def test_a_system_does_not_wait_for_a_volume_that_waits_for_the_system():
    desired = machine(FRESH, records=(record(), record(name="fresh", volumeId="vol-2")))
    copied = {job_names.copy("i-1", NEW): Done(None)}

    assert kinds(plan_of(desired, THERE, NEXT, jobs=copied, on=host(OLD, OLD))) == ["RecordActivation"]


def test_two_entries_that_change_places_are_told():
    entries = (ENTRY, {"name": "fresh", "device": "/dev/sdg", "size": 10})
    at_the_others = replace(THERE, device="/dev/sdg")
    known = (record(), record(name="fresh", volumeId="vol-2"))
    plan = plan_of(machine(*entries, records=known), at_the_others, NEXT)

    assert (plan.steps, plan.verdict.outcome) == ((), Outcome.STALLED)
    assert any("which is that of vol-1, volume data; name another device" in one.message for one in plan.findings)


def test_a_volume_of_another_zone_is_told():
    plan = plan_of(machine(ENTRY, records=(record(),)), replace(FREE, zone="us-west-2b"))

    assert plan.verdict.reason is Reason.CHANGE_FORBIDDEN
    assert "is in us-west-2b and cannot be attached to i-1 in us-west-2a" in plan.verdict.message


@pytest.mark.parametrize(
    ("volume", "is_activated"),
    [
        pytest.param(THERE, True, id="attached"),
        pytest.param(replace(THERE, attachment="attaching"), False, id="attaching"),
        pytest.param(replace(THERE, instance_id="i-9"), False, id="attached to another"),
    ],
)
def test_no_system_is_activated_before_its_volumes_are_there(volume, is_activated):
    plan = plan_of(
        machine(ENTRY, records=(record(),)), volume, jobs={job_names.copy("i-1", NEW): Done(None)}, on=host(OLD, OLD)
    )

    assert ("RecordActivation" in kinds(plan)) is is_activated


def test_a_system_is_brought_to_the_machine_while_its_volume_is_at_the_former_instance():
    plan = plan_of(machine(ENTRY, records=(record(),)), replace(THERE, instance_id="i-0"), on=host(OLD, OLD))

    assert kinds(plan) == ["Copy"]


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


GROWN_BY_EC2 = replace(THERE, settings=replace(SHOWN, size_gib=20))
GROW = job_names.grow("i-1", "vol-1", 20)
GROW_STEP = steps.GrowVolume(GROW, "vol-1", "/dev/sdf")
LARGER = ENTRY | {"size": 20}


@pytest.mark.parametrize(
    ("volume", "changes", "jobs", "expected"),
    [
        pytest.param(GROWN_BY_EC2, {}, {}, [GROW_STEP], id="larger than its file system"),
        pytest.param(GROWN_BY_EC2, {"grownGib": None}, {}, [GROW_STEP], id="of a snapshot: not known"),
        pytest.param(GROWN_BY_EC2, {"grownGib": 20}, {}, [], id="grown"),
        pytest.param(GROWN_BY_EC2, {}, {GROW: Running("")}, [], id="on its way"),
        pytest.param(replace(GROWN_BY_EC2, attachment="attaching"), {}, {}, [], id="the machine may not have it yet"),
    ],
)
def test_its_file_system_grows_once_into_each_size(volume, changes, jobs, expected):
    assert list(plan_of(machine(LARGER, records=(record(**changes),)), volume, jobs=jobs).steps) == expected


def test_nothing_grows_while_ec2_makes_it_larger():
    plan = plan_of(machine(LARGER, records=(record(),)), THERE, volume_changes={"vol-1": "modifying"})

    assert plan.steps == ()


def test_that_it_has_grown_is_written_down_beside_what_was_edited_meanwhile():
    entry = LARGER | {"deletionPolicy": "Delete"}
    plan = plan_of(machine(entry, records=(record(),)), GROWN_BY_EC2, jobs={GROW: Done(None)})

    last = plan.steps[-1]
    assert isinstance(last, steps.RecordVolume)
    assert (last.volume.grown_gib, last.volume.deletion_policy) == (20, "Delete")


def test_one_that_cannot_grow_yet_is_told_by_a_machine_that_serves():
    unmounted = Failed(Retry(Reason.PENDING, "is not mounted"), is_due=False)
    plan = plan_of(machine(LARGER, records=(record(),)), GROWN_BY_EC2, jobs={GROW: unmounted})

    assert (plan.steps, plan.verdict.outcome) == ((), Outcome.REPAIRING)
    assert "is not mounted" in plan.verdict.message


def test_one_that_does_not_grow_is_a_size_that_is_not_carried_out():
    full = Failed(Retry(Reason.PROGRESSING_WITH_RETRY, "xfs_growfs: no"), is_due=True)
    plan = plan_of(machine(LARGER, records=(record(),)), GROWN_BY_EC2, jobs={GROW: full})

    assert (plan.steps, plan.verdict.outcome) == ((GROW_STEP,), Outcome.RETRYING)


def test_a_snapshot_is_what_is_in_a_new_volume():
    (step,) = plan_of(machine(ENTRY | {"snapshotId": "snap-1"})).steps

    assert json.loads(step.volume.settings)["snapshot_id"] == "snap-1"


def test_a_snapshot_is_for_life():
    of_another = ENTRY | {"snapshotId": "snap-2"}
    made_of_one = replace(THERE, settings=replace(SHOWN, snapshot_id="snap-1"))

    plan = plan_of(machine(of_another, records=(record(),)), made_of_one)
    assert (plan.steps, plan.verdict.reason) == ((), Reason.CHANGE_FORBIDDEN)
    assert plan_of(machine(ENTRY, records=(record(),)), made_of_one).steps == ()


def test_an_intent_of_another_release_counts_by_what_it_says():
    by_name = {"type": "gp3", "size_gib": 10}
    plan = plan_of(machine(ENTRY, records=(record(volumeId=None, settings=json.dumps(by_name)),)))

    assert kinds(plan) == ["CreateVolume"]


# One that exists, by its id.

GIVEN = {"name": "data", "device": "/dev/sdf", "volumeId": "vol-1"}
ON_RECORD = {"name": "data", "volumeId": "vol-1", "isGiven": True, "calledAt": stamp(NOON)}
NOBODYS = replace(FREE, tags={"Name": "archive"})
NOBODYS_THERE = replace(THERE, tags={"Name": "archive"})


def plan_of_given(desired: Any, *shown: Volume, jobs: Any = None, **fields: Any) -> Plan:
    return plan_of(desired, jobs=jobs, given_volumes=shown, **fields)


def test_that_a_volume_is_given_is_written_before_it_is_attached():
    (step,) = plan_of_given(machine(GIVEN)).steps

    assert isinstance(step, steps.RecordVolume)
    assert (step.volume.volume_id, step.volume.is_given) == ("vol-1", True)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        pytest.param(NOBODYS, [steps.AttachVolume("vol-1", "i-1", "/dev/sdf", "data")], id="free: attached"),
        pytest.param(NOBODYS_THERE, [], id="there: neither tagged nor grown"),
        pytest.param(replace(NOBODYS_THERE, instance_id="i-9"), [], id="attached to somebody else's: left there"),
    ],
)
def test_a_given_volume_is_attached_and_nothing_else_is_done_to_it(volume, expected):
    assert list(plan_of_given(machine(GIVEN, records=(ON_RECORD,)), volume).steps) == expected


@pytest.mark.parametrize(
    ("missing_for", "outcome"),
    [
        pytest.param(None, Outcome.WORKING, id="not looked at yet"),
        pytest.param(timedelta(seconds=59), Outcome.WORKING, id="one look may be wrong"),
        pytest.param(timedelta(seconds=60), Outcome.STALLED, id="nobody makes it but who named it"),
    ],
)
def test_a_given_volume_that_is_not_there_is_soon_told(missing_for, outcome):
    plan = plan_of(machine(GIVEN, records=(ON_RECORD,)), volumes_missing_for={"data": missing_for})

    assert (plan.steps, plan.verdict.outcome) == ((), outcome)
    assert outcome is not Outcome.STALLED or plan.verdict.reason is Reason.NOT_FOUND


def test_another_machines_volume_is_not_attached():
    plan = plan_of(machine(GIVEN, records=(ON_RECORD,)), volumes_of_others=frozenset({"vol-1"}))

    assert (plan.steps, plan.verdict.reason) == ((), Reason.ADOPTION_CONFLICT)


@pytest.mark.parametrize(
    ("entry", "known"),
    [
        pytest.param(GIVEN | {"volumeId": "vol-2"}, ON_RECORD, id="another one given"),
        pytest.param(GIVEN, record(), id="given in place of a new one"),
        pytest.param(ENTRY, ON_RECORD, id="a new one in place of a given one"),
    ],
)
def test_an_entry_is_one_volume_for_as_long_as_the_machine_has_it(entry, known):
    plan = plan_of(machine(entry, records=(known,)), THERE)

    assert (plan.steps, plan.verdict.reason) == ((), Reason.CHANGE_FORBIDDEN)


def test_another_one_may_be_given_in_place_of_one_that_the_machine_has_not():
    for shown in ((), (NOBODYS,), (replace(NOBODYS_THERE, instance_id="i-9"),)):
        plan = plan_of_given(machine(GIVEN | {"volumeId": "vol-2"}, records=(ON_RECORD,)), *shown)

        assert list(plan.steps) == [steps.ForgetVolume("data")]


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        pytest.param(NOBODYS_THERE, [steps.DetachVolume(DETACH, "vol-1", "i-1", "/dev/sdf")], id="here: detached"),
        pytest.param(NOBODYS, [steps.ForgetVolume("data")], id="free: forgotten"),
        pytest.param(
            replace(NOBODYS_THERE, instance_id="i-9"), [steps.ForgetVolume("data")], id="elsewhere: forgotten"
        ),
    ],
)
def test_a_given_volume_that_left_the_spec_stays_as_it_was(volume, expected):
    assert list(plan_of_given(machine(records=(ON_RECORD,)), volume).steps) == expected


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_a_given_volume_stays_when_its_machine_goes(policy):
    gone = cloud(instance(state=InstanceState.TERMINATED), given_volumes=(NOBODYS,), volumes_looked_at=NOON)
    plan = planned(leaving(ON_RECORD, deletionPolicy=policy), seen(gone))

    assert kinds(plan) == ["ForgetVolume"]


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


ELSEWHERE = replace(THERE, instance_id="i-9")


def test_one_that_somebody_has_attached_elsewhere_is_let_go_of_or_told():
    """That it is attached was said of a machine that was Ready, and nothing ever became of it."""
    kept = plan_of(machine(records=(record(),)), ELSEWHERE)
    told = plan_of(machine(records=(record(deletionPolicy="Delete"),)), ELSEWHERE)

    assert list(kept.steps) == [steps.RetainVolume("vol-1"), steps.ForgetVolume("data")]
    assert (told.steps, told.verdict.outcome, told.verdict.look_again) == ((), Outcome.STALLED, None)
    assert f"detach it there to have it deleted, or tag it {names.RETAINED_TAG}=true" in told.verdict.message


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


def test_a_volume_that_somebody_has_attached_elsewhere_holds_the_machine_with_what_to_do():
    plan = way_out(leaving(record(deletionPolicy="Delete")), ELSEWHERE)

    assert (plan.steps, plan.verdict.outcome, plan.verdict.look_again) == ((), Outcome.WEDGED, None)
    assert "is attached to i-9" in plan.verdict.message
    assert kinds(way_out(leaving(record()), ELSEWHERE)) == ["RetainVolume", "ForgetVolume"]


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


def test_what_is_beside_an_instance_that_somebody_else_has_made_his_own_goes_all_the_same():
    """The machine let go of the instance, and with that of its volumes, which nobody would have found again."""
    anothers = replace(instance(), tags={names.UID_TAG: "another"})
    desired = leaving(record(deletionPolicy="Delete"))
    plan = planned(desired, seen(cloud(untagged=anothers, volumes=(FREE,), volumes_looked_at=NOON)))
    done = planned(leaving(), seen(cloud(untagged=anothers)))

    assert (kinds(plan), plan.verdict.outcome) == (["DeleteVolume", "ForgetVolume"], Outcome.DELETING)
    assert (done.verdict.outcome, done.verdict.reason) == (Outcome.GONE, Reason.ADOPTION_CONFLICT)


def test_without_volumes_the_machine_goes():
    assert way_out(leaving()).verdict.outcome is Outcome.GONE
