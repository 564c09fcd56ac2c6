"""Attributes of a live instance, each changed in the spec, by hand in EC2, and taken out of the spec again: carried
out, put back, undone. How long each took is printed. tests/CHANGES.md lists where every field has its line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import boto3
import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
EC2 = "/spec/machines/0/target/ec2"


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Place:
    """One machine on EC2, a second group beside its own, two instance profiles in IAM, and a placement group."""
    shared_place.aws_secret()
    iam = cast("Any", boto3).client("iam", **_owner(shared_place))
    known = {each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]}
    for name in {"web", "other"} - known:
        iam.create_instance_profile(InstanceProfileName=name)
    groups = {each["GroupName"] for each in shared_place.ec2.describe_placement_groups()["PlacementGroups"]}
    if "near" not in groups:
        shared_place.ec2.create_placement_group(GroupName="near", Strategy="cluster")
    # t3.small is burstable.
    deployment = specs.on_ec2(specs.page("Site"), ec2={"instanceType": "t3.small"})
    deployment["spec"]["securityGroups"].append({"name": "other", "description": "Other", "ingress": [specs.rule(443)]})
    shared_place.apply(deployment)
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def _owner(place: Place) -> dict[str, Any]:
    env = place.lab.env
    return {
        "endpoint_url": env["AWS_ENDPOINT_URL"],
        "region_name": env["AWS_DEFAULT_REGION"],
        "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
    }


def instance(site: Place) -> dict[str, Any]:
    """The one that runs; that there never was another one."""
    (found,) = site.instances()
    return found


@dataclass(frozen=True)
class Row:
    """`value` is declared and shows as `shown`; `by_hand` changes it; without the field, or with `back` in its place,
    it is `usual`."""

    field: str
    value: Any
    shown: Any
    usual: Any
    look: Callable[[Any, dict[str, Any]], Any]
    by_hand: Callable[[Any, str], object]
    is_in_sweeps: bool = True
    back: Any = None


def _attribute(name: str) -> Callable[[Any, dict[str, Any]], Any]:
    def look(ec2: Any, shown: dict[str, Any]) -> Any:
        reply = ec2.describe_instance_attribute(InstanceId=shown["InstanceId"], Attribute=name)
        return reply[name[0].upper() + name[1:]]["Value"]

    return look


def _modify(**change: Any) -> Callable[[Any, str], object]:
    return lambda ec2, instance_id: ec2.modify_instance_attribute(InstanceId=instance_id, **change)


def _profile(_ec2: Any, shown: dict[str, Any]) -> str:
    return str(shown.get("IamInstanceProfile", {}).get("Arn", "")).rpartition("/")[2]


def _other_profile(ec2: Any, instance_id: str) -> None:
    of_instance = [{"Name": "instance-id", "Values": [instance_id]}]
    (found,) = ec2.describe_iam_instance_profile_associations(Filters=of_instance)["IamInstanceProfileAssociations"]
    ec2.replace_iam_instance_profile_association(
        AssociationId=found["AssociationId"], IamInstanceProfile={"Name": "other"}
    )


def _metadata(_ec2: Any, shown: dict[str, Any]) -> tuple[Any, ...]:
    found = shown["MetadataOptions"]
    names = ("HttpTokens", "HttpPutResponseHopLimit", "InstanceMetadataTags", "HttpEndpoint", "State")
    return tuple(found[name] for name in names)


def _credits(ec2: Any, shown: dict[str, Any]) -> str:
    reply = ec2.describe_instance_credit_specifications(InstanceIds=[shown["InstanceId"]])
    return str(reply["InstanceCreditSpecifications"][0]["CpuCredits"])


def _root_volume(ec2: Any, shown: dict[str, Any]) -> dict[str, Any]:
    return dict(ec2.describe_volumes(VolumeIds=[_root_volume_id(shown)])["Volumes"][0])


def _root_volume_id(shown: dict[str, Any]) -> str:
    return str(shown["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])


def _performance(ec2: Any, shown: dict[str, Any]) -> tuple[Any, ...]:
    found = _root_volume(ec2, shown)
    return tuple(found[name] for name in ("VolumeType", "Iops", "Throughput"))


def _tags(ec2: Any, shown: dict[str, Any]) -> tuple[dict[str, str], ...]:
    """Those of the users, of the instance and of its root volume."""
    both = shown["Tags"], _root_volume(ec2, shown)["Tags"]
    every = [{tag["Key"]: tag["Value"] for tag in tags} for tags in both]
    return tuple({key: tags[key] for key in tags.keys() & {"team", "cost", "asks"}} for tags in every)


def _tag_by_hand(ec2: Any, instance_id: str) -> None:
    (shown,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    both = [instance_id, _root_volume_id(shown)]
    ec2.delete_tags(Resources=both, Tags=[{"Key": "team"}])
    ec2.create_tags(Resources=both, Tags=[{"Key": "cost", "Value": "8"}])


def _groups(ec2: Any, shown: dict[str, Any]) -> list[str]:
    """Their descriptions."""
    ids = [each["GroupId"] for each in shown["SecurityGroups"]]
    return sorted(each["Description"] for each in ec2.describe_security_groups(GroupIds=ids)["SecurityGroups"])


def _default_group(ec2: Any, instance_id: str) -> None:
    (shown,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    of_vpc = [{"Name": "vpc-id", "Values": [shown["VpcId"]]}, {"Name": "group-name", "Values": ["default"]}]
    (default,) = ec2.describe_security_groups(Filters=of_vpc)["SecurityGroups"]
    ec2.modify_instance_attribute(InstanceId=instance_id, Groups=[default["GroupId"]])


def _slower(ec2: Any, instance_id: str) -> None:
    (shown,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    begun = time.monotonic()
    of_volume = [{"Name": "volume-id", "Values": [_root_volume_id(shown)]}]

    def is_done() -> bool:
        (found,) = ec2.describe_volumes_modifications(Filters=of_volume)["VolumesModifications"]
        return bool(found["ModificationState"] == "completed")

    eventually(is_done, f"EC2 takes another change, after {time.monotonic() - begun:.1f} s")
    ec2.modify_volume(VolumeId=_root_volume_id(shown), Iops=3000)


ROWS = (
    Row(
        "tags",
        {"team": "web", "cost": "7"},
        ({"team": "web", "cost": "7"},) * 2,
        ({},) * 2,
        _tags,
        _tag_by_hand,
    ),
    Row(
        "securityGroups",
        ["web", "other"],
        ["Other", "Site and SSH"],
        ["Site and SSH"],
        _groups,
        _default_group,
        back=["web"],  # without the field it would be the VPC's default group, which admits no SSH
    ),
    Row(
        "rootVolume",
        {"type": "gp3", "iops": 4000, "throughput": 250},
        ("gp3", 4000, 250),
        ("gp3", 4000, 250),  # what was declared stays
        _performance,
        _slower,
    ),
    Row(
        "monitoring",
        True,
        "enabled",
        "disabled",
        lambda _, shown: shown["Monitoring"]["State"],
        lambda ec2, instance_id: ec2.unmonitor_instances(InstanceIds=[instance_id]),
    ),
    Row(
        "sourceDestCheck",
        False,
        False,
        True,
        lambda _, shown: shown["SourceDestCheck"],
        _modify(SourceDestCheck={"Value": True}),
    ),
    Row(
        "metadata",
        {"tokens": "Optional", "hopLimit": 2, "tags": True},
        ("optional", 2, "enabled", "enabled", "applied"),
        ("required", 1, "disabled", "enabled", "applied"),
        _metadata,
        lambda ec2, instance_id: ec2.modify_instance_metadata_options(InstanceId=instance_id, HttpEndpoint="disabled"),
    ),
    Row("instanceProfile", "web", "web", "", _profile, _other_profile),
    Row(
        "terminationProtection",
        True,
        True,
        False,
        _attribute("disableApiTermination"),
        _modify(DisableApiTermination={"Value": False}),
        is_in_sweeps=False,
    ),
    Row(
        "stopProtection",
        True,
        True,
        False,
        _attribute("disableApiStop"),
        _modify(DisableApiStop={"Value": False}),
        is_in_sweeps=False,
    ),
    Row(
        "shutdownBehavior",
        "Terminate",
        "terminate",
        "stop",
        _attribute("instanceInitiatedShutdownBehavior"),
        _modify(InstanceInitiatedShutdownBehavior={"Value": "stop"}),
        is_in_sweeps=False,
    ),
    Row(
        "credits",
        "Standard",
        "standard",
        "standard",  # what was declared stays
        _credits,
        lambda ec2, instance_id: ec2.modify_instance_credit_specification(
            InstanceCreditSpecifications=[{"InstanceId": instance_id, "CpuCredits": "unlimited"}]
        ),
        is_in_sweeps=False,
    ),
)


OF_THE_QUICK = {"tags", "securityGroups", "credits"}
"""A field that every sweep shows, one that names what has an id in EC2, and one that no sweep shows."""
LONG = pytest.mark.long(instead="cluster/test_attributes.py")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.field, marks=() if row.field in OF_THE_QUICK else LONG) for row in ROWS],
)
def test_an_attribute_follows_the_spec_on_the_running_instance(
    site: Place, row: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    def look() -> Any:
        return row.look(site.ec2, instance(site))

    def becomes(wanted: Any, what: str, begun: float) -> float:
        eventually(lambda: look() == wanted, f"{row.field}: {what}", last=look)
        return time.monotonic() - begun

    path = f"{EC2}/{row.field}"
    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": path, "value": row.value})
    declared = becomes(row.shown, "as declared", begun)
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    begun = time.monotonic()
    row.by_hand(site.ec2, instance(site)["InstanceId"])
    if not row.is_in_sweeps:
        # It is asked for once an hour, and after own changes.
        site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/tags", "value": {"asks": row.field}})
    put_back = becomes(row.shown, "put back", begun)
    begun = time.monotonic()
    undo = {"op": "remove", "path": path} if row.back is None else {"op": "add", "path": path, "value": row.back}
    site.patch("nixdeployment", DEPLOYMENT, undo)
    undone = becomes(row.usual, "undone", begun)

    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    with capsys.disabled():
        print(f"\n{row.field}: in the spec {declared:.1f} s, by hand {put_back:.1f} s, taken out {undone:.1f} s")


def test_under_report_a_change_by_hand_stays_and_is_told(site: Place) -> None:
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": "/spec/driftPolicy", "value": "Report"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    check = _modify(SourceDestCheck={"Value": False})
    check(site.ec2, instance(site)["InstanceId"])

    machine = site.await_condition(
        "nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "False/InstanceDrift"}
    )

    assert "source and destination check" in condition(machine, "UpToDate")["message"]
    assert instance(site)["SourceDestCheck"] is False
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": "/spec/driftPolicy"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    assert instance(site)["SourceDestCheck"] is True


def of_stopped(site: Place) -> tuple[Any, ...]:
    """What only a stopped instance can be given."""
    shown = instance(site)
    return shown["InstanceType"], shown["EbsOptimized"], shown["Placement"].get("GroupName", "")


def await_state(site: Place, state: str) -> None:
    eventually(lambda: instance(site)["State"]["Name"] == state, state, last=lambda: instance(site)["State"])


def test_what_takes_a_stop_is_given_by_one_and_put_back_by_one(site: Place, tell: Callable[[str, float], None]) -> None:
    """instanceType, ebsOptimized and placementGroup: all three in one stop, each time."""
    before = instance(site)["InstanceId"]
    declared = ("t3.medium", True, "near")
    begun = time.monotonic()
    site.patch(
        "nixdeployment",
        DEPLOYMENT,
        {"op": "add", "path": "/spec/machines/0/disruption", "value": {"stop": "WhenNeeded"}},
        *(
            {"op": "add", "path": f"{EC2}/{field}", "value": value}
            for field, value in zip(STOPPED, declared, strict=True)
        ),
    )
    eventually(lambda: of_stopped(site) == declared, "as declared", last=lambda: of_stopped(site))
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    tell("in the spec", begun)

    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": "/spec/suspend", "value": True})
    site.await_condition("nixmachine", MACHINE, {"Paused": "True/Suspended"})
    site.ec2.stop_instances(InstanceIds=[before])
    await_state(site, "stopped")
    _modify(InstanceType={"Value": "t3.large"})(site.ec2, before)
    _modify(EbsOptimized={"Value": False})(site.ec2, before)
    site.ec2.modify_instance_placement(InstanceId=before, GroupName="")
    site.ec2.start_instances(InstanceIds=[before])
    await_state(site, "running")
    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": "/spec/suspend"})
    eventually(lambda: of_stopped(site) == declared, "put back", last=lambda: of_stopped(site))
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    tell("by hand", begun)

    begun = time.monotonic()
    site.patch(
        "nixdeployment",
        DEPLOYMENT,
        {"op": "replace", "path": f"{EC2}/instanceType", "value": "t3.small"},
        {"op": "remove", "path": f"{EC2}/ebsOptimized"},
        {"op": "remove", "path": f"{EC2}/placementGroup"},
    )
    usual = ("t3.small", True, "")  # what was declared of ebsOptimized stays
    eventually(lambda: of_stopped(site) == usual, "undone", last=lambda: of_stopped(site))
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    tell("taken out", begun)
    assert instance(site)["InstanceId"] == before


STOPPED = ("instanceType", "ebsOptimized", "placementGroup")


def test_a_data_volume_is_attached_attached_again_and_let_go_of(
    site: Place, tell: Callable[[str, float], None]
) -> None:
    ours = [{"Name": "tag:nixops.dev:entry", "Values": ["data"]}, *_of_namespace(site)]

    def volumes() -> list[tuple[int, list[tuple[str, str]]]]:
        """Size, and where it is attached, of each."""
        found = site.ec2.describe_volumes(Filters=ours)["Volumes"]
        return [(one["Size"], [(each["Device"], each["State"]) for each in one["Attachments"]]) for one in found]

    attached = [("/dev/sdf", "attached")]
    begun = time.monotonic()
    one = {"name": "data", "device": "/dev/sdf", "size": 1}
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/volumes", "value": [one]})
    eventually(lambda: volumes() == [(1, attached)], "attached", last=volumes)
    tell("in the spec", begun)
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "replace", "path": f"{EC2}/volumes/0/size", "value": 2})
    eventually(lambda: volumes() == [(2, attached)], "larger", last=volumes)
    tell("larger", begun)

    begun = time.monotonic()
    (volume,) = site.ec2.describe_volumes(Filters=ours)["Volumes"]
    site.ec2.detach_volume(VolumeId=volume["VolumeId"])
    eventually(lambda: volumes() != [(2, attached)], "it is off", last=volumes)
    eventually(lambda: volumes() == [(2, attached)], "attached again", last=volumes)
    tell("detached by hand", begun)
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})

    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": f"{EC2}/volumes"})
    retained = [*ours, {"Name": "tag:nixops.dev:retained", "Values": ["true"]}]
    eventually(lambda: site.ec2.describe_volumes(Filters=retained)["Volumes"], "let go of", last=volumes)
    tell("taken out", begun)
    assert volumes() == [(2, [])]
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    site.ec2.delete_volume(VolumeId=volume["VolumeId"])


def _of_namespace(site: Place) -> list[dict[str, Any]]:
    return [{"Name": "tag:nixops.dev:namespace", "Values": [site.namespace]}]


def test_a_group_that_was_deleted_by_hand_is_made_again_with_its_rules(
    site: Place, tell: Callable[[str, float], None]
) -> None:
    (before,) = [each for each in site.groups() if each["Description"] == "Site and SSH"]
    begun = time.monotonic()
    _default_group(site.ec2, instance(site)["InstanceId"])
    site.ec2.delete_security_group(GroupId=before["GroupId"])

    def ports() -> list[int]:
        return sorted(each["FromPort"] for group in _of_instance(site) for each in group["IpPermissions"])

    eventually(lambda: ports() == [22, 80], "another group, with its rules, on the instance", last=ports)
    tell("deleted by hand", begun)
    assert before["GroupId"] not in {each["GroupId"] for each in _of_instance(site)}
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})


def _of_instance(site: Place) -> list[dict[str, Any]]:
    ids = [each["GroupId"] for each in instance(site)["SecurityGroups"]]
    return [each for each in site.groups() if each["GroupId"] in ids]


def test_a_subnet_is_for_life_and_told_so(site: Place) -> None:
    others = [{"Name": "default-for-az", "Values": ["true"]}]
    here = instance(site)["SubnetId"]
    other = next(
        each["SubnetId"] for each in site.ec2.describe_subnets(Filters=others)["Subnets"] if each["SubnetId"] != here
    )
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/subnetId", "value": other})
    told = site.await_condition("nixdeployment", DEPLOYMENT, {"Stalled": "True/InvalidSpec"})
    assert "subnetId" in condition(told, "Stalled")["message"]
    assert instance(site)["SubnetId"] == here
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": f"{EC2}/subnetId"})
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_what_counts_at_the_next_launch_is_told_beside_up_to_date(site: Place) -> None:
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/publicIp", "value": False})

    def told() -> bool:
        found = condition(site.get("nixmachine", MACHINE), "UpToDate")
        return found["status"] == "True" and "public address" in found["message"]

    eventually(told, "it is told", last=lambda: condition(site.get("nixmachine", MACHINE), "UpToDate"))
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": f"{EC2}/publicIp"})


def test_a_protected_machine_is_deleted_once_its_spec_says_so(site: Place) -> None:
    """The last one: its instance is gone then."""
    (before,) = site.instances()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/terminationProtection", "value": True})
    protected = _attribute("disableApiTermination")
    eventually(lambda: protected(site.ec2, instance(site)), "it is protected")
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    site.kubectl("delete", "nixdeployment", DEPLOYMENT, "--wait=false")

    machine = site.await_condition("nixmachine", MACHINE, {"Stalled": "True/ChangeForbidden"})
    assert "spec.target.ec2.terminationProtection" in condition(machine, "Stalled")["message"]
    assert instance(site)["State"]["Name"] == "running"

    site.patch("nixmachine", MACHINE, {"op": "add", "path": "/spec/target/ec2/terminationProtection", "value": False})
    eventually(lambda: site.find("nixdeployment", DEPLOYMENT) is None, "the deployment is gone", last=site.objects)
    (after,) = site.instances()
    assert (after["InstanceId"], after["State"]["Name"]) == (before["InstanceId"], "terminated")
