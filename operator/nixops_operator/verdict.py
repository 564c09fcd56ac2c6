"""What a plan says of an object, beside its steps: how it stands, and in which words. Both kinds use it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, OperatorError


class Outcome(Enum):
    """How an object stands; the trio of Ready, Reconciling and Stalled follows from it."""

    IN_SYNC = "in sync"
    REPAIRING = "serving as declared, something beside it is being put right"  # Ready stays True
    LOOKING = "nothing speaks against what the status says; not everything is looked at yet"  # no status is written
    WORKING = "work is under way"
    RETRYING = "failed for now, tried again"
    STALLED = "a person or a change of spec, Secret or policy is needed"
    DRIFT_REPORTED = "another system runs, and policy says to leave it"
    SUSPENDED = "looked at, nothing is changed"
    DELETING = "on its way out"
    WEDGED = "on its way out, and a person is needed"
    GONE = "nothing of ours is left"  # the finalizer may go


@dataclass(frozen=True)
class Verdict:
    """`reason` and `message` go to the conditions unchanged. `condition`: the type that fails first, where there is
    one."""

    outcome: Outcome
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    condition: ConditionType | None = None
    look_again: timedelta | None = None  # None: at the next resync
    is_settled: bool = False  # of SUSPENDED: nothing differs, so that the newest generation counts as observed


def suspended_verdict(would_be: Verdict) -> Verdict:
    """How a suspended object stands, from how it would stand otherwise."""
    if would_be.outcome is Outcome.IN_SYNC:
        return Verdict(Outcome.SUSPENDED, Reason.SUCCEEDED, would_be.message, is_settled=True)
    message = f"suspended, nothing is changed; otherwise: {would_be.reason}: {would_be.message}"
    return Verdict(Outcome.SUSPENDED, Reason.SUSPENDED, message)


def verdict_of(error: OperatorError, condition: ConditionType | None = None) -> Verdict:
    """How an object stands when this error is all there is to say."""
    outcome = Outcome.STALLED if isinstance(error, Blocked) else Outcome.RETRYING
    return Verdict(outcome, error.reason, error.message, condition)
