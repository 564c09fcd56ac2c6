"""Root volumes: they come and go with their instances and can be described. EC2 API Reference, "DescribeVolumes"."""

from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.records import Volume
from nixops_lab.ec2.region import Region

_READERS: dict[str, Any] = {
    "attachment.instance-id": lambda v: [v.instance_id] if v.is_attached else [],
    "availability-zone": lambda v: [v.zone],
    "encrypted": lambda v: ["true" if v.is_encrypted else "false"],
    "size": lambda v: [str(v.size_gib)],
    "status": lambda v: [_status(v)],
    "volume-id": lambda v: [v.id],
    "volume-type": lambda v: [v.volume_type],
}


def _status(volume: Volume) -> str:
    return "in-use" if volume.is_attached else "available"


async def describe_volumes(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters."""
    present = region.visible(region.volumes)
    chosen = list(present.values())
    if volume_ids := params.get("VolumeIds"):
        chosen = ids.pick(ids.VOLUME, volume_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "VolumeIds")
    return {"Volumes": [_volume_entry(region, volume) for volume in shown], "NextToken": token}


def _volume_entry(region: Region, volume: Volume) -> dict[str, Any]:
    attachment = {
        "AttachTime": volume.created_at,
        "DeleteOnTermination": volume.is_deleted_on_termination,
        "Device": volume.device,
        "InstanceId": volume.instance_id,
        "State": "attached",
        "VolumeId": volume.id,
    }
    return {
        "VolumeId": volume.id,
        "AvailabilityZone": volume.zone,
        "CreateTime": volume.created_at,
        "Encrypted": volume.is_encrypted,
        "Size": volume.size_gib,
        "VolumeType": volume.volume_type,
        "State": _status(volume),
        "Attachments": [attachment] if volume.is_attached else [],
        "Tags": tags.as_list(region.tags_shown(volume.id)),
    }


OPERATIONS = {"DescribeVolumes": describe_volumes}
