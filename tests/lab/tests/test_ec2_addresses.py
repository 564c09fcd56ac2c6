"""Elastic addresses, where EC2 is stricter, or kinder, than our own calls show: tests/contract has the rest."""

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.testing import eventually

pytest_plugins = ["nixops_lab.ec2.fixtures"]

ACCOUNT = "123456789012"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def shown(ec2, allocation_id):
    return ec2.describe_addresses(AllocationIds=[allocation_id])["Addresses"][0]


def test_an_association_moves_unless_that_is_forbidden(cases, ec2):
    first, second = cases.running(), cases.running()
    allocation_id = ec2.allocate_address()["AllocationId"]
    ec2.associate_address(AllocationId=allocation_id, InstanceId=first)

    forbidden = {"AllocationId": allocation_id, "InstanceId": second, "AllowReassociation": False}
    assert refusal(ec2.associate_address, **forbidden) == "Resource.AlreadyAssociated"
    ec2.associate_address(AllocationId=allocation_id, InstanceId=second)

    assert shown(ec2, allocation_id)["InstanceId"] == second


def test_the_address_is_the_account_s_and_its_packets_follow_in_a_moment(cases, ec2, layer):
    instance_id = cases.running()
    before = cases.describe(instance_id)["PublicIpAddress"]
    address = ec2.allocate_address()
    layer.turn(address_seconds=3600)
    ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instance_id)

    assert shown(ec2, address["AllocationId"])["InstanceId"] == instance_id
    assert cases.describe(instance_id)["PublicIpAddress"] == layer.machines.public_addresses[instance_id] == before

    layer.turn(address_seconds=0)
    eventually(lambda: layer.machines.public_addresses[instance_id] == address["PublicIp"])
    association = cases.describe(instance_id)["NetworkInterfaces"][0]["Association"]
    assert (association["IpOwnerId"], association["PublicIp"]) == (ACCOUNT, address["PublicIp"])


def test_tags_come_with_the_allocation_and_later(ec2):
    tags = [{"Key": "team", "Value": "web"}]
    specification = [{"ResourceType": "elastic-ip", "Tags": tags}]
    allocation_id = ec2.allocate_address(TagSpecifications=specification)["AllocationId"]
    ec2.create_tags(Resources=[allocation_id], Tags=[{"Key": "more", "Value": ""}])

    found = ec2.describe_addresses(Filters=[{"Name": "tag:team", "Values": ["web"]}])["Addresses"]
    assert [one["AllocationId"] for one in found] == [allocation_id]
    assert {tag["Key"] for tag in found[0]["Tags"]} == {"team", "more"}


def test_what_does_not_exist_is_told(cases, ec2):
    unknown = "eipalloc-0123456789abcdef0"
    assert refusal(ec2.release_address, AllocationId=unknown) == "InvalidAllocationID.NotFound"
    assert refusal(ec2.disassociate_address, AssociationId="eipassoc-1") == "InvalidAssociationID.NotFound"
    pair = {"AllocationId": unknown, "InstanceId": cases.running()}
    assert refusal(ec2.associate_address, **pair) == "InvalidAllocationID.NotFound"


def test_rights_come_before_all_else(ec2, layer):
    """As on AWS: whoever may not call is told nothing of what there is."""
    layer.turn(**{"deny.lab": "ReleaseAddress"})

    assert refusal(ec2.release_address, AllocationId="eipalloc-0123456789abcdef0") == "UnauthorizedOperation"
