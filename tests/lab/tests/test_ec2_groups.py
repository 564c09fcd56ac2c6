"""Security groups: names, look-up, and what stands against deleting one."""

import pytest
from botocore.exceptions import ClientError

pytest_plugins = ["nixops_lab.ec2.fixtures"]

UNKNOWN = "sg-0123456789abcdef0"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def create(ec2, name="web", **params):
    return ec2.create_security_group(GroupName=name, Description="web", **params)["GroupId"]


def default_group(ec2):
    return ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]


def admit(ec2, group_id, peer_id):
    pair = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": peer_id}]}]
    ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=pair)
    return pair


@pytest.mark.parametrize("name", ["web", "WEB"])
def test_a_name_is_taken_in_whatever_case(name, ec2):
    create(ec2, "web")
    assert refusal(ec2.create_security_group, GroupName=name, Description="x") == "InvalidGroup.Duplicate"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        pytest.param({"GroupName": "sg-web"}, "InvalidParameterValue", id="a name like an id"),
        pytest.param({"GroupName": "wéb"}, "InvalidParameterValue", id="a name beyond ASCII"),
        pytest.param({"GroupName": "x" * 256}, "InvalidParameterValue", id="a name of 256 characters"),
        pytest.param({"GroupName": "web", "Description": "<b>"}, "InvalidParameterValue", id="a description with <"),
        pytest.param({"GroupName": "web", "VpcId": "vpc-0123456789abcdef0"}, "InvalidVpcID.NotFound", id="unknown VPC"),
        pytest.param({"GroupName": "default"}, "InvalidGroup.Duplicate", id="the name of the default group"),
    ],
)
def test_a_group_is_refused_for(params, code, ec2):
    assert refusal(ec2.create_security_group, **({"Description": "web"} | params)) == code


@pytest.mark.parametrize(
    ("params", "code"),
    [
        pytest.param({"GroupIds": [UNKNOWN]}, "InvalidGroup.NotFound", id="unknown id"),
        pytest.param({"GroupIds": ["web"]}, "InvalidGroupId.Malformed", id="malformed id"),
        pytest.param({"GroupNames": ["nobody"]}, "InvalidGroup.NotFound", id="unknown name"),
    ],
)
def test_describing_groups_is_refused_for_an(params, code, ec2):
    assert refusal(ec2.describe_security_groups, **params) == code


def test_a_group_without_members_and_referrers_is_deleted(ec2):
    group_id = create(ec2)
    ec2.delete_security_group(GroupId=group_id)
    assert refusal(ec2.delete_security_group, GroupId=group_id) == "InvalidGroup.NotFound"


def test_the_default_group_cannot_be_deleted(ec2):
    assert refusal(ec2.delete_security_group, GroupId=default_group(ec2)) == "CannotDelete"


def test_a_group_stays_while_an_interface_has_it_and_until_that_is_released(cases, ec2, layer):
    layer.turn(interface_release_seconds=60)
    group_id = create(ec2)
    instance_id = cases.running(SecurityGroupIds=[group_id])
    assert refusal(ec2.delete_security_group, GroupId=group_id) == "DependencyViolation"
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert refusal(ec2.delete_security_group, GroupId=group_id) == "DependencyViolation"
    by_group = [{"Name": "group-id", "Values": [group_id]}]
    assert len(ec2.describe_network_interfaces(Filters=by_group)["NetworkInterfaces"]) == 1
    layer.clock.advance(61)
    assert ec2.describe_network_interfaces(Filters=by_group)["NetworkInterfaces"] == []
    ec2.delete_security_group(GroupId=group_id)


def test_a_group_stays_while_a_rule_of_another_group_names_it(ec2):
    named, naming = create(ec2, "named"), create(ec2, "naming")
    pair = admit(ec2, naming, named)
    assert refusal(ec2.delete_security_group, GroupId=named) == "DependencyViolation"
    ec2.revoke_security_group_ingress(GroupId=naming, IpPermissions=pair)
    ec2.delete_security_group(GroupId=named)


def test_a_rule_that_names_its_own_group_does_not_hold_it(ec2):
    group_id = create(ec2)
    admit(ec2, group_id, group_id)
    ec2.delete_security_group(GroupId=group_id)


def test_the_groups_whose_rules_name_a_group_are_found(ec2):
    named, naming = create(ec2, "named"), create(ec2, "naming")
    admit(ec2, naming, named)
    filters = [{"Name": "ip-permission.group-id", "Values": [named]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    assert [group["GroupId"] for group in found] == [naming]
    filters = [{"Name": "egress.ip-permission.group-id", "Values": [named]}]
    assert ec2.describe_security_groups(Filters=filters)["SecurityGroups"] == []


def test_a_created_group_whose_reply_was_lost_is_found_by_its_tag(ec2, layer):
    layer.fault("commit-drop", "CreateSecurityGroup")
    tags = [{"ResourceType": "security-group", "Tags": [{"Key": "nixops.dev:uid", "Value": "u"}]}]
    with pytest.raises(Exception, match="Connection was closed"):
        create(ec2, TagSpecifications=tags)
    filters = [{"Name": "tag:nixops.dev:uid", "Values": ["u"]}]
    (found,) = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    assert found["GroupName"] == "web"


def test_a_new_group_is_invisible_for_the_set_time_but_its_name_is_taken(ec2, layer):
    layer.turn(visibility_seconds=60)
    group_id = create(ec2)
    assert refusal(ec2.describe_security_groups, GroupIds=[group_id]) == "InvalidGroup.NotFound"
    assert refusal(ec2.create_security_group, GroupName="web", Description="x") == "InvalidGroup.Duplicate"
    layer.clock.advance(61)
    assert ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]["GroupId"] == group_id


def test_the_same_name_is_free_in_another_vpc(layer):
    ec2 = layer.client(region="eu-central-1")
    vpc_id = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    assert create(ec2) != create(ec2, VpcId=vpc_id)
    assert refusal(ec2.authorize_security_group_ingress, GroupName="nobody", IpProtocol="-1", CidrIp="::/0") == (
        "InvalidGroup.NotFound"
    )


def test_every_vpc_has_its_own_default_group(layer):
    ec2 = layer.client(region="eu-central-1")
    vpc_id = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    filters = [{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "group-name", "Values": ["default"]}]
    (found,) = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    assert found["GroupId"] != default_group(ec2)
