"""Attributes of a live instance, each changed in the spec, by hand in EC2, and taken out of the spec again: carried
out, put back, undone. How long each took is printed."""

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
    """One machine on EC2, and two instance profiles in IAM."""
    shared_place.aws_secret()
    iam = cast("Any", boto3).client("iam", **_owner(shared_place))
    known = {each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]}
    for name in {"web", "other"} - known:
        iam.create_instance_profile(InstanceProfileName=name)
    # t3.small is burstable.
    shared_place.apply(specs.on_ec2(specs.page("Site"), ec2={"instanceType": "t3.small"}))
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
    """`value` is declared and shows as `shown`; `by_hand` changes it; without the field it is `usual`."""

    field: str
    value: Any
    shown: Any
    usual: Any
    look: Callable[[Any, dict[str, Any]], Any]
    by_hand: Callable[[Any, str], object]
    is_in_sweeps: bool = True


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


ROWS = (
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.field)
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
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": path})
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
