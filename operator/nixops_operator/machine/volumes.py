"""The data volumes of a machine: made once, attached before its system is activated, let go of after. Pure decisions,
and the steps that carry them out.

    RecordVolume ─► CreateVolume ─► (its id in status.volumes) ─► AttachVolume ─► the system is activated
         ▲               │
         └── again, by the same token: EC2 gives what the first call made

    larger ─► ModifyVolume ─► EC2 shows the new size ─► GrowVolume ─► RecordVolume, as in root_volume.py

    off the spec ─► the system without it runs ─► nothing on the machine uses it: DetachVolume
                                                                                     ├ Delete ─► DeleteVolume
                                                                                     └ Retain ─► tagged as retained

What is in a volume exists once: none is made in place of one that was lost, none is detached while it is mounted, and
none is deleted but for a policy that is written down and can be read. Volumes outlive instances: the next instance of
the machine gets them, if it is in their zone.
Source: EC2 API Reference, "CreateVolume", "AttachVolume"; EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API
requests".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import TYPE_CHECKING

from nixops_operator import absence, job_names, names, written_answers
from nixops_operator.api.machine_spec import DataVolume, DeletionPolicy
from nixops_operator.api.parse import deletion_view
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import VolumeStatus, written
from nixops_operator.errors import Conflict, OperatorError, Retry
from nixops_operator.facts.cloud import Volume, VolumeSettings
from nixops_operator.facts.kube import Body
from nixops_operator.jobs import Failed
from nixops_operator.machine import root_volume, steps, system
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observed import Observed, ObservedCloud
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

_KIND = ConditionType.INFRASTRUCTURE_READY
_NEW_ONE = "rename the entry to get a new, empty one"


def is_looked_at(desired: Desired | Leaving) -> bool:
    """Whether there are, or may be, such volumes."""
    ec2 = desired.spec.target.ec2 if isinstance(desired, Desired) else None
    return bool(desired.volumes) or (ec2 is not None and bool(ec2.volumes))


def settings_of(entry: DataVolume) -> VolumeSettings:
    """What the spec asks for."""
    kind = entry.type.value if entry.type is not None else None
    return VolumeSettings(entry.size, kind, entry.iops, entry.throughput, entry.encrypted, entry.snapshot_id)


def as_declared(desired: Desired, cloud: ObservedCloud, now: datetime) -> Sequence[Finding]:
    """Each volume of the spec, for itself: it exists, is attached, and is what it is to be."""
    if not is_looked_at(desired):
        return ()
    if cloud.volumes_error is not None:
        return (found_error(cloud.volumes_error, _KIND),)
    return tuple(one for entry in _entries(desired) for one in _entry(entry, desired, cloud, now))


def ready_for_activation(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """A system that mounts a volume is not activated before the volume is there. It is brought to the machine before
    that: a former instance has the volume until the new one lacks nothing else (replacement.py)."""
    cloud, facts = observed.cloud, observed.host.facts
    if cloud is None or (facts is not None and facts.current_system == observed.toplevel):
        return None
    if not system.is_on_machine(desired, observed):
        return None
    missing = [
        entry.name
        for entry in _entries(desired)
        if not _is_attached(entry, desired, cloud) and not _follows_another(entry, desired, cloud)
    ]
    if not missing:
        return None
    return _working(f"the system is activated when volumes are attached: {', '.join(missing)}")


def _follows_another(entry: DataVolume, desired: Desired, cloud: ObservedCloud) -> bool:
    """Whether a volume that has left the spec is where this one is to be. That goes only when the system without it
    runs, so that the system cannot wait for this one."""
    taken = _on_device(entry, desired.instance_id or "", cloud)
    declared = {one.name for one in _entries(desired)}
    return taken is not None and any(one.volume_id == taken.id and one.name not in declared for one in desired.volumes)


def grown(desired: Desired, observed: Observed, now: datetime) -> Sequence[Finding]:
    """The file system of each volume of the spec is as large as the volume."""
    cloud = observed.cloud
    if cloud is None or cloud.volumes_error is not None:
        return ()
    found = (_grown(entry, desired, observed, cloud) for entry in _entries(desired))
    return tuple(finding for finding in found if finding is not None)


def _grown(entry: DataVolume, desired: Desired, observed: Observed, cloud: ObservedCloud) -> Finding | None:
    record = desired.volume(entry.name)
    volume = cloud.volume(record.volume_id) if record is not None else None
    if record is None or volume is None or not _is_attached(entry, desired, cloud):
        return None
    if entry.size is None or record.is_given:
        return None  # it stays as it is
    size = root_volume.size_to_grow_to(volume, entry.size, record.grown_gib)
    if size is None:
        return None
    step = steps.GrowVolume(job_names.grow(desired.host_id, volume.id, size), volume.id, volume.device)
    done = steps.RecordVolume(_noted(entry, record).model_copy(update={"grown_gib": size}))
    return root_volume.growing(
        f"the file system of volume {entry.name} into the {size} GiB of {volume.id}", step, done, observed
    )


def released(desired: Desired, observed: Observed, now: datetime) -> Sequence[Finding]:
    """What has left the spec goes when the system without it runs."""
    cloud = observed.cloud
    if cloud is None or cloud.volumes_error is not None:
        return ()  # told by as_declared
    declared = {entry.name for entry in _entries(desired)}
    return tuple(
        finding
        for record in desired.volumes
        if record.name not in declared
        for finding in (_released(record, desired, observed, cloud),)
        if finding is not None
    )


def _entries(desired: Desired) -> Sequence[DataVolume]:
    ec2 = desired.spec.target.ec2
    return sorted(ec2.volumes, key=lambda entry: entry.device) if ec2 is not None else ()


# --- one that is declared -----------------------------------------------------------------------------------------


def _is_attached(entry: DataVolume, desired: Desired, cloud: ObservedCloud) -> bool:
    record = desired.volume(entry.name)
    volume = cloud.volume(record.volume_id) if record is not None else None
    return volume is not None and (volume.instance_id, volume.attachment) == (desired.instance_id, "attached")


def _entry(entry: DataVolume, desired: Desired, cloud: ObservedCloud, now: datetime) -> Sequence[Finding]:
    record = desired.volume(entry.name)
    if record is not None and _is_another(entry, record):
        return (_exchanged(entry, record, desired, cloud),)
    if entry.volume_id is not None:
        return _given(entry, entry.volume_id, record, desired, cloud)
    if record is None or record.volume_id is None:
        return (_created(entry, record, desired, cloud, now),)
    if record.volume_id in cloud.volumes_of_others:
        return (_not_ours(record),)
    volume = cloud.volume(record.volume_id)
    if volume is None:
        return (_missing(record, desired, cloud),)
    noted = _noted(entry, record)
    note = [] if noted == record else [Finding(Outcome.IN_SYNC, steps=(steps.RecordVolume(noted),))]
    placed = _placed(entry, volume, desired, cloud)
    return (*note, *placed, *_changed(entry, volume, desired, cloud))


def _is_another(entry: DataVolume, record: VolumeStatus) -> bool:
    return record.is_given != (entry.volume_id is not None) or (record.is_given and record.volume_id != entry.volume_id)


def _exchanged(entry: DataVolume, record: VolumeStatus, desired: Desired, cloud: ObservedCloud) -> Finding:
    volume = cloud.volume(record.volume_id)
    if record.is_given and (volume is None or volume.instance_id != desired.instance_id):
        return _working(f"volume {entry.name} is another one now", steps.ForgetVolume(entry.name))
    message = (
        f"volume {entry.name} is {record.volume_id or 'a new one'} for life: rename the entry to have "
        f"{entry.volume_id or 'a new one'} instead, or put `volumeId` back"
    )
    return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _KIND)


def _given(
    entry: DataVolume, volume_id: str, record: VolumeStatus | None, desired: Desired, cloud: ObservedCloud
) -> Sequence[Finding]:
    """One that exists: it is attached, and that it is stands first, so that it is detached when it leaves the spec."""
    if record is None:
        found = VolumeStatus(name=entry.name, volume_id=volume_id, is_given=True)
        return (_working(f"recording {volume_id} as volume {entry.name}", steps.RecordVolume(found)),)
    if volume_id in cloud.volumes_of_others:
        message = (
            f"{volume_id}, which is to be volume {entry.name}, carries another machine's tag {names.UID_TAG}; take it "
            "off, or have that machine let go of the volume"
        )
        return (Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, _KIND),)
    volume = cloud.volume(volume_id)
    if volume is None:
        return (_missing(record, desired, cloud),)
    if (whose := cloud.volumes_taken.get(volume_id)) and volume.instance_id != desired.instance_id:
        message = (
            f"{volume_id}, which is to be volume {entry.name}, is that of {whose}, until that machine is deleted or "
            "names another; name another one here, or none"
        )
        return (Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, _KIND),)
    return _placed(entry, volume, desired, cloud)


def _noted(entry: DataVolume, record: VolumeStatus) -> VolumeStatus:
    """With what becomes of it when it is not in the spec any more."""
    return record.model_copy(update={"deletion_policy": entry.deletion_policy.value})


def _created(
    entry: DataVolume, record: VolumeStatus | None, desired: Desired, cloud: ObservedCloud, now: datetime
) -> Finding:
    shown = cloud.volumes_of(entry.name)
    if len(shown) > 1:
        message = (
            f"{', '.join(one.id for one in shown)} are all tagged as volume {entry.name} of this machine, and none is "
            f"recorded; take the tag {names.UID_TAG} off all but one"
        )
        return Finding(Outcome.STALLED, Reason.LAUNCH_AMBIGUOUS, message, _KIND)
    if shown:
        known = record or _intent(entry, desired, cloud, 1)
        found = known.model_copy(update={"volume_id": shown[0].id})
        return _working(f"recording {shown[0].id} as volume {entry.name}", steps.RecordVolume(found))
    what = f"making volume {entry.name}"
    if record is None:
        return _working(what, steps.RecordVolume(_intent(entry, desired, cloud, 1)))
    wanted = _intent(entry, desired, cloud, record.attempt)
    if (_settings_in(record), record.zone) == (_settings_in(wanted), wanted.zone):
        # Within a minute the intent covers the repeat; the token makes it the same volume.
        covered = absence.is_noted(record.called_at, now)
        return _working(what, *(() if covered else (steps.RecordVolume(record),)), steps.CreateVolume(record))
    called_at, missing_for = record.called_at, cloud.volumes_missing_for.get(entry.name)
    if called_at is None or absence.is_gone(called_at, cloud.volumes_looked_at, missing_for):
        return _working(what, steps.RecordVolume(_intent(entry, desired, cloud, record.attempt + 1)))
    message = (
        f"volume {entry.name} was asked for with other values a moment ago; waiting up to 6 min until EC2 would show "
        "what that has made, so that no second one is made"
    )
    return _patient(_working(message))


def _intent(entry: DataVolume, desired: Desired, cloud: ObservedCloud, attempt: int) -> VolumeStatus:
    instance, settings = cloud.instance(desired.instance_id), settings_of(entry)
    if settings.type is None:
        settings = replace(settings, type="gp3")  # without a word EC2 makes gp2
    return VolumeStatus(
        name=entry.name,
        attempt=attempt,
        zone=instance.zone if instance is not None else "",
        settings=json.dumps(vars(settings), sort_keys=True),
        deletion_policy=entry.deletion_policy.value,
    )


def _settings_in(record: VolumeStatus) -> VolumeSettings:
    """Words of a later release say nothing here."""
    known = {field.name for field in fields(VolumeSettings)}
    return VolumeSettings(**{name: value for name, value in json.loads(record.settings).items() if name in known})


def _not_ours(record: VolumeStatus) -> Finding:
    message = (
        f"{record.volume_id}, which is recorded as volume {record.name}, does not carry this machine's tags "
        f"{names.CLUSTER_TAG} and {names.UID_TAG}, or was let go of ({names.RETAINED_TAG}); nothing is done to it. Put "
        "the tags right, or rename the entry"
    )
    return Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, _KIND)


def _missing(record: VolumeStatus, desired: Desired, cloud: ObservedCloud) -> Finding:
    missing_for = cloud.volumes_missing_for.get(record.name)
    if record.is_given and missing_for is not None and missing_for >= absence.SPAN:
        # Whoever names one has made it before: there is no call of ours that it could come of.
        message = (
            f"EC2 shows no {record.volume_id}, which is to be volume {record.name}, in {desired.spec.aws.region}; name "
            "another one, or none"
        )
        return Finding(Outcome.STALLED, Reason.NOT_FOUND, message, _KIND)
    if record.called_at is not None and absence.is_gone(record.called_at, cloud.volumes_looked_at, missing_for):
        message = f"{record.volume_id}, which is volume {record.name}, is gone, and what was in it; {_NEW_ONE}"
        return Finding(Outcome.STALLED, Reason.NOT_FOUND, message, _KIND)
    return _patient(_working(f"EC2 does not show {record.volume_id}; looking again"))


def _placed(entry: DataVolume, volume: Volume, desired: Desired, cloud: ObservedCloud) -> Sequence[Finding]:
    """Where it is attached."""
    instance = cloud.instance(desired.instance_id)
    if instance is None:
        return ()
    if volume.zone != instance.zone:
        message = (
            f"{volume.id}, which is volume {entry.name}, is in {volume.zone} and cannot be attached to {instance.id} "
            f"in {instance.zone}: name a subnet of {volume.zone} for another instance, or rename the entry to get a "
            "new, empty volume"
        )
        return (Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _KIND),)
    if volume.state == "available" and (taken := _on_device(entry, instance.id, cloud)) is not None:
        return (_working(f"volume {entry.name} ({volume.id}) {_waits_for(taken, entry, desired)}"),)
    if volume.state == "available":
        step = steps.AttachVolume(volume.id, instance.id, entry.device, entry.name)
        message = f"attaching {volume.id} to {instance.id} as {entry.device}"
        return (replace(_working(message, step), differs=Area.CLOUD, left_as=Outcome.REPORTED),)
    if volume.state == "in-use" and (volume.instance_id, volume.attachment) == (instance.id, "attached"):
        if volume.device == entry.device:
            return ()
        message = (
            f"{volume.id}, which is volume {entry.name}, is attached as {volume.device}, the spec says {entry.device}: "
            f"put the old value back; or unmount it, and detach it from {instance.id} to have it attached as declared"
        )
        return (Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, ConditionType.UP_TO_DATE),)
    if _is_elsewhere(volume, desired, cloud):
        way_on = "detach it there, or " + ("name another one" if entry.volume_id is not None else _NEW_ONE)
        message = f"volume {entry.name} ({volume.id}) {_taken_by(volume)}: {way_on}"
        return (Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, _KIND, differs=Area.CLOUD),)
    where = f"{volume.attachment or 'still attached'} to {volume.instance_id}" if volume.instance_id else volume.state
    return (_working(f"volume {entry.name} ({volume.id}) is {where}"),)


def _on_device(entry: DataVolume, instance_id: str, cloud: ObservedCloud) -> Volume | None:
    """The machine's volume that has the device of the entry now."""
    where = (instance_id, entry.device)
    ours = (*cloud.volumes, *cloud.given_volumes)
    return next((one for one in ours if (one.instance_id, one.device) == where), None)


