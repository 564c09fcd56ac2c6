"""What a machine's status says, from what was seen and planned. Pure; one status, written only if it differs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nixops_operator.api.conditions import Condition, Truth, merge_conditions
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.host import ActivationState, HostFacts
from nixops_operator.jobs import Done, Failed
from nixops_operator.machine import activation
from nixops_operator.machine.observed import Desired, Observed
from nixops_operator.machine.plan import Plan, differs_in_groups, toplevel_of
from nixops_operator.ready import ready_conditions
from nixops_operator.verdict import Outcome, Verdict

_CREDENTIAL_REASONS = frozenset(
    {Reason.SECRET_NOT_FOUND, Reason.CREDENTIALS_FORBIDDEN, Reason.AUTH_FAILURE, Reason.EXPIRED, Reason.ACCESS_DENIED}
)
_UNCONFIRMED = (
    ActivationState.PREPARED,
    ActivationState.SWITCHING,
    ActivationState.SWITCHED,
    ActivationState.ROLLING_BACK,
)
_RESULTS = {
    ActivationState.COMMITTED: "Succeeded",
    ActivationState.ROLLED_BACK: "RolledBack",
    ActivationState.FAILED: "Failed",
}


def status(desired: Desired, observed: Observed, plan: Plan, now: datetime) -> dict[str, Any]:
    """The whole status that this pass stands for, except what intents wrote. Keys with None are to be removed."""
    verdict = plan.verdict
    wanted = _conditions(desired, observed, plan)
    wanted += ready_conditions(desired.status.get("conditions", ()), desired.generation, verdict, _serves(observed))
    fields: dict[str, Any] = {
        "conditions": merge_conditions(desired.status.get("conditions", ()), wanted, now),
    }
    if verdict.outcome is not Outcome.SUSPENDED or verdict.is_settled:
        fields["observedGeneration"] = desired.generation
    if desired.reconcile_request is not None:
        fields["lastHandledReconcileAt"] = desired.reconcile_request
    return fields | _infrastructure(desired, observed) | _system(desired, observed, now)


def _serves(observed: Observed) -> bool:
    """Whether the desired system runs, confirmed: what Ready is about."""
    if observed.host.facts is None:
        return False
    toplevel = toplevel_of(observed)
    facts = observed.host.facts
    last = facts.activation
    is_confirmed = last is None or last.boot_id != facts.boot_id or last.state not in _UNCONFIRMED
    return toplevel is not None and facts.current_system == toplevel and not facts.lists_left and is_confirmed


def _conditions(desired: Desired, observed: Observed, plan: Plan) -> list[Condition]:
    found = [_credentials(desired, observed)]
    verdict = plan.verdict
    if verdict.outcome is not Outcome.DELETING:
        found += [
            _infrastructure_ready(desired, observed, verdict),
            _reachable(desired, observed),
            _built(desired, observed),
            _active(desired, observed, verdict),
            _up_to_date(desired, observed, verdict),
        ]
    if desired.is_paused and not desired.is_deleting:
        found.append(_is(ConditionType.PAUSED, desired, Reason.SUSPENDED, verdict.message))
    return found


def _is(kind: ConditionType, desired: Desired, reason: Reason = Reason.SUCCEEDED, message: str = "") -> Condition:
    return Condition(kind, Truth.TRUE, reason, message, desired.generation)


def _is_not(kind: ConditionType, desired: Desired, reason: Reason, message: str) -> Condition:
    return Condition(kind, Truth.FALSE, reason, message, desired.generation)


def _is_unknown(kind: ConditionType, desired: Desired, reason: Reason, message: str) -> Condition:
    return Condition(kind, Truth.UNKNOWN, reason, message, desired.generation)


def _credentials(desired: Desired, observed: Observed) -> Condition:
    kind = ConditionType.CREDENTIALS_READY
    errors: list[OperatorError | None] = [observed.cloud.error if observed.cloud else None, observed.host.error]
    for error in errors:
        if error is not None and error.reason in _CREDENTIAL_REASONS:
            return _is_not(kind, desired, error.reason, error.message)
    return _is(kind, desired)


def _infrastructure_ready(desired: Desired, observed: Observed, verdict: Verdict) -> Condition:
    kind = ConditionType.INFRASTRUCTURE_READY
    cloud = observed.cloud
    if cloud is None:
        return _is(kind, desired, message="a given host")
    if verdict.condition is kind:
        return _is_not(kind, desired, verdict.reason, verdict.message)
    if cloud.error is not None:
        return _is_unknown(kind, desired, cloud.error.reason, cloud.error.message)
    instance = cloud.instance(desired.launch.instance_id) if desired.launch else None
    if instance is None:
        return _is_not(kind, desired, Reason.LAUNCH_PENDING, "no instance yet")
    if instance.state is not InstanceState.RUNNING:
        reason = {
            InstanceState.PENDING: Reason.PENDING,
            InstanceState.STOPPING: Reason.STOPPING,
            InstanceState.STOPPED: Reason.STOPPED,
            InstanceState.SHUTTING_DOWN: Reason.SHUTTING_DOWN,
            InstanceState.TERMINATED: Reason.TERMINATED,
        }.get(instance.state, Reason.PENDING)
        return _is_not(kind, desired, reason, f"{instance.id} is {instance.state.value}")
    return _is(kind, desired, message=f"{instance.id} runs")


def _reachable(desired: Desired, observed: Observed) -> Condition:
    kind = ConditionType.REACHABLE
    host = observed.host
    if host.facts is not None:
        return _is(kind, desired)
    if host.error is not None and host.error.reason not in _CREDENTIAL_REASONS:
        return _is_not(kind, desired, host.error.reason, host.error.message)
    return _is_unknown(kind, desired, Reason.WAITING_FOR_SSH, "no connection yet")


def _built(desired: Desired, observed: Observed) -> Condition:
    kind = ConditionType.CONFIGURATION_BUILT
    system = observed.system
    if system.error is not None:
        return _is_not(kind, desired, system.error.reason, system.error.message)
    evaluation = observed.jobs.get(system.evaluate_job)
    if isinstance(evaluation, Failed):
        return _is_not(kind, desired, evaluation.error.reason, evaluation.error.message)
    if not isinstance(evaluation, Done):
        return _is_unknown(kind, desired, Reason.EVALUATING, "the configuration is not evaluated yet")
    build = observed.jobs.get(f"build:{evaluation.result.drv_path}")
    if isinstance(build, Failed):
        return _is_not(kind, desired, build.error.reason, build.error.message)
    if not isinstance(build, Done):
        return _is_unknown(kind, desired, Reason.BUILDING, "the system is not built yet")
    return _is(kind, desired, message=", ".join(evaluation.result.warnings)[:300])


def _active(desired: Desired, observed: Observed, verdict: Verdict) -> Condition:
    kind = ConditionType.CONFIGURATION_ACTIVE
    if _serves(observed):
        return _is(kind, desired)
    facts = observed.host.facts
    if verdict.reason is Reason.ACTIVATION_FAILED and verdict.condition is kind:
        last = facts.activation if facts is not None else None
        is_back = last is not None and last.state is ActivationState.ROLLED_BACK
        reason = Reason.ROLLED_BACK if is_back else Reason.ACTIVATION_FAILED
        return _is_not(kind, desired, reason, verdict.message)
    if verdict.condition is kind:
        return _is_not(kind, desired, verdict.reason, verdict.message)
    if facts is None:
        return _is_unknown(kind, desired, Reason.WAITING_FOR_SSH, "the machine cannot be looked at now")
    return _is_not(kind, desired, Reason.ACTIVATING, "another system than the declared one runs")


def _up_to_date(desired: Desired, observed: Observed, verdict: Verdict) -> Condition:
    kind = ConditionType.UP_TO_DATE
    if verdict.condition is kind:
        return _is_not(kind, desired, verdict.reason, verdict.message)
    toplevel, facts = toplevel_of(observed), observed.host.facts
    if toplevel is not None and facts is not None:
        drift = activation.drift_of(desired, facts, toplevel)
        if drift is not None:
            return _is_not(kind, desired, *drift)
    cloud = observed.cloud
    instance = cloud.instance(desired.launch.instance_id) if cloud is not None and desired.launch else None
    if cloud is not None and instance is not None:
        if differs_in_groups(instance, cloud):
            return _is_not(kind, desired, Reason.SECURITY_GROUP_DRIFT, f"{instance.id} is in other security groups")
        ec2 = desired.spec.target.ec2
        if ec2 is not None and instance.instance_type != ec2.instance_type:
            message = (
                f"{instance.id} is a {instance.instance_type}, the spec says {ec2.instance_type}; "
                "a running instance keeps its type: delete this machine to get the other"
            )
            return _is_not(kind, desired, Reason.CHANGE_FORBIDDEN, message)
    if not _serves(observed):
        return _is_unknown(kind, desired, verdict.reason, verdict.message)
    return _is(kind, desired)


def _infrastructure(desired: Desired, observed: Observed) -> dict[str, Any]:
    ec2 = desired.spec.target.ec2
    fields: dict[str, Any] = {"target": ec2.instance_type if ec2 is not None else "host"}
    cloud, host = observed.cloud, observed.host
    instance = None
    if cloud is not None and cloud.error is None:
        instance = cloud.instance(desired.launch.instance_id) if desired.launch else None
        if instance is not None:
            fields["providerID"] = f"aws:///{instance.zone}/{instance.id}"
            fields["instance"] = {
                "id": instance.id,
                "type": instance.instance_type,
                "state": instance.state.value,
                "zone": instance.zone,
                "imageId": instance.image_id,
                "subnetId": instance.subnet_id,
                "launchTime": instance.launch_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
    if cloud is None or cloud.error is None:
        addresses = {
            "public": instance.public_address if instance else None,
            "private": instance.private_address if instance else None,
            "ssh": host.address,
        }
        fields["addresses"] = {kind: address for kind, address in addresses.items() if address} or None
    if host.host_keys:
        fields["hostKeys"] = list(host.host_keys)
    return fields


def _system(desired: Desired, observed: Observed, now: datetime) -> dict[str, Any]:
    facts, toplevel = observed.host.facts, toplevel_of(observed)
    system: dict[str, Any] = dict(desired.system)
    if toplevel is not None and system.get("desired") != toplevel:
        system["desired"] = toplevel
        system.pop("activatedAt", None)
    fields: dict[str, Any] = {}
    if observed.system.input is not None:
        fields["configuration"] = {"revision": observed.system.evaluate_job.removeprefix("evaluate:")[:12]}
    if facts is not None:
        system |= _links(facts)
        system["stateVersion"] = desired.system.get("stateVersion") or facts.state_version or facts.version_id
        if _serves(observed) and facts.profile_system == toplevel:
            system.setdefault("activatedAt", now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        fields |= _activation_result(desired, facts)
    if system:
        fields["system"] = {key: value for key, value in system.items() if value is not None}
    return fields


def _links(facts: HostFacts) -> dict[str, Any]:
    previous = facts.activation.previous if facts.activation is not None else None
    return {
        "current": facts.current_system,
        "revision": facts.current_system.removeprefix("/nix/store/")[:8] if facts.current_system else None,
        "booted": facts.booted_system,
        "previous": previous,
        "generation": facts.profile_generation,
    }


def _activation_result(desired: Desired, facts: HostFacts) -> dict[str, Any]:
    intent, last = desired.activation, facts.activation
    if intent is None or last is None or last.id != intent.id or last.state not in _RESULTS:
        return {}
    return {"activation": {**desired.status["activation"], "result": _RESULTS[last.state]}}
