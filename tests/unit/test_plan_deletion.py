"""A machine's way out works from every phase, and is over only when nothing of it is left in EC2."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine import steps
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
    wedged,
)

SHOWN_ONCE = {"instance": {"id": "i-1"}}
YOUNG = timedelta(minutes=4)
OLD_ENOUGH = timedelta(minutes=5)


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
            ec2_machine(launch(age=OLD_ENOUGH), deleting=True), cloud(), id="an unanswered launch had its five minutes"
        ),
        pytest.param(
            ec2_machine({**launch(instance="i-1", age=YOUNG), **SHOWN_ONCE}, deleting=True),
            cloud(missing_for=timedelta(seconds=60)),
            id="shown once, and missed by sweeps a minute apart",
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