def _waits_for(taken: Volume, entry: DataVolume, desired: Desired) -> str:
    record = next((one for one in desired.volumes if one.volume_id == taken.id), None)
    name = f"volume {record.name}" if record is not None else "another volume of this machine"
    if record is None or record.name in {one.name for one in _entries(desired)}:
        return f"is to be attached as {entry.device}, which is that of {taken.id}, {name}; name another device"
    return (
        f"is attached as {entry.device} when {taken.id}, which was {name}, is detached: when the system of the spec "
        "runs and nothing uses it"
    )


def _is_elsewhere(volume: Volume, machine: Desired | Leaving, cloud: ObservedCloud) -> bool:
    """Attached to an instance that is none of this machine's: somebody has done that by hand."""
    other = machine.replacement.other if machine.replacement is not None else None
    own = {machine.instance_id, other.instance_id if other is not None else None, *(one.id for one in cloud.instances)}
    return bool(volume.instance_id) and volume.instance_id not in own


def _taken_by(volume: Volume) -> str:
    return f"is attached to {volume.instance_id}, which is not this machine's; it is left there"


def _changed(entry: DataVolume, volume: Volume, desired: Desired, cloud: ObservedCloud) -> Sequence[Finding]:
    """What it is, and its tags."""
    wanted, ec2 = settings_of(entry), desired.spec.target.ec2
    what = f"{volume.id}, which is volume {entry.name},"
    found = list(root_volume.differences(wanted, volume, what, cloud.volume_changes.get(volume.id, ""), entry.name))
    for_life = {
        "encrypted": (wanted.encrypted, volume.settings.encrypted),
        "snapshotId": (wanted.snapshot_id, volume.settings.snapshot_id),
    }
    for field in (name for name, (asked, shown) in for_life.items() if asked not in (None, shown)):
        message = f"{what} stays as it was made: put `{field}` back, or rename the entry to get a new volume"
        found.append(
            Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, ConditionType.UP_TO_DATE, differs=Area.CLOUD)
        )
    if ec2 is not None:
        found += root_volume.tags_missing(desired, ec2, cloud, volume)
    return found


