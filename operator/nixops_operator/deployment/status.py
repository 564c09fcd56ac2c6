"""What a deployment's status says, from what was seen and planned. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nixops_operator.api.conditions import Condition, Truth, conditions_of, merge_conditions
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import KeyPairStatus, MachinesStatus, RevisionStatus, SecurityGroupStatus, written
from nixops_operator.deployment import account, creations, deletion, key_pairs, machines, security_groups
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedNetwork
from nixops_operator.errors import Retry
from nixops_operator.planning import Plan, listed
from nixops_operator.ready import reached, ready_conditions
from nixops_operator.verdict import Outcome

_STANDING = (Outcome.WORKING, Outcome.RETRYING, Outcome.STALLED)
"""How a finding stands that speaks against the condition it names."""


def status(given: Desired | Leaving, observed: Observed, plan: Plan, now: datetime) -> dict[str, Any]:
    """The whole status that this pass stands for."""
    verdict, previous = plan.verdict, given.status.get("conditions") or ()
    is_serving = isinstance(given, Desired) and machines.serve(given, observed)
    wanted = ready_conditions(previous, given.generation, verdict, is_serving)
    wanted += _conditions(given, observed, plan)
    fields: dict[str, Any] = {"conditions": merge_conditions(previous, wanted, now)}
    if verdict.outcome is not Outcome.SUSPENDED or verdict.is_settled:
        fields["observedGeneration"] = given.generation
    if isinstance(given, Leaving):
        return fields
    fields |= reached(wanted, given.generation)
    if not machines.lacking_request(given, observed):
        fields |= given.requests.answered()
    network = account.usable(given, observed)
    if network is not None:
        fields |= _shared(given, observed, network)
    if given.invalid is None:
        fields |= {"machines": written(_machines(given, observed)), "revision": written(_revision(given, observed))}
    return fields


# --- conditions ---------------------------------------------------------------------------------------------------


def _conditions(given: Desired | Leaving, observed: Observed, plan: Plan) -> list[Condition]:
    def condition(kind: ConditionType, truth: Truth, reason: Reason, message: str = "") -> Condition:
        return Condition(kind, truth, reason, message, given.generation)

    found = []
    if observed.network is not None:
        found.append(condition(ConditionType.CREDENTIALS_READY, *_credentials(given, observed.network)))
    if isinstance(given, Leaving):
        refused = plan.worst(deletion.TRIED)
        if refused is not None and refused.outcome is Outcome.WEDGED:
            found.append(condition(deletion.TRIED, Truth.FALSE, refused.reason, refused.message))
        elif observed.network is not None and isinstance(observed.network.error, Retry):
            # A try that could not be made says nothing of the one before.
            found += [one for one in conditions_of({"status": given.status}) if one.type is deletion.TRIED]
        return found
    found.append(condition(ConditionType.INFRASTRUCTURE_READY, *_infrastructure(given, observed, plan)))
    found.append(condition(ConditionType.UP_TO_DATE, *_up_to_date(given, observed, plan)))
    if given.is_paused:
        found.append(condition(ConditionType.PAUSED, Truth.TRUE, Reason.SUSPENDED, plan.verdict.message))
    return found


def _credentials(given: Desired | Leaving, network: ObservedNetwork) -> tuple[Truth, Reason, str]:
    error = account.problem(given, network)
    if error is None:
        return Truth.TRUE, Reason.SUCCEEDED, ""
    # EC2 did not answer, or not yet: that says nothing of the credentials.
    return Truth.UNKNOWN if isinstance(error, Retry) else Truth.FALSE, error.reason, error.message


def _infrastructure(desired: Desired, observed: Observed, plan: Plan) -> tuple[Truth, Reason, str]:
    standing = [one for one in plan.findings if one.condition is ConditionType.INFRASTRUCTURE_READY]
    worst = max(
        (one for one in standing if one.outcome in _STANDING), key=lambda one: one.outcome.severity, default=None
    )
    if worst is not None:
        return Truth.FALSE, worst.reason, worst.message
    error = account.problem(desired, observed.network) if observed.network is not None else None
    return (Truth.TRUE, Reason.SUCCEEDED, "") if error is None else (Truth.UNKNOWN, error.reason, error.message)


def _up_to_date(desired: Desired, observed: Observed, plan: Plan) -> tuple[Truth, Reason, str]:
    """True only where everything was looked at and is equal."""
    differences = plan.differences
    if differences:
        worst = max(differences, key=lambda one: one.outcome.severity)
        return Truth.FALSE, worst.reason, listed(one.message for one in differences)
    for child in observed.children:
        told = child.condition(ConditionType.UP_TO_DATE)
        if told is not None and told.status is Truth.FALSE:
            return Truth.FALSE, told.reason, f"{child.machine}: {told.message}"
    verdict = plan.verdict
    is_equal = verdict.outcome in (Outcome.IN_SYNC, Outcome.REPORTED) or verdict.is_settled
    return (Truth.TRUE, Reason.SUCCEEDED, "") if is_equal else (Truth.UNKNOWN, verdict.reason, verdict.message)


# --- what is there ------------------------------------------------------------------------------------------------


def _shared(desired: Desired, observed: Observed, network: ObservedNetwork) -> dict[str, Any]:
    """Key pairs and groups as the spec means them now; what it does not mean any more is on its way out. One that was
    shown stays until it is sure that it has gone: on the way out it is waited for."""
    pairs = {
        one.entry: KeyPairStatus(name=one.entry, key_name=one.name)
        for one in key_pairs.wanted(desired, observed, network)
        if network.shows(one.name)
    }
    missed_pairs = {one.name: one for one in desired.key_pairs if creations.is_missed(one.key_name, network)}
    groups = {
        entry: SecurityGroupStatus(name=entry, group_id=group.id, vpc_id=group.vpc_id)
        for entry, group in security_groups.current_groups(desired, network).items()
    }
    missed_groups = {one.name: one for one in desired.security_groups if creations.is_missed(one.group_id, network)}
    return {
        "keyPairs": [written(one) for _, one in sorted((missed_pairs | pairs).items())],
        "securityGroups": [written(one) for _, one in sorted((missed_groups | groups).items())],
        "creations": [written(one) for one in creations.unshown(desired, network)],
    }


def _machines(desired: Desired, observed: Observed) -> MachinesStatus:
    wanted = [(child, observed.child(child.name)) for child in desired.children]
    ready = sum(seen is not None and seen.is_ready for _, seen in wanted)
    updated = sum(
        seen is not None and seen.is_ready and machines.is_as_written(desired, child, seen) for child, seen in wanted
    )
    return MachinesStatus(
        desired=len(wanted),
        updated=updated,
        ready=ready,
        unavailable=len(wanted) - ready,
        summary=f"{ready}/{len(wanted)}",
    )


def _revision(desired: Desired, observed: Observed) -> RevisionStatus:
    """What is wanted, what all machines last reached, and what they had before that."""
    known, target = desired.known_revision, desired.revision
    if machines.serve(desired, observed) and known.current != target:
        return RevisionStatus(current=target, target=target, previous=known.current)
    return RevisionStatus(current=known.current, target=target, previous=known.previous)
