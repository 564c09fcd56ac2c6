"""When `deletionPolicy: Retain` lets go of things that could not be tagged as retained. Pure; both kinds use it."""

from __future__ import annotations

from datetime import datetime, timedelta

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.kube import Body
from nixops_operator.verdict import Outcome, Verdict

PATIENCE = timedelta(minutes=5)
"""An identity that is refused may be allowed again; whoever asked for Retain must not wait for that for ever."""
LOOK_AGAIN = timedelta(seconds=15)
"""Between two tries."""


def is_patience_over(status: Body, generation: int, deleted_at: datetime | None, now: datetime) -> bool:
    """Whether the way out, tried for this generation, has been Stalled for PATIENCE; then another try is useless.

    Time before the deletion does not count. `now` and `deleted_at` are aware.
    """
    for condition in status.get("conditions") or ():
        if condition["type"] == ConditionType.STALLED and condition["status"] == "True":
            stalled = datetime.fromisoformat(condition["lastTransitionTime"])
            since = stalled if deleted_at is None else max(stalled, deleted_at)
            return bool(condition.get("observedGeneration") == generation and now - since >= PATIENCE)
    return False


def without_credentials(error: Blocked, account_id: str, *, is_over: bool) -> Verdict:
    """How the way out stands while EC2 refuses to show what is to be tagged; `is_over`: whether patience is."""
    if is_over:
        return let_go_untagged(error.reason, f"what is in account {account_id}")
    message = (
        f"cannot tag what stays in account {account_id} as retained: {error.message}; "
        "if that lasts for 5 min, it is let go of without a tag"
    )
    return Verdict(Outcome.WEDGED, error.reason, message, ConditionType.CREDENTIALS_READY, look_again=LOOK_AGAIN)


def let_go_untagged(reason: Reason, what: str) -> Verdict:
    """Told by an Event, because the object that could tell it goes."""
    return Verdict(
        Outcome.GONE, reason, f"let go of {what} as spec.deletionPolicy says, without tagging it as retained"
    )
