"""Gates end the walk, repairs do not; policy is applied once, to everything that was found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, NotYet, Retry
from nixops_operator.planning import (
    Area,
    Finding,
    Gate,
    Plan,
    Repair,
    Rules,
    after_failure,
    found_error,
    listed,
    planned,
    walk,
)
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from unit.builders import NOON

O = Outcome  # noqa: E741
REACHED = Rules(was_reached=True)
REPORT = Rules(was_reached=True, reported=frozenset({Area.CLOUD}))


@dataclass(frozen=True)
class Do(Step):
    name: str = "it"


@dataclass(frozen=True)
class Look(Step):
    name: str = "at it"

    is_harmless: ClassVar[bool] = True


def finding(outcome: Outcome, message: str = "text", **more: Any) -> Finding:
    return Finding(outcome, Reason.PROVISIONING, message, **more)


def drift(outcome: Outcome = O.REPAIRING, **more: Any) -> Finding:
    return finding(outcome, "a tag differs", steps=(Do(),), differs=Area.CLOUD, **more)


def found_by(*checks: Gate[None, None] | Repair[None, None], rules: Rules | None = None) -> Plan:
    return walk(checks, None, None, NOON, rules or Rules())


def gate(answer: Finding | None) -> Gate[None, None]:
    return Gate(lambda desired, observed, now: answer)


def repair(*answers: Finding) -> Repair[None, None]:
    return Repair(lambda desired, observed, now: answers)


def test_the_first_gate_that_answers_ends_the_walk():
    plan = found_by(gate(None), gate(finding(O.WORKING, "first")), gate(finding(O.STALLED, "never asked")))

    assert plan.verdict.message == "first"


def test_a_repair_that_is_refused_keeps_nothing_below_it_from_being_done():
    """One refused rule must not keep a machine from being made (issue: one SetSecurityGroups kept a system out)."""
    plan = found_by(repair(finding(O.STALLED, "refused")), gate(finding(O.WORKING, "launch", steps=(Do("launch"),))))

    assert plan.steps == (Do("launch"),)
    assert (plan.verdict.outcome, plan.verdict.message) == (O.STALLED, "refused")


@pytest.mark.parametrize(
    ("outcomes", "worst"),
    [
        pytest.param((), O.IN_SYNC, id="nothing found"),
        pytest.param((O.IN_SYNC, O.REPAIRING), O.REPAIRING, id="work beside what serves"),
        pytest.param((O.REPAIRING, O.WORKING), O.WORKING, id="not serving yet"),
        pytest.param((O.WORKING, O.RETRYING), O.RETRYING, id="failed for now"),
        pytest.param((O.RETRYING, O.STALLED, O.WORKING), O.STALLED, id="a person is needed"),
        pytest.param((O.REPORTED, O.REPAIRING), O.REPAIRING, id="something is being put right"),
    ],
)
def test_the_verdict_is_the_worst_of_what_was_found(outcomes, worst):
    assert planned([finding(outcome) for outcome in outcomes], REACHED).verdict.outcome is worst


def test_among_equals_the_first_in_the_walk_is_told():
    assert planned([finding(O.STALLED, "first"), finding(O.STALLED, "second")], REACHED).verdict.message == "first"


def test_the_soonest_look_counts():
    found = [finding(O.STALLED), finding(O.WORKING, look_again=timedelta(seconds=2))]

    assert planned(found, REACHED).verdict.look_again == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("given", "rules", "outcome", "steps"),
    [
        pytest.param(drift(), REACHED, O.REPAIRING, 1, id="Enforce: put back, Ready stays"),
        pytest.param(drift(), REPORT, O.REPORTED, 0, id="Report: left, and told"),
        pytest.param(drift(), Rules(), O.WORKING, 1, id="never reached: carried out for the first time"),
        pytest.param(
            drift(),
            Rules(reported=frozenset({Area.CLOUD})),
            O.WORKING,
            1,
            id="an edit is carried out under Report, too",
        ),
        pytest.param(
            drift(O.STALLED), REACHED, O.STALLED, 1, id="what cannot be carried out: the promise does not hold"
        ),
        pytest.param(
            drift(O.STALLED), REPORT, O.REPORTED, 0, id="a person changed what cannot be changed back, Report"
        ),
        pytest.param(
            drift(O.WORKING, is_drift=True, left_as=O.STALLED),
            Rules(reported=frozenset({Area.CLOUD})),
            O.STALLED,
            0,
            id="stopped by hand, Report: it does not serve",
        ),
        pytest.param(
            finding(O.WORKING, differs=Area.HOST, is_drift=True, steps=(Do(),)),
            Rules(reported=frozenset({Area.HOST})),
            O.DRIFT_REPORTED,
            0,
            id="another system runs, Report",
        ),
        pytest.param(
            finding(O.REPAIRING, differs=Area.HOST, is_drift=True, steps=(Do(),)),
            REPORT,
            O.REPAIRING,
            1,
            id="the other area's policy says nothing",
        ),
    ],
)
def test_policy_decides_what_a_difference_leads_to(given, rules, outcome, steps):
    plan = planned([given], rules)

    assert (plan.verdict.outcome, len(plan.steps)) == (outcome, steps)


def test_a_suspended_object_is_only_looked_at():
    plan = planned([finding(O.WORKING, "launching", steps=(Do(), Look()))], Rules(is_suspended=True))

    assert plan.steps == (Look(),)
    assert (plan.verdict.outcome, plan.verdict.is_settled) == (O.SUSPENDED, False)
    assert "otherwise: Provisioning: launching" in plan.verdict.message


def test_a_suspended_object_with_nothing_to_do_is_settled():
    assert planned([], Rules(is_suspended=True)).verdict.is_settled


def test_deletion_wins_over_suspension_and_deadline():
    plan = planned([finding(O.DELETING, steps=(Do(),))], Rules(is_suspended=True, deadline_passed=True))

    assert plan.verdict.outcome is O.DELETING
    assert plan.steps == (Do(),)


@pytest.mark.parametrize("outcome", [O.WORKING, O.RETRYING])
def test_past_the_deadline_a_person_is_told_and_work_goes_on(outcome):
    plan = planned([finding(outcome, steps=(Do(),))], Rules(deadline_passed=True))

    assert (plan.verdict.outcome, plan.verdict.reason) == (O.STALLED, Reason.PROGRESS_DEADLINE_EXCEEDED)
    assert plan.steps == (Do(),)


def test_what_was_not_looked_at_yet_is_no_work_for_what_was_ready():
    first_look = found_error(NotYet("asked"))

    assert planned([first_look], REACHED).verdict.outcome is O.LOOKING
    assert planned([first_look], Rules()).verdict.outcome is O.WORKING
    assert planned([first_look, finding(O.WORKING)], REACHED).verdict.outcome is O.WORKING


@pytest.mark.parametrize(
    ("before", "error", "outcome", "message"),
    [
        pytest.param(O.WORKING, Retry(Reason.THROTTLED, "slow"), O.RETRYING, "slow", id="failed for now"),
        pytest.param(O.WORKING, Blocked(Reason.ACCESS_DENIED, "no"), O.STALLED, "no", id="refused"),
        pytest.param(O.REPAIRING, Retry(Reason.THROTTLED, "slow"), O.REPAIRING, "text: slow", id="goes on serving"),
        pytest.param(O.REPAIRING, Blocked(Reason.ACCESS_DENIED, "no"), O.STALLED, "no", id="cannot be put right"),
        pytest.param(O.DELETING, Retry(Reason.THROTTLED, "slow"), O.DELETING, "slow", id="the way out goes on"),
        pytest.param(O.DELETING, Blocked(Reason.ACCESS_DENIED, "no"), O.WEDGED, "no", id="the way out is blocked"),
        pytest.param(O.STALLED, Retry(Reason.THROTTLED, "slow"), O.STALLED, "text", id="the check's own words stand"),
    ],
)
def test_a_failed_step_tells_on_its_own_finding(before, error, outcome, message):
    after = after_failure(finding(before, condition=ConditionType.UP_TO_DATE), error)

    assert (after.outcome, after.message, after.condition) == (outcome, message, ConditionType.UP_TO_DATE)


@pytest.mark.parametrize("before", [O.WORKING, O.REPAIRING, O.DELETING])
def test_what_a_refused_step_would_have_done_is_not_looked_for(before):
    """A refused volume made passes every two seconds until a person came."""
    soon = finding(before, look_again=timedelta(seconds=2))

    assert after_failure(soon, Blocked(Reason.ACCESS_DENIED, "no")).look_again is None
    assert after_failure(soon, Retry(Reason.THROTTLED, "slow")).look_again == timedelta(seconds=2)


def test_all_differences_are_listed_sorted_and_bounded():
    assert listed(["b", "a", "b"]) == "a; b"
    assert listed(str(number) for number in range(10, 22)).endswith("17; and 4 more")
