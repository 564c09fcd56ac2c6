"""When an instance is stopped and started: as powerState says, and for changes that EC2 makes on a stopped one only."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import FormerStatus, StopStatus, written
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine import steps
from nixops_operator.machine.power import STARTS
from nixops_operator.verdict import Outcome
from unit.builders import (
    DECLARED,
    NOON,
    activation,
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
    status_of,
)

SMALL, LARGE = "t3.small", "t3.large"
TO_LARGE = DECLARED.but(instanceType=LARGE)
ALLOWED: dict[str, Any] = {"disruption": {"stop": "WhenNeeded"}}
RUNS = launch(instance="i-1") | ran() | ready()
STOPPED, STOPPING = InstanceState.STOPPED, InstanceState.STOPPING


def recorded(wanted: str = LARGE, former: str = SMALL, starts: int = 0, refused: str | None = None) -> StopStatus:
    """For a change of the instance's type."""
    return StopStatus(
        instance_id="i-1",
        wanted=f'{{"instanceType": "{wanted}"}}',
        former=(FormerStatus(field="instanceType", value=f'"{former}"'),),
        starts=starts,
        refused=refused,
        reason="InsufficientCapacity" if refused is not None else None,
    )


def stop(**fields: Any) -> dict[str, Any]:
    return {"stop": written(recorded(**fields))}


# --- a change that needs a stop -----------------------------------------------------------------------------------


def test_without_permission_it_is_told_and_the_machine_is_looked_after_all_the_same():
    found = planned(ec2_machine(RUNS), seen(cloud(instance(), declared=TO_LARGE), host("/nix/store/old")))

    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.CHANGE_FORBIDDEN)
    assert "disruption.stop to WhenNeeded" in found.verdict.message
    assert [type(step) for step in found.steps] == [steps.Copy]


def test_with_permission_it_is_written_down_before_the_instance_is_stopped():
    first = planned(ec2_machine(RUNS, **ALLOWED), seen(cloud(instance(), declared=TO_LARGE), host()))
    then = planned(ec2_machine(RUNS | stop(), **ALLOWED), seen(cloud(instance(), declared=TO_LARGE), host()))

    assert first.steps == (steps.RecordStop(recorded()),)
    assert then.steps == (steps.StopInstance("i-1"),)
    assert then.verdict.reason is Reason.STOPPING


def test_a_machine_that_is_stopped_is_given_nothing_else_to_do():
    """An activation begun beside the stop would be cut in its middle."""
    observed = seen(cloud(instance(), declared=TO_LARGE), host("/nix/store/old"))

    assert planned(ec2_machine(RUNS | stop(), **ALLOWED), observed).steps == (steps.StopInstance("i-1"),)


@pytest.mark.parametrize(
    ("age", "is_stopped"),
    [
        pytest.param(timedelta(0), False, id="under way"),
        pytest.param(timedelta(minutes=32), True, id="longer than an activation lasts: nobody hears of it any more"),
    ],
)
def test_an_activation_is_not_cut(age: timedelta, is_stopped: bool):
    begun = activation()
    begun["activation"]["startedAt"] = stamp(NOON - age)
    desired = ec2_machine(RUNS | begun | stop(), **ALLOWED)

    found = planned(desired, seen(cloud(instance(), declared=TO_LARGE)))

    assert (steps.StopInstance("i-1") in found.steps) == is_stopped


def test_what_was_changed_by_hand_is_left_under_report():
    desired = ec2_machine(RUNS, driftPolicy="Report", **ALLOWED)

    found = planned(desired, seen(cloud(instance(), declared=TO_LARGE), host()))

    assert (found.verdict.outcome, found.steps) == (Outcome.REPORTED, ())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(
            stop(),
            (
                steps.RecordStop(recorded(starts=1)),
                steps.ChangeStopped("i-1", "instanceType", LARGE),
                steps.StartChanged("i-1", is_last_try=False),
            ),
            id="stopped for it",
        ),
        pytest.param(
            {},
            (
                steps.RecordStop(recorded(starts=1)),
                steps.ChangeStopped("i-1", "instanceType", LARGE),
                steps.StartChanged("i-1", is_last_try=False),
            ),
            id="stopped by somebody else: changed all the same, it costs nothing",
        ),
        pytest.param(
            stop(starts=STARTS - 1),
            (
                steps.RecordStop(recorded(starts=STARTS)),
                steps.ChangeStopped("i-1", "instanceType", LARGE),
                steps.StartChanged("i-1", is_last_try=True),
            ),
            id="the last try",
        ),
        pytest.param(
            stop(refused="no room"),
            (steps.SetAttribute("i-1", "instanceType", SMALL), steps.StartInstance("i-1")),
            id="refused: as it was",
        ),
        pytest.param(
            stop(wanted="t3.huge", former="t3.nano", starts=3, refused="no room"),
            (
                steps.RecordStop(recorded(former="t3.nano", starts=1)),
                steps.ChangeStopped("i-1", "instanceType", LARGE),
                steps.StartChanged("i-1", is_last_try=False),
            ),
            id="refused, then edited: the new value, and the way back to what ran",
        ),
    ],
)
def test_a_stopped_instance_is_changed_and_started(status: dict[str, Any], expected: tuple[Any, ...]):
    desired = ec2_machine(RUNS | status)

    found = planned(desired, seen(cloud(instance(state=STOPPED), declared=TO_LARGE)))

    assert found.steps == expected


