"""Volumes: what a launch asks of root volumes, what is changed while they are in use, and those made by themselves."""

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.testing import eventually
from nixops_lab.machines import Disk

pytest_plugins = ["nixops_lab.ec2.fixtures"]

GP3 = {"VolumeType": "gp3", "Iops": 3000, "Throughput": 125}


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def mapping(**ebs):
    return {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": ebs}]}


@pytest.fixture
def root(cases, ec2):
    """Of a running instance; what is passed on goes to the launch."""

    def launched(**ebs):
        instance = cases.describe(cases.running(**(mapping(**ebs) if ebs else {})))
        return instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]

    return launched


def shown(ec2, volume_id, *names):
    (volume,) = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    return {name: volume.get(name) for name in names or ("Size", *GP3)}


def state(ec2, volume_id):
    (found,) = ec2.describe_volumes_modifications(VolumeIds=[volume_id])["VolumesModifications"]
    return found["ModificationState"]


def test_a_launch_says_what_its_root_volume_is(ec2, root):
    assert shown(ec2, root()) == {"Size": 4, **GP3}
    asked = {"VolumeSize": 40, "Iops": 4000, "Throughput": 250, "Encrypted": True}
    assert shown(ec2, root(**asked), "Size", "Iops", "Throughput", "Encrypted") == {
        "Size": 40,
        "Iops": 4000,
        "Throughput": 250,
        "Encrypted": True,
    }


@pytest.mark.parametrize(
    ("ebs", "code"),
    [
        pytest.param({"VolumeSize": 1}, "InvalidBlockDeviceMapping", id="smaller than the image"),
        pytest.param({"VolumeType": "gp4"}, "UnknownVolumeType", id="no such type"),
        pytest.param({"VolumeType": "gp2", "Iops": 3000}, "InvalidParameterCombination", id="iops of gp2"),
        pytest.param({"VolumeType": "io2"}, "MissingParameter", id="io2 without iops"),
        pytest.param({"Throughput": 5000}, "InvalidParameterValue", id="more than there is"),
    ],
)
def test_what_no_volume_can_be_is_refused_at_launch(cases, ebs, code):
    with pytest.raises(ClientError) as refused:
        cases.running(**mapping(**ebs))
    assert refused.value.response["Error"]["Code"] == code


def test_a_volume_that_was_never_modified_has_no_modification(ec2, root):
    wanted = [{"Name": "volume-id", "Values": [root()]}]
    assert ec2.describe_volumes_modifications(Filters=wanted)["VolumesModifications"] == []


def test_a_new_size_shows_once_it_can_be_used(ec2, layer, root):
    volume_id = root()
    layer.turn(**{"volume.modifying_seconds": 3600})
    ec2.modify_volume(VolumeId=volume_id, Size=20)
    assert (state(ec2, volume_id), shown(ec2, volume_id, "Size")) == ("modifying", {"Size": 4})

    layer.turn(**{"volume.modifying_seconds": 0, "volume.optimizing_seconds": 3600})
    assert (state(ec2, volume_id), shown(ec2, volume_id, "Size")) == ("optimizing", {"Size": 20})

    layer.turn(**{"volume.optimizing_seconds": 0})
    assert state(ec2, volume_id) == "completed"


def test_one_change_at_a_time_and_four_a_day(ec2, layer, root):
    volume_id = root()
    layer.turn(**{"volume.modifying_seconds": 3600})
    ec2.modify_volume(VolumeId=volume_id, Size=20)
    assert refusal(ec2.modify_volume, VolumeId=volume_id, Size=21) == "IncorrectModificationState"

    layer.turn(**{"volume.modifying_seconds": 0, "volume.optimizing_seconds": 0})
    for size in (21, 22, 23):
        ec2.modify_volume(VolumeId=volume_id, Size=size)
    assert refusal(ec2.modify_volume, VolumeId=volume_id, Size=24) == "VolumeModificationRateExceeded"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        pytest.param({"Size": 1}, "InvalidParameterValue", id="smaller"),
        pytest.param({"VolumeType": "io1"}, "MissingParameter", id="io1 without iops"),
        pytest.param({"VolumeType": "st1"}, "InvalidParameterValue", id="st1 of few GiB"),
        pytest.param({"VolumeType": "gp2", "Throughput": 250}, "InvalidParameterCombination", id="throughput of gp2"),
    ],
)
def test_what_no_volume_can_become_is_refused(ec2, root, wanted, code):
    assert refusal(ec2.modify_volume, VolumeId=root(), **wanted) == code


