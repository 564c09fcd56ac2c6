"""Ready, Reconciling, Stalled: from a verdict to the three conditions that kubectl, Flux, Helm and Argo CD wait for.
Pure. Both kinds use it.

kstatus (sigs.k8s.io/cli-utils, `pkg/kstatus`) reads Reconciling=True as in progress and Stalled=True as failed, and
wants both absent when all is well; so
they exist only while True, and never together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nixops_operator.api.conditions import Condition, Truth
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
        case Outcome.REPAIRING:
            return [ready(Truth.TRUE if is_serving else Truth.UNKNOWN), reconciling]
        case Outcome.WORKING:
            return [ready(Truth.UNKNOWN), reconciling]
        case Outcome.RETRYING:
            return [ready(Truth.FALSE), reconciling]
        case Outcome.STALLED:
            return [ready(Truth.FALSE), stalled]
        case Outcome.DRIFT_REPORTED:
            return [ready(Truth.FALSE)]
        case Outcome.SUSPENDED if verdict.is_settled:
            return [ready(Truth.TRUE)]
        case Outcome.SUSPENDED | Outcome.LOOKING:
            return _unchanged(previous)
        case Outcome.WEDGED:
            return [ready(Truth.FALSE), stalled]
        case Outcome.DELETING | Outcome.GONE:
            return [ready(Truth.FALSE), reconciling]


def _unchanged(previous: Sequence[Mapping[str, Any]]) -> list[Condition]:
    kinds = {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED}
    return [
        Condition(
            ConditionType(entry["type"]),
            Truth(entry["status"]),
            Reason(entry["reason"]),
            entry.get("message", ""),
            entry.get("observedGeneration", -1),
        )
        for entry in previous
        if entry["type"] in {kind.value for kind in kinds}
    ]
