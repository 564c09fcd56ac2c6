"""Volumes: those that come and go with their instances, and those that are made by themselves.

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
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.records import Modification, Volume
from nixops_lab.ec2.region import Region
from nixops_lab.machines import Disk

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
_CREATE_HONOURED = frozenset(
    {
        "AvailabilityZone",
        "ClientToken",
        "DryRun",
        "Encrypted",
        "Iops",
        "Size",
        "SnapshotId",
        "TagSpecifications",
        "Throughput",
        "VolumeType",
    }
)
_HONOURED = frozenset({"DryRun", "Iops", "Size", "Throughput", "VolumeId", "VolumeType"})

_READERS: dict[str, Any] = {
    "attachment.instance-id": lambda v: [v.instance_id] if v.is_attached else [],
    "availability-zone": lambda v: [v.zone],
    "encrypted": lambda v: ["true" if v.is_encrypted else "false"],
    "size": lambda v: [str(v.size_gib)],
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


def _is_moving(region: Region, volume: Volume) -> bool:
    return region.panel.clock() - volume.moved_at < region.panel.knobs.volume_moving_seconds


def _attachment(region: Region, volume: Volume) -> str:
    """Empty where it is not attached."""
    is_over = not volume.is_attached and not volume.is_held and not _is_moving(region, volume)
    if not volume.instance_id or is_over:
        return ""
    if volume.is_held:
        return "busy"
    if not volume.is_attached:
        return "detaching"
    return "attaching" if _is_moving(region, volume) else "attached"


def _status(region: Region, volume: Volume) -> str:
    if _attachment(region, volume):
        return "in-use"
    age = region.panel.clock() - volume.created_at
    return "creating" if age < region.panel.knobs.volume_moving_seconds else "available"


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


async def create_volume(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Empty, or of a snapshot. Its token is of one zone; the same parameters give the first one again."""
    if extra := sorted(set(params) - _CREATE_HONOURED):
        raise unsupported(f"the lab does not model {extra[0]} of CreateVolume")
    zone, token = params["AvailabilityZone"], params.get("ClientToken", "")
    made = region.tokens.find_made(f"CreateVolume {zone}", token, params) if token else None
    if made is not None:
        if made not in region.volumes:
            raise Ec2Error("InvalidVolume.NotFound", f"The volume '{made}' does not exist.")
        return _volume_entry(region, region.volumes[made])
    if zone not in region.network.zones:
        raise Ec2Error("InvalidZone.NotFound", f"The zone '{zone}' does not exist.")
    snapshot = None
    if "SnapshotId" in params:
        (snapshot,) = ids.pick(ids.SNAPSHOT, [params["SnapshotId"]], region.visible(region.snapshots))
    if "Size" not in params and snapshot is None:
        raise missing("size/snapshot")
    size = params.get("Size", snapshot.size_gib if snapshot is not None else 0)
    if snapshot is not None and size < snapshot.size_gib:
        raise invalid(
            f"The volume size is invalid for snapshot {snapshot.id}. It must be at least {snapshot.size_gib} GiB"
        )
    volume_type = params.get("VolumeType", "gp2")
    iops, throughput = performance(volume_type, params.get("Iops"), params.get("Throughput"))
    _judge_size(volume_type, size)
    now = cloud.panel.clock()
    volume = Volume(
        id=region.new_ids.new("vol"),
        instance_id="",
        device="",
        zone=zone,
        size_gib=size,
        volume_type=volume_type,
        is_encrypted=params.get("Encrypted", False) or (snapshot is not None and snapshot.is_encrypted),
        snapshot_id=snapshot.id if snapshot is not None else "",
        is_deleted_on_termination=False,
        created_at=now,
        iops=iops,
        throughput=throughput,
        is_attached=False,
    )
    region.volumes[volume.id] = volume
    region.tags.put(volume.id, tags.on_create(params, "volume").get("volume", {}), now)
    if token:
        region.tokens.record(f"CreateVolume {zone}", token, params, "", (volume.id,))
    if snapshot is not None:
        await cloud.hosts.copy_disk(snapshot.id, volume.id)
    return _volume_entry(region, volume)


