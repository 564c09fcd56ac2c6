"""Another instance in place of one that runs, for what EC2 fixes at launch. Pure decisions, and the steps that carry
them out.

    a value differs ─► RecordLaunch (status.replacement names the former instance) ─► it runs, answers, has the system
                            │                                                                   │
                            └ refused, dies, stays silent, or is not wanted any more            └► TerminateOther
                                        ▼                                                           (the former one)
                     GoBack: the former one is the machine again ─► TerminateOther (the new one)

The former instance serves until the new one has all it needs but the last step, so that a launch that EC2 refuses costs
nobody anything; it is terminated before the new one is activated, so that never two machines serve as one. With it EC2
lets go of the volumes that are to stay and of its elastic address; the new one gets them then.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator import waits
from nixops_operator.api.machine_spec import Ec2Target, ReplacePolicy
from nixops_operator.api.parse import parse_machine
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import LaunchStatus, ReplacementStatus, read, written
from nixops_operator.errors import Conflict
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.machine import attributes, one_by_one, power, steps, system, termination
from nixops_operator.machine import launch as launches
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed, ObservedCloud
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

TRIED_AGAIN_AFTER = timedelta(minutes=10)
"""What EC2 has refused may have room later; the former instance serves meanwhile."""
ANSWERS_WITHIN = timedelta(minutes=10)
"""From EC2's launch time to sshd, at the most; NixOS' images take 20 to 60 s for most instance types."""
_TURNS_LOOKED_AT = timedelta(seconds=10)
"""A replacement takes minutes, and all that wait for its end look for it."""
_SILENCE = (Reason.CONNECT_TIMEOUT, Reason.CONNECTION_REFUSED)
_UP_TO_DATE = ConditionType.UP_TO_DATE


def is_allowed(desired: Desired) -> bool:
    """Whether an instance may be replaced for the sake of a change."""
    return desired.spec.disruption.replace is ReplacePolicy.WHEN_NEEDED


def beside(ec2: Ec2Target, former: Instance) -> Ec2Target:
    """What another instance in place of that one is launched as: in the same subnet where the spec leaves that open,
    because what moves along stays in its zone."""
    is_elsewhere = bool(ec2.subnet_ids) and former.subnet_id not in ec2.subnet_ids
    if ec2.subnet_id is not None or is_elsewhere:
        return ec2
    return ec2.model_copy(update={"subnet_id": former.subnet_id, "subnet_ids": ()})


# --- begun --------------------------------------------------------------------------------------------------------


def changed(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """What the instance has otherwise than declared, and only another instance can have: told, as long as none is
    launched for it."""
    instance = cloud.instance(desired.instance_id)
    if instance is None or not instance.state.is_live or desired.is_replacing:
        return None
    changes = attributes.of_another(cloud.declared, instance)
    if not changes or due(desired, cloud, now) is not None:
        return None
    words, refused = attributes.told(instance, changes), desired.replacement
    if not is_allowed(desired):
        message = (
            f"{words}; an instance keeps that for life: put the old value back, or set spec.disruption.replace to "
            "WhenNeeded to have it replaced by another one"
        )
        return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _UP_TO_DATE, differs=Area.CLOUD)
    if (field := termination.protecting(desired.spec.target.ec2)) is not None:
        message = f"{words}; it is protected by spec.target.ec2.{field}: set that to false to have it replaced"
        return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _UP_TO_DATE, differs=Area.CLOUD)
    if refused is not None and (wait := _wait(refused, changes, now)) is not None:
        reason = Reason(refused.reason) if refused.reason in set(Reason) else Reason.CHANGE_FORBIDDEN
        message = f"{words}; another instance in its place was given up: {refused.refused}. It is tried again"
        return Finding(Outcome.STALLED, reason, message, _UP_TO_DATE, look_again=wait, differs=Area.CLOUD)
    if cloud.next_error is not None:
        found = found_error(cloud.next_error, _UP_TO_DATE)
        return replace(found, message=f"{words}; it is to be replaced: {found.message}", differs=Area.CLOUD)
    when = "as soon as it runs" if power.is_to_be_stopped(desired) else "as soon as its activation has ended"
    if cloud.goes_first:
        when = f"after {cloud.goes_first}: one machine of a deployment at a time"
    return Finding(
        Outcome.REPAIRING,
        Reason.INSTANCE_DRIFT,
        f"{words}; it is replaced {when}",
        _UP_TO_DATE,
        look_again=_TURNS_LOOKED_AT if cloud.goes_first else SOON,
        differs=Area.CLOUD,
    )


def due(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """The launch of the instance that is to take over."""
    instance, launch = cloud.instance(desired.instance_id), desired.launch
    if instance is None or launch is None or not instance.state.is_live or desired.is_replacing:
        return None
    changes = attributes.of_another(cloud.declared, instance)
    if not changes or not is_allowed(desired) or termination.protecting(desired.spec.target.ec2) is not None:
        return None
    last = desired.replacement
    if last is not None and (last.other is not None or _wait(last, changes, now) is not None):
        return None
    if cloud.next_declared is None or cloud.goes_first:
        return None
    if power.is_to_be_stopped(desired) or power.is_activating(desired, now):
        return None
    attempt = launches.next_attempt(desired, cloud)
    begun = ReplacementStatus(wanted=_wanted(changes), attempt=attempt, other=launch, host_keys=cloud.pins.keys, at=now)
    step = steps.RecordLaunch(attempt, cloud.account_id, cloud.next_declared, replacement=begun)
    message = f"{attributes.told(instance, changes)}; launching another one in its place"
    return Finding(Outcome.WORKING, Reason.PROVISIONING, message, ConditionType.INFRASTRUCTURE_READY, (step,))


def goes_first(desired: Desired, world: World) -> str:
    """For whom of its deployment this machine waits (one_by_one.py)."""
    body = world.cache.get(desired.key)
    if body is None or desired.deployment_uid is None:
        return ""
    deployment = Key(Kind.DEPLOYMENT, desired.key.namespace, desired.deployment)
    return one_by_one.goes_first(body, world.cache.children(deployment, desired.deployment_uid))


def asked_for(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """Somebody wants another try: the refusal is forgotten, also where the launch itself has to wait a moment."""
    last = desired.replacement
    if desired.requests.new is None or last is None or not last.refused or last.other is not None:
        return None
    forgotten = last.model_copy(update={"refused": None, "reason": None, "at": None})
    return Finding(Outcome.IN_SYNC, steps=(steps.RecordReplacement(forgotten),))


def _wait(last: ReplacementStatus, changes: tuple[attributes.Difference, ...], now: datetime) -> timedelta | None:
    """How long the same is not tried again."""
    if not last.refused or last.wanted != _wanted(changes):
        return None
    return waits.left(last.at, TRIED_AGAIN_AFTER, now) if last.at is not None else None


def _wanted(changes: tuple[attributes.Difference, ...]) -> str:
    return json.dumps({one.field: one.wanted for one in changes}, sort_keys=True)


# --- given up -----------------------------------------------------------------------------------------------------


def given_up(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The former instance goes on being the machine: it lives, and the new one cannot take over, or is not to."""
    cloud, launch = observed.cloud, desired.launch
    if not desired.is_replacing or cloud is None or launch is None:
        return None
    former = cloud.other
    if former is None or not former.state.is_live:
        return None
    why = _why_not(desired, launch, observed, now)
    if why is None:
        return None
    reason, message = why
    step = steps.GoBack(former.id, launch.instance_id, message, reason)
    text = f"{message}; {former.id} stays"
    return Finding(Outcome.WORKING, Reason.PROVISIONING, text, ConditionType.INFRASTRUCTURE_READY, (step,))


