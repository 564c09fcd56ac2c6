"""Snapshots: what was in a volume, for new ones. They are complete at once.

Facts: EC2 API Reference, "CreateSnapshot", "DescribeSnapshots", "DeleteSnapshot".
"""

from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import unsupported
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.records import Snapshot
from nixops_lab.ec2.region import Region

_HONOURED = frozenset({"DryRun", "TagSpecifications", "VolumeId"})
_READERS: dict[str, Any] = {
    "snapshot-id": lambda one: [one.id],
    "volume-id": lambda one: [one.volume_id],
}


async def create_snapshot(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Of a volume as it is now, in use or not."""
    if extra := sorted(set(params) - _HONOURED):
        raise unsupported(f"the lab does not model {extra[0]} of CreateSnapshot")
    (volume,) = ids.pick(ids.VOLUME, [params["VolumeId"]], region.visible(region.volumes))
    now = cloud.panel.clock()
    snapshot = Snapshot(region.new_ids.new("snap"), volume.id, volume.size_gib, volume.is_encrypted, now)
    region.snapshots[snapshot.id] = snapshot
    region.tags.put(snapshot.id, tags.on_create(params, "snapshot").get("snapshot", {}), now)
    await cloud.hosts.copy_disk(volume.id, snapshot.id)
    return _snapshot_entry(region, snapshot)


async def describe_snapshots(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters; all are the account's own."""
    present = region.visible(region.snapshots)
    chosen = list(present.values())
    if snapshot_ids := params.get("SnapshotIds"):
        chosen = ids.pick(ids.SNAPSHOT, snapshot_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "SnapshotIds")
    return {"Snapshots": [_snapshot_entry(region, one) for one in shown], "NextToken": token}


async def delete_snapshot(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Volumes that were made of it stay."""
    (snapshot,) = ids.pick(ids.SNAPSHOT, [params["SnapshotId"]], region.visible(region.snapshots))
    del region.snapshots[snapshot.id]
    region.tags.forget(snapshot.id)
    await cloud.hosts.remove_disk(snapshot.id)
    return {}


def _snapshot_entry(region: Region, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "SnapshotId": snapshot.id,
        "VolumeId": snapshot.volume_id,
        "VolumeSize": snapshot.size_gib,
        "Encrypted": snapshot.is_encrypted,
        "OwnerId": ACCOUNT,
        "Progress": "100%",
        "StartTime": snapshot.created_at,
        "State": "completed",
        "Tags": tags.as_list(region.tags_shown(snapshot.id)),
    }


OPERATIONS = {
    "CreateSnapshot": create_snapshot,
    "DeleteSnapshot": delete_snapshot,
    "DescribeSnapshots": describe_snapshots,
}
