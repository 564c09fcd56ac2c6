"""The disk that an instance boots from: as declared, tagged as its instance, and its file system as large as it is.

    size, type, IOPS differ ─► ModifyVolume ─► EC2 shows the new size ─► GrowRoot ─► RecordGrown

EC2 changes one thing at a time on a volume, and few times a day; it says so, and is not asked again meanwhile. A volume
is never made smaller. What was grown stands in `status.rootVolume`: growing what is grown changes nothing, so that a
crash before that is written costs one call.
Source: EBS User Guide, "Modify an Amazon EBS volume using Elastic Volumes operations". Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import RootVolumeStatus
from nixops_operator.facts.cloud import VOLUME_CHANGING, Instance, Volume, VolumeSettings
from nixops_operator.jobs import Done, Failed
from nixops_operator.machine import steps
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from nixops_operator.api.machine_spec import Ec2Target
    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed, ObservedCloud

CHANGE_PAUSE = timedelta(minutes=1)
"""When a change that waits for an earlier one is looked at again: EC2 optimises a volume for minutes to a day."""
_KIND = ConditionType.UP_TO_DATE


def is_looked_at(desired: Desired, ec2: Ec2Target) -> bool:
    """Whether the spec says anything of the volume, or said so until a moment ago."""
    return ec2.root_volume is not None or bool(ec2.tags) or bool(desired.status.get("appliedTagKeys"))


def declared(ec2: Ec2Target) -> VolumeSettings:
    """What the spec asks for."""
    wanted = ec2.root_volume
    if wanted is None:
        return VolumeSettings()
    kind = wanted.type.value if wanted.type is not None else None
    return VolumeSettings(wanted.size, kind, wanted.iops, wanted.throughput, wanted.encrypted)


def to_change(ec2: Ec2Target, volume: Volume) -> VolumeSettings | None:
    """What EC2 can make of the volume, as it is declared; None: nothing differs that it could."""
    wanted, shown = declared(ec2), volume.settings
    grows = wanted.size_gib is not None and shown.size_gib is not None and wanted.size_gib > shown.size_gib
    changes = VolumeSettings(
        wanted.size_gib if grows else None,
        wanted.type if wanted.type != shown.type else None,
        wanted.iops if wanted.iops != shown.iops else None,
        wanted.throughput_mib if wanted.throughput_mib != shown.throughput_mib else None,
    )
    return changes if any(value is not None for value in astuple(changes)) else None


def as_declared(desired: Desired, cloud: ObservedCloud, now: datetime) -> Sequence[Finding]:
    """Its tags, and what EC2 can change of it."""
    ec2, instance = desired.spec.target.ec2, cloud.instance(desired.instance_id)
    if ec2 is None or instance is None:
        return ()
    if cloud.volumes_error is not None:
        return (found_error(cloud.volumes_error, _KIND),)
    volume = cloud.root_volume
    if volume is None:
        return ()
    return (
        *_tags(desired, ec2, cloud, volume),
        *_kept_for_life(ec2, instance, volume),
        *_changed(ec2, instance, volume, cloud),
    )


def _tags(desired: Desired, ec2: Ec2Target, cloud: ObservedCloud, volume: Volume) -> Sequence[Finding]:
    """Those of its instance; one of the spec's as soon as it is noted as ours to take off again (instance.py)."""
    unnoted = ec2.tags.keys() - set(desired.status.get("appliedTagKeys") or ())
    wanted = {key: value for key, value in (cloud.declared["tags"] or {}).items() if key not in unnoted}
    missing = tuple(sorted((key, value) for key, value in wanted.items() if volume.tags.get(key) != value))
    if not missing:
        return ()
    step = steps.TagVolume(volume.id, missing)
    message = f"{volume.id}: tags not as declared"
    return (Finding(Outcome.REPAIRING, Reason.TAG_DRIFT, message, _KIND, (step,), differs=Area.CLOUD),)


def _kept_for_life(ec2: Ec2Target, instance: Instance, volume: Volume) -> Sequence[Finding]:
    wanted, shown = declared(ec2), volume.settings
    found = []
    if wanted.size_gib is not None and shown.size_gib is not None and wanted.size_gib < shown.size_gib:
        message = (
            f"{volume.id} of {instance.id} has {shown.size_gib} GiB, the spec says {wanted.size_gib}; EC2 makes no "
            "volume smaller: declare the size that it has, or delete this machine to get another"
        )
        found.append(Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _KIND, differs=Area.CLOUD))
    if wanted.encrypted not in (None, shown.encrypted):
        is_so, is_to_be = ("encrypted" if one else "not encrypted" for one in (shown.encrypted, wanted.encrypted))
        message = f"{volume.id} of {instance.id} is {is_so}; {is_to_be} counts at the next launch"
        found.append(Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, message, _KIND))
    return found


def _changed(ec2: Ec2Target, instance: Instance, volume: Volume, cloud: ObservedCloud) -> Sequence[Finding]:
    changes = to_change(ec2, volume)
    if changes is None:
        return ()
    message = f"{volume.id} of {instance.id} not as declared"
    if cloud.root_volume_change in VOLUME_CHANGING:
        message = f"{message}; EC2 is at work on its last change, and takes the next one when that is complete"
        pause = SOON if cloud.root_volume_change == VOLUME_CHANGING[0] else CHANGE_PAUSE
        return (
            Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, _KIND, look_again=pause, differs=Area.CLOUD),
        )
    step = steps.ModifyVolume(volume.id, changes)
    return (Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, _KIND, (step,), differs=Area.CLOUD),)


def grown(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The root file system is as large as its volume, where the spec says how large that is."""
    ec2, cloud = desired.spec.target.ec2, observed.cloud
    volume = cloud.root_volume if cloud is not None else None
    wanted = declared(ec2).size_gib if ec2 is not None else None
    if volume is None or volume.settings.size_gib is None or wanted is None or volume.settings.size_gib < wanted:
        return None  # what EC2 still makes larger is not grown twice
    size, known = volume.settings.size_gib, desired.root_volume
    if known is not None and known.volume_id == volume.id and known.grown_gib >= size:
        return None
    job = job_names.grow(desired.host_id, volume.id, size)
    message = f"growing the root file system into the {size} GiB of {volume.id}"
    growing = Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, _KIND)
    grow = steps.GrowRoot(job)
    match observed.jobs.get(job):
        case None:
            return _with(growing, grow)
        case Done():
            return _with(growing, steps.RecordGrown(RootVolumeStatus(volume_id=volume.id, grown_gib=size)))
        case Failed(error, is_due):
            found = found_error(error, _KIND)
            return _with(found, grow) if is_due else found
        case _:
            return growing


def _with(finding: Finding, step: steps.GrowRoot | steps.RecordGrown) -> Finding:
    return Finding(finding.outcome, finding.reason, finding.message, finding.condition, (step,))
