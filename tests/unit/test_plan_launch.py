"""One instance per machine, whatever reply was lost and whenever the operator died."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator.account import RecordAccount
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine import steps
from nixops_operator.machine.host_keys import Pins
from nixops_operator.verdict import Outcome
from unit.builders import (
    ACCOUNT,
    DECLARED,
    OTHER_ACCOUNT,
    cloud,
    ec2_machine,
    host,
    instance,
    launch,
    planned,
    seen,
)

PENDING = InstanceState.PENDING
GOING = InstanceState.SHUTTING_DOWN
TERMINATED = InstanceState.TERMINATED
WHEN_LOST = {"disruption": {"replace": "WhenLost"}}
LONG_MISSING = timedelta(seconds=60)


def intent_of(desired):
    assert desired.launch is not None
    return desired.launch


@pytest.mark.parametrize(
    ("desired", "shown", "step"),
    [
        pytest.param(
            ec2_machine({"accountId": None}),
            cloud(),
            RecordAccount(ACCOUNT),
            id="the account is written down first",
        ),
        pytest.param(
            ec2_machine(), cloud(), steps.RecordLaunch(1, ACCOUNT, DECLARED), id="nothing recorded: the intent first"
        ),
        pytest.param(
            ec2_machine(),
            cloud(instance(state=TERMINATED, attempt=4)),
            steps.RecordLaunch(5, ACCOUNT, DECLARED, 1),
            id="status lost: the attempt goes on from the highest tag seen",
        ),
        pytest.param(
            ec2_machine(launch(3, refused=1)),
            cloud(),
            steps.RecordLaunch(4, ACCOUNT, DECLARED),
            id="refused for good: another attempt",
        ),
        pytest.param(
            ec2_machine(launch(1)),
            cloud(instance(state=TERMINATED)),
            steps.CloseLaunch(1),
            id="died before its id was written down: the attempt is over",
        ),
        pytest.param(
            ec2_machine(launch(1)),
            cloud(instance(state=PENDING)),
            steps.RecordInstance("i-1", 1),
            id="reply lost, instance shown: recorded, not launched",
        ),
        pytest.param(
            ec2_machine(launch(2)),
            cloud(instance("i-2", attempt=2), instance("i-1", TERMINATED, attempt=1)),
            steps.RecordInstance("i-2", 2),
            id="an earlier attempt's remains do not confuse",
        ),
        pytest.param(
            ec2_machine(),
            cloud(instance(attempt=7)),
            steps.RecordInstance("i-1", 7),
            id="status lost: found by its tags",
        ),
        pytest.param(
            ec2_machine(launch(2, refused=1)),
            cloud(instance(attempt=1)),
            steps.RecordInstance("i-1", 1),
            id="refused now, but an earlier attempt lives: it is recorded",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), **WHEN_LOST),
            cloud(instance(state=TERMINATED)),
            steps.RecordLaunch(2, ACCOUNT, DECLARED, 1),
            id="terminated by hand, WhenLost: another attempt",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), **WHEN_LOST),
            cloud(missing_for=LONG_MISSING),
            steps.RecordLaunch(2, ACCOUNT, DECLARED, 1),
            id="gone for long enough, WhenLost: another attempt",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1")),
            cloud(instance(), pins=Pins()),
            steps.PinHostKey("i-1", 1),
            id="its host key is pinned before anybody connects",
        ),
        pytest.param(
            ec2_machine(launch(2, instance="i-2")),
            cloud(instance("i-2", attempt=2), pins=Pins("i-1")),
            steps.PinHostKey("i-2", 2),
            id="the replacement's key is not its predecessor's",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1")),
            cloud(instance(), declared=DECLARED.but(securityGroups=("sg-1", "sg-2"))),
            steps.SetAttribute("i-1", "securityGroups", ("sg-1", "sg-2")),
            id="in other groups than declared: put back",
        ),
    ],
)
def test_the_next_step_of_a_launch(desired, shown, step):
    assert planned(desired, seen(shown)).steps == (step,)


@pytest.mark.parametrize(
    ("desired", "age"),
    [
        pytest.param(ec2_machine(launch(1, age=timedelta(seconds=1))), "a second", id="reply lost a second ago"),
        pytest.param(ec2_machine(launch(1)), "an hour", id="reply lost an hour ago"),
        pytest.param(
            ec2_machine(launch(1), target={"ec2": {"instanceType": "m7i.large"}}),
            "an hour",
            id="spec edited meanwhile: still what the intent froze",
        ),
    ],
)
def test_a_launch_without_an_answer_is_repeated_as_it_was_recorded(desired, age):
    assert planned(desired, seen(cloud())).steps[-1] == steps.Launch(intent_of(desired))


@pytest.mark.parametrize(
    ("desired", "shown", "outcome", "reason"),
    [
        pytest.param(
            ec2_machine(launch(1)),
            cloud(instance("i-1"), instance("i-2")),
            Outcome.STALLED,
            Reason.LAUNCH_AMBIGUOUS,
            id="several live, none recorded: a person decides",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), **WHEN_LOST),
            cloud(instance("i-1", TERMINATED), instance("i-2")),
            Outcome.STALLED,
            Reason.LAUNCH_AMBIGUOUS,
            id="the recorded one died and an unrecorded one lives: a person decides",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1")),
            cloud(instance(state=TERMINATED)),
            Outcome.STALLED,
            Reason.INSTANCE_LOST,
            id="terminated by hand, replacement not allowed",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), **WHEN_LOST),
            cloud(missing_for=timedelta(seconds=59)),
            Outcome.WORKING,
            Reason.PENDING,
            id="missing for less than a minute of sweeps proves nothing",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1", age=timedelta(minutes=5)), **WHEN_LOST),
            cloud(missing_for=LONG_MISSING),
            Outcome.WORKING,
            Reason.PENDING,
            id="missing within five minutes of the launch proves nothing",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), **WHEN_LOST),
            cloud(instance(state=GOING)),
            Outcome.WORKING,
            Reason.SHUTTING_DOWN,
            id="shutting down is not gone",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1")),
            cloud(instance(state=InstanceState.UNKNOWN)),
            Outcome.WORKING,
            Reason.PENDING,
            id="a state that nobody knows leads to no action",
        ),
        pytest.param(
            ec2_machine(launch(1, instance="i-1"), driftPolicy="Report"),
            cloud(instance(state=InstanceState.STOPPED)),
            Outcome.STALLED,
            Reason.STOPPED,
            id="stopped by hand, Report: it stays",
        ),
        pytest.param(
            ec2_machine(),
            cloud(declared_error=Retry(Reason.KEY_PAIR_NOT_READY, "not yet")),
            Outcome.WORKING,
            Reason.KEY_PAIR_NOT_READY,
            id="what the deployment is about to make is waited for",
        ),
        pytest.param(
            ec2_machine(),
            cloud(declared_error=Retry(Reason.THROTTLED, "slow down")),
            Outcome.RETRYING,
            Reason.THROTTLED,
            id="what the launch needs cannot be looked up",
        ),
        pytest.param(
            ec2_machine(launch(1)),
            cloud(account_id=OTHER_ACCOUNT),
            Outcome.STALLED,
            Reason.ACCESS_DENIED,
            id="credentials of another account: nothing is launched there",
        ),
        pytest.param(
            ec2_machine(launch(1)),
            cloud(error=Retry(Reason.THROTTLED, "slow down")),
            Outcome.RETRYING,
            Reason.THROTTLED,
            id="not looked is not absent",
        ),
        pytest.param(
            ec2_machine(launch(1)),
            cloud(error=Blocked(Reason.AUTH_FAILURE, "wrong secret")),
            Outcome.STALLED,
            Reason.AUTH_FAILURE,
            id="unusable credentials",
        ),
        pytest.param(
            ec2_machine(suspend=True), cloud(), Outcome.SUSPENDED, Reason.SUSPENDED, id="suspended: nothing is launched"
        ),
    ],
)
def test_what_leads_to_no_change_in_ec2(desired, shown, outcome, reason):
    found = planned(desired, seen(shown))

    assert (found.verdict.outcome, found.verdict.reason) == (outcome, reason)
    assert found.steps == ()


def test_the_recorded_instance_stays_when_a_second_one_appears():
    found = planned(ec2_machine(launch(1, instance="i-1")), seen(cloud(instance("i-1"), instance("i-2")), host()))

    assert found.steps == ()
    assert found.verdict.outcome is Outcome.IN_SYNC


@pytest.mark.parametrize("state", [PENDING, InstanceState.STOPPED, InstanceState.STOPPING])
def test_an_instance_on_its_way_is_followed_by_evaluation_beside_it(state):
    found = planned(ec2_machine(launch(1, instance="i-1")), seen(cloud(instance(state=state)), jobs={}))

    assert steps.Evaluate in {type(step) for step in found.steps}
    assert found.verdict.outcome is Outcome.WORKING
