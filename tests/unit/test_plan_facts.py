"""A configuration that reads of other machines: it waits for what is not known, and follows what changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import EvaluationFailed, Retry
from nixops_operator.facts.nix import Evaluation, Waiting
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import steps
from nixops_operator.machine.observed import Observed
from nixops_operator.verdict import Outcome
from unit.builders import (
    DRV,
    EVALUATE,
    INPUT,
    NEW,
    RESOLVED,
    cloud,
    ec2_machine,
    host,
    host_machine,
    planned,
    ran,
    ready,
    seen,
    status_of,
    told,
)

PATH = "nodes.db.config.networking.privateIPv4"
TOLD = {PATH: '"10.0.0.5"'}
WAITING: dict[str, JobState] = {EVALUATE: Done(Waiting(PATH, {PATH: None}))}
AWAITED = replace(RESOLVED, awaited="db has no instance yet")
UNSEEN = replace(RESOLVED, awaited="db was not looked at yet", is_unseen=True)
OUTDATED = replace(RESOLVED, is_outdated=True)
EVALUATE_AGAIN = steps.Evaluate(EVALUATE, INPUT, is_outdated=True)
SERVING: dict[str, Any] = {**ran(), **ready()}


def awaiting(system: Any = AWAITED) -> Observed:
    return seen(host=host(), system=system, jobs=WAITING)


def evaluations(observed: Observed, status: dict[str, Any] | None = None) -> list[steps.Evaluate]:
    found = planned(host_machine(status), observed)
    return [step for step in found.steps if isinstance(step, steps.Evaluate)]


def test_a_fact_that_is_not_known_is_waited_for_by_name():
    fields = status_of(host_machine(), awaiting())
    said = {one["type"]: one["message"] for one in fields["conditions"]}
    assert told(fields)["ConfigurationBuilt"] == "False/WaitingForFacts"
    assert told(fields)["Ready"] == "Unknown/WaitingForFacts"
    assert told(fields)["Reconciling"] == "True/WaitingForFacts"
    assert said["Ready"] == said["ConfigurationBuilt"] == f"waiting for {PATH}: db has no instance yet"


def test_nothing_is_evaluated_meanwhile():
    assert evaluations(awaiting()) == []


def test_it_is_evaluated_again_when_the_fact_is_known():
    assert evaluations(awaiting(OUTDATED)) == [EVALUATE_AGAIN]


def test_an_instance_is_launched_meanwhile():
    """References never order creation: two machines may wait for each other's addresses."""
    observed = seen(cloud(), system=AWAITED, jobs=WAITING)
    found = planned(ec2_machine(), observed)
    assert any(isinstance(step, steps.RecordLaunch) for step in found.steps)


def test_what_runs_goes_on_meanwhile_and_is_not_called_ready():
    """The address that it was made for is gone; what is declared now, nobody knows."""
    fields = status_of(host_machine(SERVING), awaiting())
    assert told(fields)["Ready"] == "Unknown/WaitingForFacts"
    assert planned(host_machine(SERVING), awaiting()).steps == ()


def test_after_a_restart_of_the_operator_what_was_told_stands():
    """Nobody has looked at the other machine yet."""
    found = planned(host_machine(SERVING), awaiting(UNSEEN))
    assert found.verdict.outcome is Outcome.LOOKING


def test_a_machine_that_was_never_ready_waits_for_the_first_look_like_for_anything():
    assert planned(host_machine(), awaiting(UNSEEN)).verdict.outcome is Outcome.WORKING


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(Done(Evaluation(DRV, NEW, told=TOLD)), id="a result"),
        pytest.param(Failed(EvaluationFailed("attribute 'db' missing", TOLD)), id="a failure, long before its time"),
    ],
)
def test_what_is_not_so_any_more_is_evaluated_again_at_once(job: JobState):
    assert evaluations(seen(host=host(), system=OUTDATED, jobs={EVALUATE: job})) == [EVALUATE_AGAIN]


def test_an_outdated_system_is_not_activated():
    before = seen(host=host("/nix/store/x", "/nix/store/x"), system=OUTDATED)
    assert [type(step) for step in planned(host_machine(), before).steps] == [steps.Evaluate]


def test_a_serving_machine_stays_ready_while_it_is_evaluated_again():
    """Most of what changes changes no system."""
    again = seen(host=host(), system=OUTDATED)
    assert planned(host_machine(SERVING), again).verdict.outcome is Outcome.LOOKING


def test_an_evaluation_that_runs_is_not_begun_anew():
    assert evaluations(seen(host=host(), system=OUTDATED, jobs={EVALUATE: Running()})) == []


def test_what_failed_for_another_cause_keeps_its_time():
    failed = Failed(Retry(Reason.EVALUATING, "the box could not be made"))
    assert evaluations(seen(host=host(), jobs={EVALUATE: failed})) == []