def _why_not(desired: Desired, launch: LaunchStatus, observed: Observed, now: datetime) -> tuple[Reason, str] | None:
    cloud = observed.cloud
    if launch.instance_id is None:
        if launch.refused_generation is None:
            return None  # it may have made something; that is found out first
        reason = Reason(launch.refused_reason) if launch.refused_reason in set(Reason) else Reason.LAUNCH_PENDING
        return reason, launch.refused_message or "EC2 refused the launch"
    instance = cloud.instance(launch.instance_id) if cloud is not None else None
    if cloud is None or instance is None:
        return None
    if not instance.state.is_live:
        return Reason.TERMINATED, f"{instance.id} is gone again ({instance.state_reason or instance.state.value})"
    if not is_allowed(desired):
        return Reason.CHANGE_FORBIDDEN, "spec.disruption.replace does not allow it any more"
    wanted = desired.replacement.wanted if desired.replacement is not None else "{}"
    if cloud.declared_error is None and all(cloud.declared[field] is None for field in json.loads(wanted)):
        return Reason.INSTANCE_DRIFT, "the spec does not ask for it any more"
    if changes := attributes.of_another(cloud.declared, instance):
        return Reason.INSTANCE_DRIFT, f"the spec has changed meanwhile: {attributes.told(instance, changes)}"
    if instance.state is InstanceState.RUNNING and now - instance.launch_time >= ANSWERS_WITHIN:
        error = observed.host.error
        if error is not None and error.reason in _SILENCE:
            return error.reason, f"{instance.id} did not answer within 10 min: {error.message}"
    return None


