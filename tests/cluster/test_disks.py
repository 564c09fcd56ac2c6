"""A data volume with a file in it, over all that happens to its machine and to itself: it is grown, stopped, replaced,
changed by hand in EC2, and let go of. How long each took is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import LIMIT, eventually

pytestmark = pytest.mark.long(instead="cluster/test_attributes.py")

DEPLOYMENT, MACHINE = "site", "site-web"
OF_MACHINE = "/spec/machines/0"
EC2 = f"{OF_MACHINE}/target/ec2"
MODULE = f"{OF_MACHINE}/configuration/modules/0/inline"
NOTE = "/data/note"
IN_SYNC = {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"}
GIB = 1 << 30


def mounting(device: str) -> str:
    return specs.page("Site", f'fileSystems."/data" = {{ device = "{device}"; fsType = "xfs"; autoFormat = true; }};')


def data(**changes: Any) -> dict[str, Any]:
    return {"name": "data", "device": "/dev/sdf", "size": 1} | changes


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Iterator[Place]:
    """A machine on EC2 that mounts the volume, with a file there."""
    shared_place.aws_secret()
    allowed = {"stop": "WhenNeeded", "replace": "WhenNeeded"}
    shared_place.apply(specs.on_ec2(mounting("/dev/sdf"), ec2={"volumes": [data()]}, disruption=allowed))
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    shared_place.on(MACHINE, "sh", "-c", f"echo mine >{NOTE}")
    yield shared_place
    for volume in volumes(shared_place):
        if {"Key": "nixops.dev:retained", "Value": "true"} in volume["Tags"]:
            shared_place.ec2.delete_volume(VolumeId=volume["VolumeId"])


def volumes(site: Place) -> list[dict[str, Any]]:
    """Data volumes of this namespace."""
    entry = {"Name": "tag-key", "Values": ["nixops.dev:entry"]}
    ours = {"Name": "tag:nixops.dev:namespace", "Values": [site.namespace]}
    return list(site.ec2.describe_volumes(Filters=[ours, entry])["Volumes"])


def the_volume(site: Place, volume_id: str) -> dict[str, Any]:
    (found,) = site.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    return dict(found)


def attachment(site: Place, volume_id: str) -> tuple[str, ...]:
    """State and device; empty where it is attached to nothing."""
    found = the_volume(site, volume_id)["Attachments"]
    return (found[0]["State"], found[0]["Device"]) if found else ()


def size_mounted(site: Place) -> int:
    """Bytes."""
    return int(site.on(MACHINE, "df", "--output=size", "--block-size=1", "/data").split()[-1])


def declare(site: Place, **values: Any) -> None:
    """`volumes`, other fields of the EC2 target, or `module`."""
    edits = [
        {"op": "add", "path": MODULE if field == "module" else f"{EC2}/{field}", "value": value}
        for field, value in values.items()
    ]
    site.patch("nixdeployment", DEPLOYMENT, *edits)


def settled(site: Place, limit: float = LIMIT) -> None:
    site.await_condition("nixmachine", MACHINE, IN_SYNC, limit)


def has_the_note(site: Place) -> bool:
    return site.on(MACHINE, "sh", "-c", f"findmnt --noheadings --output FSTYPE /data && cat {NOTE}") == "xfs\nmine"


@pytest.fixture
def took(capsys: pytest.CaptureFixture[str]) -> Iterator[list[tuple[str, float]]]:
    """(what, when it was done) of each part of a test."""
    marks: list[tuple[str, float]] = [("", time.monotonic())]
    yield marks
    parts = [f"{what} {when - before:.1f} s" for (_, before), (what, when) in pairwise(marks)]
    with capsys.disabled():
        print(f"\nvolume: {', '.join(parts)}")


def test_a_file_outlives_growth_stops_and_instances(site: Place, took: list[tuple[str, float]]) -> None:
    (made,) = volumes(site)
    volume_id = made["VolumeId"]
    by_id = f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume_id.replace('-', '')}"
    assert has_the_note(site)

    declare(site, volumes=[data(size=2)], module=mounting(by_id))
    settled(site)
    assert size_mounted(site) > 1.8 * GIB
    assert site.on(MACHINE, "systemctl", "show", "--property=What", "--value", "data.mount") != ""
    took.append(("grown", time.monotonic()))

    before = site.live_instances()[0]
    declare(site, powerState="Stopped")
    eventually(lambda: site.live_instances()[0]["State"]["Name"] == "stopped", "it is stopped")
    declare(site, powerState="Running")
    settled(site)
    assert has_the_note(site)
    took.append(("stopped and started", time.monotonic()))

    declare(site, tenancy="Dedicated")
    settled(site, 2 * LIMIT)  # a launch, and an end before the volume is free
    (after,) = site.live_instances()
    assert after["InstanceId"] != before["InstanceId"]
    assert has_the_note(site)
    assert size_mounted(site) > 1.8 * GIB
    assert [one["VolumeId"] for one in volumes(site)] == [volume_id]
    took.append(("moved to another instance", time.monotonic()))


def test_what_somebody_does_to_it_in_ec2_is_put_back_or_told(site: Place, took: list[tuple[str, float]]) -> None:
    """Follows the one before."""
    (volume,) = volumes(site)
    volume_id = volume["VolumeId"]

    site.ec2.detach_volume(VolumeId=volume_id)  # in use, it goes when it is not
    assert attachment(site, volume_id) == ("busy", "/dev/sdf")
    site.on(MACHINE, "systemctl", "stop", "data.mount")
    eventually(lambda: attachment(site, volume_id) == ("attached", "/dev/sdf"), "it is attached again")
    site.on(MACHINE, "systemctl", "start", "data.mount")
    settled(site)
    assert has_the_note(site)
    took.append(("detached by hand: attached again", time.monotonic()))

    site.ec2.modify_volume(VolumeId=volume_id, Size=3)
    machine = site.await_condition("nixmachine", MACHINE, {"Stalled": "True/ChangeForbidden"})
    assert "has 3 GiB, the spec says 2; EC2 makes no volume smaller" in condition(machine, "Stalled")["message"]
    eventually(lambda: size_mounted(site) > 2.8 * GIB, "its file system has grown all the same")
    declare(site, volumes=[data(size=3)])
    settled(site)
    took.append(("grown by hand: told", time.monotonic()))

    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": "/spec/driftPolicy", "value": "Report"})
    settled(site)
    site.on(MACHINE, "systemctl", "stop", "data.mount")
    site.ec2.detach_volume(VolumeId=volume_id)
    eventually(lambda: not attachment(site, volume_id), "it is free")
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "False/Provisioning"})
    site.ec2.attach_volume(VolumeId=volume_id, InstanceId=site.live_instances()[0]["InstanceId"], Device="/dev/sdh")
    machine = site.await_condition("nixmachine", MACHINE, {"Stalled": "True/ChangeForbidden"})
    assert "is attached as /dev/sdh, the spec says /dev/sdf" in condition(machine, "Stalled")["message"]
    site.ec2.detach_volume(VolumeId=volume_id)
    site.patch("nixdeployment", DEPLOYMENT, {"op": "replace", "path": "/spec/driftPolicy", "value": "Enforce"})
    eventually(lambda: attachment(site, volume_id) == ("attached", "/dev/sdf"), "it is attached where it belongs")
    site.on(MACHINE, "systemctl", "start", "data.mount")
    settled(site)
    assert has_the_note(site)
    took.append(("under another name by hand: told", time.monotonic()))


def test_what_left_the_spec_goes_when_nothing_uses_it_as_its_policy_says(
    site: Place, took: list[tuple[str, float]]
) -> None:
    """Follows the one before."""
    (volume,) = volumes(site)
    volume_id = volume["VolumeId"]
    site.on(MACHINE, "sync", "--file-system", NOTE)
    snapshot_id = site.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    copy = {"name": "copy", "device": "/dev/sdg", "size": 3, "snapshotId": snapshot_id, "deletionPolicy": "Delete"}
    declare(site, volumes=[data(size=3), copy])
    eventually(lambda: len(volumes(site)) == 2, "there is another one")
    uuids = ["blkid", "--match-tag", "UUID", "--output", "value"]
    eventually(
        lambda: site.on(MACHINE, "sh", "-c", f"{' '.join(uuids)} /dev/sdf /dev/sdg | uniq --count").startswith("2 "),
        "it has the file system of the snapshot",
    )
    took.append(("another one of a snapshot", time.monotonic()))

    declare(site, volumes=[])
    eventually(lambda: [one["VolumeId"] for one in volumes(site)] == [volume_id], "the copy is deleted")
    machine = site.await_condition("nixmachine", MACHINE, {"Ready": "False/Pending"})
    assert "is in use on the machine (/data)" in condition(machine, "Ready")["message"]
    assert has_the_note(site)
    took.append(("deleted", time.monotonic()))

    declare(site, module=specs.page("Site"))
    settled(site)
    kept = the_volume(site, volume_id)
    assert (kept["State"], kept["Attachments"]) == ("available", [])
    assert {"Key": "nixops.dev:retained", "Value": "true"} in kept["Tags"]
    assert site.on(MACHINE, "sh", "-c", "ls /dev/disk/by-id") == ""
    took.append(("unmounted and kept", time.monotonic()))