def test_another_type_has_its_own_performance(ec2, layer, root):
    volume_id = root(Iops=4000)
    layer.turn(**{"volume.modifying_seconds": 0, "volume.optimizing_seconds": 0})

    ec2.modify_volume(VolumeId=volume_id, VolumeType="gp2")
    assert shown(ec2, volume_id) == {"Size": 4, "VolumeType": "gp2", "Iops": None, "Throughput": None}

    ec2.modify_volume(VolumeId=volume_id, VolumeType="io2", Iops=500)
    assert shown(ec2, volume_id) == {"Size": 4, "VolumeType": "io2", "Iops": 500, "Throughput": None}


# Volumes that are made by themselves.

ASKED = {"AvailabilityZone": "us-west-2a", "Size": 10, "VolumeType": "gp3", "ClientToken": "v1-one"}


def volume(ec2, volume_id):
    (found,) = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    return found


@pytest.fixture
def attached(cases, ec2):
    """(volume, instance)."""
    instance_id = cases.running()
    zone = cases.describe(instance_id)["Placement"]["AvailabilityZone"]
    volume_id = ec2.create_volume(**ASKED | {"AvailabilityZone": zone})["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    return volume_id, instance_id


def test_a_token_makes_one_volume(ec2):
    first = ec2.create_volume(**ASKED)["VolumeId"]

    assert ec2.create_volume(**ASKED)["VolumeId"] == first
    assert refusal(ec2.create_volume, **ASKED | {"Size": 20}) == "IdempotentParameterMismatch"
    assert ec2.create_volume(**ASKED | {"AvailabilityZone": "us-west-2b"})["VolumeId"] != first


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"AvailabilityZone": "us-west-2z"}, "InvalidZone.NotFound", id="no such zone"),
        pytest.param({"Size": 20000, "VolumeType": "gp2"}, "InvalidParameterValue", id="larger than gp2"),
        pytest.param({"SnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound", id="no such snapshot"),
        pytest.param({"KmsKeyId": "alias/mine"}, "UnsupportedOperation", id="not modelled"),
    ],
)
def test_what_cannot_be_made_is_refused(ec2, changes, code):
    assert refusal(ec2.create_volume, **ASKED | changes) == code


def test_a_new_volume_is_in_the_making_for_a_while(ec2, layer):
    layer.turn(**{"volume.moving_seconds": 3600})
    volume_id = ec2.create_volume(**ASKED)["VolumeId"]
    assert volume(ec2, volume_id)["State"] == "creating"

    layer.turn(**{"volume.moving_seconds": 0})
    assert volume(ec2, volume_id)["State"] == "available"


def test_attaching_and_detaching_take_a_while(ec2, layer, attached):
    volume_id, instance_id = attached

    def state():
        (found,) = volume(ec2, volume_id)["Attachments"]
        return found["State"], found["InstanceId"], found["Device"]

    assert state() == ("attached", instance_id, "/dev/sdf")
    layer.turn(**{"volume.moving_seconds": 3600})
    assert state() == ("attaching", instance_id, "/dev/sdf")
    ec2.detach_volume(VolumeId=volume_id)
    assert state() == ("detaching", instance_id, "/dev/sdf")
    assert refusal(ec2.delete_volume, VolumeId=volume_id) == "VolumeInUse"

    layer.turn(**{"volume.moving_seconds": 0})
    assert (volume(ec2, volume_id)["State"], volume(ec2, volume_id)["Attachments"]) == ("available", [])
    assert refusal(ec2.detach_volume, VolumeId=volume_id) == "IncorrectState"
    ec2.delete_volume(VolumeId=volume_id)
    assert refusal(ec2.delete_volume, VolumeId=volume_id) == "InvalidVolume.NotFound"


