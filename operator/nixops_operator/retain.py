"""When `deletionPolicy: Retain` lets go of things that could not be tagged as retained. Pure; both kinds use it."""

from __future__ import annotations

from datetime import datetime, timedelta

from nixops_operator.api.conditions import changed_at
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked
from nixops_operator.objects import LeavingObject
from nixops_operator.planning import Finding
from nixops_operator.verdict import Outcome

PATIENCE = timedelta(minutes=5)
"""An identity that is refused may be allowed again; whoever asked for Retain must not wait for that for ever."""
LOOK_AGAIN = timedelta(seconds=15)
"""Between two tries."""


def is_patience_over(leaving: LeavingObject, told: ConditionType, now: datetime) -> bool:
    """Whether this object's own tries to let go, for this generation, have been refused for PATIENCE; then another one
    is useless. `told`: the condition that says so, from the first refusal on.

    Time before the deletion does not count. `now` is aware.
    """
    refused = "True" if told is ConditionType.STALLED else "False"
    for condition in leaving.status.get("conditions") or ():
        if condition["type"] == told and condition["status"] == refused:
            since = max(changed_at(condition) or now, leaving.deleted_at)
            is_of_now = condition.get("observedGeneration") == leaving.generation
            return bool(is_of_now and now - since >= PATIENCE)
    return False


def without_credentials(error: Blocked, account_id: str, *, is_over: bool) -> Finding:
    """How the way out stands while EC2 refuses to show what is to be tagged; `is_over`: whether patience is."""
    if is_over:
        return let_go_untagged(error.reason, f"what is in account {account_id}")
    message = (
        f"cannot tag what stays in account {account_id} as retained: {error.message}; "
        "if that lasts for 5 min, it is let go of without a tag"
    )
    return Finding(Outcome.WEDGED, error.reason, message, look_again=LOOK_AGAIN)


def let_go_untagged(reason: Reason, what: str) -> Finding:
    """Told by an Event, because the object that could tell it goes."""
    message = f"let go of {what} as spec.deletionPolicy says, without tagging it as retained"
    return Finding(Outcome.GONE, reason, message)