# --- one that is not ----------------------------------------------------------------------------------------------


def _released(record: VolumeStatus, desired: Desired, observed: Observed, cloud: ObservedCloud) -> Finding | None:
    volume = _shown(record, cloud)
    if volume is None:
        return _forgotten_if_gone(record, cloud)
    if volume.instance_id and volume.instance_id == desired.instance_id and volume.attachment == "attached":
        job = job_names.detach(desired.host_id, volume.id)
        detaching = _repairing(f"detaching {volume.id}, which was volume {record.name}")
        step = steps.DetachVolume(job, volume.id, volume.instance_id, volume.device)
        match observed.jobs.get(job):
            case None:
                return replace(detaching, steps=(step,))
            case Failed(error, is_due):
                found = found_error(error, ConditionType.UP_TO_DATE)
                return replace(found, steps=(step,)) if is_due else found
            case _:
                return detaching
    is_elsewhere = _is_elsewhere(volume, desired, cloud)
    if is_elsewhere and not record.is_given and record.deletion_policy == DeletionPolicy.DELETE.value:
        message = _not_deleted(record, volume)
        return Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message, ConditionType.UP_TO_DATE)
    if volume.state != "available" and not is_elsewhere:
        return _repairing(f"{volume.id}, which was volume {record.name}, is {volume.attachment or volume.state}")
    return _repairing(f"letting go of {volume.id}, which was volume {record.name}", *_let_go(record, volume))