def test_all_that_needs_a_stop_is_done_in_one():
    declared = TO_LARGE.but(ebsOptimized=True)

    found = planned(ec2_machine(RUNS), seen(cloud(instance(state=STOPPED), declared=declared)))

    assert found.steps[1:3] == (
        steps.ChangeStopped("i-1", "instanceType", LARGE),
        steps.ChangeStopped("i-1", "ebsOptimized", True),
    )


def test_a_change_that_was_made_before_a_crash_is_only_started():
    shown = instance(state=STOPPED, instance_type=LARGE)

    found = planned(ec2_machine(RUNS | stop(starts=1), **ALLOWED), seen(cloud(shown, declared=TO_LARGE)))

    assert found.steps == (steps.RecordStop(recorded(starts=2)), steps.StartChanged("i-1", is_last_try=False))


def test_once_stopped_for_a_change_no_policy_keeps_it_from_being_started():
    desired = ec2_machine(RUNS | stop(), driftPolicy="Report", disruption={"stop": "Never"})

    found = planned(desired, seen(cloud(instance(state=STOPPED), declared=TO_LARGE)))

    assert found.steps[-1] == steps.StartChanged("i-1", is_last_try=False)


def test_what_a_person_has_stopped_is_left_under_report():
    desired = ec2_machine(RUNS, driftPolicy="Report", **ALLOWED)

    found = planned(desired, seen(cloud(instance(state=STOPPED), declared=TO_LARGE)))

    assert (found.verdict.outcome, found.steps) == (Outcome.STALLED, ())


def test_an_instance_that_runs_as_declared_is_all_there_is_to_it():
    shown = instance(instance_type=LARGE)

    found = planned(ec2_machine(RUNS | stop(starts=1), **ALLOWED), seen(cloud(shown, declared=TO_LARGE), host()))

    assert (found.verdict.outcome, found.steps) == (Outcome.IN_SYNC, (steps.ForgetStop(),))


def test_a_record_stays_while_it_is_not_known_what_is_declared():
    error = InvalidSpec("spec.target.ec2.instanceType", "no such type")
    observed = seen(cloud(instance(), declared=DECLARED.but(instanceType=None), declared_error=error), host())

    found = planned(ec2_machine(RUNS | stop(), **ALLOWED), observed)

    assert (found.verdict.outcome, found.steps) == (Outcome.STALLED, ())


def test_what_ec2_refused_is_told_and_not_tried_again_by_itself():
    """Each try is an outage."""
    status = RUNS | stop(refused="no room for t3.large")
    observed = seen(cloud(instance(), declared=TO_LARGE), host())

    told = planned(ec2_machine(status, **ALLOWED), observed)
    asked = planned(ec2_machine(status, annotations={"nixops.dev/reconcile-requested-at": "now"}, **ALLOWED), observed)

    assert (told.verdict.outcome, told.verdict.reason, told.steps) == (
        Outcome.STALLED,
        Reason.INSUFFICIENT_CAPACITY,
        (),
    )
    assert "no room for t3.large" in told.verdict.message
    assert asked.steps == (steps.RecordStop(recorded()),)


