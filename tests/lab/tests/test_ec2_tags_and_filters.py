"""Tags on create and later, filters, pages."""

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.filters import matches

pytest_plugins = ["nixops_lab.ec2.fixtures"]

UID = [{"Key": "nixops.dev:uid", "Value": "u-1"}]
KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIs0LU5k+l1QwTk7ahaA6YDEcLsMVxIPGAGkiZJlfrnl"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def tagged(kind, tags=UID):
    return [{"ResourceType": kind, "Tags": tags}]


@pytest.mark.parametrize(
    "by", [{"Name": "tag:nixops.dev:uid", "Values": ["u-1"]}, {"Name": "tag-key", "Values": ["nixops.dev:*"]}]
)
def test_what_was_tagged_on_create_is_found_by(by, cases, ec2):
    cases.launch()
    cases.launch(TagSpecifications=tagged("instance", [{"Key": "other", "Value": "u-1"}]))
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    ec2.create_security_group(GroupName="other", Description="x")
    group = ec2.create_security_group(GroupName="web", Description="x", TagSpecifications=tagged("security-group"))
    ec2.import_key_pair(KeyName="other", PublicKeyMaterial=KEY)
    pair = ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY, TagSpecifications=tagged("key-pair"))
    (reservation,) = ec2.describe_instances(Filters=[by])["Reservations"]
    assert [(i["InstanceId"], i["Tags"]) for i in reservation["Instances"]] == [(instance_id, UID)]
    groups = ec2.describe_security_groups(Filters=[by])["SecurityGroups"]
    assert [(g["GroupId"], g["Tags"]) for g in groups] == [(group["GroupId"], UID)]
    pairs = ec2.describe_key_pairs(Filters=[by])["KeyPairs"]
    assert [(k["KeyPairId"], k["Tags"]) for k in pairs] == [(pair["KeyPairId"], UID)]


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        pytest.param([{"Key": "aws:x", "Value": "1"}], "InvalidParameterValue", id="AWS' own prefix"),
        pytest.param([{"Key": "a", "Value": v} for v in "12"], "InvalidParameterValue", id="a key twice"),
        pytest.param([{"Key": f"k{n}", "Value": ""} for n in range(51)], "TagLimitExceeded", id="more than 50"),
        pytest.param([{"Key": "k" * 128, "Value": ""}], "InvalidParameterValue", id="a key of 128 characters"),
    ],
)
def test_nothing_is_created_with_tags_that_have(tags, code, cases, ec2):
    assert refusal(cases.reply, TagSpecifications=tagged("instance", tags)) == code
    assert ec2.describe_instances()["Reservations"] == []


def test_tags_are_added_changed_and_deleted_by_key(cases, ec2):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "a", "Value": "3"}])
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": "b"}])
    shown = {tag["Key"]: tag["Value"] for tag in cases.describe(instance_id)["Tags"]}
    assert shown == {"nixops.dev:uid": "u-1", "a": "3"}


def test_a_tag_is_deleted_by_key_and_value_only_if_both_fit(cases, ec2):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": "nixops.dev:uid", "Value": "other"}])
    assert cases.describe(instance_id)["Tags"] == UID


def test_deleting_tags_without_naming_any_deletes_them_all(cases, ec2):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    ec2.delete_tags(Resources=[instance_id], Tags=[])
    assert "Tags" not in cases.describe(instance_id) or cases.describe(instance_id)["Tags"] == []


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        ("i-0123456789abcdef0", "InvalidInstanceID.NotFound"),
        ("sg-0123456789abcdef0", "InvalidGroup.NotFound"),
        ("i-web", "InvalidInstanceID.Malformed"),
        ("web", "InvalidID"),
    ],
)
def test_tagging_an_unknown_resource_is_refused_and_the_known_one_beside_it_untouched(resource, code, cases, ec2):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    assert refusal(ec2.create_tags, Resources=[instance_id, resource], Tags=[{"Key": "a", "Value": "1"}]) == code
    assert cases.describe(instance_id)["Tags"] == UID


def test_every_tag_is_described_with_its_resource(cases, ec2):
    instance_id = cases.launch(TagSpecifications=tagged("instance"))
    (tag,) = ec2.describe_tags(Filters=[{"Name": "resource-type", "Values": ["instance"]}])["Tags"]
    assert (tag["ResourceId"], tag["Key"], tag["Value"]) == (instance_id, "nixops.dev:uid", "u-1")


@pytest.mark.parametrize(
    ("value", "pattern", "expected"),
    [
        ("web-1", "web-*", True),
        ("web-1", "web-?", True),
        ("web-12", "web-?", False),
        ("Web-1", "web-*", False),
        ("web-1", "eb-1", False),
        ("a*b", r"a\*b", True),
        ("axb", r"a\*b", False),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
    ],
)
def test_a_filter_value_with_wildcards(value, pattern, expected):
    assert matches(value, pattern) is expected


def test_values_of_a_filter_are_alternatives_and_filters_must_all_match(cases, ec2):
    first, second = cases.running(), cases.running(InstanceType="t3.micro")
    by_id = {"Name": "instance-id", "Values": [first, second]}
    by_type = {"Name": "instance-type", "Values": ["t3.micro"]}

    def found(*filters):
        reservations = ec2.describe_instances(Filters=list(filters))["Reservations"]
        return {i["InstanceId"] for reservation in reservations for i in reservation["Instances"]}

    assert found(by_id) == {first, second}
    assert found(by_id, by_type) == {second}


def test_a_filter_that_finds_nothing_is_no_error(ec2):
    unknown = [{"Name": "instance-id", "Values": ["i-0123456789abcdef0"]}]
    assert ec2.describe_instances(Filters=unknown)["Reservations"] == []


def test_an_unknown_filter_is_refused(ec2):
    assert refusal(ec2.describe_instances, Filters=[{"Name": "colour", "Values": ["red"]}]) == "InvalidParameterValue"


def test_more_than_200_filter_values_are_refused(ec2):
    values = [f"i-{n:017x}" for n in range(201)]
    code = refusal(ec2.describe_instances, Filters=[{"Name": "instance-id", "Values": values}])
    assert code == "FilterLimitExceeded"


def test_pages_hold_every_instance_once(cases, ec2):
    launched = {instance["InstanceId"] for instance in cases.reply(MinCount=12, MaxCount=12)["Instances"]}
    pages = list(ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5}))
    shown = [i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
    assert len(pages) == 3
    assert len(shown) == 12
    assert set(shown) == launched


def test_a_page_size_beside_ids_and_a_made_up_token_are_refused(cases, ec2):
    instance_id = cases.launch()
    assert refusal(ec2.describe_instances, InstanceIds=[instance_id], MaxResults=5) == "InvalidParameterCombination"
    assert refusal(ec2.describe_instances, NextToken="made up") == "InvalidParameterValue"
    assert refusal(ec2.describe_instances, MaxResults=4) == "InvalidParameterValue"
