"""What a look at the host finds decides the next move, whoever started what is found there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import RevertsStatus
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.host import ActivationRequest, ActivationState, Mode
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import steps
from nixops_operator.verdict import Outcome
from unit.builders import (
    BOOT,
    BUILT,
    BY_HAND,
    COPIED,
    COPY,
    EVALUATE,
    NEW,
    NOON,
    OLD,
    UID,
    activation,
    activation_id,
    host,
    host_machine,
    on_host,
    planned,
    ran,
    ready,
    seen,
    stamp,
    trio_of,
)

A = ActivationState
ID = activation_id(NEW, 1)
REPORT = {"activation": {"driftPolicy": "Report"}}


def request(attempt: int = 1, previous: str = OLD, toplevel: str = NEW) -> ActivationRequest:
    return ActivationRequest(toplevel, previous, attempt, timedelta(minutes=30), timedelta(seconds=60))


@pytest.mark.parametrize(
    ("desired", "found", "step"),
    [
        pytest.param(
            host_machine(),
            host(OLD, OLD, highest_attempt=0),
            steps.RecordActivation(request(1), BOOT),
            id="nothing there: intent",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, highest_attempt=0),
            steps.Activate(f"host:{UID}:{ID}:activate", COPY, request(1)),
            id="intent written, host not told: told, with the same id",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, activation=on_host(A.PREPARED)),
            steps.Activate(f"host:{UID}:{ID}:activate", "", request(1)),
            id="prepared: started, with the same id",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, activation=on_host(A.SWITCHING, unit=False)),
            steps.RollBack(f"host:{UID}:{ID}:rollback", ID),
            id="switching, no unit: unit and its end were killed, so back",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(NEW, OLD, activation=on_host(A.SWITCHED)),
            steps.Confirm(f"host:{UID}:{ID}:confirm", ID),
            id="switched: confirmed",
        ),
        pytest.param(
            host_machine(),
            host(NEW, OLD, activation=on_host(A.SWITCHED)),
            steps.Confirm(f"host:{UID}:{ID}:confirm", ID),
            id="switched by an operator that died before its status: confirmed",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(NEW, OLD, activation=on_host(A.CONFIRMED)),
            steps.Commit(f"host:{UID}:{ID}:commit", ID),
            id="confirmed: committed",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(NEW, OLD, activation=on_host(A.ROLLING_BACK)),
            steps.RollBack(f"host:{UID}:{ID}:rollback", ID),
            id="rolling back, no unit: the rollback was cut, so again",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, activation=on_host(A.PREPARED, boot="boot-0")),
            steps.RecordActivation(request(2), BOOT, is_repeat=True),
            id="prepared before a restart of the host: another attempt",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, activation=on_host(A.SWITCHING, boot="boot-0")),
            steps.RecordActivation(request(2), BOOT, is_repeat=True),
            id="switching before a restart of the host: another attempt",
        ),
        pytest.param(
            host_machine(activation(attempt=1)),
            host(OLD, OLD, activation=on_host(A.SWITCHED, boot="boot-0")),
            steps.RecordActivation(request(2), BOOT, is_repeat=True),
            id="switched before a restart of the host: another attempt",
        ),
        pytest.param(
            host_machine(),
            host(OLD, OLD, activation=on_host(A.COMMITTED, OLD, 6), highest_attempt=6),
            steps.RecordActivation(request(7), BOOT),
            id="status lost: the attempt goes on from the host's directories",
        ),
        pytest.param(
            host_machine(activation(OLD, attempt=8, result="Succeeded")),
            host(OLD, OLD, highest_attempt=0),
            steps.RecordActivation(request(9), BOOT),
            id="host reinstalled: the attempt goes on from the status",
        ),
        pytest.param(
            host_machine(activation(attempt=1, boot=BOOT)),
            host(OLD, OLD, highest_attempt=0),
            steps.Activate(f"host:{UID}:{ID}:activate", COPY, request(1)),
            id="host not told in this boot: told, with the same id",
        ),
        pytest.param(
            host_machine(activation(attempt=1, boot="boot-0")),
            host(OLD, OLD, highest_attempt=0),
            steps.RecordActivation(request(2), BOOT, is_repeat=True),
            id="a restart took the host's memory with it: another attempt",
        ),
        pytest.param(
            host_machine(),
            host(NEW, OLD, highest_attempt=0),
            steps.Adopt(f"host:{UID}:adopt:{NEW}", NEW),
            id="the desired system runs already: it becomes profile and boot entry",
        ),
        pytest.param(
            host_machine(activation(result="Succeeded") | ran()),
            host(NEW, NEW, boot_entry_unsure=True),
            steps.Adopt(f"host:{UID}:adopt:{NEW}", NEW),
            id="a commit was cut: repeated",
        ),
        pytest.param(
            host_machine(activation(result="Succeeded") | ran()),
            host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED)),
            steps.RecordActivation(request(2, previous=BY_HAND), BOOT, RevertsStatus(count=1, since=NOON)),
            id="switched by hand: back, as another attempt",
        ),
        pytest.param(
            host_machine(activation(result="Succeeded") | ran()),
            host(NEW, NEW, activation=on_host(A.COMMITTED), lists_left=True),
            steps.RecordActivation(request(2, previous=NEW), BOOT),
            id="the link moved but the switch was cut: it is completed",
        ),
    ],
)
def test_the_next_move_follows_from_what_the_host_shows(desired, found, step):
    assert planned(desired, seen(host=found)).steps == (step,)


@pytest.mark.parametrize(
    ("state", "current", "reason"),
    [
        pytest.param(A.SWITCHING, OLD, Reason.ACTIVATING, id="switching"),
        pytest.param(A.ROLLING_BACK, NEW, Reason.ROLLING_BACK, id="rolling back"),
    ],
)
def test_a_unit_that_runs_is_followed_and_never_started_again(state, current, reason):
    found = planned(host_machine(activation()), seen(host=host(current, OLD, activation=on_host(state, unit=True))))

    assert found.steps == ()
    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.WORKING, reason)
    assert found.verdict.look_again == timedelta(seconds=1)


def test_an_activation_of_another_system_is_followed_to_its_end_first():
    other = on_host(A.SWITCHED, BY_HAND, 3)

    found = planned(host_machine(), seen(host=host(BY_HAND, OLD, activation=other, highest_attempt=3)))

    assert found.steps == (steps.Confirm(f"host:{UID}:{other.id}:confirm", other.id),)


@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param({}, id="not evaluated"),
        pytest.param({EVALUATE: Running()}, id="being evaluated"),
        pytest.param({EVALUATE: Failed(Blocked(Reason.EVALUATION_FAILED, "broken"), False)}, id="cannot be evaluated"),
    ],
)
def test_it_is_followed_whatever_has_become_of_the_newest_configuration(jobs):
    """Edited while the machine was switching, it was evaluated and built first; nobody confirmed, and it went back."""
    other = on_host(A.SWITCHED, BY_HAND, 3)

    found = planned(host_machine(), seen(host=host(BY_HAND, OLD, activation=other, highest_attempt=3), jobs=jobs))

    assert steps.Confirm(f"host:{UID}:{other.id}:confirm", other.id) in found.steps
    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.WORKING, Reason.CONFIRMING)


def test_somebody_elses_switch_is_waited_for():
    """Each attempt meets the lock at once: without a pause they would follow each other by the second."""
    met = seen(host=host(OLD, OLD, activation=on_host(A.FAILED, exit_status=11, result="exit-code")))

    soon = planned(host_machine(activation()), met, NOON + timedelta(seconds=14))
    later = planned(host_machine(activation()), met, NOON + timedelta(seconds=15))

    by_a_clock_that_was_set_back = planned(host_machine(activation()), met, NOON - timedelta(days=1))

    assert (soon.verdict.outcome, soon.steps) == (Outcome.RETRYING, ())
    assert later.steps == by_a_clock_that_was_set_back.steps == (steps.RecordActivation(request(2), BOOT),)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(host(BY_HAND, BY_HAND), Reason.SYSTEM_DRIFT, id="switched by hand"),
        pytest.param(host(BY_HAND, NEW, booted=BY_HAND), Reason.BOOT_DRIFT, id="booted another generation"),
        pytest.param(
            host(OLD, NEW, booted=OLD, activation=on_host(A.COMMITTED, boot="boot-0")),
            Reason.BOOT_DRIFT,
            id="booted the one that it had booted before",
        ),
        pytest.param(
            host(OLD, NEW, booted=OLD, activation=on_host(A.COMMITTED)),
            Reason.SYSTEM_DRIFT,
            id="switched by hand to what it had booted",
        ),
    ],
)
def test_drift_is_told_apart_and_reported_if_policy_says_so(found, reason):
    enforced = planned(host_machine(activation() | ran()), seen(host=found))
    reported = planned(host_machine(activation() | ran(), **REPORT), seen(host=found))

    assert enforced.verdict.outcome is Outcome.WORKING
    assert [type(step) for step in enforced.steps] == [steps.RecordActivation]
    assert reported.steps == ()
    assert (reported.verdict.outcome, reported.verdict.reason) == (Outcome.DRIFT_REPORTED, Reason.SYSTEM_DRIFT)
    served = host_machine(activation(result="Succeeded") | ran() | ready())
    assert trio_of(served, seen(host=found))["UpToDate"] == f"False/{reason}"


def reverted(count: int, minutes: float) -> dict[str, Any]:
    return {"reverts": {"count": count, "since": stamp(NOON - timedelta(minutes=minutes))}}


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        pytest.param({}, (1, 0), id="the first one"),
        pytest.param(reverted(2, 59), (3, 59), id="within the hour: counted on"),
        pytest.param(reverted(3, 60), (1, 0), id="an hour ago: begun anew"),
        pytest.param(reverted(3, -60 * 24 * 365), (1, 0), id="by a clock that was a year ahead: begun anew"),
    ],
)
def test_how_often_a_system_is_put_back_is_counted(status, counted):
    desired = host_machine(activation() | ran() | status)

    (step,) = planned(desired, seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED)))).steps

    count, minutes = counted
    assert step.reverts == RevertsStatus(count=count, since=NOON - timedelta(minutes=minutes))


def test_three_switches_in_an_hour_that_somebody_undoes_are_told_and_not_fought():
    """Two NixMachines on one host switched it every five seconds, for ever."""
    desired = host_machine(activation() | ran() | reverted(3, 30))

    found = planned(desired, seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))))

    assert found.steps == ()
    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.SYSTEM_DRIFT)
    assert found.verdict.look_again == timedelta(minutes=30)
    assert "find who switches it" in found.verdict.message


def test_a_system_that_never_ran_is_new_and_no_drift_whatever_the_policy():
    found = planned(host_machine(**REPORT), seen(host=host(OLD, OLD, highest_attempt=0)))

    assert found.steps == (steps.RecordActivation(request(1), BOOT),)


@pytest.mark.parametrize(
    ("policy", "outcome", "count"),
    [pytest.param({}, Outcome.REPAIRING, 1, id="Enforce"), pytest.param(REPORT, Outcome.REPORTED, 0, id="Report")],
)
def test_profile_drift_leaves_the_machine_serving(policy, outcome, count):
    found = planned(host_machine(activation() | ran(), **policy), seen(host=host(NEW, BY_HAND)))

    assert (found.verdict.outcome, found.verdict.reason) == (outcome, Reason.PROFILE_DRIFT)
    assert found.verdict.condition is ConditionType.UP_TO_DATE
    assert len(found.steps) == count


def test_nothing_is_activated_on_a_host_without_a_system_to_return_to():
    found = planned(host_machine(), seen(host=host(None, None, highest_attempt=0)))

    assert (found.verdict.outcome, found.steps) == (Outcome.STALLED, ())


def test_nothing_is_activated_before_its_copy_is_complete():
    before = seen(host=host(OLD, OLD), jobs=BUILT)
    during = seen(host=host(OLD, OLD), jobs={**BUILT, COPY: Running("1 of 2 copied")})
    failed = seen(host=host(OLD, OLD), jobs={**BUILT, COPY: Failed(Retry(Reason.COPY_FAILED, "cut"))})
    due = seen(host=host(OLD, OLD), jobs={**BUILT, COPY: Failed(Retry(Reason.COPY_FAILED, "cut"), is_due=True)})

    assert planned(host_machine(), before).steps == (steps.Copy(COPY, NEW),)
    assert planned(host_machine(), during).steps == ()
    assert planned(host_machine(), during).verdict.message.endswith("1 of 2 copied")
    assert planned(host_machine(), failed).verdict.outcome is Outcome.RETRYING
    assert planned(host_machine(), failed).steps == ()
    assert planned(host_machine(), due).steps == (steps.Copy(COPY, NEW),)


def test_a_step_on_the_host_that_runs_is_not_asked_for_twice():
    jobs = {**COPIED, f"host:{UID}:{ID}:confirm": Running()}

    assert (
        planned(host_machine(activation()), seen(host=host(NEW, OLD, activation=on_host(A.SWITCHED)), jobs=jobs)).steps
        == ()
    )


def test_a_profile_that_refuses_to_follow_leaves_the_machine_serving():
    job = f"host:{UID}:adopt:{NEW}"
    for error, outcome in (
        (Retry(Reason.BOOT_ENTRY_FAILED, "boot loader"), Outcome.REPAIRING),
        (Blocked(Reason.ACTIVATION_FAILED, "boot loader"), Outcome.STALLED),
    ):
        jobs = {**COPIED, job: Failed(error)}
        found = planned(host_machine(activation() | ran() | ready()), seen(host=host(NEW, OLD), jobs=jobs))
        assert (found.verdict.outcome, found.verdict.reason) == (outcome, error.reason)


NO_ROOM = Retry(Reason.BOOT_ENTRY_FAILED, "no space in /boot")


@pytest.mark.parametrize("job", [Failed(NO_ROOM), Failed(NO_ROOM, is_due=True), Running(last_error=NO_ROOM)])
def test_a_confirmed_system_that_the_boot_loader_refuses_gives_way_to_the_declared_one(job):
    older = activation_id(OLD, 1)
    jobs = {**COPIED, f"host:{UID}:{older}:commit": job}
    look = host(OLD, OLD, activation=on_host(A.CONFIRMED, OLD), boot_entry_unsure=True)

    found = planned(host_machine(activation(OLD)), seen(host=look, jobs=jobs))

    assert found.steps == (steps.RecordActivation(request(2), BOOT),)


def test_a_commit_that_was_cut_gives_way_to_nothing():
    older = activation_id(OLD, 1)
    jobs = {**COPIED, f"host:{UID}:{older}:commit": Failed(Retry(Reason.CONNECT_TIMEOUT, "cut"), is_due=True)}

    found = planned(
        host_machine(activation(OLD)), seen(host=host(OLD, activation=on_host(A.CONFIRMED, OLD)), jobs=jobs)
    )

    assert found.steps == (steps.Commit(f"host:{UID}:{older}:commit", older),)


@pytest.mark.parametrize("jobs", [{}, {EVALUATE: Failed(Blocked(Reason.EVALUATION_FAILED, "syntax error"))}])
def test_a_confirmed_system_that_the_boot_loader_refuses_is_tried_again(jobs):
    """Also while nobody knows what is declared now."""
    commit = f"host:{UID}:{ID}:commit"
    look = host(NEW, NEW, activation=on_host(A.CONFIRMED), boot_entry_unsure=True)

    waits = planned(host_machine(activation()), seen(host=look, jobs={**COPIED, **jobs, commit: Failed(NO_ROOM)}))
    again = planned(
        host_machine(activation()), seen(host=look, jobs={**COPIED, **jobs, commit: Failed(NO_ROOM, is_due=True)})
    )

    assert (waits.steps, again.steps) == ((), (steps.Commit(commit, ID),))
    assert waits.worst(ConditionType.CONFIGURATION_ACTIVE).reason is Reason.BOOT_ENTRY_FAILED


@pytest.mark.parametrize("mode", [Mode.BOOT, Mode.RESTART])
def test_a_system_to_be_booted_that_the_boot_loader_refuses_is_called_off_for_another(mode):
    older = activation_id(OLD, 1)
    look = host(BY_HAND, BY_HAND, activation=on_host(A.PREPARED, OLD, mode=mode, previous=BY_HAND))
    spec = {"activation": {"mode": "Boot"}}

    def steps_with(job: Failed) -> tuple[object, ...]:
        jobs = {**COPIED, f"host:{UID}:{older}:activate": job}
        return planned(host_machine(activation(OLD), **spec), seen(host=look, jobs=jobs)).steps

    assert steps_with(Failed(NO_ROOM)) == (steps.RollBack(f"host:{UID}:{older}:rollback", older),)
    assert [type(one) for one in steps_with(Failed(Retry(Reason.CONNECT_TIMEOUT, "cut"), is_due=True))] == [
        steps.Activate
    ]


@pytest.mark.parametrize("state", [A.ROLLED_BACK, A.FAILED])
def test_what_was_called_off_before_its_boot_says_nothing_about_the_system(state):
    look = host(OLD, OLD, activation=on_host(state, mode=Mode.BOOT))

    found = planned(host_machine(activation(), activation={"mode": "Boot"}), seen(host=look))

    (step,) = found.steps
    assert isinstance(step, steps.RecordActivation)
    assert step.request.attempt == 2


@pytest.mark.parametrize(
    ("returns", "step"),
    [
        pytest.param(False, "RollBack", id="it must not return by itself: this one is ended"),
        pytest.param(True, "Confirm", id="it returns by itself"),
    ],
)
def test_a_machine_that_new_connections_do_not_reach_is_mended_over_the_one_that_is_held(returns, step):
    older = activation_id(OLD, 1)
    look = host(OLD, BY_HAND, activation=on_host(A.SWITCHED, OLD, exit_status=0, previous=BY_HAND, returns=returns))
    unreached = Failed(Blocked(Reason.AUTHENTICATION_FAILED, "refused the client key"), is_due=True)
    jobs = {f"host:{UID}:{older}:confirm": unreached}
    desired = host_machine(activation(OLD), activation={"rollback": "Never"})

    mended = planned(desired, seen(host=look, jobs={**COPIED, **jobs}))
    unknown = planned(desired, seen(host=look, jobs=jobs))

    assert [type(one).__name__ for one in mended.steps] == [step]
    assert [type(one).__name__ for one in unknown.steps if isinstance(one, steps.JobStep)] == ["Evaluate", "Confirm"]


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("mode", [Mode.SWITCH, Mode.TEST, Mode.RESTART])
def test_a_way_back_that_does_not_end_is_told_with_its_log_and_the_way_around_it(unit, mode):
    """By itself the machine boots its previous system until another one is confirmed."""
    look = host(NEW, OLD, activation=on_host(A.ROLLING_BACK, unit=unit, mode=mode))

    message = planned(host_machine(activation()), seen(host=look)).verdict.message

    assert f"/var/lib/nixops/activation/{ID}/log" in message
    assert ("restart it" in message) is (mode is not Mode.RESTART)
