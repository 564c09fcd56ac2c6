"""A machine's way out works from every phase, and is over only when nothing of it is left in EC2."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine import steps
from nixops_operator.machine.desired import read_machine
from nixops_operator.verdict import Outcome
from unit.builders import (
    ACCOUNT,
    NOON,
    OTHER_ACCOUNT,
    PATIENCE_WITH_REFUSALS,
    cloud,
    ec2_machine,
    host_machine,
    instance,
    launch,
    planned,
    ready,
    seen,
    stamp,
    wedged,
)

SHOWN_ONCE = {"instance": {"id": "i-1"}}
YOUNG = timedelta(minutes=4)
OLD_ENOUGH = timedelta(minutes=6)
MISSING = timedelta(seconds=60)


@pytest.mark.parametrize(
    ("desired", "shown"),
    [
        pytest.param(host_machine(deleting=True), None, id="a given host is left alone"),
        pytest.param(ec2_machine({"accountId": None}, deleting=True), cloud(), id="nothing was ever made"),
        pytest.param(
            ec2_machine({"accountId": None}, deleting=True),
            cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "no Secret")),
            id="nothing was ever made: no credentials are needed",
        ),
        pytest.param(ec2_machine(deleting=True), cloud(), id="account recorded, no launch"),
        pytest.param(ec2_machine(launch(refused=1), deleting=True), cloud(), id="the launch was refused"),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(instance(state=InstanceState.TERMINATED)),
            id="seen terminated",
        ),
        pytest.param(
            ec2_machine(launch(age=OLD_ENOUGH), deleting=True),
            cloud(missing_for=MISSING),
            id="an unanswered launch had its five minutes, and looks a minute apart have missed it",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1", age=OLD_ENOUGH), deleting=True),
            cloud(missing_for=MISSING),
            id="recorded, and missed by looks a minute apart",
        ),
        pytest.param(
            ec2_machine(launch(2, instance="i-2"), deleting=True),
            cloud(untagged=instance("i-2", attempt=2, tags={names.UID_TAG: "another"})),
            id="the recorded instance carries another owner's tags: it is not ours to end",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(untagged=instance(tags={names.RETAINED_TAG: "true"})),
            id="the recorded instance was let go by hand",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(instance(tags={names.UID_TAG: "u", names.RETAINED_TAG: "true"})),
            id="Delete, and the instance is tagged as retained: it stays",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True, deletionPolicy="Retain"),
            cloud(instance(tags={names.UID_TAG: "u", names.RETAINED_TAG: "true"})),
            id="Retain: tagged, so it may stay",
        ),
    ],
)
def test_the_finalizer_goes_when_nothing_is_left(desired, shown):
    assert planned(desired, seen(shown)).verdict.outcome is Outcome.GONE


@pytest.mark.parametrize(
    ("desired", "shown", "taken"),
    [
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(instance()),
            (steps.TerminateInstance("i-1"),),
            id="running: terminated",
        ),
        pytest.param(
            ec2_machine(launch(), deleting=True),
            cloud(instance(state=InstanceState.PENDING)),
            (steps.TerminateInstance("i-1"),),
            id="launched, its reply lost: found by its tags and terminated",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(instance(state=InstanceState.STOPPED)),
            (steps.TerminateInstance("i-1"),),
            id="stopped: terminated",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True, suspend=True),
            cloud(instance()),
            (steps.TerminateInstance("i-1"),),
            id="suspended: deletion wins",
        ),
        pytest.param(
            ec2_machine(deleting=True),
            cloud(instance("i-1"), instance("i-2")),
            (steps.TerminateInstance("i-1"), steps.TerminateInstance("i-2")),
            id="several live: all of them are ours",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True, deletionPolicy="Retain"),
            cloud(instance()),
            (steps.RetainInstance("i-1"),),
            id="Retain: tagged as let go, not terminated",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(instance(state=InstanceState.SHUTTING_DOWN)),
            (),
            id="shutting down: waiting",
        ),
        pytest.param(ec2_machine(launch(age=YOUNG), deleting=True), cloud(), (), id="an unanswered launch: waiting"),
        pytest.param(
            ec2_machine({**launch(instance="i-1", age=YOUNG), **SHOWN_ONCE}, deleting=True),
            cloud(missing_for=timedelta(seconds=59)),
            (),
            id="missing, but not for long: waiting",
        ),
        pytest.param(
            ec2_machine(launch(2, age=timedelta(seconds=1)), deleting=True),
            cloud(instance("i-1", InstanceState.TERMINATED), missing_for=timedelta(0)),
            (),
            id="attempt 1 is terminated, attempt 2 not shown yet: its end proves nothing of the other",
        ),
        pytest.param(
            ec2_machine(launch(calledAt=stamp(NOON - timedelta(seconds=5))), deleting=True),
            cloud(missing_for=MISSING),
            (),
            id="asked for an hour ago, and again just now: the last call counts",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1"), deleting=True),
            cloud(missing_for=timedelta(0)),
            (),
            id="an old machine and one empty look: waiting",
        ),
        pytest.param(
            ec2_machine(launch(age=OLD_ENOUGH), deleting=True, deletionPolicy="Retain"),
            cloud(missing_for=timedelta(0)),
            (),
            id="Retain: what is not shown yet has to be tagged, too",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1", age=YOUNG), deleting=True),
            cloud(missing_for=timedelta(seconds=60)),
            (),
            id="recorded and never shown: waiting for the five minutes",
        ),
    ],
)
def test_the_way_out(desired, shown, taken):
    found = planned(desired, seen(shown))

    assert found.steps == taken
    assert found.verdict.outcome is Outcome.DELETING


@pytest.mark.parametrize(
    ("shown", "outcome", "reason"),
    [
        pytest.param(
            cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "Secret aws does not exist")),
            Outcome.WEDGED,
            Reason.SECRET_NOT_FOUND,
            id="no credentials: a person must repair them",
        ),
        pytest.param(
            cloud(error=Retry(Reason.THROTTLED, "slow down")),
            Outcome.DELETING,
            Reason.THROTTLED,
            id="throttled: waiting",
        ),
        pytest.param(
            cloud(account_id=OTHER_ACCOUNT), Outcome.WEDGED, Reason.ACCESS_DENIED, id="another account proves nothing"
        ),
    ],
)
def test_what_cannot_be_looked_at_is_not_gone(shown, outcome, reason):
    found = planned(ec2_machine(launch(instance="i-1"), deleting=True), seen(shown))

    assert (found.verdict.outcome, found.verdict.reason, found.steps) == (outcome, reason, ())


def test_an_instance_whose_tags_were_taken_off_is_not_ended_for_its_id():
    leaving = ec2_machine(launch(instance="i-1"), deleting=True)

    found = planned(leaving, seen(cloud(untagged=instance(tags={}))))

    assert (found.verdict.outcome, found.verdict.reason, found.steps) == (Outcome.WEDGED, Reason.ADOPTION_CONFLICT, ())
    assert f"{names.UID_TAG}={leaving.uid}" in found.verdict.message


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"aws": 3, "target": "ec2", "configuration": [1]}, id="nothing is what it should be"),
        pytest.param({"activation": {"timeout": "0s"}, "deletionPolicy": "Delete"}, id="refused by the model"),
        pytest.param({"description": "x" * 70_000}, id="larger than what is parsed"),
    ],
)
def test_an_object_is_deletable_whatever_its_spec_says(spec):
    """It is deletable by what it made: without an account there is nothing, with one its credentials are told."""
    metadata = {"namespace": "default", "name": "web", "uid": "u", "generation": 2, "deletionTimestamp": stamp(NOON)}

    nothing_made = read_machine({"metadata": metadata, "spec": spec}, has_owner=True)
    something_made = read_machine(
        {"metadata": metadata, "spec": spec, "status": {"accountId": ACCOUNT, **launch()}}, has_owner=True
    )

    assert planned(nothing_made, seen()).verdict.outcome is Outcome.GONE
    assert planned(something_made, seen(cloud(instance()))).steps == (steps.TerminateInstance("i-1"),)


@pytest.mark.parametrize("spec", [{"deletionPolicy": ["Keep"]}, None, []])
def test_a_policy_that_cannot_be_read_destroys_nothing(spec):
    metadata = {"namespace": "default", "name": "web", "uid": "u", "generation": 2, "deletionTimestamp": stamp(NOON)}
    leaving = read_machine(
        {"metadata": metadata, "spec": spec, "status": {"accountId": ACCOUNT, **launch()}}, has_owner=True
    )

    kept = instance(root_volume_id="vol-1")
    assert planned(leaving, seen(cloud(kept))).steps == (steps.RetainInstance("i-1", "vol-1"),)


def test_a_wedged_deletion_names_its_remedies():
    wedged = ec2_machine({**launch(instance="i-1"), **ready()}, deleting=True)
    shown = cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "Secret aws does not exist"))

    assert (
        "repair the credentials, or set spec.deletionPolicy to Retain" in planned(wedged, seen(shown)).verdict.message
    )


@PATIENCE_WITH_REFUSALS
def test_retain_lets_go_without_credentials_after_a_while(status, minutes, outcome):
    """The remedy that a wedged deletion names must work: nothing has to be looked for."""
    released = ec2_machine({**launch(instance="i-1"), **status}, deleting=True, deletionPolicy="Retain")
    shown = cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "Secret aws does not exist"))

    verdict = planned(released, seen(shown), NOON + timedelta(minutes=minutes)).verdict

    assert (verdict.outcome, verdict.reason) == (outcome, Reason.SECRET_NOT_FOUND)
    assert f"account {ACCOUNT}" in verdict.message


def test_a_throttled_look_never_lets_go():
    released = ec2_machine({**launch(instance="i-1"), **wedged(NOON)}, deleting=True, deletionPolicy="Retain")
    shown = cloud(error=Retry(Reason.THROTTLED, "slow down"))

    assert planned(released, seen(shown), NOON + timedelta(hours=1)).verdict.outcome is Outcome.DELETING


def test_retain_lets_go_of_what_cannot_be_tagged_after_a_while():
    released = ec2_machine({**launch(instance="i-1"), **wedged(NOON)}, deleting=True, deletionPolicy="Retain")

    early = planned(released, seen(cloud(instance())), NOON + timedelta(minutes=4.9))
    late = planned(released, seen(cloud(instance())), NOON + timedelta(minutes=5))

    assert early.steps == (steps.RetainInstance("i-1"),)
    assert (late.verdict.outcome, late.steps) == (Outcome.GONE, ())
    assert "i-1" in late.verdict.message
