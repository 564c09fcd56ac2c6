"""A machine's health decides whether a new system is confirmed, and what is said of it ever after; never whether it is
activated again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.health_check import HealthCheck
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.health import CheckResult, ExecProbe, HttpProbe, Standing, TcpProbe, UnitsProbe
from nixops_operator.facts.host import ActivationState
from nixops_operator.jobs import Running
from nixops_operator.machine import health, steps
from nixops_operator.machine.observed import ObservedHost
from nixops_operator.verdict import Outcome
from unit.builders import (
    COPIED,
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
    ready,
    seen,
    status_of,
    told,
    trio_of,
)

A = ActivationState
ID = activation_id(NEW, 1)
CHECKS: dict[str, Any] = {
    "healthChecks": [
        {"name": "page", "http": {"port": 80}},
        {"name": "mail", "tcp": {"port": 25}, "initialDelay": "3m"},
    ]
}
UNIT = "httpd.service"
PASS, UNKNOWN, FAIL = Standing.PASSES, Standing.UNKNOWN, Standing.FAILS
HOLD = steps.Hold(f"host:{UID}:{ID}:hold", ID, timedelta(seconds=180 + 3 * 15 + 60))
CONFIRM = steps.Confirm(f"host:{UID}:{ID}:confirm", ID)
ROLL_BACK = steps.RollBack(f"host:{UID}:{ID}:rollback", ID)
SERVED = activation(result="Succeeded") | ran() | ready()


def with_health(found: ObservedHost, page: Standing = PASS, mail: Standing = PASS) -> ObservedHost:
    words = {FAIL: "port 80 answers 503, not 200"}
    results = (CheckResult("page", page, 0, words.get(page, "")), CheckResult("mail", mail, 0, words.get(mail, "")))
    return ObservedHost(found.address, found.error, found.facts, found.host_keys, results)


def switched(*, held: bool = True, before: tuple[str, ...] = (), **fields: Any) -> ObservedHost:
    """Another system runs, and is not confirmed."""
    on = on_host(A.SWITCHED, exit_status=0, result="success", held=held, failed_before=before)
    return host(NEW, OLD, activation=on, **fields)


def serving(**fields: Any) -> ObservedHost:
    return host(activation=on_host(A.COMMITTED, exit_status=0, failed_before=("old.service",)), **fields)


# --- before it is confirmed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "step"),
    [
        pytest.param(with_health(switched(held=False)), HOLD, id="reached anew, and told to wait"),
        pytest.param(with_health(switched(), mail=UNKNOWN), None, id="one check is not decided: waited for"),
        pytest.param(switched(), None, id="nothing was asked yet: waited for"),
        pytest.param(with_health(switched()), CONFIRM, id="all pass: confirmed"),
        pytest.param(
            with_health(switched(before=(UNIT,), failed_units=(UNIT,))),
            CONFIRM,
            id="a unit had failed before: confirmed",
        ),
    ],
)
def test_a_switched_machine_is_confirmed_when_it_is_well(found, step):
    plan = planned(host_machine(activation(), **CHECKS), seen(host=found))

    assert plan.steps == ((step,) if step is not None else ())
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.WORKING, Reason.CONFIRMING)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(with_health(switched(), page=FAIL), "page: port 80 answers 503, not 200", id="a check"),
        pytest.param(
            with_health(switched(failed_units=(UNIT,)), mail=UNKNOWN),
            "units failed that had not before the last activation: httpd.service",
            id="a unit that had not failed before",
        ),
    ],
)
def test_what_is_not_well_is_remembered_and_rolled_back(found, says):
    plan = planned(host_machine(activation(), **CHECKS), seen(host=found))

    remember, back = plan.steps
    assert isinstance(remember, steps.RecordRevisions)
    (failure,) = remember.failed
    assert (failure.toplevel, failure.reason) == (NEW, Reason.HEALTH_CHECK_FAILED)
    assert failure.message == f"health checks failed: {says}"
    assert back == ROLL_BACK
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.WORKING, Reason.ROLLING_BACK)


def unwell() -> dict[str, Any]:
    status = failed(NEW)
    status["failedRevisions"][0] |= {"reason": "HealthCheckFailed", "message": "health checks failed: page"}
    return status


def test_what_was_remembered_before_the_operator_died_is_rolled_back_all_the_same():
    found = seen(host=with_health(switched(), page=FAIL))
    running = {**COPIED, ROLL_BACK.job: Running()}

    assert planned(host_machine(activation() | unwell(), **CHECKS), found).steps == (ROLL_BACK,)
    assert planned(host_machine(activation() | unwell(), **CHECKS), seen(host=found.host, jobs=running)).steps == ()


def test_back_again_it_says_which_check_failed_and_is_not_tried_again():
    desired = host_machine(activation() | unwell(), **CHECKS)
    back = host(OLD, OLD, activation=on_host(A.ROLLED_BACK, exit_status=0, result="success", held=True))

    plan = planned(desired, seen(host=back))

    (step,) = plan.steps
    assert isinstance(step, steps.RecordRevisions)
    assert (step.failed, step.result) == (desired.failed_revisions, "RolledBack")
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.HEALTH_CHECK_FAILED)
    assert plan.verdict.message.startswith("health checks failed: page; the previous system runs again")
    trio = trio_of(desired, seen(host=back))
    assert (trio["Ready"], trio["ConfigurationActive"]) == ("False/HealthCheckFailed", "False/RolledBack")


def test_without_checks_a_failed_unit_is_no_reason_to_return():
    assert planned(host_machine(activation()), seen(host=switched(failed_units=(UNIT,)))).steps == (CONFIRM,)


def test_the_longest_checks_that_can_be_declared_are_decided_in_the_time_that_a_machine_grants():
    slow = {"initialDelay": "3m", "period": "30s", "timeout": "30s", "failureThreshold": 5}
    desired = host_machine(healthChecks=[{"name": "slow", "tcp": {"port": 1}, **slow}])

    assert health.budget(health.checks_of(desired.spec.health_checks)) <= timedelta(seconds=600)


# --- ever after -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "ready_is", "healthy_is"),
    [
        pytest.param(with_health(serving()), "True/Succeeded", "True/Succeeded", id="well"),
        pytest.param(with_health(serving(), page=FAIL), "False/CheckFailed", "False/CheckFailed", id="a check fails"),
        pytest.param(
            with_health(serving(failed_units=(UNIT,))), "False/UnitsFailed", "False/UnitsFailed", id="a unit fails"
        ),
        pytest.param(
            with_health(serving(failed_units=("old.service",))),
            "True/Succeeded",
            "True/Succeeded",
            id="a unit that had failed before the activation",
        ),
    ],
)
def test_health_is_told_and_nothing_is_done_about_it(found, ready_is, healthy_is):
    desired = host_machine(SERVED, **CHECKS)

    trio = trio_of(desired, seen(host=found))

    assert (trio["Ready"], trio["Healthy"]) == (ready_is, healthy_is)
    assert not {"Reconciling", "Stalled"} & trio.keys()
    assert planned(desired, seen(host=found)).steps == ()


def test_a_new_process_that_has_not_asked_yet_changes_nothing():
    found = seen(host=with_health(serving(), page=UNKNOWN))

    assert planned(host_machine(SERVED, **CHECKS), found).verdict.outcome is Outcome.LOOKING


def test_a_check_that_was_just_declared_is_waited_for():
    edited = host_machine(SERVED, generation=2, **CHECKS)

    trio = trio_of(edited, seen(host=with_health(serving(), page=UNKNOWN)))

    assert (trio["Ready"], trio["Healthy"]) == ("Unknown/Confirming", "Unknown/Confirming")


def test_a_profile_that_has_to_follow_hides_no_bad_health():
    found = seen(host=with_health(host(NEW, OLD, activation=on_host(A.COMMITTED)), page=FAIL))

    assert trio_of(host_machine(SERVED, **CHECKS), found)["Ready"] == "False/CheckFailed"


def test_without_checks_nothing_is_said_of_health():
    fields = status_of(host_machine(SERVED), seen(host=serving(failed_units=(UNIT,))))

    assert ConditionType.HEALTHY not in told(fields)
    assert told(fields)["Ready"] == "True/Succeeded"


FAILING = on_host(A.COMMITTED, exit_status=4, result="exit-code", failed_before=("old.service",))


@pytest.mark.parametrize(
    ("found", "named"),
    [
        pytest.param(host(activation=FAILING, failed_units=(UNIT, "old.service")), UNIT, id="one failed"),
        pytest.param(host(activation=FAILING, failed_units=("old.service",)), "", id="it is well again"),
        pytest.param(host(activation=FAILING, failed_units=(UNIT,), boot_id="later"), "", id="in a later boot"),
        pytest.param(serving(failed_units=(UNIT,)), "", id="it failed after the activation"),
    ],
)
def test_without_checks_a_ready_machine_names_the_units_that_its_activation_left_failed(found, named):
    conditions = status_of(host_machine(SERVED), seen(host=found))["conditions"]
    messages = {one["type"]: one["message"] for one in conditions}

    for told_by in (ConditionType.READY, ConditionType.CONFIGURATION_ACTIVE):
        assert (f"units failed when it was activated: {UNIT}." in messages[told_by]) is bool(named)
        assert "old.service" not in messages[told_by]
    assert told(status_of(host_machine(SERVED), seen(host=found)))["Ready"] == "True/Succeeded"


@pytest.mark.parametrize(
    ("state", "about"),
    [(A.SWITCHING, False), (A.ROLLING_BACK, False), (A.PREPARED, False), (A.SWITCHED, True), (A.COMMITTED, True)],
)
def test_nothing_is_asked_between_two_systems(state, about):
    facts = host(activation=on_host(state)).facts
    assert facts is not None
    assert (health.subject(facts) is not None) is about


def test_each_kind_is_asked_as_declared():
    declared = [
        {"name": "a", "http": {"port": 80}},
        {"name": "b", "tcp": {"port": 25}},
        {"name": "c", "units": ["x.service"]},
        {"name": "d", "exec": {"command": ["true", "x"]}},
    ]
    checks = health.checks_of(tuple(HealthCheck.model_validate(one, strict=False) for one in declared))

    assert [check.probe for check in checks] == [
        HttpProbe(80, "localhost", "/", 200),
        TcpProbe(25),
        UnitsProbe(("x.service",)),
        ExecProbe(("true", "x")),
    ]
    assert (checks[0].initial_delay, checks[0].period, checks[0].timeout) == (
        timedelta(),
        timedelta(seconds=10),
        timedelta(seconds=5),
    )