def _not_deleted(record: VolumeStatus, volume: Volume) -> str:
    return (
        f"{volume.id}, which was volume {record.name} and is to be deleted, {_taken_by(volume)}: detach it there to "
        f"have it deleted, or tag it {names.RETAINED_TAG}=true to have it left to them"
    )


def _let_go(record: VolumeStatus, volume: Volume, *, retains: bool = False) -> tuple[Step, ...]:
    forget = steps.ForgetVolume(record.name)
    if record.is_given:
        return (forget,)
    if retains or record.deletion_policy != DeletionPolicy.DELETE.value:
        return (steps.RetainVolume(volume.id), forget)
    return (steps.DeleteVolume(volume.id, record.name), forget)


def _shown(record: VolumeStatus, cloud: ObservedCloud) -> Volume | None:
    if record.volume_id is not None:
        return cloud.volume(record.volume_id)
    return next(iter(cloud.volumes_of(record.name)), None)


def _forgotten_if_gone(record: VolumeStatus, cloud: ObservedCloud) -> Finding:
    looked_at, missing_for = cloud.volumes_looked_at, cloud.volumes_missing_for.get(record.name)
    if record.volume_id in cloud.volumes_of_others:
        # It was let go of, and the operator died before that was written; or it is somebody else's by now.
        return Finding(Outcome.IN_SYNC, steps=(steps.ForgetVolume(record.name),))
    if record.called_at is None or absence.is_gone(record.called_at, looked_at, missing_for):
        return Finding(Outcome.IN_SYNC, steps=(steps.ForgetVolume(record.name),))
    what = record.volume_id or f"volume {record.name}"
    return _patient(_repairing(f"EC2 does not show {what}; waiting up to 6 min for it, so that nothing is left"))


