"""Values at the limits that AWS documents are carried out; others are refused at once, with the field and the way out,
and cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncssh
import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually

pytestmark = pytest.mark.long(instead="cluster/test_bad_input.py")

EC2 = "spec.target.ec2"
NOWHERE = "sg-0123456789abcdef0"
OWN_KEY = {"privateKeySecretRef": {"name": "own"}}
SIX = [{"name": f"group-{number}", "description": "Many"} for number in range(6)]


@dataclass(frozen=True)
class Refused:
    """`ec2` of a deployment's machine leads to `reason`, in words that hold `says`."""

    name: str
    ec2: Callable[[Place], dict[str, Any]]
    reason: str
    says: tuple[str, ...]
    more: dict[str, Any] | None = None  # of the deployment


def subnet_elsewhere(place: Place) -> dict[str, Any]:
    vpc = place.ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    return {"subnetId": place.ec2.create_subnet(VpcId=vpc, CidrBlock="10.8.1.0/24")["Subnet"]["SubnetId"]}


REFUSED = (
    Refused(
        "group-of-nobody",
        lambda _: {"securityGroups": [NOWHERE]},
        "InvalidSpec",
        (f"{EC2}.securityGroups", NOWHERE, "does not exist"),
    ),
    Refused(
        "group-of-another-vpc",
        subnet_elsewhere,
        "InvalidSpec",
        (f"{EC2}.securityGroups", "is in vpc-", "name groups of that VPC"),
    ),
    Refused(
        "six-groups",
        lambda _: {"securityGroups": [one["name"] for one in SIX]},
        "QuotaExceeded",
        (f"{EC2}.securityGroups", "name fewer"),
        {"securityGroups": SIX},
    ),
    Refused(
        "key-pair-of-nobody",
        lambda _: {"keyPair": "in-the-console"},
        "InvalidSpec",
        (f"{EC2}.keyPair", "in-the-console", "import it, or name another"),
        {"ssh": OWN_KEY},
    ),
    Refused(
        "placement-group-of-nobody",
        lambda _: {"placementGroup": "aws-reserved"},
        "InvalidSpec",
        (f"{EC2}.placementGroup", "aws-reserved"),
    ),
    Refused(
        "disk-smaller-than-its-snapshot",
        lambda _: {"rootVolume": {"size": 1}},
        "InvalidSpec",
        (f"{EC2}.rootVolume", "smaller than snapshot"),
    ),
    Refused(
        "type-of-a-mac",
        lambda _: {"instanceType": "mac1.metal"},
        "InvalidSpec",
        (f"{EC2}.instanceType", "mac1.metal"),
    ),
)


@pytest.fixture(scope="module")
def refusing(shared_place: Place) -> Place:
    """All of them declared at once."""
    shared_place.aws_secret()
    own = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    shared_place.secret("own", {"ssh-privatekey": own}, "kubernetes.io/ssh-auth")
    for one in REFUSED:
        deployment = specs.on_ec2(specs.page("Nothing"), one.name, ec2=one.ec2(shared_place))
        deployment["spec"] |= one.more or {}
        shared_place.apply(deployment)
    return shared_place


@pytest.mark.parametrize("one", REFUSED, ids=lambda one: one.name)
def test_a_value_that_cannot_be_is_refused_with_its_field(refusing: Place, one: Refused) -> None:
    machine = refusing.await_condition("nixmachine", f"{one.name}-web", {"Stalled": f"True/{one.reason}"})
    message = condition(machine, "Stalled")["message"]
    assert [part for part in one.says if part not in message] == [], message
    assert refusing.live_instances() == []


def test_a_machine_at_the_limits_is_launched_as_declared(place: Place) -> None:
    """Forty tags with keys of 127 characters and values of 256, not ASCII, and 15 KiB of user data."""
    tags = {f"{number:02}{'ü' * 125}": "é" * 255 + "🐧" for number in range(40)}
    lines = "# 0123456789abcdef0123456789abc\n" * 480
    place.aws_secret()
    ec2 = {"tags": tags, "userDataExtra": lines, "rootVolume": {"type": "gp3", "size": 7, "iops": 3500}}
    place.apply(specs.on_ec2(specs.page("Full"), ec2=ec2))
    place.wait_ready("nixdeployment/site")

    (instance,) = place.live_instances()
    shown = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags.items() <= shown.items()
    eventually(lambda: place.title(instance["PublicIpAddress"]) == "Full", "it serves")
