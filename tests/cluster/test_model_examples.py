"""The example of examples/valgrind-docs, as its users have it: applied, served, edited, deleted, on each target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "nixdeployment/example", "example-webserver"
VALGRIND = "Valgrind"
EDITED = "An edited page"


@pytest.fixture
def example(tmp_path: Path, place: Place) -> Path:
    return specs.example(tmp_path, place.lab)


def address_of(place: Place) -> str:
    return str(place.get("nixmachine", MACHINE)["status"]["addresses"]["ssh"])


def apply_and_wait(place: Place, target: Path) -> None:
    """`kubectl wait` begins the moment that the apply has ended."""
    place.kubectl("apply", "--kustomize", str(target))
    place.wait_ready(DEPLOYMENT)


def columns(text: str) -> list[dict[str, str]]:
    """Rows of `kubectl get` by the head of their columns; some are empty, as PAUSED mostly is."""
    rows: list[dict[str, str]] = []
    for head, *body in (table.splitlines() for table in text.strip().split("\n\n")):
        begins = [found.start() for found in re.finditer(r"\S+", head)]
        ends = [*begins[1:], None]
        rows += [
            {head[begin:end].strip(): line[begin:end].strip() for begin, end in zip(begins, ends, strict=True)}
            for line in body
        ]
    return rows


def ingress(group: dict[str, Any]) -> list[tuple[str, int, int, list[str]]]:
    return [
        (each["IpProtocol"], each["FromPort"], each["ToPort"], [r["CidrIp"] for r in each["IpRanges"]])
        for each in group["IpPermissions"]
    ]


def test_on_ec2_with_security_groups_of_its_own(place: Place, example: Path) -> None:
    target = example / "targets/aws-security-groups"
    place.aws_secret()

    apply_and_wait(place, target)
    assert VALGRIND in place.title(address_of(place))

    groups = {group["Description"]: group for group in place.groups()}
    assert {text: ingress(group) for text, group in groups.items()} == {
        "Anyone may read the site": [("tcp", 80, 80, ["0.0.0.0/0"])],
        "Anyone may knock on SSH": [("tcp", 22, 22, ["0.0.0.0/0"])],
    }
    for group in groups.values():
        (everything,) = group["IpPermissionsEgress"]
        assert (everything["IpProtocol"], [r["CidrIp"] for r in everything["IpRanges"]]) == ("-1", ["0.0.0.0/0"])
    (instance,) = place.live_instances()
    attached = {group["GroupId"] for group in instance["SecurityGroups"]}
    assert attached == {group["GroupId"] for group in groups.values()}

    deployment, machine = columns(place.kubectl("get", "nixd,nixm"))
    revision = place.get("nixdeployment", "example")["status"]["revision"]["current"]
    assert {key: deployment[key] for key in ("READY", "STATUS", "MACHINES", "UPDATED", "REVISION")} == {
        "READY": "True",
        "STATUS": "Succeeded",
        "MACHINES": "1/1",
        "UPDATED": "1",
        "REVISION": revision,
    }
    assert {key: machine[key] for key in ("READY", "STATUS", "TARGET", "ADDRESS", "SYSTEM")} == {
        "READY": "True",
        "STATUS": "Succeeded",
        "TARGET": "t2.micro",
        "ADDRESS": instance["PublicIpAddress"],
        "SYSTEM": "2",
    }
    wide = columns(place.kubectl("get", "nixm", "--output=wide"))[0]
    assert wide["INSTANCE"] == instance["InstanceId"]
    assert wide["ZONE"] == instance["Placement"]["AvailabilityZone"]
    assert wide["UPTODATE"] == "True"

    specs.edit_page(example, EDITED)
    apply_and_wait(place, target)
    assert place.title(address_of(place)) == EDITED
    assert [each["InstanceId"] for each in place.live_instances()] == [instance["InstanceId"]]

    place.kubectl("delete", "--kustomize", str(target), "--timeout=90s")
    assert place.left_in_ec2() == []
    assert place.objects() == []


@pytest.fixture
def opened_default_group(place: Place) -> Iterator[str]:
    """What the account's owner does for targets/aws-plain."""
    filters = [{"Name": "group-name", "Values": ["default"]}]
    (group,) = place.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    opened = [
        {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        for port in (22, 80)
    ]
    place.ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=opened)
    yield str(group["GroupId"])
    place.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=opened)


def test_on_ec2_in_the_default_group(place: Place, example: Path, opened_default_group: str) -> None:
    target = example / "targets/aws-plain"
    place.aws_secret()

    apply_and_wait(place, target)
    assert VALGRIND in place.title(address_of(place))

    assert place.groups() == []
    (instance,) = place.live_instances()
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [opened_default_group]
    (pair,) = place.key_pairs()
    assert instance["KeyName"] == pair["KeyName"]

    place.kubectl("delete", "--kustomize", str(target), "--timeout=90s")
    assert place.left_in_ec2() == []
    (group,) = place.ec2.describe_security_groups(GroupIds=[opened_default_group])["SecurityGroups"]
    assert sorted(each["FromPort"] for each in group["IpPermissions"] if "FromPort" in each) == [22, 80]


def test_on_a_given_host(place: Place, example: Path) -> None:
    target = example / "targets/existing-host"
    place.ssh_secret()

    apply_and_wait(place, target)
    address = place.lab.env["LAB_HOST_ADDRESS"]
    assert VALGRIND in place.title(address)
    machine = columns(place.kubectl("get", "nixm"))[0]
    assert (machine["READY"], machine["TARGET"], machine["ADDRESS"]) == ("True", "host", address)

    specs.edit_page(example, EDITED)
    apply_and_wait(place, target)
    assert place.title(address) == EDITED
    system = place.get("nixmachine", MACHINE)["status"]["system"]["current"]
    assert place.system_of(GIVEN_HOST) == system

    early = [
        each
        for each in place.statuses(MACHINE)
        if condition(each, "ConfigurationActive")["status"] == "True" and condition(each, "Ready")["status"] != "True"
    ]
    assert {condition(each, "Ready")["reason"] for each in early} <= {"Confirming"}, "active only once confirmed"

    boot = place.leader(GIVEN_HOST)
    place.kubectl("delete", "--kustomize", str(target), "--timeout=60s")
    assert place.objects() == []
    assert place.system_of(GIVEN_HOST) == system
    assert place.title(address) == EDITED
    assert place.leader(GIVEN_HOST) == boot
    assert place.on(GIVEN_HOST, "readlink", "--canonicalize", "/nix/var/nix/profiles/system") == system


def test_a_machine_of_a_deployment_can_be_waited_for_as_soon_as_it_exists(place: Place, example: Path) -> None:
    place.ssh_secret()
    title = f"The page of {place.namespace}"  # the host may serve an earlier test's
    specs.edit_page(example, title)
    place.kubectl("apply", "--kustomize", str(example / "targets/existing-host"))
    eventually(lambda: place.find("nixmachine", MACHINE), "the deployment has made its machine")
    place.wait_ready(f"nixmachine/{MACHINE}")
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == title