def way_out(leaving: Leaving, cloud: ObservedCloud) -> Sequence[Finding]:
    """Of a machine in deletion whose instance is gone, or let go."""
    if cloud.volumes_error is not None:
        return (replace(found_error(cloud.volumes_error), outcome=Outcome.DELETING, reason=Reason.DELETING),)
    return tuple(_deleted(record, leaving, cloud) for record in leaving.volumes)


def _deleted(record: VolumeStatus, leaving: Leaving, cloud: ObservedCloud) -> Finding:
    volume = _shown(record, cloud)
    if volume is None:
        found = _forgotten_if_gone(record, cloud)
        going = _deleting(found.message or f"volume {record.name} is gone", *found.steps)
        return going if found.steps else _patient(going)
    stays = leaving.retains or record.deletion_policy != DeletionPolicy.DELETE.value
    if not stays and not record.is_given and _is_elsewhere(volume, leaving, cloud):
        return Finding(Outcome.WEDGED, Reason.ADOPTION_CONFLICT, _not_deleted(record, volume))
    if not stays and volume.state != "available":
        return _deleting(f"{volume.id} is {volume.attachment or volume.state}")
    word = "letting go of" if stays else "deleting"
    return _deleting(f"{word} {volume.id}", *_let_go(record, volume, retains=leaving.retains))


