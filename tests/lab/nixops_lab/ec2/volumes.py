"""Root volumes: they come and go with their instances, can be described and changed while they are in use.

Facts: EC2 API Reference, "DescribeVolumes", "ModifyVolume", "DescribeVolumesModifications"; EBS User Guide,
"Requirements for EBS volume modifications", "Monitor the progress of EBS volume modifications", "Amazon EBS volume
types".
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing, unsupported
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.records import Modification, Volume
from nixops_lab.ec2.region import Region

DAY = 24 * 3600
# Type → least and most IOPS that may be asked for; GiB from which to which it is made.
_IOPS = {"gp3": (3000, 80000), "io1": (100, 64000), "io2": (100, 256000)}
_SIZES = {
    "gp2": (1, 16384),
    "gp3": (1, 65536),
    "io1": (4, 16384),
    "io2": (4, 65536),
    "st1": (125, 16384),
    "sc1": (125, 16384),
    "standard": (1, 1024),
}
_THROUGHPUT = (125, 2000)
_HONOURED = frozenset({"DryRun", "Iops", "Size", "Throughput", "VolumeId", "VolumeType"})

_READERS: dict[str, Any] = {
    "attachment.instance-id": lambda v: [v.instance_id] if v.is_attached else [],
    "availability-zone": lambda v: [v.zone],
    "encrypted": lambda v: ["true" if v.is_encrypted else "false"],
    "size": lambda v: [str(v.size_gib)],
    "status": lambda v: [_status(v)],
    "volume-id": lambda v: [v.id],
    "volume-type": lambda v: [v.volume_type],
}
_MODIFICATION_READERS: dict[str, Any] = {"volume-id": lambda v: [v.id]}


def performance(volume_type: str, iops: int | None, throughput: int | None) -> tuple[int | None, int | None]:
    """IOPS and throughput that a volume of that type has when these are asked for. Raises where it cannot have them."""
    if volume_type not in _SIZES:
        raise Ec2Error("UnknownVolumeType", f"Unsupported volume type '{volume_type}' for volume creation.")
    if iops is not None and volume_type not in _IOPS:
        raise combination(f"The parameter iops is not supported for {volume_type} volumes.")
    if throughput is not None and volume_type != "gp3":
        raise combination(f"The parameter throughput is not supported for {volume_type} volumes.")
    if volume_type in {"io1", "io2"} and iops is None:
        raise missing("iops")
    if iops is not None and not _IOPS[volume_type][0] <= iops <= _IOPS[volume_type][1]:
        raise invalid(f"Volume iops of {iops} is not supported for volume type {volume_type}")
    if throughput is not None and not _THROUGHPUT[0] <= throughput <= _THROUGHPUT[1]:
        raise invalid(f"Throughput of {throughput} is not supported")
    if volume_type == "gp3":
        return iops or _IOPS["gp3"][0], throughput or _THROUGHPUT[0]
    return iops, None


def _status(volume: Volume) -> str:
    return "in-use" if volume.is_attached else "available"


def _modification_state(region: Region, modification: Modification) -> str:
    knobs, age = region.panel.knobs, region.panel.clock() - modification.started_at
    if age < knobs.volume_modifying_seconds:
        return "modifying"
    return "optimizing" if age < knobs.volume_modifying_seconds + knobs.volume_optimizing_seconds else "completed"


def _as_shown(region: Region, volume: Volume) -> Volume:
    """While it is being modified it is as it was."""
    last = volume.modifications[-1] if volume.modifications else None
    is_changing = last is not None and _modification_state(region, last) == "modifying"
    return replace(volume, **last.before) if last is not None and is_changing else volume  # type: ignore[arg-type]


async def describe_volumes(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters."""
    present = region.visible({name: _as_shown(region, volume) for name, volume in region.volumes.items()})
    chosen = list(present.values())
    if volume_ids := params.get("VolumeIds"):
        chosen = ids.pick(ids.VOLUME, volume_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "VolumeIds")
    return {"Volumes": [_volume_entry(region, volume) for volume in shown], "NextToken": token}