def test_an_instance_shows_its_volumes(cases, attached):
    volume_id, instance_id = attached
    devices = {one["DeviceName"]: one["Ebs"] for one in cases.describe(instance_id)["BlockDeviceMappings"]}

    assert sorted(devices) == ["/dev/sdf", "/dev/xvda"]
    assert (devices["/dev/sdf"]["VolumeId"], devices["/dev/sdf"]["DeleteOnTermination"]) == (volume_id, False)


def test_a_volume_is_attached_once_and_to_a_free_device(ec2, attached):
    volume_id, instance_id = attached
    zone = volume(ec2, volume_id)["AvailabilityZone"]
    other = ec2.create_volume(**ASKED | {"AvailabilityZone": zone, "ClientToken": "v1-two"})["VolumeId"]

    def attaching(name):
        return {"VolumeId": name, "InstanceId": instance_id, "Device": "/dev/sdf"}

    assert refusal(ec2.attach_volume, **attaching(volume_id)) == "VolumeInUse"
    assert refusal(ec2.attach_volume, **attaching(other)) == "InvalidParameterValue"


def test_a_volume_outlives_the_instance_that_it_was_attached_to(cases, ec2, attached):
    volume_id, instance_id = attached
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")

    assert (volume(ec2, volume_id)["State"], volume(ec2, volume_id)["Attachments"]) == ("available", [])


def test_a_machine_has_the_disk_when_the_reply_comes(ec2, layer, attached):
    volume_id, instance_id = attached
    assert layer.machines.disks[instance_id] == {volume_id: Disk(volume_id, "/dev/sdf", ASKED["Size"])}

    ec2.modify_volume(VolumeId=volume_id, Size=20)
    assert layer.machines.disks[instance_id][volume_id].gib == 20

    ec2.detach_volume(VolumeId=volume_id)
    assert layer.machines.disks[instance_id] == {}
    ec2.delete_volume(VolumeId=volume_id)
    assert ("remove_disk", volume_id) in layer.machines.calls


def test_a_volume_that_the_machine_uses_is_busy_until_it_lets_go(ec2, layer, attached):
    volume_id, instance_id = attached
    layer.machines.disks_in_use.add(volume_id)

    ec2.detach_volume(VolumeId=volume_id)
    (attachment,) = volume(ec2, volume_id)["Attachments"]
    assert (attachment["State"], attachment["InstanceId"]) == ("busy", instance_id)

    layer.machines.disks_in_use.clear()
    eventually(lambda: volume(ec2, volume_id)["State"] == "available")
    assert layer.machines.disks[instance_id] == {}


def test_a_snapshot_is_what_is_in_a_new_volume(ec2, layer, attached):
    volume_id, _ = attached
    snapshot_id = ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    (snapshot,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert (snapshot["State"], snapshot["VolumeId"], snapshot["VolumeSize"]) == ("completed", volume_id, ASKED["Size"])

    of_it = ASKED | {"SnapshotId": snapshot_id, "ClientToken": "v1-of-snapshot"}
    copy = ec2.create_volume(**of_it)["VolumeId"]
    assert volume(ec2, copy)["SnapshotId"] == snapshot_id
    assert layer.machines.calls[-2:] == [
        (f"copy_disk to {snapshot_id}", volume_id),
        (f"copy_disk to {copy}", snapshot_id),
    ]
    too_small = of_it | {"Size": ASKED["Size"] - 1, "ClientToken": "v1-too-small"}
    assert refusal(ec2.create_volume, **too_small) == "InvalidParameterValue"

    ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert refusal(ec2.describe_snapshots, SnapshotIds=[snapshot_id]) == "InvalidSnapshot.NotFound"