def _working(message: str, *found: Step) -> Finding:
    return Finding(Outcome.WORKING, Reason.PROVISIONING, message, _KIND, found, look_again=SOON)


def _repairing(message: str, *found: Step) -> Finding:
    kind = ConditionType.UP_TO_DATE
    return Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, kind, found, look_again=SOON)


def _patient(finding: Finding) -> Finding:
    """For what EC2 does not show."""
    return replace(finding, look_again=absence.LOOK_AGAIN)


def _deleting(message: str, *found: Step) -> Finding:
    return Finding(Outcome.DELETING, Reason.DELETING, message, steps=found, look_again=SOON)


# --- carried out --------------------------------------------------------------------------------------------------


async def apply(step: steps.VolumeStep, desired: Desired | Leaving, body: Body, view: CloudView, world: World) -> Body:
    """Do it. Returns the newest body. Raises what ports raise."""
    match step:
        case steps.RecordVolume():
            return await _record(step, desired, body, world)
        case steps.CreateVolume():
            return await _create(step, desired, body, view, world)
        case steps.RecordGrown():
            return await world.kube.write_intent(body, {"rootVolume": written(step.root_volume)})
        case steps.ForgetVolume():
            return await _write(step.name, None, desired, body, world)
        case steps.AttachVolume():
            await _attach(step, desired, view)
        case steps.RetainVolume():
            await _retain(step, desired, view)
        case steps.DeleteVolume():
            await _delete(step, desired, view, world)
    return body


async def _record(step: steps.RecordVolume, desired: Desired | Leaving, body: Body, world: World) -> Body:
    """Write down what is about to be asked for, or what was found."""
    volume = step.volume
    if volume.volume_id is None:
        token = volume.token or names.volume_token(world.cluster_id, desired.uid, volume.name, volume.attempt)
        if volume.called_at is None:
            world.answered_tokens.add(token)  # nothing was asked for by it that is not answered
        volume = volume.model_copy(update={"called_at": world.now(), "token": token})
    elif volume.called_at is None:
        volume = volume.model_copy(update={"called_at": world.now()})
    return await _write(volume.name, volume, desired, body, world)