def other_to_go(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """After a way back: the instance that did not take over."""
    last = desired.replacement
    if last is None or desired.is_replacing or last.other is None or last.other.instance_id is None:
        return None
    if cloud.is_other_gone:
        return Finding(Outcome.IN_SYNC, steps=(steps.RecordReplacement(last.model_copy(update={"other": None})),))
    return _terminating(last.other.instance_id, cloud.other, "it did not take over")


# --- carried to its end -------------------------------------------------------------------------------------------


def taken_over(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The new instance answers and has the system: the former one goes, then the new one is activated."""
    cloud, last = observed.cloud, desired.replacement
    if cloud is None or last is None or last.other is None or not desired.is_replacing:
        return None
    if not cloud.is_other_gone and not system.is_on_machine(desired, observed):
        return None
    if cloud.is_other_gone:
        message = f"{last.other.instance_id} is gone; {desired.instance_id} takes over"
        kind = ConditionType.INFRASTRUCTURE_READY
        return Finding(Outcome.WORKING, Reason.PROVISIONING, message, kind, (steps.RecordReplacement(None),))
    found = _terminating(str(last.other.instance_id), cloud.other, f"{desired.instance_id} takes over")
    return replace(found, outcome=Outcome.WORKING, condition=ConditionType.INFRASTRUCTURE_READY)


def _terminating(instance_id: str, seen: Instance | None, why: str) -> Finding:
    is_live = seen is not None and seen.state.is_live
    return Finding(
        Outcome.REPAIRING,
        Reason.SHUTTING_DOWN,
        f"{why}: terminating {instance_id}" if is_live else f"{why}: waiting for {instance_id} to be gone",
        _UP_TO_DATE,
        (steps.TerminateOther(instance_id),) if is_live else (),
        look_again=SOON,
    )


# --- carried out --------------------------------------------------------------------------------------------------


async def record_launch(step: steps.RecordLaunch, desired: Desired, body: Body, world: World) -> Body:
    """As the function of that name in launch.py; of a deployment's machines one at a time is replaced, though passes of
    several have planned it in the same moment."""
    if step.replacement is None:
        return await launches.record_launch(step, desired, body, world)
    async with world.replacements:
        if first := goes_first(desired, world):
            raise Conflict(f"{desired.key} is replaced after {first}")
        body = await launches.record_launch(step, desired, body, world)
        world.cache.put(desired.key, body)  # who comes next sees it
        return body


async def go_back(step: steps.GoBack, desired: Desired, body: Body, world: World) -> Body:
    """The former instance is the machine's again; what was launched in its place is written down to be terminated."""
    last, launch = desired.replacement, desired.launch
    if last is None or last.other is None or launch is None:
        raise Conflict(f"{desired.key} is not being replaced any more")
    recorded = ReplacementStatus(
        wanted=last.wanted,
        attempt=max(last.attempt, launch.attempt),
        other=launch if launch.instance_id is not None else None,
        host_keys=last.host_keys,
        refused=step.message[: launches.REFUSAL_SHOWN],
        reason=step.reason.value,
        at=world.now(),
    )
    # Its frozen request holds a private host key, which is nobody's from now on.
    await launches.drop_launch_secret(desired, launch.attempt, world)
    return await world.kube.write_intent(body, {"launch": written(last.other), "replacement": written(recorded)})


async def terminate(step: steps.TerminateOther, desired: Desired, view: CloudView, world: World) -> None:
    """Destruction needs fresh proof: of the object, what it says of both instances, and the instance's tags."""
    fresh = await world.kube.get(desired.key)
    if fresh is None or fresh["metadata"]["uid"] != desired.uid or fresh["metadata"].get("deletionTimestamp"):
        raise Conflict(f"{desired.key} has changed; {step.instance_id} is not terminated")
    status = fresh.get("status") or {}
    last, launch = read(ReplacementStatus, status.get("replacement")), read(LaunchStatus, status.get("launch"))
    is_other = last is not None and last.other is not None and last.other.instance_id == step.instance_id
    is_replaced = launch is not None and launch.instance_id not in (None, step.instance_id)
    if last is None or not is_other or not is_replaced:
        raise Conflict(f"{step.instance_id} is not recorded as replaced any more; it is not terminated")
    if not last.refused and parse_machine(fresh).disruption.replace is not ReplacePolicy.WHEN_NEEDED:
        raise Conflict(f"{step.instance_id} may not be replaced any more; it is not terminated")
    await termination.terminate(step.instance_id, desired, frozenset(status.get("appliedFields") or ()), view, world)
