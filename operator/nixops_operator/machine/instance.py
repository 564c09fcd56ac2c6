"""The instance of a machine: what is to happen when it is not there, or not as declared. Pure; whether it runs is in
power.py."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from nixops_operator import absence, names
from nixops_operator.api.machine_spec import ReplacePolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.host_policy import SSH_PORT
from nixops_operator.machine import attributes, launch, restarts, steps, subnets
from nixops_operator.machine.declared import Resolved
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import ObservedCloud

_INFRASTRUCTURE = ConditionType.INFRASTRUCTURE_READY
FAILED_LAUNCHES = (
    "Server.InternalError",
    subnets.NO_ROOM_AT_LAUNCH,
    "Client.InternalError",
    "Client.VolumeLimitExceeded",
    "Client.InvalidSnapshot.NotFound",
)
"""State reasons with which an instance dies that never came up: nothing was lost with it, so that another one is
launched whatever `disruption.replace` says. Source: EC2 API Reference, "StateReason"."""


def missing(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """No instance: launch the first one, or replace a lost one if that is allowed."""
    recorded = desired.instance_id
    if desired.launch is None or recorded is None:
        dead = next((one for one in cloud.instances if not one.state.is_live), None)
        died_of = restarts.died_of(dead) if dead is not None else ""
        return launch.another(desired, cloud, now, "launching an instance", died_of)
    instance = cloud.instance(recorded)
    if instance is None and cloud.untagged is not None:
        return _untagged(desired, cloud.untagged, cloud)
    if instance is None:
        if absence.is_gone(desired.launch.last_call, cloud.looked_at, cloud.missing_for):
            return _lost(desired, cloud, now, f"{recorded} is gone: EC2 does not show it any more", "it is gone")
        found = _finding(Outcome.WORKING, Reason.PENDING, f"EC2 does not show {recorded}; looking again")
        return replace(found, look_again=absence.LOOK_AGAIN)
    if instance.state is InstanceState.SHUTTING_DOWN:
        return _finding(Outcome.WORKING, Reason.SHUTTING_DOWN, f"{instance.id} is shutting down")
    if instance.state is not InstanceState.TERMINATED:
        return None
    died_of = restarts.died_of(instance)
    if instance.state_reason in FAILED_LAUNCHES and not desired.system.activated_at:
        what = f"{instance.id} failed to start ({died_of}); launching another"
        return launch.another(desired, cloud, now, what, died_of)
    why = f" ({instance.state_reason})" if instance.state_reason else ""
    return _lost(desired, cloud, now, f"{instance.id} was terminated{why}", died_of)


def _untagged(desired: Desired, instance: Instance, cloud: ObservedCloud) -> Finding | None:
    """The recorded instance without our tags: ours all the same if it came of our token; else it is somebody's."""
    launched = desired.launch
    if launched is not None and instance.client_token == launched.token and not instance.tags.get(names.UID_TAG):
        tags = tuple(sorted((cloud.declared["tags"] or {}).items()))
        message = f"{instance.id} has lost its tags {names.CLUSTER_TAG} and {names.UID_TAG}"
        kind, step = ConditionType.UP_TO_DATE, steps.SetAttribute(instance.id, "tags", tags)
        return Finding(Outcome.REPAIRING, Reason.TAG_DRIFT, message, kind, (step,), differs=Area.CLOUD)
    message = (
        f"{instance.id}, which is recorded as this machine's, does not carry its tags {names.CLUSTER_TAG} and "
        f"{names.UID_TAG}; nothing is done to it. Put them back, or delete this machine to get another one"
    )
    return _finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message)


def _lost(desired: Desired, cloud: ObservedCloud, now: datetime, what: str, died_of: str) -> Finding:
    if cloud.live:
        message = (
            f"{what}, and {cloud.ids_of_live} with this machine's uid is not recorded; terminate it or remove its tags"
        )
        return _finding(Outcome.STALLED, Reason.LAUNCH_AMBIGUOUS, message)
    if desired.spec.disruption.replace is ReplacePolicy.NEVER:
        message = f"{what}; set spec.disruption.replace to WhenLost to have it replaced"
        return _finding(Outcome.STALLED, Reason.INSTANCE_LOST, message)
    return launch.another(desired, cloud, now, f"{what}; launching another", died_of)