async def attach_volume(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """To an instance of its zone that runs or is stopped; its machine has the disk when the reply comes."""
    (volume,) = ids.pick(ids.VOLUME, [params["VolumeId"]], region.visible(region.volumes))
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    status = _status(region, volume)
    if status == "in-use":
        raise Ec2Error("VolumeInUse", f"{volume.id} is already attached to an instance")
    if status != "available":
        raise Ec2Error("IncorrectState", f"{volume.id} is {status}")
    if instance.state not in {"running", "stopped"}:
        raise Ec2Error("IncorrectState", f"Instance '{instance.id}' is not 'running'.")
    if volume.zone != instance.subnet.zone:
        message = f"The volume '{volume.id}' is not in the same availability zone as instance '{instance.id}'"
        raise Ec2Error("InvalidVolume.ZoneMismatch", message)
    taken = {
        one.device for one in region.volumes.values() if _attachment(region, one) and one.instance_id == instance.id
    }
    if params["Device"] in taken:
        raise invalid(f"Invalid value '{params['Device']}' for unixDevice. Attachment point is already in use")
    attached = replace(
        volume,
        instance_id=instance.id,
        device=params["Device"],
        is_attached=True,
        moved_at=cloud.panel.clock(),
        is_deleted_on_termination=False,
    )
    region.volumes[volume.id] = attached
    await cloud.hosts.attach_disk(instance.id, Disk(volume.id, attached.device, attached.size_gib))
    return {"VolumeId": volume.id, "InstanceId": instance.id, "Device": attached.device, "State": "attaching"}


async def detach_volume(lifecycle: Lifecycle, cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Never by force: while the machine uses it, it is `busy` (EBS User Guide, "Detach an Amazon EBS volume")."""
    if params.get("Force"):
        raise unsupported("DetachVolume by force")
    (volume,) = ids.pick(ids.VOLUME, [params["VolumeId"]], region.visible(region.volumes))
    if _attachment(region, volume) not in {"attached", "attaching"}:
        raise Ec2Error("IncorrectState", f"Volume '{volume.id}' is in the 'available' state.")
    if params.get("InstanceId", volume.instance_id) != volume.instance_id:
        raise Ec2Error("InvalidAttachment.NotFound", f"{volume.id} is not attached to {params['InstanceId']}")
    if volume.id == region.instances[volume.instance_id].volume_id:
        raise Ec2Error("OperationNotPermitted", "The lab's instances keep their root volumes")
    is_free = await cloud.hosts.detach_disk(volume.instance_id, volume.id)
    region.volumes[volume.id] = replace(
        region.volumes[volume.id], is_attached=False, is_held=not is_free, moved_at=cloud.panel.clock()
    )
    if not is_free:
        lifecycle.let_go(region, volume.id)
    return {"VolumeId": volume.id, "InstanceId": volume.instance_id, "Device": volume.device, "State": "detaching"}


async def delete_volume(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Of one that is not attached."""
    (volume,) = ids.pick(ids.VOLUME, [params["VolumeId"]], region.visible(region.volumes))
    status = _status(region, volume)
    if status == "in-use":
        raise Ec2Error("VolumeInUse", f"Volume {volume.id} is currently attached to {volume.instance_id}")
    if status != "available":
        raise Ec2Error("IncorrectState", f"{volume.id} is {status}")
    del region.volumes[volume.id]
    region.tags.forget(volume.id)
    await cloud.hosts.remove_disk(volume.id)
    return {}


async def modify_volume(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Begun at once, one at a time. A machine sees a larger disk before EC2 says so."""
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
    await cloud.hosts.resize_disk(volume.id, modified.size_gib)
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
    _judge_size(volume_type, size)
    return {"size_gib": size, "volume_type": volume_type, "iops": iops, "throughput": throughput}


def _judge_size(volume_type: str, size: int) -> None:
    least, most = _SIZES[volume_type]
    if not least <= size <= most:
        raise invalid(f"Volume size of {size} GiB is not supported for volume type {volume_type}")


async def describe_volumes_modifications(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """The last one of each volume that was ever modified."""
    present = region.visible({name: one for name, one in region.volumes.items() if one.modifications})
    chosen = list(present.values())
    if volume_ids := params.get("VolumeIds"):
        chosen = ids.pick(ids.VOLUME, volume_ids, present)
    found = select(chosen, params.get("Filters", []), _MODIFICATION_READERS, lambda _volume: {})
    shown, token = region.paged(found, params, "VolumeIds", most=500)
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
        "AttachTime": volume.moved_at or volume.created_at,
        "DeleteOnTermination": volume.is_deleted_on_termination,
        "Device": volume.device,
        "InstanceId": volume.instance_id,
        "State": _attachment(region, volume),
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
        "SnapshotId": volume.snapshot_id,
        "State": _status(region, volume),
        "Attachments": [attachment] if _attachment(region, volume) else [],
        "Tags": tags.as_list(region.tags_shown(volume.id)),
    }


OPERATIONS = {
    "AttachVolume": attach_volume,
    "CreateVolume": create_volume,
    "DeleteVolume": delete_volume,
    "DescribeVolumes": describe_volumes,
    "DescribeVolumesModifications": describe_volumes_modifications,
    "ModifyVolume": modify_volume,
}
TRANSITIONS = {"DetachVolume": detach_volume}