async def modify_volume(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Begun at once, one at a time."""
    if extra := sorted(set(params) - _HONOURED):
        raise unsupported(f"the lab does not model {extra[0]} of ModifyVolume")
    (volume,) = ids.pick(ids.VOLUME, [params["VolumeId"]], region.visible(region.volumes))
    now, done = cloud.panel.clock(), volume.modifications
    state = _modification_state(region, done[-1]) if done else "completed"
    if state != "completed":
        message = f"Cannot modify volume {volume.id} in modification state {state.upper()}"
        raise Ec2Error("IncorrectModificationState", message)
    of_late = [one for one in done if now - one.started_at < DAY]
    if cloud.panel.knobs.volume_modifications is not None and len(of_late) >= cloud.panel.knobs.volume_modifications:
        raise Ec2Error(
            "VolumeModificationRateExceeded",
            "You've reached the maximum modification rate per volume limit. Wait at least 6 hours between "
            "modifications per EBS volume.",
        )
    after = _modified(volume, params)
    changes = {name: after[name] for name in after if after[name] != getattr(volume, name)}
    modification = Modification(now, {name: getattr(volume, name) for name in changes}, changes)
    modified = replace(volume, **changes, modifications=(*done, modification))  # type: ignore[arg-type]
    region.volumes[volume.id] = modified
    return {"VolumeModification": _modification_entry(region, modified)}


def _modified(volume: Volume, params: Mapping[str, Any]) -> dict[str, object]:
    size, volume_type = params.get("Size", volume.size_gib), params.get("VolumeType", volume.volume_type)
    if size < volume.size_gib:
        raise invalid(f"New size cannot be smaller than existing size {volume.size_gib}")
    is_same_type = volume_type == volume.volume_type
    iops, throughput = performance(
        volume_type,
        params.get("Iops", volume.iops if is_same_type else None),
        params.get("Throughput", volume.throughput if is_same_type else None),
    )
    least, most = _SIZES[volume_type]
    if not least <= size <= most:
        raise invalid(f"Volume size of {size} GiB is not supported for volume type {volume_type}")
    return {"size_gib": size, "volume_type": volume_type, "iops": iops, "throughput": throughput}


async def describe_volumes_modifications(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """The last one of each volume that was ever modified."""
    present = region.visible({name: one for name, one in region.volumes.items() if one.modifications})
    chosen = list(present.values())
    if volume_ids := params.get("VolumeIds"):
        chosen = ids.pick(ids.VOLUME, volume_ids, present)
    found = select(chosen, params.get("Filters", []), _MODIFICATION_READERS, lambda _volume: {})
    shown, token = region.paged(found, params, "VolumeIds")
    return {"VolumesModifications": [_modification_entry(region, volume) for volume in shown], "NextToken": token}


def _modification_entry(region: Region, volume: Volume) -> dict[str, Any]:
    last = volume.modifications[-1]
    before = replace(volume, **last.before)  # type: ignore[arg-type]
    state = _modification_state(region, last)
    return {
        "VolumeId": volume.id,
        "ModificationState": state,
        "OriginalSize": before.size_gib,
        "OriginalVolumeType": before.volume_type,
        "OriginalIops": before.iops,
        "OriginalThroughput": before.throughput,
        "TargetSize": volume.size_gib,
        "TargetVolumeType": volume.volume_type,
        "TargetIops": volume.iops,
        "TargetThroughput": volume.throughput,
        "Progress": {"modifying": 0, "optimizing": 50}.get(state, 100),
        "StartTime": last.started_at,
    }


def _volume_entry(region: Region, volume: Volume) -> dict[str, Any]:
    attachment = {
        "AttachTime": volume.created_at,
        "DeleteOnTermination": volume.is_deleted_on_termination,
        "Device": volume.device,
        "InstanceId": volume.instance_id,
        "State": "attached",
        "VolumeId": volume.id,
    }
    iops, throughput = performance(volume.volume_type, volume.iops, volume.throughput)
    return {
        "VolumeId": volume.id,
        "AvailabilityZone": volume.zone,
        "CreateTime": volume.created_at,
        "Encrypted": volume.is_encrypted,
        "Size": volume.size_gib,
        "VolumeType": volume.volume_type,
        "Iops": iops,
        "Throughput": throughput,
        "State": _status(volume),
        "Attachments": [attachment] if volume.is_attached else [],
        "Tags": tags.as_list(region.tags_shown(volume.id)),
    }


OPERATIONS = {
    "DescribeVolumes": describe_volumes,
    "DescribeVolumesModifications": describe_volumes_modifications,
    "ModifyVolume": modify_volume,
}
