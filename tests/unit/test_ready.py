"""Ready, Reconciling and Stalled by outcome, as kubectl wait and kstatus read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.ready import is_deadline_passed, ready_conditions
from nixops_operator.verdict import Outcome, Verdict
from unit.builders import NOON, condition

BEFORE = [condition("Ready", "True"), condition("Reachable", "False", "ConnectTimeout")]


def told(outcome: Outcome, *, serves: bool = False, previous=(), generation: int = 3) -> dict[str, str]:
    verdict = Verdict(outcome, Reason.PROVISIONING, "text")
    return {one.type.value: one.status.value for one in ready_conditions(previous, generation, verdict, serves)}


@pytest.mark.parametrize(
    ("outcome", "serves", "expected"),
    [
        pytest.param(Outcome.IN_SYNC, True, {"Ready": "True"}, id="in sync: Current"),
        pytest.param(
            Outcome.REPAIRING, True, {"Ready": "True", "Reconciling": "True"}, id="repairing beside a serving one"
        ),
        pytest.param(
            Outcome.REPAIRING, False, {"Ready": "Unknown", "Reconciling": "True"}, id="repairing, not serving"
        ),
        pytest.param(
            Outcome.WORKING, True, {"Ready": "Unknown", "Reconciling": "True"}, id="new spec on a serving one"
        ),
        pytest.param(
            Outcome.WORKING, False, {"Ready": "Unknown", "Reconciling": "True"}, id="provisioning: InProgress"
        ),
        pytest.param(Outcome.RETRYING, False, {"Ready": "False", "Reconciling": "True"}, id="retrying: InProgress"),
        pytest.param(Outcome.STALLED, True, {"Ready": "False", "Stalled": "True"}, id="needs a person: Failed"),
        pytest.param(Outcome.DRIFT_REPORTED, False, {"Ready": "False"}, id="another system runs, Report"),
        pytest.param(Outcome.DELETING, True, {"Ready": "False", "Reconciling": "True"}, id="deleting"),
        pytest.param(Outcome.GONE, False, {"Ready": "False", "Reconciling": "True"}, id="deleting, nothing left"),
        pytest.param(Outcome.WEDGED, False, {"Ready": "False", "Stalled": "True"}, id="deletion that needs a person"),
    ],
)
def test_the_three_by_outcome(outcome, serves, expected):
    assert told(outcome, serves=serves) == expected


@pytest.mark.parametrize("outcome", list(Outcome))
def test_reconciling_and_stalled_are_never_there_together(outcome):
    assert not {"Reconciling", "Stalled"} <= told(outcome, serves=True).keys()


@pytest.mark.parametrize("outcome", [Outcome.SUSPENDED, Outcome.LOOKING])
def test_what_changes_nothing_leaves_the_three_as_they_were(outcome):
    kept = ready_conditions(BEFORE, 3, Verdict(outcome, Reason.SUSPENDED, "suspended"), is_serving=False)

    assert [(one.type.value, one.status.value, one.message, one.observed_generation) for one in kept] == [
        ("Ready", "True", "as before", 1)
    ]


def test_an_object_that_is_suspended_from_its_first_apply_has_something_to_wait_for():
    """It had no Ready at all, so that `kubectl wait` and kstatus had nothing to go by."""
    assert told(Outcome.SUSPENDED) == {"Ready": "Unknown"}


def test_reason_and_message_go_to_the_conditions_unchanged():
    for one in ready_conditions((), 3, Verdict(Outcome.WORKING, Reason.COPYING, "copying"), is_serving=False):
        assert (one.reason, one.message, one.observed_generation) == (Reason.COPYING, "copying", 3)


@pytest.mark.parametrize("kind", ["Reconciling", "Stalled"])
def test_a_time_that_is_none_ends_no_pass(kind):
    """Every pass over such an object ended in the same error, and the error kept the time."""
    told = condition(kind) | {"lastTransitionTime": "2020-01-01T00:00:00x5z"}

    assert not is_deadline_passed({"conditions": [told]}, 1, timedelta(minutes=30), NOON)
