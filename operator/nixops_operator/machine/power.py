"""Whether the instance runs: started and stopped as declared, and stopped for a moment where a change needs that. Pure
decisions, and the steps that carry them out.

    a value differs ─► RecordStop ─► StopInstance ─► ChangeStopped ─► StartChanged ─► it runs: ForgetStop
                                                          │                │
                                                          └ refused        └ refused, or no capacity in some tries
                                                                ▼
                                        status.stop.refused ─► former values, StartInstance

`status.stop` says what was and what is to be. Whoever finds the instance stopped goes on from there, and one that was
stopped by somebody else is changed before it is started, whatever `disruption.stop` says: it costs nobody anything.
Source: EC2 User Guide, "Change the instance type"; EC2 API Reference, "ModifyInstanceAttribute".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator import names, waits
from nixops_operator.api.machine_spec import PowerState, StopPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import FormerStatus, StopStatus
from nixops_operator.errors import Blocked, Conflict, OperatorError
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.kube import Body
from nixops_operator.machine import attributes, launch, reboot, restarts, steps
from nixops_operator.machine import instance as instances
from nixops_operator.machine.attributes import Difference
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.planning import SOON, Area, Finding
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

STARTS = 5
"""Starts with new values that may meet missing capacity. With the waits between them it takes some eight minutes; then
the former values, with which the machine ran a moment ago, have the better chance."""
_AFTER_ACTIVATION = timedelta(seconds=60)
_INFRASTRUCTURE = ConditionType.INFRASTRUCTURE_READY


def is_to_be_stopped(desired: Desired) -> bool:
    """Whether the spec says so."""
    ec2 = desired.spec.target.ec2
    return ec2 is not None and ec2.power_state is PowerState.STOPPED


def as_declared(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | Sequence[Finding] | None:
    """The instance runs, or is stopped as declared, or is on its way."""
    instance = cloud.instance(desired.instance_id)
    if instance is None:
        return None
    changes = attributes.of_stopped(cloud.declared, instance)
    match instance.state:
        case InstanceState.RUNNING if is_to_be_stopped(desired):
            stop = _to_be_stopped(desired, instance, now)
            # Stop protection that is to go goes first.
            return (*instances.as_declared(desired, cloud, now), stop) if stop is not None else None
        case InstanceState.RUNNING if _is_stop_due(desired, changes, now):
            message = f"{attributes.told(instance, changes)}; stopping it for that, to start it again"
            return replace(_finding(Reason.STOPPING, message), steps=(steps.StopInstance(instance.id),))
        case InstanceState.RUNNING:
            return None
        case InstanceState.STOPPED if is_to_be_stopped(desired):
            return (_kept_stopped(desired, instance, changes), *instances.as_declared(desired, cloud, now))
        case InstanceState.STOPPED if desired.stop is not None or changes:
            return _to_be_started_changed(desired, instance, changes)
        case InstanceState.STOPPED:
            return _to_be_started(desired, instance, now)
        case InstanceState.STOPPING:
            return _stopping(desired, instance)
        case InstanceState.PENDING:
            return _finding(Reason.WAITING_FOR_INSTANCE, f"{instance.id} is starting")
        case _:
            message = f"{instance.id} is in a state that this release does not know; looking again"
            return replace(_finding(Reason.PENDING, message), look_again=None)


# --- it runs ------------------------------------------------------------------------------------------------------


def _to_be_stopped(desired: Desired, instance: Instance, now: datetime) -> Finding | None:
    if is_activating(desired, now):
        return None  # to be cut in the middle of that is no good start for the next life
    found = _finding(Reason.STOPPING, f"stopping {instance.id}, as powerState says")
    return replace(found, steps=(steps.StopInstance(instance.id),), differs=Area.CLOUD)


def _is_stop_due(desired: Desired, changes: tuple[Difference, ...], now: datetime) -> bool:
    """Whether a stop is recorded, and still wanted and allowed."""
    stop = desired.stop
    return (
        bool(changes)
        and stop is not None
        and stop.refused is None
        and stop.wanted == _wanted(changes)
        and desired.spec.disruption.stop is StopPolicy.WHEN_NEEDED
        and not is_activating(desired, now)
    )


def changed(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """What a running instance has otherwise than declared, and can be given by a stop only. Beside it the machine is
    looked after as ever: the stop is written down here, and begun by the next pass, which does nothing else."""
    instance = cloud.instance(desired.instance_id)
    if instance is None or is_to_be_stopped(desired):
        return None
    stop, changes = desired.stop, attributes.of_stopped(cloud.declared, instance)
    forget = () if stop is None else (steps.ForgetStop(),)
    if not changes:
        # What is not known now differs in nothing, and proves nothing.
        return Finding(Outcome.IN_SYNC, steps=forget) if forget and cloud.declared_error is None else None
    kind, words = ConditionType.UP_TO_DATE, attributes.told(instance, changes)
    if desired.spec.disruption.stop is StopPolicy.NEVER:
        message = (
            f"{words}; a running instance keeps that: put the old value back, or set spec.disruption.stop to "
            "WhenNeeded to have it stopped and started again"
        )
        return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, kind, forget, differs=Area.CLOUD)
    if stop is not None and stop.refused and stop.wanted == _wanted(changes) and desired.requests.new is None:
        reason = Reason(stop.reason) if stop.reason in set(Reason) else Reason.CHANGE_FORBIDDEN
        message = f"{words}, which was refused: {stop.refused}. Edit the spec, or ask to reconcile for another try"
        return Finding(Outcome.STALLED, reason, message, kind, differs=Area.CLOUD)
    message = f"{words}; it is stopped for that" + (
        " as soon as its activation has ended" if is_activating(desired, now) else ", and started again"
    )
    found = Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, kind, look_again=SOON, differs=Area.CLOUD)
    recorded = StopStatus(instance_id=instance.id, wanted=_wanted(changes), former=tuple(map(_former, changes)))
    return found if recorded == stop else replace(found, steps=(steps.RecordStop(recorded),))


def is_activating(desired: Desired, now: datetime) -> bool:
    """Whether a system is being activated, as far as anybody knows. One that nobody hears of is over when the machine
    has gone back by itself."""
    last, limits = desired.activation, desired.spec.activation
    if last is None or last.result is not None:
        return False
    takes = reboot.COMES_BACK_WITHIN if last.restarts else limits.timeout
    return waits.left(last.started_at, takes + limits.confirm_timeout + _AFTER_ACTIVATION, now) is not None


# --- it is stopped ------------------------------------------------------------------------------------------------


def _stopping(desired: Desired, instance: Instance) -> Finding:
    if is_to_be_stopped(desired):
        return _finding(Reason.STOPPING, f"{instance.id} is stopping, as powerState says")
    if desired.stop is not None:
        message = f"{instance.id} is stopping, to get {_fields(desired.stop)} as declared and to be started again"
        return _finding(Reason.STOPPING, message)
    message = f"{instance.id} is stopping; it is started as soon as it has stopped"
    return replace(_finding(Reason.STOPPING, message), differs=Area.CLOUD)


def _kept_stopped(desired: Desired, instance: Instance, changes: tuple[Difference, ...]) -> Finding:
    if not changes:
        forget = () if desired.stop is None else (steps.ForgetStop(),)
        return Finding(Outcome.IN_SYNC, message=f"{instance.id} is stopped, as declared", steps=forget)
    return Finding(
        Outcome.REPAIRING,
        Reason.INSTANCE_DRIFT,
        attributes.told(instance, changes),
        ConditionType.UP_TO_DATE,
        tuple(steps.SetAttribute(instance.id, one.field, one.wanted) for one in changes),
        differs=Area.CLOUD,
    )


def _to_be_started(desired: Desired, instance: Instance, now: datetime) -> Finding:
    waiting = restarts.waiting(desired, now, restarts.died_of(instance))
    if waiting is not None:
        return waiting
    count = restarts.count(desired) + 1
    is_stopped_by_us = desired.silence is not None and desired.silence.instance_id == instance.id
    return Finding(
        Outcome.WORKING,
        Reason.STOPPED,
        f"{instance.id} is stopped" + ("" if desired.is_paused else "; starting it"),
        _INFRASTRUCTURE,
        (steps.RecordRestart(count), steps.StartInstance(instance.id)),
        # What we stopped because it was silent is started whatever policy says.
        differs=None if is_stopped_by_us else Area.CLOUD,
        is_drift=True,  # the spec does not ask for a stopped instance
        left_as=Outcome.STALLED,
    )


def _to_be_started_changed(desired: Desired, instance: Instance, changes: tuple[Difference, ...]) -> Finding:
    """Set what differs, then start it; or, where EC2 has refused that, give it back what it had."""
    stop = desired.stop
    wanted = _wanted_since(stop, changes)
    if stop is not None and stop.refused and (not changes or stop.wanted == wanted):
        back = tuple(steps.SetAttribute(instance.id, one.field, json.loads(one.value)) for one in stop.former)
        message = f"{_fields(stop)} as declared was refused: {stop.refused}; starting {instance.id} as it was"
        return replace(_finding(Reason.STOPPED, message), steps=(*back, steps.StartInstance(instance.id)))
    # Of what is changed already the record alone knows how it was.
    former = {one.field: one for one in (*map(_former, changes), *(stop.former if stop is not None else ()))}
    is_same = stop is not None and stop.wanted == wanted
    starts = 1 + (stop.starts if stop is not None and is_same else 0)
    recorded = StopStatus(
        instance_id=instance.id, wanted=wanted, former=tuple(former[name] for name in sorted(former)), starts=starts
    )
    return Finding(
        Outcome.WORKING,
        Reason.STOPPED,
        f"{instance.id} is stopped; starting it with {_fields(recorded)} as declared",
        _INFRASTRUCTURE,
        (
            steps.RecordStop(recorded),
            *(steps.ChangeStopped(instance.id, one.field, one.wanted) for one in changes),
            steps.StartChanged(instance.id, is_last_try=starts >= STARTS),
        ),
        # What we stopped is started whatever policy says; what a person has stopped is theirs to decide.
        differs=Area.CLOUD if stop is None else None,
        left_as=Outcome.STALLED,
    )


def _former(change: Difference) -> FormerStatus:
    return FormerStatus(field=change.field, value=json.dumps(change.shown))


def _wanted(changes: tuple[Difference, ...]) -> str:
    return json.dumps({one.field: one.wanted for one in changes}, sort_keys=True)


def _wanted_since(stop: StopStatus | None, changes: tuple[Difference, ...]) -> str:
    """What the stop is for, as it looked before the first of it was carried out. What remains to be set is less than
    that, and would never again be found to be what EC2 has refused: the instance would be stopped for it for ever."""
    if stop is None or not changes:
        return _wanted(changes) if stop is None else stop.wanted
    left, recorded = {one.field: one.wanted for one in changes}, json.loads(stop.wanted)
    done = {one.field: recorded[one.field] for one in stop.former if one.field in recorded}
    before = {one.field: json.loads(one.value) for one in stop.former}
    wanted = {field: value for field, value in (done | left).items() if field not in before or before[field] != value}
    return json.dumps(wanted, sort_keys=True)


def _fields(stop: StopStatus) -> str:
    return ", ".join(one.field for one in stop.former)


def _finding(reason: Reason, message: str) -> Finding:
    return Finding(Outcome.WORKING, reason, message, _INFRASTRUCTURE, look_again=SOON)


# --- carried out --------------------------------------------------------------------------------------------------


async def stop(step: steps.StopInstance, desired: Desired, view: CloudView, world: World) -> None:
    """Stop it, after a fresh look. Raises Conflict where that shows something else than was planned for."""
    await judge_ours(step.instance_id, desired, view, world)
    try:
        await view.cloud.stop_instance(step.instance_id)
    finally:
        view.note_write(desired.uid)


async def judge_ours(instance_id: str, desired: Desired, view: CloudView, world: World) -> None:
    """Raises Conflict unless a fresh look shows the instance with our tags."""
    shown = [one for one in await view.cloud.find_instances(instance_id=instance_id) if one.id == instance_id]
    if not shown or not names.is_ours(shown[0].tags, world.cluster_id, desired.uid):
        raise Conflict(f"{instance_id} does not carry the tags of {desired.key} any more; it is left alone")


async def change(
    step: steps.ChangeStopped | steps.StartChanged, desired: Desired, body: Body, view: CloudView, world: World
) -> None:
    """Carry it out on the stopped instance. A refusal that is for good is written down before it is raised."""
    try:
        if isinstance(step, steps.ChangeStopped):
            await attributes.carry_out(step, view.cloud)
        else:
            await view.cloud.start_instance(step.instance_id)
    except OperatorError as error:
        if _is_for_good(step, error):
            fields = {"refused": error.message[: launch.REFUSAL_SHOWN], "reason": error.reason.value}
            await world.kube.write_intent(body, {"stop": fields})
        raise
    finally:
        view.note_write(desired.uid)


_SAYS_NOTHING = frozenset({Reason.AUTH_FAILURE, Reason.EXPIRED, Reason.CREDENTIALS_FORBIDDEN})


def _is_for_good(step: steps.ChangeStopped | steps.StartChanged, error: OperatorError) -> bool:
    if not error.is_refusal or error.reason in _SAYS_NOTHING:
        return False
    is_last_try = isinstance(step, steps.StartChanged) and step.is_last_try
    return isinstance(error, Blocked) or (is_last_try and error.reason is Reason.INSUFFICIENT_CAPACITY)
