"""How an object stands, in one word, and what is said of it. Both kinds use it; see planning.py for how it is found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, OperatorError


class Outcome(Enum):
    """How an object stands; the conditions Ready, Reconciling and Stalled follow from it (ready.py)."""

    IN_SYNC = "in sync"
    REPORTED = "serving as declared; something beside it differs, and policy says to leave it"
    REPAIRING = "serving as declared; something beside it is being put right"  # Ready stays True
    LOOKING = "nothing speaks against what the status says; not everything is looked at yet"  # no status is written
    UNHEALTHY = "the declared system runs, and is not well; nothing is to be done about it here"
    WORKING = "work is under way"
    RETRYING = "failed for now, tried again"
    STALLED = "a person or a change of spec, Secret or policy is needed"
    DRIFT_REPORTED = "another system runs, and policy says to leave it"
    SUSPENDED = "looked at, nothing is changed"
    DELETING = "on its way out"
    WEDGED = "on its way out, and a person is needed"
    GONE = "nothing of ours is left"  # the finalizer may go

    @property
    def severity(self) -> int:
        """Of several findings the one with the highest decides; the first in the walk among equals."""
        return _SEVERITY[self]


_SEVERITY = {
    outcome: place
    for place, outcome in enumerate(
        (
            Outcome.IN_SYNC,
            Outcome.REPORTED,
            Outcome.REPAIRING,
            Outcome.LOOKING,
            Outcome.UNHEALTHY,
            Outcome.WORKING,
            Outcome.DRIFT_REPORTED,
            Outcome.RETRYING,
            Outcome.STALLED,
            # Of these there is never one beside another: gates alone give them.
            Outcome.SUSPENDED,
            Outcome.DELETING,
            Outcome.WEDGED,
            Outcome.GONE,
        )
    )
}


@dataclass(frozen=True)
class Verdict:
    """`reason` and `message` go to the conditions unchanged. `condition`: the type that fails first, if any does."""

    outcome: Outcome
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    condition: ConditionType | None = None
    look_again: timedelta | None = None  # None: at the next resync
    is_settled: bool = False  # of SUSPENDED: nothing is to be done, so that the newest generation counts as observed


def verdict_of(error: OperatorError, condition: ConditionType | None = None) -> Verdict:
    """How an object stands when this error is all there is to say."""
    outcome = Outcome.STALLED if isinstance(error, Blocked) else Outcome.RETRYING
    return Verdict(outcome, error.reason, error.message, condition)