def host_key_pinned(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """The key that went into user data is the only one that this instance may show; its private half is not kept."""
    launched = desired.launch
    if launched is None or launched.instance_id is None:
        return None
    if cloud.pins_error is not None:
        return found_error(cloud.pins_error, ConditionType.REACHABLE)
    is_pinned = cloud.pins.instance_id == launched.instance_id
    instance = cloud.instance(launched.instance_id)
    if desired.is_replacing and instance is not None and instance.state is InstanceState.PENDING:
        return None  # the pins are the former one's, until it is known that this one boots
    if is_pinned and not cloud.pins.launches_left:
        return None
    # Once it is pinned, what lies about may also be a younger request, which nobody wrote down.
    attempt = launch.next_attempt(desired, cloud) if is_pinned else launched.attempt
    step = steps.PinHostKey(launched.instance_id, attempt, is_pinned=is_pinned)
    found = _finding(Outcome.WORKING, Reason.PROVISIONING, f"pinning the host key of {launched.instance_id}")
    return replace(found, steps=(step,), look_again=None)


def undisturbed(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """A machine that has been there for a while may be started at once the next time."""
    if not restarts.is_over(desired, now):
        return None
    return Finding(Outcome.IN_SYNC, steps=(steps.ForgetRestarts(),))


def as_declared(desired: Desired, cloud: ObservedCloud, now: datetime) -> Sequence[Finding]:
    """Each attribute of the running instance, for itself: groups, tags, type and so on."""
    instance = cloud.instance(desired.instance_id)
    if instance is None:
        return ()
    differing = attributes.differences(cloud.declared, instance)
    found = [_with_keys_noted(_with_ssh_kept(one, desired, cloud), desired) for one in differing]
    if cloud.declared_error is not None:
        found.append(found_error(cloud.declared_error, ConditionType.UP_TO_DATE))
    return (*_with_fields_noted(found, desired, cloud, instance), *_tags_to_go(desired, cloud, instance))


def _with_fields_noted(
    found: Sequence[Finding], desired: Desired, cloud: ObservedCloud, instance: Instance
) -> Sequence[Finding]:
    """Which fields an instance was given is written down before they are set, and forgotten once they are back at what
    EC2 does."""
    ec2, applied = desired.spec.target.ec2, desired.applied_fields
    wanted = attributes.to_remember(attributes.declare(ec2, Resolved())) if ec2 is not None else frozenset()
    if not wanted <= applied:
        note = steps.RecordFields(tuple(sorted(applied | wanted)))
        noted = [_after(note, one) for one in found]
        return noted if noted != list(found) else (*found, Finding(Outcome.IN_SYNC, steps=(note,)))
    back = {field for field in applied - wanted if attributes.is_as_declared(field, cloud.declared, instance)}
    if not back:
        return found
    return (*found, Finding(Outcome.IN_SYNC, steps=(steps.RecordFields(tuple(sorted(applied - back))),)))


def _after(note: steps.RecordFields, finding: Finding) -> Finding:
    is_setting = any(isinstance(step, steps.SetAttribute) and step.field in note.fields for step in finding.steps)
    return replace(finding, steps=(note, *finding.steps)) if is_setting else finding


def _with_keys_noted(finding: Finding, desired: Desired) -> Finding:
    """Which tags are ours is written down before they are set, so that they can be taken off again."""
    ec2 = desired.spec.target.ec2
    applied = set(desired.status.get("appliedTagKeys") or ())
    wanted = set(ec2.tags) if ec2 is not None else set()
    is_tagging = any(isinstance(step, steps.SetAttribute) and step.field == "tags" for step in finding.steps)
    if wanted <= applied or not is_tagging:
        return finding
    return replace(finding, steps=(steps.RecordTagKeys(tuple(sorted(applied | wanted))), *finding.steps))


def _with_ssh_kept(finding: Finding, desired: Desired, cloud: ObservedCloud) -> Finding:
    """Other groups are taken once they let anybody in; before that nobody would get to the machine any more."""
    ec2 = desired.spec.target.ec2
    is_moving = any(isinstance(step, steps.SetAttribute) and step.field == "securityGroups" for step in finding.steps)
    if not is_moving or ec2 is None or cloud.others_admit_ssh is not False or cloud.admits_ssh is False:
        return finding
    message = (
        f"{desired.instance_id} stays in its security groups: no rule of the declared ones lets anybody reach it on "
        f"port {SSH_PORT}, the operator included; add one"
    )
    # The rules of groups that its deployment has just made come in a moment; what never comes is told there.
    is_waiting = any(not name.startswith("sg-") for name in ec2.security_groups)
    outcome, reason = (Outcome.REPAIRING, finding.reason) if is_waiting else (Outcome.STALLED, Reason.CHANGE_FORBIDDEN)
    return replace(finding, outcome=outcome, reason=reason, message=message, steps=(), look_again=SOON)


def _tags_to_go(desired: Desired, cloud: ObservedCloud, instance: Instance) -> Sequence[Finding]:
    """Tags that left the spec. Those of others, and our own, are never among them."""
    ec2 = desired.spec.target.ec2
    applied = set(desired.status.get("appliedTagKeys") or ())
    surplus = applied - set(ec2.tags if ec2 is not None else ()) - set(cloud.declared["tags"] or ())
    if not surplus:
        return ()
    kept = steps.RecordTagKeys(tuple(sorted(applied - surplus)))
    volume = cloud.root_volume
    of_volumes = (*((volume,) if volume is not None else ()), *cloud.volumes)
    tagged = {instance.id: instance.tags} | {one.id: one.tags for one in of_volumes}
    present = tuple(sorted(surplus & {key for tags in tagged.values() for key in tags}))
    if not present and cloud.volumes_error is not None:
        return ()  # its volume may still carry them
    if not present:
        return (Finding(Outcome.IN_SYNC, steps=(kept,)),)
    message = f"{instance.id}: tags {', '.join(present)} are not declared any more"
    return (
        Finding(
            Outcome.REPAIRING,
            Reason.TAG_DRIFT,
            message,
            ConditionType.UP_TO_DATE,
            (steps.RemoveTags(tuple(tagged), present),),
            differs=Area.CLOUD,
        ),
    )


def _finding(outcome: Outcome, reason: Reason, message: str) -> Finding:
    return Finding(outcome, reason, message, _INFRASTRUCTURE, look_again=SOON)
