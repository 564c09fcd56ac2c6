"""RunInstances: what it refuses, what it creates, which machine it boots."""

import pytest
from botocore.exceptions import ClientError

pytest_plugins = ["nixops_lab.ec2.fixtures"]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIs0LU5k+l1QwTk7ahaA6YDEcLsMVxIPGAGkiZJlfrnl"
UNKNOWN = "0123456789abcdef0"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        pytest.param({"ImageId": f"ami-{UNKNOWN}"}, "InvalidAMIID.NotFound", id="unknown image"),
        pytest.param({"ImageId": "ami-nixos"}, "InvalidAMIID.Malformed", id="malformed image"),
        pytest.param({"ImageId": None}, "MissingParameter", id="no image"),
        pytest.param({"KeyName": "nobody"}, "InvalidKeyPair.NotFound", id="unknown key pair"),
        pytest.param({"InstanceType": "t9.huge"}, "InvalidParameterValue", id="unknown instance type"),
        pytest.param({"InstanceType": "t4g.small"}, "InvalidParameterValue", id="arm type with an x86 image"),
        pytest.param({"SecurityGroupIds": [f"sg-{UNKNOWN}"]}, "InvalidGroup.NotFound", id="unknown group"),
        pytest.param({"SecurityGroupIds": ["web"]}, "InvalidGroupId.Malformed", id="malformed group"),
        pytest.param({"SecurityGroups": ["web"]}, "InvalidGroup.NotFound", id="unknown group name"),
        pytest.param({"SubnetId": f"subnet-{UNKNOWN}"}, "InvalidSubnetID.NotFound", id="unknown subnet"),
        pytest.param({"SubnetId": "west"}, "InvalidSubnetID.Malformed", id="malformed subnet"),
        pytest.param({"Placement": {"AvailabilityZone": "us-west-9z"}}, "InvalidParameterValue", id="unknown zone"),
        pytest.param({"MinCount": 2}, "InvalidParameterValue", id="least above most"),
        pytest.param({"UserData": "x" * 16385}, "InvalidParameterValue", id="user data above 16 KB"),
        pytest.param({"PrivateIpAddress": "10.0.0.5"}, "InvalidParameterValue", id="address outside the subnet"),
        pytest.param(
            {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1}}]},
            "InvalidBlockDeviceMapping",
            id="root smaller than the image",
        ),
        pytest.param(
            {"TagSpecifications": [{"ResourceType": "key-pair", "Tags": [{"Key": "a", "Value": "b"}]}]},
            "InvalidParameterValue",
            id="tags for what a launch does not create",
        ),
        pytest.param({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue", id="unknown profile"),
        pytest.param({"HibernationOptions": {"Configured": True}}, "UnsupportedOperation", id="what the lab lacks"),
    ],
)
def test_a_launch_is_refused_for(params, code, cases, ec2, layer):
    assert refusal(cases.reply, **params) == code
    assert ec2.describe_instances()["Reservations"] == []
    assert layer.machines.calls == []


def test_user_data_of_16_kb_is_accepted(cases):
    assert cases.launch(UserData="x" * 16384)


def test_a_zone_that_is_not_the_subnets_is_refused(cases, ec2):
    subnets = {s["AvailabilityZone"]: s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]}
    code = refusal(cases.reply, SubnetId=subnets["us-west-2a"], Placement={"AvailabilityZone": "us-west-2b"})
    assert code == "InvalidParameterValue"


def test_without_a_subnet_the_lowest_zones_default_subnet_is_taken(cases, ec2):
    subnets = {s["AvailabilityZone"]: s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]}
    shown = cases.describe(cases.launch())
    assert shown["SubnetId"] == subnets["us-west-2a"]
    assert shown["Placement"]["AvailabilityZone"] == "us-west-2a"


def test_a_group_of_another_network_is_refused(layer, cases):
    other = layer.client(region="eu-central-1")
    vpc_id = other.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    group_id = other.create_security_group(GroupName="web", Description="web", VpcId=vpc_id)["GroupId"]
    cases.ec2 = other
    assert refusal(cases.reply, SecurityGroupIds=[group_id]) == "InvalidParameter"


def test_the_machine_gets_key_user_data_release_and_addresses(cases, ec2, layer):
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=f"{KEY} a comment".encode())
    instance_id = cases.running(KeyName="web", UserData="SSH_HOST_ED25519_KEY:line\n")
    shown, spec = cases.describe(instance_id), layer.machines.specs[instance_id]
    assert (spec.name, spec.release, spec.user_data) == (instance_id, "25.11", "SSH_HOST_ED25519_KEY:line\n")
    assert spec.authorized_keys == (KEY,)
    assert (spec.private_address, spec.public_address) == (shown["PrivateIpAddress"], shown["PublicIpAddress"])


def test_a_launch_without_a_key_pair_gives_root_no_key(cases, layer):
    assert layer.machines.specs[cases.running()].authorized_keys == ()


def test_several_instances_share_a_reservation_and_have_their_index(cases):
    reply = cases.reply(MinCount=3, MaxCount=3)
    assert sorted(instance["AmiLaunchIndex"] for instance in reply["Instances"]) == [0, 1, 2]
    assert len({instance["PrivateIpAddress"] for instance in reply["Instances"]}) == 3


def test_no_group_named_means_the_default_group(cases, ec2):
    (group,) = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    assert cases.describe(cases.launch())["SecurityGroups"] == [{"GroupId": group["GroupId"], "GroupName": "default"}]


