"""The disk that an instance boots from: as declared, tagged as its instance, and its file system as large as it is.

    size, type, IOPS differ ─► ModifyVolume ─► EC2 shows the new size ─► GrowRoot ─► RecordGrown

What holds for every volume stands here, too; volumes.py has what is otherwise with data volumes.

EC2 changes one thing at a time on a volume, and few times a day; it says so, and is not asked again meanwhile. A volume
is never made smaller. What was grown stands in `status.rootVolume`: growing what is grown changes nothing, so that a
crash before that is written costs one call.
Source: EBS User Guide, "Modify an Amazon EBS volume using Elastic Volumes operations". Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import RootVolumeStatus
from nixops_operator.facts.cloud import VOLUME_CHANGING, Volume, VolumeSettings
from nixops_operator.jobs import Done, Failed
from nixops_operator.machine import steps
from nixops_operator.planning import Area, Finding, after_failure, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from nixops_operator.api.machine_spec import Ec2Target
    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed, ObservedCloud

BEGIN_PAUSE = timedelta(seconds=10)
"""While EC2 begins with a change, and shows the old size still: for seconds, or minutes. Each step of it wakes the
machine; a pass in between finds nothing new."""
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


def to_change(wanted: VolumeSettings, volume: Volume) -> VolumeSettings | None:
    """What EC2 can make of a volume, as it is declared; None: nothing differs that it could."""
    shown = volume.settings
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
    wanted, what = declared(ec2), f"{volume.id} of {instance.id}"
    return (
        *tags_missing(desired, ec2, cloud, volume),
        *_encrypted_later(wanted, volume, what),
        *differences(wanted, volume, what, cloud.volume_changes.get(volume.id, ""), None),
    )


def tags_missing(desired: Desired, ec2: Ec2Target, cloud: ObservedCloud, volume: Volume) -> Sequence[Finding]:
    """Those of its instance; one of the spec's as soon as it is noted as ours to take off again (instance.py)."""
    unnoted = ec2.tags.keys() - set(desired.status.get("appliedTagKeys") or ())
    wanted = {key: value for key, value in (cloud.declared["tags"] or {}).items() if key not in unnoted}
    missing = tuple(sorted((key, value) for key, value in wanted.items() if volume.tags.get(key) != value))
    if not missing:
        return ()
    step = steps.TagVolume(volume.id, missing)
    message = f"{volume.id}: tags not as declared"
    return (Finding(Outcome.REPAIRING, Reason.TAG_DRIFT, message, _KIND, (step,), differs=Area.CLOUD),)


def _encrypted_later(wanted: VolumeSettings, volume: Volume, what: str) -> Sequence[Finding]:
    if wanted.encrypted in (None, volume.settings.encrypted):
        return ()
    is_so, is_to_be = ("encrypted" if one else "not encrypted" for one in (volume.settings.encrypted, wanted.encrypted))
    message = f"{what} is {is_so}; {is_to_be} counts at the next launch"
    return (Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, message, _KIND),)


def differences(wanted: VolumeSettings, volume: Volume, what: str, change: str, entry: str | None) -> Sequence[Finding]:
    """What a volume is otherwise than wanted, for as long as it lives. `what`: it, for people; `change`: how EC2's last
    modification of it stands; `entry`: of the spec's volumes, None: the root volume."""
    found = []
    size = volume.settings.size_gib
    if wanted.size_gib is not None and size is not None and wanted.size_gib < size:
        message = (
            f"{what} has {size} GiB, the spec says {wanted.size_gib}; EC2 makes no volume smaller: declare the size "
            "that it has, or delete this machine to get another"
        )
        found.append(Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _KIND, differs=Area.CLOUD))
    changes = to_change(wanted, volume)
    if changes is None:
        return found
    differing = Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, f"{what} not as declared", _KIND, differs=Area.CLOUD)
    if change in VOLUME_CHANGING:
        why = "EC2 is at work on its last change, and takes the next one when that is complete"
        pause = BEGIN_PAUSE if change == VOLUME_CHANGING[0] else CHANGE_PAUSE
        return (*found, replace(differing, message=f"{differing.message}; {why}", look_again=pause))
    return (*found, replace(differing, steps=(steps.ModifyVolume(volume.id, changes, entry),)))


def grown(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The root file system is as large as its volume, where the spec says how large that is."""
    ec2, cloud = desired.spec.target.ec2, observed.cloud
    volume = cloud.root_volume if cloud is not None else None
    wanted = declared(ec2).size_gib if ec2 is not None else None
    if volume is None or wanted is None:
        return None
    known = desired.root_volume
    done = known.grown_gib if known is not None and known.volume_id == volume.id else None
    size = size_to_grow_to(volume, wanted, done)
    if size is None:
        return None
    job = job_names.grow(desired.host_id, volume.id, size)
    record = steps.RecordGrown(RootVolumeStatus(volume_id=volume.id, grown_gib=size))
    return growing(f"the root file system into the {size} GiB of {volume.id}", steps.GrowRoot(job), record, observed)


def size_to_grow_to(volume: Volume, wanted_gib: int, done_gib: int | None) -> int | None:
    """GiB that a file system is to have which was grown into `done_gib`; None: it is that large, or EC2 still makes its
    volume larger, and it would be grown twice."""
    size = volume.settings.size_gib
    return size if size is not None and size >= wanted_gib and (done_gib is None or done_gib < size) else None


def growing(what: str, grow: steps.GrowRoot | steps.GrowVolume, record: Step, observed: Observed) -> Finding:
    """How it stands with a file system that is to grow, on a machine that goes on serving meanwhile. `what`: it, for
    people; `record`: writes down that it has grown."""
    found = Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, f"growing {what}", _KIND)
    match observed.jobs.get(grow.job):
        case None:
            return replace(found, steps=(grow,))
        case Done():
            return replace(found, steps=(record,))
        case Failed(error, is_due):
            # What is not mounted is nobody's trouble yet; a size that is not carried out is.
            is_unmounted = error.reason is Reason.PENDING
            told = after_failure(found, error) if is_unmounted else found_error(error, _KIND)
            return replace(told, steps=(grow,) if is_due else ())
        case _:
            return found
