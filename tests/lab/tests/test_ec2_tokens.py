"""Client tokens: the same launch repeated is one instance, whatever happens to its replies."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

pytest_plugins = ["nixops_lab.ec2.fixtures"]


def ids_of(reply):
    return [instance["InstanceId"] for instance in reply["Instances"]]


def every_id(ec2, *filters):
    reply = ec2.describe_instances(Filters=list(filters))
    return [name for reservation in reply["Reservations"] for name in ids_of(reservation)]


def test_the_same_token_and_parameters_give_the_first_instance_again(cases, ec2):
    first = cases.reply(ClientToken="n1-one")
    again = cases.reply(ClientToken="n1-one")
    assert ids_of(again) == ids_of(first)
    assert again["ReservationId"] == first["ReservationId"]
    assert every_id(ec2) == ids_of(first)


def test_the_repeated_reply_shows_the_state_of_today(cases):
    instance_id = cases.running(ClientToken="n1-one")
    assert cases.reply(ClientToken="n1-one")["Instances"][0]["State"]["Name"] == "running"
    assert cases.state(instance_id) == "running"


def test_requests_with_one_token_at_the_same_time_make_one_instance(cases, ec2):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: cases.reply(ClientToken="n1-race"), range(8)))
    assert len({name for reply in replies for name in ids_of(reply)}) == 1
    assert len(every_id(ec2)) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"InstanceType": "t3.micro"}, id="instance type"),
        pytest.param({"UserData": "other"}, id="user data"),
        pytest.param({"MaxCount": 2}, id="count"),
        pytest.param(
            {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}]}, id="tags"
        ),
    ],
)
def test_the_same_token_with_another_parameter_is_refused(change, cases, ec2):
    first = cases.reply(ClientToken="n1-one")
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        cases.reply(ClientToken="n1-one", **change)
    assert every_id(ec2) == ids_of(first)


def test_the_token_of_a_terminated_instance_is_refused(cases, ec2):
    instance_id = cases.running(ClientToken="n1-one")
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    with pytest.raises(ClientError, match="IdempotentInstanceTerminated"):
        cases.reply(ClientToken="n1-one")


def test_the_token_stays_used_when_the_terminated_instance_is_no_longer_shown(cases, ec2, layer):
    instance_id = cases.running(ClientToken="n1-one")
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    layer.clock.advance(3700)
    with pytest.raises(ClientError, match="IdempotentInstanceTerminated"):
        cases.reply(ClientToken="n1-one")


def test_with_a_zone_the_token_counts_in_that_zone_only(cases):
    west_a = cases.reply(ClientToken="n1-one", Placement={"AvailabilityZone": "us-west-2a"})
    west_b = cases.reply(ClientToken="n1-one", Placement={"AvailabilityZone": "us-west-2b"})
    assert ids_of(west_a) != ids_of(west_b)


def test_with_a_subnet_the_token_counts_in_the_subnets_zone(cases, ec2):
    subnets = {s["AvailabilityZone"]: s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]}
    west_a = cases.reply(ClientToken="n1-one", SubnetId=subnets["us-west-2a"])
    west_b = cases.reply(ClientToken="n1-one", SubnetId=subnets["us-west-2b"])
    assert ids_of(west_a) != ids_of(west_b)
    assert ids_of(cases.reply(ClientToken="n1-one", SubnetId=subnets["us-west-2a"])) == ids_of(west_a)


def test_without_zone_or_subnet_the_token_counts_in_the_region(cases):
    regional = cases.reply(ClientToken="n1-one")
    zonal = cases.reply(ClientToken="n1-one", Placement={"AvailabilityZone": "us-west-2a"})
    assert ids_of(zonal) != ids_of(regional)


def test_in_another_region_the_token_is_new(cases, layer):
    first = cases.reply(ClientToken="n1-one")
    cases.ec2 = layer.client(region="eu-west-1")
    assert ids_of(cases.reply(ClientToken="n1-one")) != ids_of(first)


def test_a_refused_launch_leaves_its_token_unused(cases):
    with pytest.raises(ClientError, match=r"InvalidKeyPair\.NotFound"):
        cases.reply(ClientToken="n1-one", KeyName="nobody")
    assert len(ids_of(cases.reply(ClientToken="n1-one"))) == 1


def test_a_token_of_more_than_64_characters_is_refused(cases):
    assert ids_of(cases.reply(ClientToken="t" * 64))
    with pytest.raises(ClientError, match="InvalidClientToken"):
        cases.reply(ClientToken="t" * 65)


def test_a_launch_whose_reply_was_lost_is_found_by_its_token(cases, ec2, layer):
    layer.fault("commit-drop", "RunInstances")
    with pytest.raises(ConnectionClosedError):
        cases.reply(ClientToken="n1-lost")
    found = every_id(ec2, {"Name": "client-token", "Values": ["n1-lost"]})
    assert len(found) == 1
    assert ids_of(cases.reply(ClientToken="n1-lost")) == found
    assert every_id(ec2) == found


def test_the_filter_client_token_finds_only_its_own(cases, ec2):
    cases.launch(ClientToken="n1-other")
    wanted = cases.launch(ClientToken="n1-wanted")
    assert every_id(ec2, {"Name": "client-token", "Values": ["n1-wanted"]}) == [wanted]
    assert every_id(ec2, {"Name": "client-token", "Values": ["n1-nobody"]}) == []
