"""What a machine's status says, from what was seen and planned. Pure; one status, written only if it differs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nixops_operator.api.conditions import Condition, Truth, merge_conditions
from nixops_operator.api.machine_spec import ActivationMode, BuildOn
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import NotYet, OperatorError
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.host import UNCONFIRMED, ActivationState, HostFacts
from nixops_operator.jobs import Done, Failed
from nixops_operator.machine import activation, bad_revisions, build_on_target, health, keys, power, system
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observed import Observed, ObservedLeaving
from nixops_operator.planning import Finding, Plan, listed
from nixops_operator.ready import reached, ready_conditions
from nixops_operator.verdict import Outcome

_CREDENTIAL_REASONS = frozenset(
    {Reason.SECRET_NOT_FOUND, Reason.CREDENTIALS_FORBIDDEN, Reason.AUTH_FAILURE, Reason.EXPIRED, Reason.ACCESS_DENIED}
)
_STOPPED = "the machine is stopped, as declared"
MOST_OF_UNREACHED = 96  # characters: a failed revision tells of it in one line
_OF_STATE = {
    InstanceState.PENDING: Reason.PENDING,
    InstanceState.STOPPING: Reason.STOPPING,
    InstanceState.STOPPED: Reason.STOPPED,
    InstanceState.SHUTTING_DOWN: Reason.SHUTTING_DOWN,
    InstanceState.TERMINATED: Reason.TERMINATED,
}


def status(desired: Desired, observed: Observed, plan: Plan, now: datetime) -> dict[str, Any]:
    """The whole status that this pass stands for, except what intents wrote. Keys with None are to be removed."""
    verdict = plan.verdict
    previous = desired.status.get("conditions", ())
    wanted = ready_conditions(previous, desired.generation, verdict, _serves(observed))
    wanted += _conditions(desired, observed, plan)
    fields: dict[str, Any] = {"conditions": merge_conditions(previous, wanted, now)}
    if verdict.outcome is not Outcome.SUSPENDED or verdict.is_settled:
        fields["observedGeneration"] = desired.generation
    fields |= reached(wanted, desired.generation)
    if desired.origin is not None:
        fields["origin"] = desired.origin.model_dump(by_alias=True)
    fields |= desired.requests.answered()
    if desired.is_first_look and desired.reboot_asked and observed.host.facts is not None:
        fields["lastHandledRebootAt"] = desired.reboot_asked
    return fields | _infrastructure(desired, observed) | _system(desired, observed, now) | _keys(desired, observed)


def status_leaving(leaving: Leaving, observed: ObservedLeaving, plan: Plan, now: datetime) -> dict[str, Any]:
    """How the way out stands. What was made is told as it stood, until it is gone."""
    previous = leaving.status.get("conditions", ())
    wanted = ready_conditions(previous, leaving.generation, plan.verdict, is_serving=False)
    error = observed.cloud.error if observed.cloud is not None else None
    kind = ConditionType.CREDENTIALS_READY
    if error is not None and not isinstance(error, NotYet):
        wanted.append(Condition(kind, Truth.FALSE, error.reason, error.message, leaving.generation))
    return {"conditions": merge_conditions(previous, wanted, now), "observedGeneration": leaving.generation}


def _serves(observed: Observed) -> bool:
    """Whether the desired system runs, confirmed: what Ready is about."""
    facts, toplevel = observed.host.facts, observed.toplevel
    if facts is None:
        return False
    last = facts.activation
    is_confirmed = last is None or last.boot_id != facts.boot_id or last.state not in UNCONFIRMED
    is_whole = not facts.lists_left and not bad_revisions.is_half_done(facts)
    return toplevel is not None and facts.current_system == toplevel and is_whole and is_confirmed


def _conditions(desired: Desired, observed: Observed, plan: Plan) -> list[Condition]:
    found = [
        _credentials(desired, observed),
        _infrastructure_ready(desired, observed, plan),
        _reachable(desired, observed, plan),
        _built(desired, observed, plan),
        _active(desired, observed, plan),
        _up_to_date(desired, observed, plan),
    ]
    if (healthy := health.condition(desired, observed)) is not None:
        found.append(healthy)
    if desired.spec.keys or plan.worst(ConditionType.KEYS_PRESENT) is not None:
        found.append(_keys_present(desired, observed, plan))
    if desired.is_paused:
        found.append(_is(ConditionType.PAUSED, desired, Reason.SUSPENDED, plan.verdict.message))
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
    if observed.cloud is not None and observed.cloud.error is not None:
        # EC2 did not answer, or not yet: that says nothing of the credentials.
        return _is_unknown(kind, desired, observed.cloud.error.reason, observed.cloud.error.message)
    return _is(kind, desired)


def _told(finding: Finding, kind: ConditionType, desired: Desired) -> Condition:
    """What a finding says of a condition; what was not looked at yet is unknown."""
    say = _is_unknown if finding.is_first_look else _is_not
    return say(kind, desired, finding.reason, finding.message)


def _infrastructure_ready(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    kind = ConditionType.INFRASTRUCTURE_READY
    cloud = observed.cloud
    if cloud is None:
        return _is(kind, desired, message="a given host")
    if (found := plan.worst(kind)) is not None:
        return _told(found, kind, desired)
    if cloud.error is not None:
        return _is_unknown(kind, desired, cloud.error.reason, cloud.error.message)
    instance = cloud.instance(desired.instance_id)
    if instance is None:
        return _is_not(kind, desired, Reason.LAUNCH_PENDING, "no instance yet")
    if _is_kept_stopped(desired, observed):
        return _is(kind, desired, message=f"{instance.id} is stopped, as declared")
    if instance.state is not InstanceState.RUNNING:
        reason = _OF_STATE.get(instance.state, Reason.PENDING)
        return _is_not(kind, desired, reason, f"{instance.id} is {instance.state.value}")
    return _is(kind, desired, message=f"{instance.id} runs")


def _is_kept_stopped(desired: Desired, observed: Observed) -> bool:
    """Whether nothing can be said of the machine, because it is off, and is to be."""
    instance = observed.cloud.instance(desired.instance_id) if observed.cloud is not None else None
    return instance is not None and instance.state is InstanceState.STOPPED and power.is_to_be_stopped(desired)


def _reachable(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    kind, host, found = ConditionType.REACHABLE, observed.host, plan.worst(ConditionType.REACHABLE)
    if host.facts is not None:
        return _is(kind, desired)
    if found is not None and found.outcome is not Outcome.WORKING and found.reason not in _CREDENTIAL_REASONS:
        return _is_not(kind, desired, found.reason, found.message)
    if found is not None and found.outcome is Outcome.WORKING:
        return _is_unknown(kind, desired, found.reason, found.message)
    if _is_kept_stopped(desired, observed):
        return _is_unknown(kind, desired, Reason.STOPPED, _STOPPED)
    return _is_unknown(kind, desired, Reason.WAITING_FOR_SSH, "no connection yet")


def _built(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    kind = ConditionType.CONFIGURATION_BUILT
    error = observed.system.error
    if error is not None:
        say = _is_unknown if isinstance(error, NotYet) else _is_not
        return say(kind, desired, error.reason, error.message)
    if _is_kept_stopped(desired, observed):
        return _is_unknown(kind, desired, Reason.STOPPED, _STOPPED)
    evaluation = observed.evaluating
    if (awaiting := system.awaits_fact(desired, observed)) is not None:
        return _told(awaiting, kind, desired)
    if isinstance(evaluation, Failed):
        return _is_not(kind, desired, evaluation.error.reason, evaluation.error.message)
    step = system.build_step(observed)
    if step is None or observed.evaluation is None:
        return _is_unknown(kind, desired, Reason.EVALUATING, "the configuration is not evaluated yet")
    on_target = observed.system.build_on is BuildOn.TARGET
    build = build_on_target.state(desired, observed) if on_target else observed.jobs.get(step.job)
    by_whom = "built by the machine itself" if on_target else "built by the operator"
    if on_target and build_on_target.is_there(observed):
        return _is(kind, desired, message=listed((by_whom, *observed.evaluation.warnings))[:300])
    if isinstance(build, Failed):
        return _is_not(kind, desired, build.error.reason, build.error.message)
    if isinstance(build, Done):
        return _is(kind, desired, message=listed((by_whom, *observed.evaluation.warnings))[:300])
    if on_target and (found := plan.worst(kind)) is not None:
        say = _is_unknown if found.outcome is Outcome.WORKING else _is_not
        return say(kind, desired, found.reason, found.message)
    return _is_unknown(kind, desired, Reason.BUILDING, "the system is not built yet")


def _active(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    kind = ConditionType.CONFIGURATION_ACTIVE
    if _serves(observed):
        return _is(kind, desired, message=health.note(desired, observed))
    facts, found = observed.host.facts, plan.worst(kind)
    if found is not None and found.reason in (Reason.ACTIVATION_FAILED, Reason.HEALTH_CHECK_FAILED):
        last = facts.activation if facts is not None else None
        is_of_it = last is not None and last.toplevel == observed.toplevel
        is_back = is_of_it and last is not None and last.state is ActivationState.ROLLED_BACK
        reason = Reason.ROLLED_BACK if is_back else found.reason
        return _is_not(kind, desired, reason, found.message)
    if found is not None:
        return _is_not(kind, desired, found.reason, found.message)
    if _is_kept_stopped(desired, observed):
        return _is_unknown(kind, desired, Reason.STOPPED, _STOPPED)
    if facts is None:
        return _is_unknown(kind, desired, Reason.WAITING_FOR_SSH, "the machine cannot be looked at now")
    if observed.toplevel is None:
        # What is declared is not known: what runs can be neither it nor something else.
        return _is_unknown(kind, desired, Reason.EVALUATING, "the declared system is not known now")
    return _is_not(kind, desired, Reason.ACTIVATING, "another system than the declared one runs")


def _keys_present(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    """Whether all keys were delivered in this boot; what somebody changed since then is a difference (UpToDate)."""
    kind, facts = ConditionType.KEYS_PRESENT, observed.host.facts
    if (found := plan.worst(kind)) is not None:
        return _told(found, kind, desired)
    if facts is None:
        return _is_unknown(kind, desired, Reason.WAITING_FOR_SSH, "the machine cannot be looked at now")
    awaited = [key.name for key in observed.keys.wanted if keys.lack(key, facts) in keys.AWAITED]
    if awaited:
        return _is_not(kind, desired, Reason.DELIVERING, f"not there yet: {', '.join(sorted(awaited))}")
    return _is(kind, desired)


def _up_to_date(desired: Desired, observed: Observed, plan: Plan) -> Condition:
    """All differences, in cloud and on the host; True only once everything was looked at. What counts at the next
    launch only is told beside it."""
    kind = ConditionType.UP_TO_DATE
    facts, toplevel = observed.host.facts, observed.toplevel
    differing = [one for one in plan.differences if one.condition is not ConditionType.CONFIGURATION_ACTIVE]
    told = [(one.outcome.severity, one.reason, one.message) for one in differing]
    drift = activation.drift_of(desired, facts, toplevel) if facts is not None and toplevel is not None else None
    if drift is not None:
        told.append((Outcome.DRIFT_REPORTED.severity, *drift))
    if told:
        _, reason, _ = max(told, key=lambda one: one[0])
        return _is_not(kind, desired, reason, listed(message for _, _, message in told))
    if not _serves(observed) or plan.verdict.outcome in (Outcome.STALLED, Outcome.RETRYING):
        return _is_unknown(kind, desired, plan.verdict.reason, plan.verdict.message)
    notes = [one.message for one in plan.findings if one.outcome is Outcome.IN_SYNC and one.condition is kind]
    return _is(kind, desired, message=listed(notes))


def _infrastructure(desired: Desired, observed: Observed) -> dict[str, Any]:
    ec2 = desired.spec.target.ec2
    fields: dict[str, Any] = {"target": ec2.instance_type if ec2 is not None else "host"}
    cloud, host = observed.cloud, observed.host
    instance = None
    if cloud is not None and cloud.error is None:
        instance = cloud.instance(desired.instance_id)
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
    facts, toplevel = observed.host.facts, observed.toplevel
    systems: dict[str, Any] = dict(desired.status.get("system") or {})
    if toplevel is not None and systems.get("desired") != toplevel:
        systems["desired"] = toplevel
        systems.pop("activatedAt", None)
    fields: dict[str, Any] = {}
    if observed.system.default_nixpkgs is not None:
        systems["nixpkgs"] = observed.system.default_nixpkgs
    if observed.system.input is not None:
        fields["configuration"] = {
            "revision": observed.system.evaluate_job.removeprefix("evaluate:")[:12],
            "buildOn": observed.system.build_on.value,
        }
    if facts is not None:
        systems |= _links(facts)
        if desired.spec.target.host is None:
            systems.setdefault("stateVersion", facts.state_version or facts.version_id)
        is_kept = facts.profile_system == toplevel or desired.spec.activation.mode is ActivationMode.TEST
        if _serves(observed) and is_kept:
            systems.setdefault("activatedAt", now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    fields |= _activation(desired, observed)
    if systems:
        fields["system"] = {key: value for key, value in systems.items() if value is not None}
    return fields


def _keys(desired: Desired, observed: Observed) -> dict[str, Any]:
    """What the machine was given of those that the spec names; as it stood while nobody can look."""
    facts = observed.host.facts
    if facts is None:
        return {}
    known = {one.path: one for one in facts.keys if one.digest}
    told = [
        {"name": key.name, "digest": one.digest, "deliveredBoot": one.boot_id}
        for key in sorted(desired.spec.keys, key=lambda key: key.name)
        if (one := known.get(key.place)) is not None
    ]
    return {"keys": told or None}


def _links(facts: HostFacts) -> dict[str, Any]:
    previous = facts.activation.previous if facts.activation is not None else None
    return {
        "current": facts.current_system,
        "revision": facts.current_system.removeprefix("/nix/store/")[:8] if facts.current_system else None,
        "booted": facts.booted_system,
        "previous": previous,
        "generation": facts.profile_generation,
    }


def _activation(desired: Desired, observed: Observed) -> dict[str, Any]:
    """How the activation ended, or that this process is there for its end."""
    intent = desired.activation
    if intent is None:
        return {}
    news: dict[str, Any] = {}
    if (result := bad_revisions.result(desired, observed)) is not None:
        news["result"] = result
    if intent.result is None and bad_revisions.is_awaited(desired, observed):
        news["awaited"] = True
        if (error := bad_revisions.kept_out_by(desired, observed)) is not None:
            news["unreached"] = error.message.partition(";")[0][:MOST_OF_UNREACHED]
    return {"activation": desired.status["activation"] | news} if news else {}
