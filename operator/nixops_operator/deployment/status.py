"""What a deployment's status says, from what was seen and planned. Pure."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from nixops_operator import names
from nixops_operator.api.conditions import Condition, Truth, merge_conditions
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment.observed import Desired, Observed
from nixops_operator.deployment.plan import Plan
from nixops_operator.ready import ready_conditions
from nixops_operator.verdict import Outcome, Verdict


def status(desired: Desired, observed: Observed, plan: Plan, now: datetime) -> dict[str, Any]:
    """The whole status that this pass stands for."""
    verdict = plan.verdict
    previous = desired.status.get("conditions", ())
    wanted = ready_conditions(previous, desired.generation, verdict, _serves(desired, observed))
    wanted += _conditions(desired, observed, verdict)
    fields: dict[str, Any] = {"conditions": merge_conditions(previous, wanted, now)}
    if verdict.outcome is not Outcome.SUSPENDED or verdict.is_settled:
        fields["observedGeneration"] = desired.generation
    if desired.reconcile_request is not None:
        fields["lastHandledReconcileAt"] = desired.reconcile_request
    fields |= _network(observed)
    if desired.invalid is None:
        fields |= {"machines": _machines(desired, observed), "revision": _revision(desired, observed)}
    return fields


def _serves(desired: Desired, observed: Observed) -> bool:
    found = [observed.child(child.name) for child in desired.children]
    return all(child is not None and child.is_ready for child in found)


def _conditions(desired: Desired, observed: Observed, verdict: Verdict) -> list[Condition]:
    def condition(kind: ConditionType, truth: Truth, reason: Reason, message: str = "") -> Condition:
        return Condition(kind, truth, reason, message, desired.generation)

    found: list[Condition] = []
    network = observed.network
    if network is not None:
        error = network.error
        found.append(
            condition(ConditionType.CREDENTIALS_READY, Truth.FALSE, error.reason, error.message)
            if error is not None
            else condition(ConditionType.CREDENTIALS_READY, Truth.TRUE, Reason.SUCCEEDED)
        )
    if verdict.outcome not in (Outcome.DELETING, Outcome.GONE, Outcome.WEDGED):
        for kind in (ConditionType.INFRASTRUCTURE_READY, ConditionType.UP_TO_DATE):
            if verdict.condition is kind:
                found.append(condition(kind, Truth.FALSE, verdict.reason, verdict.message))
            elif network is not None and network.error is not None:
                found.append(condition(kind, Truth.UNKNOWN, network.error.reason, network.error.message))
            else:
                found.append(condition(kind, Truth.TRUE, Reason.SUCCEEDED))
    if desired.is_paused and not desired.is_deleting:
        found.append(condition(ConditionType.PAUSED, Truth.TRUE, Reason.SUSPENDED, verdict.message))
    return found


def _network(observed: Observed) -> dict[str, Any]:
    network = observed.network
    if network is None or network.error is not None:
        return {}
    return {
        "keyPairs": [
            {"name": pair.tags.get(names.ENTRY_TAG, pair.name), "keyName": pair.name}
            for pair in _one_per_entry(network.key_pairs)
        ],
        "securityGroups": [
            {"name": group.tags.get(names.ENTRY_TAG, group.name), "groupId": group.id, "vpcId": group.vpc_id}
            for group in _one_per_entry(network.groups)
        ],
    }


def _one_per_entry(things: tuple[Any, ...]) -> list[Any]:
    """Sorted by entry; while one replaces another, the newer id stands for both."""
    found = {thing.tags.get(names.ENTRY_TAG, thing.name): thing for thing in sorted(things, key=lambda t: str(t.id))}
    return [found[entry] for entry in sorted(found)]


def _revision(desired: Desired, observed: Observed) -> dict[str, Any]:
    """Short hashes of the machines' specs: what is wanted, what all machines last reached, and what they had before
    that."""
    specs = {child.name: dict(child.spec) for child in desired.children}
    target = hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:8]
    known = desired.status.get("revision") or {}
    current, previous = known.get("current"), known.get("previous")
    is_reached = all(
        (seen := observed.child(child.name)) is not None and seen.is_ready and seen.body["spec"] == child.spec
        for child in desired.children
    )
    if is_reached and current != target:
        current, previous = target, current
    found = {"current": current, "target": target, "previous": previous}
    return {name: value for name, value in found.items() if value is not None}


def _machines(desired: Desired, observed: Observed) -> dict[str, Any]:
    wanted = [(child, observed.child(child.name)) for child in desired.children]
    ready = sum(seen is not None and seen.is_ready for _, seen in wanted)
    updated = sum(seen is not None and seen.body["spec"] == child.spec and seen.is_ready for child, seen in wanted)
    return {
        "desired": len(wanted),
        "updated": updated,
        "ready": ready,
        "unavailable": len(wanted) - ready,
        "summary": f"{ready}/{len(wanted)}",
    }
