"""What of an instance can be asked for at launch and changed while it runs, beside its state."""

import pytest
from botocore.exceptions import ClientError

pytest_plugins = ["nixops_lab.ec2.fixtures"]

UNKNOWN = "i-0123456789abcdef0"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def attribute(ec2, instance_id, name):
    reply = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=name)
    return reply[name[0].upper() + name[1:]]["Value"]


def test_sources_and_destinations_are_checked_until_that_is_switched_off(cases, ec2):
    instance_id = cases.running()
    assert cases.describe(instance_id)["SourceDestCheck"] is True

    ec2.modify_instance_attribute(InstanceId=instance_id, SourceDestCheck={"Value": False})

    shown = cases.describe(instance_id)
    assert shown["SourceDestCheck"] is shown["NetworkInterfaces"][0]["SourceDestCheck"] is False
    assert attribute(ec2, instance_id, "sourceDestCheck") is False
    interface = {"NetworkInterfaceId": shown["NetworkInterfaces"][0]["NetworkInterfaceId"]}
    ec2.modify_network_interface_attribute(**interface, SourceDestCheck={"Value": True})
    assert cases.describe(instance_id)["SourceDestCheck"] is True


def test_one_attribute_a_call(cases, ec2):
    both = {"SourceDestCheck": {"Value": False}, "DisableApiTermination": {"Value": True}}
    assert refusal(ec2.modify_instance_attribute, InstanceId=cases.running(), **both) == "InvalidParameterCombination"


def test_metadata_options_that_are_not_given_stay(cases, ec2):
    instance_id = cases.running(MetadataOptions={"HttpPutResponseHopLimit": 1, "HttpTokens": "optional"})

    reply = ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpTokens="required")

    assert reply["InstanceMetadataOptions"]["State"] == "pending"
    shown = cases.describe(instance_id)["MetadataOptions"]
    assert (shown["HttpTokens"], shown["HttpPutResponseHopLimit"], shown["State"]) == ("required", 1, "applied")


def test_a_change_of_metadata_options_is_pending_for_the_set_time(cases, ec2, layer):
    layer.turn(metadata_seconds=60)
    instance_id = cases.running()
    assert cases.describe(instance_id)["MetadataOptions"]["State"] == "applied"

    ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpPutResponseHopLimit=3)

    shown = cases.describe(instance_id)["MetadataOptions"]
    assert (shown["HttpPutResponseHopLimit"], shown["State"]) == (3, "pending")
    layer.clock.advance(61)
    assert cases.describe(instance_id)["MetadataOptions"]["State"] == "applied"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({"HttpTokens": "sometimes"}, "InvalidParameterValue", id="unknown word"),
        pytest.param({"HttpPutResponseHopLimit": 65}, "InvalidParameterValue", id="more hops than there can be"),
        pytest.param(
            {"HttpEndpoint": "disabled", "HttpTokens": "required"},
            "InvalidParameterCombination",
            id="more of a service that is off",
        ),
        pytest.param({"InstanceMetadataTags": "enabled"}, "InvalidParameterValue", id="tag keys that are no paths"),
    ],
)
def test_metadata_options_are_refused_for(options, code, cases, ec2):
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "a/b", "Value": "c"}]}]
    instance_id = cases.running(TagSpecifications=tags)

    assert refusal(ec2.modify_instance_metadata_options, InstanceId=instance_id, **options) == code
    assert refusal(cases.reply, TagSpecifications=tags, MetadataOptions=options) == code


def test_an_unknown_or_terminated_instance_has_no_metadata_options_to_change(cases, ec2):
    change = ec2.modify_instance_metadata_options
    assert refusal(change, InstanceId=UNKNOWN, HttpTokens="optional") == "InvalidInstanceID.NotFound"
    instance_id = cases.running()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert refusal(change, InstanceId=instance_id, HttpTokens="optional") == "IncorrectInstanceState"


def test_an_instance_is_placed_as_asked(cases, ec2):
    ec2.create_placement_group(GroupName="apart", Strategy="spread")

    shown = cases.describe(cases.launch(Placement={"GroupName": "apart", "Tenancy": "dedicated"}))["Placement"]

    assert (shown["GroupName"], shown["Tenancy"]) == ("apart", "dedicated")
    usual = cases.describe(cases.launch())["Placement"]
    assert (usual["GroupName"], usual["Tenancy"]) == ("", "default")


@pytest.mark.parametrize(
    ("placement", "code"),
    [
        pytest.param({"GroupName": "nowhere"}, "InvalidPlacementGroup.Unknown", id="unknown group"),
        pytest.param({"Tenancy": "shared"}, "InvalidParameterValue", id="unknown tenancy"),
        pytest.param({"Tenancy": "host"}, "UnsupportedOperation", id="what the lab lacks"),
    ],
)
def test_a_placement_is_refused_for(placement, code, cases):
    assert refusal(cases.reply, Placement=placement) == code


def test_placement_groups_are_made_shown_and_deleted_when_empty(cases, ec2):
    ec2.create_placement_group(GroupName="near", Strategy="cluster")
    again = {"GroupName": "near", "Strategy": "cluster"}
    assert refusal(ec2.create_placement_group, **again) == "InvalidPlacementGroup.Duplicate"
    (group,) = ec2.describe_placement_groups(GroupNames=["near"])["PlacementGroups"]
    assert (group["GroupName"], group["Strategy"], group["State"]) == ("near", "cluster", "available")
    instance_id = cases.running(Placement={"GroupName": "near"})
    assert refusal(ec2.delete_placement_group, GroupName="near") == "InvalidPlacementGroup.InUse"
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    ec2.delete_placement_group(GroupName="near")
    assert refusal(ec2.describe_placement_groups, GroupNames=["near"]) == "InvalidPlacementGroup.Unknown"