def test_the_root_volume_is_described_tagged_and_goes_with_the_instance(cases, ec2):
    tags = [{"Key": "nixops.dev:uid", "Value": "u"}]
    instance_id = cases.running(
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 20}}],
    )
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "tag:nixops.dev:uid", "Values": ["u"]}])["Volumes"]
    assert (volume["Size"], volume["State"], volume["Tags"]) == (20, "in-use", tags)
    assert volume["Attachments"][0]["InstanceId"] == instance_id
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert refusal(ec2.describe_volumes, VolumeIds=[volume["VolumeId"]]) == "InvalidVolume.NotFound"


def test_a_root_volume_that_is_to_stay_outlives_the_instance(cases, ec2):
    instance_id = cases.running(
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}]
    )
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert [volume["State"] for volume in ec2.describe_volumes()["Volumes"]] == ["available"]


def test_a_slash_in_a_tag_key_is_refused_with_tags_in_the_metadata(cases):
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "a/b", "Value": "c"}]}]
    assert cases.launch(TagSpecifications=tags)
    options = {"InstanceMetadataTags": "enabled"}
    assert refusal(cases.reply, TagSpecifications=tags, MetadataOptions=options) == "InvalidParameterValue"


def test_dry_run_says_so_and_launches_nothing(cases, ec2):
    assert refusal(cases.reply, DryRun=True) == "DryRunOperation"
    assert ec2.describe_instances()["Reservations"] == []


@pytest.mark.parametrize(
    ("instance_id", "code"),
    [
        pytest.param(f"i-{UNKNOWN}", "InvalidInstanceID.NotFound", id="unknown"),
        pytest.param("i-12345678", "InvalidInstanceID.NotFound", id="unknown, short form"),
        pytest.param("i-xyz", "InvalidInstanceID.Malformed", id="no hexadecimal digits"),
        pytest.param("web", "InvalidInstanceID.Malformed", id="no prefix"),
        pytest.param("i-0123456789ABCDEF0", "InvalidInstanceID.Malformed", id="capitals"),
    ],
)
def test_an_instance_id_that_is(instance_id, code, ec2):
    assert refusal(ec2.describe_instances, InstanceIds=[instance_id]) == code
    assert refusal(ec2.terminate_instances, InstanceIds=[instance_id]) == code


def test_private_addresses_lie_in_the_subnet_and_public_ones_in_the_labs_block(cases, ec2):
    shown = cases.describe(cases.running(Placement={"AvailabilityZone": "us-west-2a"}))
    (subnet,) = ec2.describe_subnets(SubnetIds=[shown["SubnetId"]])["Subnets"]
    assert subnet["CidrBlock"] == "172.31.0.0/20"
    assert shown["PrivateIpAddress"].startswith("172.31.0.")
    assert shown["PublicIpAddress"].startswith("198.51.100.")


def test_instance_and_interface_tell_the_same_addresses(cases, ec2):
    shown = cases.describe(cases.running())
    (beside,) = shown["NetworkInterfaces"]
    (alone,) = ec2.describe_network_interfaces()["NetworkInterfaces"]
    for interface in (beside, alone):
        assert interface["PrivateIpAddress"] == shown["PrivateIpAddress"]
        assert interface["Association"]["PublicIp"] == shown["PublicIpAddress"]
    public = shown["PublicIpAddress"].replace(".", "-")
    assert shown["PublicDnsName"] == f"ec2-{public}.us-west-2.compute.amazonaws.com"


def test_a_stopped_instance_keeps_its_private_and_loses_its_public_address(cases, ec2, layer):
    instance_id = cases.running()
    before = cases.describe(instance_id)
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    stopped = cases.describe(instance_id)
    assert stopped["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "PublicIpAddress" not in stopped
    assert layer.machines.public_addresses[instance_id] is None


def test_a_started_instance_has_another_public_address_and_so_has_its_machine(cases, ec2, layer):
    instance_id = cases.running()
    before = cases.describe(instance_id)["PublicIpAddress"]
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    ec2.start_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "running")
    after = cases.describe(instance_id)["PublicIpAddress"]
    assert after != before
    assert layer.machines.public_addresses[instance_id] == after


def test_an_interface_may_ask_for_no_public_address(cases):
    interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": False}
    assert "PublicIpAddress" not in cases.describe(cases.running(NetworkInterfaces=[interface]))


def test_groups_of_the_request_and_of_its_interface_exclude_each_other(cases):
    params = {"NetworkInterfaces": [{"DeviceIndex": 0}], "SecurityGroupIds": [f"sg-{UNKNOWN}"]}
    assert refusal(cases.reply, **params) == "InvalidParameterCombination"


def test_a_private_address_that_is_asked_for_is_given_once(cases):
    assert cases.describe(cases.launch(PrivateIpAddress="172.31.0.77"))["PrivateIpAddress"] == "172.31.0.77"
    assert refusal(cases.reply, PrivateIpAddress="172.31.0.77") == "InvalidIPAddress.InUse"


def test_a_terminated_instances_private_address_is_free_again_when_its_interface_is_gone(cases, ec2, layer):
    layer.turn(interface_release_seconds=60)
    instance_id = cases.running(PrivateIpAddress="172.31.0.77")
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert refusal(cases.reply, PrivateIpAddress="172.31.0.77") == "InvalidIPAddress.InUse"
    layer.clock.advance(61)
    assert cases.launch(PrivateIpAddress="172.31.0.77")


def test_another_region_is_empty(cases, layer):
    instance_id = cases.launch()
    elsewhere = layer.client(region="eu-west-1")
    assert elsewhere.describe_instances()["Reservations"] == []
    assert refusal(elsewhere.describe_instances, InstanceIds=[instance_id]) == "InvalidInstanceID.NotFound"


def test_the_machine_hears_its_rules_before_it_boots(cases, layer):
    instance_id = cases.running()
    told = [operation for operation, name in layer.machines.calls if name == instance_id]
    assert told.index("set_rules") < told.index("start")