def test_of_two_values_one_is_refused_after_the_other_was_set_and_both_are_told_and_not_tried_again():
    """Or the instance would be stopped for what remains, put back, and stopped for both again, for ever."""
    declared = TO_LARGE.but(placementGroup="nera")
    stopped = instance(state=STOPPED)
    both = planned(ec2_machine(RUNS, **ALLOWED), seen(cloud(stopped, declared=declared))).steps[0]
    assert isinstance(both, steps.RecordStop)

    refused = both.stop.model_copy(update={"refused": "nera is unknown", "reason": "InvalidSpec"})
    half_done = instance(state=STOPPED, instance_type=LARGE)
    back = planned(ec2_machine(RUNS | {"stop": written(refused)}, **ALLOWED), seen(cloud(half_done, declared=declared)))
    told = planned(
        ec2_machine(RUNS | {"stop": written(refused)}, **ALLOWED), seen(cloud(instance(), declared=declared))
    )

    assert back.steps == (
        steps.SetAttribute("i-1", "instanceType", SMALL),
        steps.SetAttribute("i-1", "placementGroup", ""),
        steps.StartInstance("i-1"),
    )
    assert (told.verdict.outcome, told.verdict.reason) == (Outcome.STALLED, Reason.INVALID_SPEC)
    assert not [step for step in told.steps if isinstance(step, steps.RecordStop | steps.StopInstance)]


def test_a_value_that_was_put_back_while_the_instance_was_stopped_is_none_that_it_was_stopped_for():
    """What EC2 refuses then is told of the rest alone, as a running instance shows it."""
    status = RUNS | stop(starts=1)
    half_done = instance(state=STOPPED, instance_type=LARGE)
    declared = DECLARED.but(placementGroup="nera")

    found = planned(ec2_machine(status, **ALLOWED), seen(cloud(half_done, declared=declared)))

    assert isinstance(found.steps[0], steps.RecordStop)
    assert found.steps[0].stop.wanted == '{"placementGroup": "nera"}'


def test_a_stop_of_an_earlier_instance_says_nothing():
    status = RUNS | launch(2, instance="i-2") | stop(refused="no room")
    observed = seen(cloud(instance("i-2"), declared=TO_LARGE), host())

    found = planned(ec2_machine(status, **ALLOWED), observed)

    assert [type(step) for step in found.steps if not isinstance(step, steps.PinHostKey)][-1:] == [steps.RecordStop]


# --- powerState ---------------------------------------------------------------------------------------------------


def off(status: dict[str, Any] = RUNS, **spec: Any) -> Any:
    return ec2_machine(status, target={"ec2": {"instanceType": SMALL, "powerState": "Stopped"}}, **spec)


def test_what_is_declared_stopped_is_stopped():
    found = planned(off(), seen(cloud(instance()), host("/nix/store/old")))

    assert found.steps == (steps.StopInstance("i-1"),)


def test_stop_protection_that_is_to_go_goes_before_the_stop():
    observed = seen(cloud(instance(stop_protection=True), declared=DECLARED.but(stopProtection=False)))
    desired = off(RUNS | {"appliedFields": ["stopProtection"]})

    assert planned(desired, observed).steps == (
        steps.SetAttribute("i-1", "stopProtection", False),
        steps.StopInstance("i-1"),
    )


def test_a_machine_that_is_stopped_as_declared_is_ready():
    observed = seen(cloud(instance(state=STOPPED)))

    found = planned(off(), observed)
    conditions = {one["type"]: (one["status"], one["reason"]) for one in status_of(off(), observed)["conditions"]}

    assert (found.verdict.outcome, found.steps) == (Outcome.IN_SYNC, ())
    assert conditions["Ready"] == ("True", "Succeeded")
    assert conditions["InfrastructureReady"] == ("True", "Succeeded")
    assert conditions["Reachable"] == ("Unknown", "Stopped")
    assert conditions["ConfigurationActive"] == ("Unknown", "Stopped")


def test_while_it_stops_nothing_starts_it():
    assert planned(off(), seen(cloud(instance(state=STOPPING)))).steps == ()


def test_what_differs_on_a_machine_that_is_kept_stopped_is_put_right():
    observed = seen(cloud(instance(state=STOPPED), declared=TO_LARGE.but(tags={"team": "web"})))

    found = planned(off(), observed)

    assert set(found.steps) == {
        steps.SetAttribute("i-1", "instanceType", LARGE),
        steps.SetAttribute("i-1", "tags", (("team", "web"),)),
    }


def test_what_is_declared_running_again_is_started():
    found = planned(ec2_machine(RUNS, generation=2), seen(cloud(instance(state=STOPPED))))

    assert found.steps == (steps.RecordRestart(1), steps.StartInstance("i-1"))
