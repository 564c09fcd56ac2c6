"""What of an instance can be asked for at launch and changed while it runs, beside its state."""

import base64

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


def test_a_stopped_instance_is_moved_between_placement_groups(cases, ec2):
    ec2.create_placement_group(GroupName="near", Strategy="cluster")
    instance_id = cases.running()
    move = ec2.modify_instance_placement
    assert refusal(move, InstanceId=instance_id, GroupName="near") == "IncorrectInstanceState"
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")

    for name in ("near", ""):
        move(InstanceId=instance_id, GroupName=name)
        assert cases.describe(instance_id)["Placement"]["GroupName"] == name

    assert refusal(move, InstanceId=instance_id, GroupName="nowhere") == "InvalidPlacementGroup.Unknown"
    assert refusal(move, InstanceId=instance_id, Tenancy="dedicated") == "UnsupportedOperation"


@pytest.mark.parametrize("name", ["disableApiTermination", "disableApiStop"])
def test_a_protected_instance_is_not_terminated_until_protection_is_off(name, cases, ec2):
    parameter = name[0].upper() + name[1:]
    instance_id = cases.running(**{parameter: True})
    assert attribute(ec2, instance_id, name) is True
    assert refusal(ec2.terminate_instances, InstanceIds=[instance_id]) == "OperationNotPermitted"

    ec2.modify_instance_attribute(InstanceId=instance_id, **{parameter: {"Value": False}})

    assert attribute(ec2, instance_id, name) is False
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")


def test_a_stop_protected_instance_is_stopped_from_inside_alone(cases, ec2, layer):
    instance_id = cases.running(DisableApiStop=True)
    assert refusal(ec2.stop_instances, InstanceIds=[instance_id]) == "OperationNotPermitted"
    layer.run(layer.machines.power_off_inside(instance_id))
    cases.until(instance_id, "stopped")


@pytest.mark.parametrize(
    ("instance_type", "option"),
    [("t2.micro", "standard"), ("t3.small", "unlimited"), ("t3a.small", "unlimited")],
)
def test_a_burstable_instance_begins_with_what_its_family_does(instance_type, option, cases, ec2):
    assert credits_of(ec2, cases.launch(InstanceType=instance_type)) == option


def credits_of(ec2, instance_id):
    (found,) = ec2.describe_instance_credit_specifications(InstanceIds=[instance_id])["InstanceCreditSpecifications"]
    return found["CpuCredits"]


def test_credits_are_changed_while_it_runs(cases, ec2):
    instance_id = cases.running(CreditSpecification={"CpuCredits": "standard"})
    assert credits_of(ec2, instance_id) == "standard"
    ec2.modify_instance_credit_specification(
        InstanceCreditSpecifications=[{"InstanceId": instance_id, "CpuCredits": "unlimited"}]
    )
    assert credits_of(ec2, instance_id) == "unlimited"


def test_a_change_of_credits_succeeds_as_a_whole_and_tells_of_each_instance(cases, ec2):
    burstable, other = cases.running(), cases.running(InstanceType="m5.large")
    wanted = [{"InstanceId": each, "CpuCredits": "standard"} for each in (UNKNOWN, other, burstable)]

    reply = ec2.modify_instance_credit_specification(InstanceCreditSpecifications=wanted)

    assert reply["SuccessfulInstanceCreditSpecifications"] == [{"InstanceId": burstable}]
    assert {
        each["InstanceId"]: each["Error"]["Code"] for each in reply["UnsuccessfulInstanceCreditSpecifications"]
    } == {UNKNOWN: "InvalidInstanceID.NotFound", other: "InstanceCreditSpecification.NotSupported"}
    named = {"InstanceIds": [other]}
    assert refusal(ec2.describe_instance_credit_specifications, **named) == "InstanceCreditSpecification.NotSupported"
    credit = {"CpuCredits": "standard"}
    assert refusal(cases.reply, InstanceType="m5.large", CreditSpecification=credit) == "InvalidParameterCombination"


@pytest.fixture
def profiles(layer):
    """Two instance profiles in IAM; moto outlives the test."""
    iam = layer.client("iam")
    known = {each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]}
    for name in {"web", "db"} - known:
        iam.create_instance_profile(InstanceProfileName=name, Path="/machines/")
    return "web", "db"


def profile_of(cases, instance_id):
    return cases.describe(instance_id).get("IamInstanceProfile", {}).get("Arn")


def test_an_instance_profile_is_associated_replaced_and_disassociated(profiles, cases, ec2):
    instance_id = cases.running()
    web, db = ({"IamInstanceProfile": {"Name": name}} for name in profiles)
    assert profile_of(cases, instance_id) is None

    first = ec2.associate_iam_instance_profile(InstanceId=instance_id, **web)["IamInstanceProfileAssociation"]
    assert profile_of(cases, instance_id) == "arn:aws:iam::123456789012:instance-profile/machines/web"
    assert refusal(ec2.associate_iam_instance_profile, InstanceId=instance_id, **db) == "IncorrectState"

    ec2.replace_iam_instance_profile_association(AssociationId=first["AssociationId"], **db)
    assert profile_of(cases, instance_id) == "arn:aws:iam::123456789012:instance-profile/machines/db"
    gone = {"AssociationId": first["AssociationId"]}
    assert refusal(ec2.disassociate_iam_instance_profile, **gone) == "InvalidAssociationID.NotFound"

    of_instance = [{"Name": "instance-id", "Values": [instance_id]}]
    (second,) = ec2.describe_iam_instance_profile_associations(Filters=of_instance)["IamInstanceProfileAssociations"]
    assert (second["InstanceId"], second["State"]) == (instance_id, "associated")
    ec2.disassociate_iam_instance_profile(AssociationId=second["AssociationId"])
    assert profile_of(cases, instance_id) is None


def test_an_instance_is_launched_with_a_profile_that_iam_knows(profiles, cases, ec2):
    instance_id = cases.running(IamInstanceProfile={"Name": "web"})
    assert profile_of(cases, instance_id) == "arn:aws:iam::123456789012:instance-profile/machines/web"
    unknown = {"InstanceId": instance_id, "IamInstanceProfile": {"Name": "nobody"}}
    assert refusal(ec2.associate_iam_instance_profile, **unknown) == "InvalidParameterValue"


def test_a_stopped_instance_keeps_its_profile_until_it_is_disassociated(profiles, cases, ec2):
    instance_id = cases.running(IamInstanceProfile={"Name": "web"})
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    (found,) = ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"]
    other = {"AssociationId": found["AssociationId"], "IamInstanceProfile": {"Name": "db"}}
    assert refusal(ec2.replace_iam_instance_profile_association, **other) == "IncorrectInstanceState"
    ec2.disassociate_iam_instance_profile(AssociationId=found["AssociationId"])
    assert profile_of(cases, instance_id) is None


def test_user_data_can_be_read_by_whoever_may_ask(cases, ec2):
    shown = attribute(ec2, cases.running(UserData="SSH_HOST_ED25519_KEY:line\n"), "userData")
    assert base64.b64decode(shown) == b"SSH_HOST_ED25519_KEY:line\n"
    none = ec2.describe_instance_attribute(InstanceId=cases.running(), Attribute="userData")
    assert none["UserData"] == {}