async def _write(name: str, volume: VolumeStatus | None, desired: Desired | Leaving, body: Body, world: World) -> Body:
    """One entry, beside what the newest body has of the others."""

    def with_entry(newest: Body) -> dict[str, object]:
        known = [one for one in (newest.get("status") or {}).get("volumes") or () if one["name"] != name]
        if volume is not None:
            known.append({key: value for key, value in written(volume).items() if value is not None})
        return {"volumes": sorted(known, key=lambda one: str(one["name"])) or None}

    return await written_answers.write(with_entry, desired, body, world)


async def _create(
    step: steps.CreateVolume, desired: Desired | Leaving, body: Body, view: CloudView, world: World
) -> Body:
    """Ask EC2 for it, and write down its id."""
    volume = step.volume
    tags = names.entry_tags(world.cluster_id, desired.key.namespace, desired.key.name, desired.uid, volume.name)
    settings, token = _settings_in(volume), volume.token or ""
    is_answered = token in world.answered_tokens
    world.answered_tokens.discard(token)  # until the answer is there, also if this pass is cancelled
    try:
        volume_id = await view.cloud.create_volume(volume.zone, settings, tags, token)
    except OperatorError as error:
        if is_answered and error.is_refusal:
            world.answered_tokens.add(token)
            if error.reason is not Reason.THROTTLED:
                # All calls were answered, and none has made anything: an edit need not wait for what it may have made.
                await _write(volume.name, volume.model_copy(update={"called_at": None}), desired, body, world)
        raise
    finally:
        view.note_write(desired.uid, f"{desired.uid}/{volume.name}")
    # Of a snapshot it has a file system, which may be smaller.
    grown_gib = settings.size_gib if settings.snapshot_id is None else None
    found = volume.model_copy(update={"volume_id": volume_id, "grown_gib": grown_gib})
    # The token would give it again; but only while EC2 remembers the token.
    return await asyncio.shield(_write(volume.name, found, desired, body, world))


async def _attach(step: steps.AttachVolume, desired: Desired | Leaving, view: CloudView) -> None:
    try:
        await view.cloud.attach_volume(step.volume_id, step.instance_id, step.device)
    finally:
        view.note_write(desired.uid)


async def detach(step: steps.DetachVolume, desired: Desired, world: World) -> None:
    """Once nothing on the machine uses it. Raises Retry while something does."""
    users = await world.hosts.of(desired.key).host().disk_users(step.volume_id, step.device)
    if users:
        message = (
            f"{step.volume_id} has left the spec and is in use on the machine ({users}); it is detached when nothing "
            "uses it: take it out of the configuration, too, or unmount it"
        )
        raise Retry(Reason.PENDING, message)
    view = await world.cloud(desired.key, desired.uids, desired.spec.aws)
    try:
        await view.cloud.detach_volume(step.volume_id, step.instance_id)
    finally:
        view.note_write(desired.uid)


async def _retain(step: steps.RetainVolume, desired: Desired | Leaving, view: CloudView) -> None:
    await view.cloud.create_tags([step.volume_id], {names.RETAINED_TAG: "true"})
    view.note_write(desired.uid)


async def _delete(step: steps.DeleteVolume, desired: Desired | Leaving, view: CloudView, world: World) -> None:
    """Destruction needs fresh proof: of the object, its policy, and the volume's tags."""
    fresh = await world.kube.get(desired.key)
    if fresh is None or fresh["metadata"]["uid"] != desired.uid:
        raise Conflict(f"{desired.key} is another one now; nothing is deleted")
    if isinstance(desired, Leaving) and deletion_view(fresh).policy is not DeletionPolicy.DELETE:
        raise Conflict(f"{desired.key} is to be retained now; nothing is deleted")
    records = (fresh.get("status") or {}).get("volumes") or ()
    policy = next((one.get("deletionPolicy") for one in records if one["name"] == step.name), None)
    volume = await view.cloud.get_volume(step.volume_id)
    if policy != DeletionPolicy.DELETE.value or (
        volume is not None
        and (not names.is_ours(volume.tags, world.cluster_id, desired.uid) or names.is_retained(volume.tags))
    ):
        raise Conflict(f"{step.volume_id} is not to be deleted any more")
    try:
        await view.cloud.delete_volume(step.volume_id)
    finally:
        view.note_write(desired.uid)
