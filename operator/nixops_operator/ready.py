"""Ready, Reconciling, Stalled: from a verdict to the three conditions that kubectl, Flux and Helm wait for. Pure. Both
kinds use it.

kstatus (sigs.k8s.io/cli-utils, `pkg/kstatus`) reads Reconciling=True as in progress and Stalled=True as failed, and
wants both absent when all is well; so they exist only while True, and never together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from nixops_operator.api.conditions import Condition, Truth, changed_at, conditions_of, find_condition
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.verdict import Outcome, Verdict


def ready_conditions(
    previous: Sequence[Mapping[str, Any]], generation: int, verdict: Verdict, is_serving: bool
) -> list[Condition]:
    """The three, as far as they exist. `is_serving`: the declared state runs, whatever is being put right beside it."""
    reason, message = verdict.reason, verdict.message

    def condition(kind: ConditionType, truth: Truth) -> Condition:
        return Condition(kind, truth, reason, message, generation)

    def ready(truth: Truth) -> Condition:
        return condition(ConditionType.READY, truth)

    reconciling = condition(ConditionType.RECONCILING, Truth.TRUE)
    stalled = condition(ConditionType.STALLED, Truth.TRUE)
    match verdict.outcome:
        case Outcome.IN_SYNC:
            return [Condition(ConditionType.READY, Truth.TRUE, Reason.SUCCEEDED, message, generation)]
        case Outcome.REPORTED if is_serving:
            return [Condition(ConditionType.READY, Truth.TRUE, Reason.SUCCEEDED, message, generation)]
        case Outcome.REPORTED:
            return [ready(Truth.UNKNOWN)]
        case Outcome.REPAIRING:
            return [ready(Truth.TRUE if is_serving else Truth.UNKNOWN), reconciling]
        case Outcome.WORKING:
            return [ready(Truth.UNKNOWN), reconciling]
        case Outcome.RETRYING:
            return [ready(Truth.FALSE), reconciling]
        case Outcome.STALLED:
            return [ready(Truth.FALSE), stalled]
        case Outcome.DRIFT_REPORTED | Outcome.UNHEALTHY:
            return [ready(Truth.FALSE)]
        case Outcome.SUSPENDED if verdict.is_settled:
            return [ready(Truth.TRUE)]
        case Outcome.SUSPENDED:
            # Suspended from its first apply it has no Ready yet; whoever waits must see something to wait for.
            return _unchanged(previous) or [ready(Truth.UNKNOWN)]
        case Outcome.LOOKING:
            return _unchanged(previous)
        case Outcome.WEDGED:
            return [ready(Truth.FALSE), stalled]
        case Outcome.DELETING | Outcome.GONE:
            return [ready(Truth.FALSE), reconciling]


def was_reached(status: Mapping[str, Any], generation: int) -> bool:
    """Whether this very generation was ready once, whatever it is now; what differs then is drift."""
    if status.get("reachedGeneration") == generation:
        return True
    # Earlier releases wrote the condition alone.
    ready = find_condition({"status": status}, ConditionType.READY)
    return ready is not None and ready.status is Truth.TRUE and ready.observed_generation == generation


def reached(conditions: Iterable[Condition], generation: int) -> dict[str, Any]:
    """Status fields that remember that this generation is ready; empty while it is not."""
    is_ready = any(
        one.type is ConditionType.READY and one.status is Truth.TRUE and one.observed_generation == generation
        for one in conditions
    )
    return {"reachedGeneration": generation} if is_ready else {}


def was_told(status: Mapping[str, Any], generation: int) -> bool:
    """Whether the status speaks of this very generation. Suspension leaves Ready as it was; then Paused tells."""
    told = (find_condition({"status": status}, kind) for kind in (ConditionType.READY, ConditionType.PAUSED))
    return any(one is not None and one.observed_generation == generation for one in told)


def is_deadline_passed(status: Mapping[str, Any], generation: int, deadline: timedelta, now: datetime) -> bool:
    """Whether work for this generation has been under way for longer than the deadline, or was given up waiting for."""
    for entry in status.get("conditions") or ():
        if entry.get("status") != "True" or entry.get("observedGeneration") != generation:
            continue
        if entry["type"] == ConditionType.STALLED and entry["reason"] == Reason.PROGRESS_DEADLINE_EXCEEDED:
            return True
        if entry["type"] == ConditionType.RECONCILING:
            since = changed_at(entry)
            return since is not None and now - since >= deadline
    return False


def _unchanged(previous: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """As they stand, as far as this release knows their words; another one may have written them."""
    kinds = {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED}
    return [one for one in conditions_of({"status": {"conditions": previous}}) if one.type in kinds]
