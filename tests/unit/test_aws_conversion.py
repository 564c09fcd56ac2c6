"""EC2's answers as values, canonical rules as parameters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from nixops_operator.adapters.aws import conversion
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, canonical_rule
from nixops_operator.facts.cloud import (
    Image,
    InstanceState,
    LaunchRequest,
    MetadataOptions,
    RootVolume,
    Subnet,
    Volume,
    VolumeSettings,
)


def rule_answer(**changes: Any) -> dict[str, Any]:
    answer = {
        "SecurityGroupRuleId": "sgr-1",
        "GroupId": "sg-1",
        "GroupOwnerId": "111111111111",
        "IsEgress": False,
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        **changes,
    }
    return {key: value for key, value in answer.items() if value is not None}


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        pytest.param(
            rule_answer(CidrIpv4="10.0.0.0/8"),
            Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.IPV4, "10.0.0.0/8"),
            id="IPv4",
        ),
        pytest.param(
            rule_answer(CidrIpv6="2001:DB8::/32", IsEgress=True),
            Rule(Direction.EGRESS, "tcp", 22, 22, PeerKind.IPV6, "2001:db8::/32"),
            id="IPv6, egress",
        ),
        pytest.param(
            rule_answer(PrefixListId="pl-1"),
            Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.PREFIX_LIST, "pl-1"),
            id="prefix list",
        ),
        pytest.param(
            rule_answer(ReferencedGroupInfo={"GroupId": "sg-2", "UserId": "111111111111"}),
            Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, "sg-2"),
            id="group of the own account",
        ),
        pytest.param(
            rule_answer(ReferencedGroupInfo={"GroupId": "sg-2", "UserId": "222222222222"}),
            Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, "222222222222/sg-2"),
            id="group of another account",
        ),
        pytest.param(
            rule_answer(IpProtocol="-1", FromPort=-1, ToPort=-1, CidrIpv4="0.0.0.0/0"),
            Rule(Direction.INGRESS, "-1", None, None, PeerKind.IPV4, "0.0.0.0/0"),
            id="everything: EC2 shows ports -1",
        ),
        pytest.param(
            rule_answer(IpProtocol="icmp", FromPort=8, ToPort=-1, CidrIpv4="0.0.0.0/0"),
            Rule(Direction.INGRESS, "icmp", 8, -1, PeerKind.IPV4, "0.0.0.0/0"),
            id="ICMP type and code",
        ),
        pytest.param(
            rule_answer(IpProtocol="50", FromPort=-1, ToPort=-1, CidrIpv4="0.0.0.0/0"),
            Rule(Direction.INGRESS, "50", None, None, PeerKind.IPV4, "0.0.0.0/0"),
            id="a protocol without a name",
        ),
    ],
)
def test_an_observed_rule_is_canonical(answer: dict[str, Any], rule: Rule) -> None:
    observed = conversion.observed_rule(answer)

    assert observed.rule == rule
    assert observed.description == ""


@pytest.mark.parametrize(
    ("rule", "permission"),
    [
        pytest.param(
            canonical_rule(Direction.INGRESS, "tcp", 80, 443, PeerKind.IPV4, "10.0.0.1"),
            {
                "IpProtocol": "tcp",
                "FromPort": 80,
                "ToPort": 443,
                "IpRanges": [{"CidrIp": "10.0.0.1/32", "Description": "why"}],
            },
            id="IPv4",
        ),
        pytest.param(
            canonical_rule(Direction.INGRESS, "icmpv6", None, None, PeerKind.IPV6, "::/0"),
            {
                "IpProtocol": "icmpv6",
                "FromPort": -1,
                "ToPort": -1,
                "Ipv6Ranges": [{"CidrIpv6": "::/0", "Description": "why"}],
            },
            id="IPv6",
        ),
        pytest.param(
            canonical_rule(Direction.EGRESS, "all", None, None, PeerKind.PREFIX_LIST, "pl-1"),
            {"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": "pl-1", "Description": "why"}]},
            id="prefix list, no ports",
        ),
        pytest.param(
            canonical_rule(Direction.EGRESS, "50", None, None, PeerKind.GROUP, "sg-1"),
            {"IpProtocol": "50", "UserIdGroupPairs": [{"GroupId": "sg-1", "Description": "why"}]},
            id="group",
        ),
        pytest.param(
            canonical_rule(Direction.EGRESS, "50", None, None, PeerKind.GROUP, "222222222222/sg-1"),
            {
                "IpProtocol": "50",
                "UserIdGroupPairs": [{"UserId": "222222222222", "GroupId": "sg-1", "Description": "why"}],
            },
            id="group of another account",
        ),
    ],
)
def test_a_canonical_rule_as_a_permission(rule: Rule, permission: dict[str, Any]) -> None:
    assert conversion.ip_permission(rule, "why") == permission


def test_no_description_is_none_at_all() -> None:
    rule = canonical_rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.IPV4, "10.0.0.1")

    assert conversion.ip_permission(rule, "")["IpRanges"] == [{"CidrIp": "10.0.0.1/32"}]


def test_an_unknown_state_leads_to_no_action() -> None:
    seen = conversion.instance({"InstanceId": "i-1", "State": {"Code": 272, "Name": "pondering"}})

    assert seen.state is InstanceState.UNKNOWN
    assert seen.state.is_live


def test_an_instance_without_addresses_or_groups() -> None:
    eastern = timezone(timedelta(hours=-5))
    seen = conversion.instance(
        {
            "InstanceId": "i-1",
            "State": {"Name": "terminated"},
            "PublicIpAddress": "",
            "LaunchTime": datetime(2026, 11, 22, 12, tzinfo=eastern),
        }
    )

    assert (seen.private_address, seen.public_address, seen.key_name) == (None, None, None)
    assert seen.security_group_ids == ()
    assert seen.launch_time == datetime(2026, 11, 22, 17, tzinfo=UTC)
    assert seen.launch_time.tzinfo is UTC


def test_an_instance_without_an_id_is_no_answer() -> None:
    with pytest.raises(KeyError):
        conversion.instance({"State": {"Name": "running"}})


def test_the_newest_image_wins_and_equal_dates_go_by_id() -> None:
    images = [
        {"ImageId": "ami-1", "Name": "a", "CreationDate": "2026-11-01T00:00:00.000Z"},
        {"ImageId": "ami-3", "Name": "c", "CreationDate": "2026-11-08T00:00:00.000Z"},
        {"ImageId": "ami-2", "Name": "b", "CreationDate": "2026-11-08T00:00:00.000Z"},
    ]

    assert conversion.newest_image(images) == Image("ami-3", "c")
    assert conversion.newest_image([]) is None


def test_a_public_key_is_compared_without_its_comment() -> None:
    assert conversion.without_comment("ssh-ed25519 AAAA someone@example.org and more\n") == "ssh-ed25519 AAAA"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"NetworkInterfaceId": "eni-1", "Attachment": {"InstanceId": "i-1"}}, "eni-1 (i-1)"),
        ({"NetworkInterfaceId": "eni-1", "Description": "ELB app/web"}, "eni-1 (ELB app/web)"),
        ({"NetworkInterfaceId": "eni-1", "Attachment": {}, "Description": ""}, "eni-1 (no instance)"),
    ],
)
def test_what_uses_a_group(answer: dict[str, Any], text: str) -> None:
    assert conversion.interface_in_use(answer) == text


REQUEST = LaunchRequest("ami-1", "t3.small", "subnet-1", "user data", None, (), {"b": "2", "a": "1"})


def test_a_launch_names_only_what_it_asks_for() -> None:
    listed = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]

    assert conversion.launch_parameters(REQUEST) == {
        "ImageId": "ami-1",
        "InstanceType": "t3.small",
        "SubnetId": "subnet-1",
        "UserData": "user data",
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": listed},
            {"ResourceType": "volume", "Tags": listed},
        ],
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
    }


def test_a_launch_names_all_that_it_asks_for() -> None:
    full = replace(
        REQUEST,
        key_name="web",
        security_group_ids=("sg-2", "sg-1"),
        monitoring=True,
        metadata=MetadataOptions("optional", 2, "enabled", "enabled"),
        ebs_optimized=True,
        tenancy="dedicated",
        placement_group="near",
        instance_profile="web",
        termination_protection=True,
        stop_protection=False,
        shutdown_behavior="terminate",
        credits="standard",
    )

    assert conversion.launch_parameters(full) == conversion.launch_parameters(REQUEST) | {
        "KeyName": "web",
        "SecurityGroupIds": ["sg-2", "sg-1"],
        "Monitoring": {"Enabled": True},
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "optional",
            "HttpPutResponseHopLimit": 2,
            "InstanceMetadataTags": "enabled",
        },
        "EbsOptimized": True,
        "Placement": {"Tenancy": "dedicated", "GroupName": "near"},
        "IamInstanceProfile": {"Name": "web"},
        "DisableApiTermination": True,
        "DisableApiStop": False,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "CreditSpecification": {"CpuCredits": "standard"},
    }


def test_a_public_address_is_asked_of_an_interface_and_the_network_goes_along() -> None:
    asked = conversion.launch_parameters(replace(REQUEST, security_group_ids=("sg-1",), public_ip=False))

    assert asked["NetworkInterfaces"] == [
        {"DeviceIndex": 0, "SubnetId": "subnet-1", "AssociatePublicIpAddress": False, "Groups": ["sg-1"]}
    ]
    assert not {"SubnetId", "SecurityGroupIds"} & asked.keys()


@pytest.mark.parametrize(
    ("state", "owners", "has"),
    [
        pytest.param("running", ["amazon"], True, id="one of EC2's"),
        pytest.param("running", [], False, id="none"),
        pytest.param("running", ["123456789012"], None, id="an elastic one: nobody can tell"),
        pytest.param("stopped", [], None, id="stopped: nobody can tell"),
    ],
)
def test_an_address_of_ec2_s_own_is_told_from_others(state: str, owners: list[str], has: bool | None) -> None:
    interfaces = [{"Association": {"IpOwnerId": owner}} for owner in owners] or [{}]
    answer = {"InstanceId": "i-1", "State": {"Name": state}, "NetworkInterfaces": interfaces}

    assert conversion.instance(answer).public_ip is has


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"Arn": "arn:aws:iam::123456789012:instance-profile/web"}, "web", id="without a path"),
        pytest.param({"Arn": "arn:aws-cn:iam::123456789012:instance-profile/a/b/web"}, "web", id="with a path"),
    ],
)
def test_an_instance_profile_goes_by_its_name(answer: dict[str, str], name: str) -> None:
    assert conversion.profile_name({"IamInstanceProfile": answer} if answer else {}) == name


def test_what_an_answer_leaves_out_is_as_usual() -> None:
    seen = conversion.instance({"InstanceId": "i-1"})

    assert (seen.source_dest_check, seen.ebs_optimized, seen.tenancy, seen.placement_group) == (
        True,
        False,
        "default",
        "",
    )
    assert (seen.metadata, seen.metadata_pending) == (MetadataOptions(), False)


@pytest.mark.parametrize(
    ("answer", "is_on"),
    [
        pytest.param({}, False, id="nothing said"),
        pytest.param({"Monitoring": {"State": "disabled"}}, False, id="off"),
        pytest.param({"Monitoring": {"State": "disabling"}}, False, id="going off"),
        pytest.param({"Monitoring": {"State": "pending"}}, True, id="coming on"),
        pytest.param({"Monitoring": {"State": "enabled"}}, True, id="on"),
    ],
)
def test_monitoring_counts_from_when_it_was_switched(answer: dict[str, Any], is_on: bool) -> None:
    assert conversion.instance({"InstanceId": "i-1", **answer}).monitoring is is_on


def test_ec2_s_own_words_for_a_state_are_kept() -> None:
    reason = {"Code": "Client.InternalError", "Message": "Client.InternalError: Client error on launch"}

    assert conversion.instance({"InstanceId": "i-1", "StateReason": reason}).state_reason_message == reason["Message"]


def test_what_is_not_said_of_the_root_volume_is_as_the_image_has_it():
    request = LaunchRequest("ami-1", "t3.small", "subnet-1", "")
    said = replace(request, root_volume=RootVolume("/dev/xvda", VolumeSettings(40, "gp3", 4000, 250, encrypted=True)))
    little = replace(request, root_volume=RootVolume("/dev/sda1", VolumeSettings(iops=4000)))

    def asked(of):
        return conversion.launch_parameters(of).get("BlockDeviceMappings")

    assert asked(request) is None
    assert asked(said) == [
        {
            "DeviceName": "/dev/xvda",
            "Ebs": {
                "DeleteOnTermination": True,
                "VolumeSize": 40,
                "VolumeType": "gp3",
                "Iops": 4000,
                "Throughput": 250,
                "Encrypted": True,
            },
        }
    ]
    assert asked(little) == [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True, "Iops": 4000}}]


def test_a_volume_is_read_with_what_its_type_has():
    answer = {"VolumeId": "vol-1", "State": "in-use", "AvailabilityZone": "us-west-2a", "Size": 8, "VolumeType": "gp2"}

    assert conversion.volume(answer) == Volume(
        "vol-1", "in-use", "us-west-2a", VolumeSettings(8, "gp2", encrypted=False), {}
    )


def test_the_root_volume_is_the_one_on_the_root_device():
    devices = [
        {"DeviceName": "/dev/xvdb", "Ebs": {"VolumeId": "vol-2"}},
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeId": "vol-1"}},
    ]
    answer = {"InstanceId": "i-1", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": devices}

    assert conversion.instance(answer).root_volume_id == "vol-1"
    assert conversion.instance({"InstanceId": "i-1"}).root_volume_id == ""


@pytest.mark.parametrize(
    ("answer", "has_ipv4"),
    [
        pytest.param({"Ipv6Native": True}, False, id="IPv6 alone"),
        pytest.param({"Ipv6Native": False}, True, id="both, or IPv4 alone"),
        pytest.param({}, True, id="nothing said"),
    ],
)
def test_a_subnet_says_whether_it_has_ipv4_addresses(answer: dict[str, Any], has_ipv4: bool) -> None:
    shown = conversion.subnet({"SubnetId": "subnet-1", "VpcId": "vpc-1", "AvailabilityZone": "us-west-2a", **answer})

    assert shown == Subnet("subnet-1", "vpc-1", "us-west-2a", has_ipv4)
