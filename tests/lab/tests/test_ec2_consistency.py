"""What answers do not show yet or any more: EC2 is eventually consistent, and says nothing by ids and order."""

import json
import urllib.error

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.testing import RunningLayer

pytest_plugins = ["nixops_lab.ec2.fixtures"]

KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIs0LU5k+l1QwTk7ahaA6YDEcLsMVxIPGAGkiZJlfrnl"
TAG = {"Key": "nixops.dev:uid", "Value": "u-1"}
BY_TAG = [{"Name": "tag:nixops.dev:uid", "Values": ["u-1"]}]


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def tagged(kind):
    return [{"ResourceType": kind, "Tags": [TAG]}]


def found(ec2, *filters):
    reply = ec2.describe_instances(Filters=list(filters))
    return [i["InstanceId"] for reservation in reply["Reservations"] for i in reservation["Instances"]]


def create_group(ec2, name="web"):
    return ec2.create_security_group(GroupName=name, Description="x", TagSpecifications=tagged("security-group"))[
        "GroupId"
    ]


def by(name, value):
    return {"Name": name, "Values": [value]}


# Ids and order.


def new_ids(cases):
    """Twelve ids of each kind, in the order of creation."""
    ec2, ids = cases.ec2, {}
    ids["instance"] = [cases.launch() for _ in range(12)]
    shown = [cases.describe(name) for name in ids["instance"]]
    ids["network interface"] = [one["NetworkInterfaces"][0]["NetworkInterfaceId"] for one in shown]
    ids["volume"] = [one["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] for one in shown]
    ids["security group"] = [create_group(ec2, f"web-{n}") for n in range(12)]
    ids["key pair"] = [ec2.import_key_pair(KeyName=f"web-{n}", PublicKeyMaterial=KEY)["KeyPairId"] for n in range(12)]
    ids["rule"] = [
        ec2.authorize_security_group_ingress(
            GroupId=ids["security group"][0], IpProtocol="tcp", FromPort=n, ToPort=n, CidrIp="0.0.0.0/0"
        )["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        for n in range(12)
    ]
    return ids


def test_no_id_tells_which_of_two_things_is_the_older_one(cases):
    for kind, ids in new_ids(cases).items():
        assert ids not in (sorted(ids), sorted(ids, reverse=True)), kind


def test_ids_follow_from_the_seed(layer_loop, moto_server, tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        layer = RunningLayer(layer_loop, moto_server, tmp_path / str(number), seed=seed)
        made.append(create_group(layer.client()))
        layer.stop()
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_every_answer_has_another_order(cases, ec2):
    cases.reply(MinCount=12, MaxCount=12)
    cases.launch()
    orders = {tuple(found(ec2)) for _ in range(6)}
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_the_pages_of_one_answer_miss_nothing_that_was_there_before_and_after(cases, ec2):
    first = {instance["InstanceId"] for instance in cases.reply(MinCount=12, MaxCount=12)["Instances"]}
    shown, token = [], None
    while True:
        reply = ec2.describe_instances(MaxResults=5, **({"NextToken": token} if token else {}))
        shown += [i["InstanceId"] for reservation in reply["Reservations"] for i in reservation["Instances"]]
        cases.reply(MinCount=5, MaxCount=5)
        if (token := reply.get("NextToken")) is None or len(shown) > 60:
            break
    assert first <= set(shown)
    assert len(shown) == len(set(shown))


# What is new.


def test_what_is_new_is_found_by_id_before_it_is_found_by_tag(cases, ec2, layer):
    layer.turn(**{"visibility.ids": 10, "visibility.tags": 120})
    instance_id = cases.launch(TagSpecifications=tagged("instance"), ClientToken="n1-one")
    assert found(ec2, by("instance-id", instance_id)) == found(ec2) == found(ec2, *BY_TAG) == []
    layer.clock.advance(11)
    assert found(ec2, by("instance-id", instance_id)) == found(ec2) == [instance_id]
    assert cases.describe(instance_id)["Tags"] == [TAG]
    assert found(ec2, *BY_TAG) == found(ec2, by("tag-key", "nixops.dev:uid")) == []
    assert found(ec2, by("client-token", "n1-one")) == []
    layer.clock.advance(110)
    assert found(ec2, *BY_TAG) == found(ec2, by("client-token", "n1-one")) == [instance_id]


def test_groups_key_pairs_volumes_and_interfaces_lag_like_instances(cases, ec2, layer):
    layer.turn(**{"visibility.ids": 10, "visibility.tags": 120})
    create_group(ec2)
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY, TagSpecifications=tagged("key-pair"))
    cases.launch(TagSpecifications=[*tagged("volume"), *tagged("network-interface")])

    def counts(filters):
        return (
            len(ec2.describe_security_groups(Filters=[*filters, by("description", "x")])["SecurityGroups"]),
            len(ec2.describe_key_pairs(Filters=filters)["KeyPairs"]),
            len(ec2.describe_volumes(Filters=filters)["Volumes"]),
            len(ec2.describe_network_interfaces(Filters=filters)["NetworkInterfaces"]),
            len({tag["ResourceId"] for tag in ec2.describe_tags(Filters=[by("key", TAG["Key"])])["Tags"]}),
        )

    assert counts([]) == (0, 0, 0, 0, 0)
    layer.clock.advance(11)
    assert counts([]) == (1, 1, 1, 1, 0)
    assert counts(BY_TAG) == (0, 0, 0, 0, 0)
    layer.clock.advance(110)
    assert counts(BY_TAG) == (1, 1, 1, 1, 4)


def test_tag_filters_never_find_what_ids_do_not(cases, ec2, layer):
    layer.turn(**{"visibility.ids": 60, "visibility.tags": 1})
    cases.launch(TagSpecifications=tagged("instance"))
    layer.clock.advance(30)
    assert found(ec2, *BY_TAG) == []


def test_a_new_tag_on_an_old_thing_is_shown_before_it_is_found(cases, ec2, layer):
    instance_id = cases.launch()
    layer.clock.advance(1000)
    layer.turn(**{"visibility.ids": 10, "visibility.tags": 120})
    ec2.create_tags(Resources=[instance_id], Tags=[TAG])
    assert cases.describe(instance_id)["Tags"] == []
    layer.clock.advance(11)
    assert cases.describe(instance_id)["Tags"] == [TAG]
    assert found(ec2, *BY_TAG) == []
    layer.clock.advance(110)
    assert found(ec2, *BY_TAG) == [instance_id]


def test_a_deleted_tag_is_still_found_for_a_while(cases, ec2, layer):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    layer.clock.advance(1000)
    layer.turn(**{"visibility.tags": 120})
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": TAG["Key"]}])
    assert cases.describe(instance_id)["Tags"] == []
    assert found(ec2, *BY_TAG) == [instance_id]
    layer.clock.advance(121)
    assert found(ec2, *BY_TAG) == []


def test_a_new_rule_is_enforced_before_it_is_shown(ec2, layer):
    group_id = create_group(ec2)
    layer.clock.advance(1000)
    layer.turn(**{"visibility.ids": 10})
    rule = {"GroupId": group_id, "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"}
    ec2.authorize_security_group_ingress(**rule)
    (shown,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    rules = ec2.describe_security_group_rules(Filters=[by("group-id", group_id)])["SecurityGroupRules"]
    assert shown["IpPermissions"] == []
    assert [rule["IsEgress"] for rule in rules] == [True]
    assert refusal(ec2.authorize_security_group_ingress, **rule) == "InvalidPermission.Duplicate"
    layer.clock.advance(11)
    assert len(ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]["IpPermissions"]) == 1


def test_a_repeated_launch_gives_the_instance_that_nothing_shows_yet(cases, layer):
    layer.turn(**{"visibility.ids": 300})
    params = {"ClientToken": "n1-one", "TagSpecifications": tagged("instance")}
    first, again = cases.reply(**params)["Instances"][0], cases.reply(**params)["Instances"][0]
    assert (again["InstanceId"], again["Tags"]) == (first["InstanceId"], [TAG])


@pytest.mark.parametrize("how", ["GroupId", "GroupName"])
def test_a_group_that_nothing_shows_yet_holds_its_name_and_can_be_deleted(how, ec2, layer):
    layer.turn(**{"visibility.ids": 300})
    group_id = create_group(ec2)
    assert refusal(ec2.create_security_group, GroupName="WEB", Description="x") == "InvalidGroup.Duplicate"
    ec2.delete_security_group(**{how: {"GroupId": group_id, "GroupName": "web"}[how]})
    assert create_group(ec2) != group_id


@pytest.mark.parametrize("how", ["KeyPairId", "KeyName"])
def test_a_key_pair_that_nothing_shows_yet_holds_its_name_and_can_be_deleted(how, ec2, layer):
    layer.turn(**{"visibility.ids": 300})
    pair = ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    assert refusal(ec2.import_key_pair, KeyName="web", PublicKeyMaterial=KEY) == "InvalidKeyPair.Duplicate"
    assert ec2.delete_key_pair(**{how: pair[how]})["KeyPairId"] == pair["KeyPairId"]
    layer.clock.advance(301)
    assert ec2.describe_key_pairs()["KeyPairs"] == []


def test_the_older_name_of_the_knob_sets_both_lags(layer):
    layer.turn(visibility_seconds=60)
    knobs = layer.control("GET", "/knobs")
    assert (knobs["visibility.ids"], knobs["visibility.tags"]) == (60, 60)


# What has changed.


@pytest.mark.parametrize(("operation", "state"), [("stop_instances", "stopped"), ("terminate_instances", "terminated")])
def test_an_instance_is_shown_as_it_was_before(operation, state, cases, ec2, layer):
    instance_id = cases.running(TagSpecifications=tagged("instance"))
    layer.clock.advance(1000)
    layer.turn(**{"visibility.states": 60})
    getattr(ec2, operation)(InstanceIds=[instance_id])
    layer.until_settled(instance_id, state)
    stale = cases.describe(instance_id)
    assert (stale["State"]["Name"], "StateReason" in stale) == ("running", False)
    assert found(ec2, *BY_TAG, by("instance-state-name", "running")) == [instance_id]
    assert [one["InstanceId"] for one in ec2.describe_instance_status()["InstanceStatuses"]] == [instance_id]
    layer.clock.advance(61)
    assert cases.state(instance_id) == state
    assert found(ec2, by("instance-state-name", "running")) == []


def test_calls_act_on_what_is_and_not_on_what_is_shown(cases, ec2, layer):
    instance_id = cases.running()
    layer.turn(**{"visibility.states": 60})
    ec2.terminate_instances(InstanceIds=[instance_id])
    layer.until_settled(instance_id, "terminated")
    assert refusal(ec2.start_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    (change,) = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "terminated"


# The knobs' names.


def test_an_unknown_knob_is_refused_with_the_nearest_name(layer):
    with pytest.raises(urllib.error.HTTPError) as caught:
        layer.turn(**{"visibility.tag": 60})
    with caught.value as reply:
        assert json.load(reply)["error"] == "visibility.tag: there is no such knob; did you mean visibility.tags?"
