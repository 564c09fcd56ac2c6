"""The root volume becomes what the spec says, as far as EC2 can make it so, and its file system follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator import job_names, names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import RootVolumeStatus
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import Volume, VolumeSettings
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import steps
from nixops_operator.machine.root_volume import declared, to_change
from nixops_operator.planning import Plan
from unit.builders import COPIED, UID, cloud, ec2_machine, host, instance, launch, planned, ran, ready, seen

VOLUME = Volume(
    "vol-1", "in-use", "us-west-2a", VolumeSettings(20, "gp3", 3000, 125, encrypted=False), {names.UID_TAG: UID}
)
GROWN = {"rootVolume": {"volumeId": "vol-1", "grownGib": 20}}
GROW = job_names.grow("i-1", "vol-1", 20)


def machine(wanted: dict[str, Any] | None, status: dict[str, Any] | None = None, **spec: Any) -> Any:
    ec2 = {"instanceType": "t3.small"} | ({"rootVolume": wanted} if wanted is not None else {})
    known = launch(instance="i-1") | ran() | ready() | (GROWN if status is None else status)
    return ec2_machine(known, target={"ec2": ec2}, **spec)


def plan_of(
    desired: Any, volume: Volume | None = VOLUME, jobs: dict[str, JobState] | None = None, **fields: Any
) -> Plan:
    shown = cloud(instance(root_volume_id="vol-1"), root_volume=volume, **fields)
    return planned(desired, seen(shown, host(), jobs=COPIED | (jobs or {})))


def shown(**settings: Any) -> Volume:
    return replace(VOLUME, settings=replace(VOLUME.settings, **settings))


@pytest.mark.parametrize(
    ("wanted", "changes"),
    [
        pytest.param({}, None, id="nothing declared"),
        pytest.param({"size": 20, "type": "gp3", "iops": 3000, "throughput": 125}, None, id="as it is"),
        pytest.param({"size": 30}, VolumeSettings(size_gib=30), id="larger"),
        pytest.param({"size": 10}, None, id="smaller: EC2 has no such thing"),
        pytest.param({"type": "gp2"}, VolumeSettings(type="gp2"), id="another type"),
        pytest.param({"type": "io2", "iops": 3000}, VolumeSettings(type="io2"), id="the iops that it has already"),
        pytest.param(
            {"iops": 4000, "throughput": 250}, VolumeSettings(iops=4000, throughput_mib=250), id="performance"
        ),
        pytest.param({"size": 10, "iops": 4000}, VolumeSettings(iops=4000), id="what can be done of it"),
        pytest.param({"encrypted": True}, None, id="encryption is for life"),
    ],
)
def test_what_ec2_can_change_is_changed_and_nothing_else(wanted, changes):
    assert to_change(declared(machine(wanted).spec.target.ec2), VOLUME) == changes
    expected = (steps.ModifyVolume("vol-1", changes),) if changes is not None else ()
    assert tuple(one for one in plan_of(machine(wanted)).steps if isinstance(one, steps.ModifyVolume)) == expected


def test_what_was_changed_by_hand_is_put_back():
    plan = plan_of(machine({"throughput": 125}), shown(throughput_mib=500))

    assert plan.steps == (steps.ModifyVolume("vol-1", VolumeSettings(throughput_mib=125)),)
    assert [(one.reason, one.message) for one in plan.differences] == [
        (Reason.INSTANCE_DRIFT, "vol-1 of i-1 not as declared")
    ]


def test_report_leaves_what_was_changed_by_hand_and_tells_it():
    plan = plan_of(machine({"throughput": 125}, driftPolicy="Report"), shown(throughput_mib=500))

    assert plan.steps == ()
    assert [one.message for one in plan.differences] == [
        "vol-1 of i-1 not as declared; driftPolicy is Report, so it stays"
    ]


@pytest.mark.parametrize(
    ("state", "pause"),
    [
        pytest.param("modifying", timedelta(seconds=10), id="modifying: a matter of minutes, whose end wakes it"),
        pytest.param("optimizing", timedelta(minutes=1), id="optimizing: a matter of hours"),
    ],
)
def test_ec2_is_not_asked_for_another_change_while_it_is_at_work_on_one(state, pause):
    plan = plan_of(machine({"iops": 4000}), volume_changes={"vol-1": state})

    assert plan.steps == ()
    assert "EC2 is at work on its last change" in plan.verdict.message
    assert plan.verdict.look_again == pause


@pytest.mark.parametrize("state", ["", "completed", "failed"])
def test_a_change_that_has_ended_is_no_hindrance(state):
    assert plan_of(machine({"iops": 4000}), volume_changes={"vol-1": state}).steps != ()


def test_a_smaller_volume_is_refused_with_words():
    plan = plan_of(machine({"size": 10}))

    assert plan.steps == ()
    assert (plan.verdict.reason, plan.verdict.condition) == (Reason.CHANGE_FORBIDDEN, ConditionType.UP_TO_DATE)
    assert plan.verdict.message == (
        "vol-1 of i-1 has 20 GiB, the spec says 10; EC2 makes no volume smaller: declare the size that it has, or "
        "delete this machine to get another"
    )


def test_encryption_is_told_to_count_at_the_next_launch():
    plan = plan_of(machine({"encrypted": True}))

    assert plan.steps == ()
    assert "vol-1 of i-1 is not encrypted; encrypted counts at the next launch" in [
        one.message for one in plan.findings
    ]


def test_its_tags_are_those_of_the_instance():
    bare = replace(VOLUME, tags={"team": "other"})
    desired = machine({}, GROWN | {"appliedTagKeys": ["team"]})
    tags = {"team": "web", names.UID_TAG: UID}

    plan = plan_of(desired, bare, declared=cloud().declared.but(tags=tags))

    assert steps.TagVolume("vol-1", ((names.UID_TAG, UID), ("team", "web"))) in plan.steps


def test_a_tag_of_the_spec_waits_until_it_is_noted_as_ours():
    desired = ec2_machine(
        launch(instance="i-1") | ran() | ready() | GROWN,
        target={"ec2": {"instanceType": "t3.small", "tags": {"team": "web"}}},
    )

    plan = plan_of(desired, declared=cloud().declared.but(tags={"team": "web"}))

    assert [type(one) for one in plan.steps] == [steps.RecordTagKeys, steps.SetAttribute]


def test_a_tag_is_not_forgotten_while_the_volume_that_may_carry_it_is_not_known():
    not_yet = Retry(Reason.PROGRESSING_WITH_RETRY, "EC2 is being looked at")

    plan = plan_of(machine(None, GROWN | {"appliedTagKeys": ["team"]}), None, volumes_error=not_yet)

    assert plan.steps == ()


def test_a_tag_that_left_the_spec_is_taken_off_the_volume_too():
    tagged = replace(VOLUME, tags={"team": "web"})

    plan = plan_of(machine(None, GROWN | {"appliedTagKeys": ["team"]}), tagged)

    assert plan.steps == (steps.RemoveTags(("i-1", "vol-1"), ("team",)),)


@pytest.mark.parametrize(
    ("status", "jobs", "expected"),
    [
        pytest.param(GROWN, {}, (), id="grown"),
        pytest.param({}, {}, (steps.GrowRoot(GROW),), id="never grown"),
        pytest.param(
            {"rootVolume": {"volumeId": "vol-1", "grownGib": 10}}, {}, (steps.GrowRoot(GROW),), id="grown to less"
        ),
        pytest.param(
            {"rootVolume": {"volumeId": "vol-0", "grownGib": 20}}, {}, (steps.GrowRoot(GROW),), id="another volume was"
        ),
        pytest.param({}, {GROW: Running("")}, (), id="on its way"),
        pytest.param(
            {},
            {GROW: Done(None)},
            (steps.RecordGrown(RootVolumeStatus(volume_id="vol-1", grown_gib=20)),),
            id="done: written down",
        ),
        pytest.param(
            {}, {GROW: Failed(Retry(Reason.PROGRESSING_WITH_RETRY, "no"), is_due=False)}, (), id="failed: waited for"
        ),
        pytest.param(
            {},
            {GROW: Failed(Retry(Reason.PROGRESSING_WITH_RETRY, "no"), is_due=True)},
            (steps.GrowRoot(GROW),),
            id="failed: once more",
        ),
    ],
)
def test_the_file_system_is_grown_once_into_each_size(status, jobs, expected):
    assert plan_of(machine({"size": 20}, status), jobs=jobs).steps == expected


def test_nothing_is_grown_while_ec2_makes_the_volume_larger():
    plan = plan_of(machine({"size": 30}, {}), volume_changes={"vol-1": "modifying"})

    assert plan.steps == ()


def test_where_no_size_is_declared_nothing_is_grown():
    assert plan_of(machine({"type": "gp3"}, {})).steps == ()


def test_a_volume_that_was_made_larger_by_hand_is_told_and_used():
    plan = plan_of(machine({"size": 20}), shown(size_gib=50))

    assert plan.steps == (steps.GrowRoot(job_names.grow("i-1", "vol-1", 50)),)
    assert plan.verdict.reason is Reason.CHANGE_FORBIDDEN


def test_volumes_that_cannot_be_looked_at_hinder_nothing_else():
    denied = Blocked(Reason.ACCESS_DENIED, "DescribeVolumes: UnauthorizedOperation")
    plan = plan_of(machine({"size": 30}), None, volumes_error=denied)

    assert (plan.verdict.reason, plan.steps) == (Reason.ACCESS_DENIED, ())
