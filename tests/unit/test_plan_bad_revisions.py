"""A system that went wrong is remembered, and not tried again until somebody asks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.host import ActivationRequest, ActivationState
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import steps
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from unit.builders import (
    BOOT,
    BUILT,
    BY_HAND,
    COPY,
    NEW,
    OLD,
    UID,
    activation,
    activation_id,
    failed,
    host,
    host_machine,
    on_host,
    planned,
    ran,
    seen,
    silent,
    status_of,
)

A = ActivationState
ASKED = {"nixops.dev/reconcile-requested-at": "now"}
EXIT_2 = on_host(A.ROLLED_BACK, exit_status=2, result="exit-code")


def another_attempt(attempt: int = 2) -> ActivationRequest:
    return ActivationRequest(NEW, OLD, attempt, timedelta(minutes=30), timedelta(seconds=60))


def of(kind: type[Step], found: tuple[Step, ...]) -> list[Step]:
    return [step for step in found if isinstance(step, kind)]


LOCKED_OUT = Blocked(Reason.AUTHENTICATION_FAILED, "192.0.2.10 refused the client key for root; check it")
CONFIRM = f"host:{UID}:{activation_id(NEW, 1)}:confirm"


@pytest.mark.parametrize(
    "met",
    [
        pytest.param(seen(host=silent(LOCKED_OUT)), id="no connection is left"),
        pytest.param(
            seen(host=host(NEW, OLD, activation=on_host(A.SWITCHED)), jobs={CONFIRM: Failed(LOCKED_OUT)}),
            id="one is held, and a new one refused",
        ),
        pytest.param(
            seen(host=host(NEW, OLD, activation=on_host(A.SWITCHED)), jobs={CONFIRM: Running(last_error=LOCKED_OUT)}),
            id="and is tried again",
        ),
    ],
)
def test_what_kept_the_operator_out_is_told_when_the_machine_is_back(met):
    told = status_of(host_machine(activation()), met)["activation"]
    back = on_host(A.ROLLED_BACK, exit_status=0, result="success")

    found = planned(host_machine({"activation": told}), seen(host=host(OLD, OLD, activation=back)))

    assert found.verdict.message.startswith(
        "the new system could not be reached over a new connection within activation.confirmTimeout: "
        "192.0.2.10 refused the client key for root. It has to let root in on port 22; the previous system runs again"
    )


def test_what_kept_the_operator_out_is_told_in_one_line():
    endless = Retry(Reason.CONNECT_TIMEOUT, "x" * 900)
    spec = {"target": {"host": {"address": "192.0.2.10", "port": 65535}}}
    told = status_of(host_machine(activation(), **spec), seen(host=silent(endless)))["activation"]
    back = on_host(A.ROLLED_BACK, exit_status=0, result="success")

    found = planned(host_machine({"activation": told}, **spec), seen(host=host(OLD, OLD, activation=back)))

    (written,) = of(steps.RecordRevisions, found.steps)
    assert len(written.failed[0].message) <= 256


@pytest.mark.parametrize(
    ("last", "says", "back"),
    [
        pytest.param(
            on_host(A.ROLLED_BACK, exit_status=0, result="success"),
            "the new system could not be reached over a new connection within activation.confirmTimeout",
            "the previous system runs again",
            id="not confirmed in time",
        ),
        pytest.param(
            EXIT_2,
            "switch-to-configuration ended with exit code 2",
            "the previous system runs again",
            id="mixed: exit 2",
        ),
        pytest.param(
            on_host(A.ROLLED_BACK, result="timeout"),
            "switch-to-configuration did not end within activation.timeout",
            "the previous system runs again",
            id="switch timed out",
        ),
        pytest.param(
            on_host(A.ROLLED_BACK, result="signal"),
            "switch-to-configuration did not end by itself",
            "the previous system runs again",
            id="switch was killed",
        ),
        pytest.param(
            on_host(A.FAILED, exit_status=1, result="exit-code"),
            "switch-to-configuration ended with exit code 1",
            "nothing was changed",
            id="refused: exit 1",
        ),
    ],
)
def test_a_bad_revision_is_written_down_and_not_tried_again(last, says, back):
    found = planned(host_machine(activation()), seen(host=host(OLD, OLD, activation=last)))

    (step,) = found.steps
    assert isinstance(step, steps.RecordRevisions)
    (failure,) = step.failed
    assert (failure.toplevel, failure.message, failure.exit_status) == (NEW, says, last.exit_status)
    assert step.result == ("Failed" if last.state is A.FAILED else "RolledBack")
    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.ACTIVATION_FAILED)
    assert found.verdict.message.startswith(f"{says}; {back}. Change the configuration, or ask again")


def test_what_is_written_down_is_not_written_again():
    known = host_machine(activation(result="RolledBack") | failed(NEW))

    found = planned(known, seen(host=host(OLD, OLD, activation=EXIT_2)))

    assert (found.steps, found.verdict.reason) == ((), Reason.ACTIVATION_FAILED)


def test_it_is_remembered_when_another_one_has_run_in_between():
    """Two revisions that follow each other as often as somebody pushes and reverts; the bad one disturbs once."""
    known = host_machine(activation(BY_HAND, 2, "Succeeded") | failed(NEW))

    found = planned(known, seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED, BY_HAND, 2))))

    assert (found.steps, found.verdict.reason) == ((), Reason.ACTIVATION_FAILED)
    assert "it went wrong before: switch-to-configuration ended with exit code 2" in found.verdict.message


def test_it_is_written_down_before_another_systems_intent_takes_its_place():
    last = on_host(A.ROLLED_BACK, BY_HAND, exit_status=2, result="exit-code")

    found = planned(host_machine(activation(BY_HAND)), seen(host=host(OLD, OLD, activation=last)))

    assert [type(step) for step in found.steps] == [steps.RecordRevisions, steps.RecordActivation]


def test_no_result_is_told_before_it_is_written_down():
    """Else a pass whose write of it failed would have forgotten it."""
    last = host(OLD, OLD, activation=EXIT_2)

    assert status_of(host_machine(activation()), seen(host=last))["activation"]["result"] is None


def test_five_are_remembered_the_newest_last():
    names = [f"/nix/store/{number}{'0' * 31}-nixos-system-web-25.11" for number in range(5)]

    found = planned(host_machine(activation() | failed(*names)), seen(host=host(OLD, OLD, activation=EXIT_2)))

    (step,) = found.steps
    assert isinstance(step, steps.RecordRevisions)
    assert [one.toplevel for one in step.failed] == [*names[1:], NEW]


@pytest.mark.parametrize(
    "annotation", ["nixops.dev/reconcile-requested-at", "reconcile.fluxcd.io/requestedAt"], ids=["ours", "Flux's"]
)
def test_a_request_forgets_all_of_them(annotation):
    status = activation(result="RolledBack") | failed(BY_HAND, NEW)

    found = planned(host_machine(status, annotations={annotation: "now"}), seen(host=host(OLD, OLD, activation=EXIT_2)))

    assert found.steps == (steps.RecordRevisions(()), steps.RecordActivation(another_attempt(), BOOT))


def test_a_request_counts_also_where_the_system_has_to_be_copied_again():
    """It is answered by the pass that sees it; the attempt may come passes later."""
    asked = host_machine(activation() | failed(NEW), annotations=ASKED)
    away = seen(host=host(OLD, OLD, activation=EXIT_2), jobs=BUILT)
    answered = host_machine(activation(result="RolledBack") | {"lastHandledReconcileAt": "now"}, annotations=ASKED)

    assert planned(asked, away).steps == (steps.RecordRevisions((), "RolledBack"), steps.Copy(COPY, NEW))
    assert planned(answered, away).steps == (steps.Copy(COPY, NEW),)


def test_an_answered_request_is_not_answered_again():
    known = host_machine(
        activation(result="RolledBack") | failed(NEW) | {"lastHandledReconcileAt": "now"}, annotations=ASKED
    )

    assert planned(known, seen(host=host(OLD, OLD, activation=EXIT_2))).steps == ()


def test_one_that_runs_after_all_is_forgotten():
    found = planned(host_machine(activation(result="RolledBack") | ran() | failed(NEW)), seen(host=host(NEW, NEW)))

    assert found.steps == (steps.RecordRevisions(()),)


def test_an_attempt_of_an_earlier_life_of_this_object_says_nothing():
    found = planned(host_machine(), seen(host=host(OLD, OLD, activation=on_host(A.ROLLED_BACK))))

    assert found.steps == (steps.RecordActivation(another_attempt(), BOOT),)


def test_somebody_elses_lock_says_nothing():
    last = on_host(A.FAILED, exit_status=11, result="exit-code")

    assert of(steps.RecordRevisions, planned(host_machine(activation()), seen(host=host(activation=last))).steps) == []


ALONE = on_host(A.ROLLED_BACK, exit_status=0, result="success")
ALONE_WITH_UNITS = on_host(A.ROLLED_BACK, exit_status=4, result="exit-code")
RESTARTED = on_host(A.SWITCHED, exit_status=0, result="success", boot="boot-0")


@pytest.mark.parametrize(
    ("last", "says"),
    [
        pytest.param(ALONE, "twice nobody confirmed the new system", id="nobody there"),
        pytest.param(ALONE_WITH_UNITS, "twice nobody confirmed the new system", id="nobody there, units failed"),
        pytest.param(RESTARTED, "twice the machine restarted before", id="restarted"),
    ],
)
def test_an_end_that_says_nothing_is_repeated_once(last, says):
    """The operator did not run, or somebody restarted the machine. Once, because a system that cuts the operator off
    from everything, or that brings the kernel down, looks the same."""
    back = seen(host=host(OLD, OLD, activation=last))

    first = planned(host_machine(activation(awaited=False)), back)
    second = planned(host_machine(activation(awaited=False, repeated=True)), back)

    assert first.steps == (steps.RecordActivation(another_attempt(), BOOT, is_repeat=True),)
    assert of(steps.RecordActivation, second.steps) == []
    (step,) = of(steps.RecordRevisions, second.steps)
    assert isinstance(step, steps.RecordRevisions)
    assert step.failed[0].message.startswith(says)
    assert (second.verdict.outcome, second.verdict.reason) == (Outcome.STALLED, Reason.ACTIVATION_FAILED)


def test_a_switch_that_failed_is_not_tried_again_because_nobody_watched():
    found = planned(host_machine(activation(awaited=False)), seen(host=host(OLD, OLD, activation=EXIT_2)))

    assert of(steps.RecordActivation, found.steps) == []


def test_a_suspended_machine_remembers():
    found = planned(host_machine(activation(), suspend=True), seen(host=host(OLD, OLD, activation=EXIT_2)))

    assert [type(step) for step in found.steps] == [steps.RecordRevisions]


def test_a_status_of_a_later_release_is_read_as_far_as_it_goes():
    status = activation(result="RolledBack") | {"failedRevisions": [{"unknown": 1}, *failed(NEW)["failedRevisions"]]}

    assert [one.toplevel for one in host_machine(status).failed_revisions] == [NEW]


def test_a_failure_on_the_way_to_the_machine_says_nothing():
    jobs = {**BUILT, COPY: Failed(Retry(Reason.COPY_FAILED, "cut"))}

    found = planned(host_machine(activation(result="Succeeded")), seen(host=host(OLD, OLD), jobs=jobs))

    assert of(steps.RecordRevisions, found.steps) == []
