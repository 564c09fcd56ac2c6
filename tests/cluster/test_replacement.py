"""What a running instance cannot be given: it is stopped for it, or replaced by another one, where that is allowed.
How long each took is printed."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from cluster import specs
from cluster.place import GONE, Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
OF_MACHINE = "/spec/machines/0"
EC2 = f"{OF_MACHINE}/target/ec2"


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Place:
    """One machine on EC2, and a placement group."""
    shared_place.aws_secret()
    known = {each["GroupName"] for each in shared_place.ec2.describe_placement_groups()["PlacementGroups"]}
    if "near" not in known:
        shared_place.ec2.create_placement_group(GroupName="near", Strategy="cluster")
    deployment = specs.on_ec2(specs.page("Site"))
    deployment["spec"]["keyPairs"].append({"name": "other"})
    shared_place.apply(deployment)
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def live(site: Place) -> list[dict[str, Any]]:
    return [one for one in site.instances() if one["State"]["Name"] not in GONE]


def the_instance(site: Place) -> dict[str, Any]:
    (found,) = live(site)
    return found


def allow(site: Place, **disruption: str) -> None:
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{OF_MACHINE}/disruption", "value": disruption})


def declare(site: Place, field: str, value: Any) -> float:
    """Returns when."""
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": f"{EC2}/{field}", "value": value})
    return time.monotonic()


def test_a_placement_group_is_given_and_taken_by_a_stop_where_that_is_allowed(
    site: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = the_instance(site)["InstanceId"]
    declare(site, "placementGroup", "near")
    machine = site.await_condition("nixmachine", MACHINE, {"Stalled": "True/ChangeForbidden"})
    assert "disruption.stop" in condition(machine, "Stalled")["message"]

    begun = time.monotonic()
    allow(site, stop="WhenNeeded")
    group = lambda: the_instance(site)["Placement"].get("GroupName")  # noqa: E731
    eventually(lambda: group() == "near", "it is in the group", last=group)
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    given = time.monotonic() - begun
    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": f"{EC2}/placementGroup"})
    eventually(lambda: not group(), "it is in none", last=group)
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})

    assert the_instance(site)["InstanceId"] == before
    with capsys.disabled():
        print(f"\nplacementGroup: in the spec {given:.1f} s, taken out {time.monotonic() - begun:.1f} s")


EXTRA = "# for a program on the machine\n"


def older_image(site: Place) -> str:
    """Of the same release as the default one."""
    name = [{"Name": "name", "Values": ["nixos/25.11.*-x86_64-linux"]}]
    found = site.ec2.describe_images(Filters=name)["Images"]
    return str(min(found, key=lambda image: image["CreationDate"])["ImageId"])


def test_what_counts_at_the_next_launch_is_told_and_replaces_nothing(site: Place) -> None:
    before = the_instance(site)["InstanceId"]
    declare(site, "userDataExtra", EXTRA)
    declare(site, "image", {"id": older_image(site)})
    declare(site, "keyPair", "other")
    parts = ("image", "key pair", "counts at the next launch")

    def told() -> str:
        found = condition(site.get("nixmachine", MACHINE), "UpToDate")
        return str(found["message"]) if found["status"] == "True" else ""

    eventually(lambda: all(part in told() for part in parts), "it is told", last=told)
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    assert the_instance(site)["InstanceId"] == before


def test_an_instance_without_permission_keeps_what_it_was_launched_with(site: Place) -> None:
    before = the_instance(site)
    allow(site, replace="WhenLost")
    declare(site, "tenancy", "Dedicated")
    default = [{"Name": "default-for-az", "Values": ["true"]}]
    subnets = {one["SubnetId"] for one in site.ec2.describe_subnets(Filters=default)["Subnets"]}
    declare(site, "subnetIds", sorted(subnets - {before["SubnetId"]}))

    def told() -> str:
        return str(condition(site.get("nixmachine", MACHINE), "Stalled").get("message", ""))

    parts = ("disruption.replace", "tenancy", "subnet")
    eventually(lambda: all(part in told() for part in parts), "both are told", last=told)
    site.await_condition("nixmachine", MACHINE, {"Stalled": "True/ChangeForbidden"})
    assert the_instance(site)["InstanceId"] == before["InstanceId"]


def test_what_ec2_has_no_room_for_leaves_the_former_instance_serving(site: Place) -> None:
    """Follows the one before: what was forbidden is allowed now, and there is no capacity."""
    before = the_instance(site)
    room = f"capacity.{before['InstanceType']}"
    site.lab.set(**{room: 0})
    try:
        allow(site, replace="WhenNeeded")
        site.await_condition("nixmachine", MACHINE, {"Stalled": "True/InsufficientCapacity"})
        after = the_instance(site)
        assert (after["InstanceId"], after["State"]["Name"]) == (before["InstanceId"], "running")
        assert site.title(after["PublicIpAddress"]) == "Site"
    finally:
        site.lab.set(**{room: "unlimited"})


def test_another_instance_takes_over_and_the_former_one_goes(site: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Follows the ones before: somebody asks for another try. What counts at the next launch comes along."""
    former = the_instance(site)
    before = former["InstanceId"]
    begun = time.monotonic()
    site.ask_to_look(f"nixmachine/{MACHINE}")

    counts: set[int] = set()

    def is_gone() -> bool:
        found = {one["InstanceId"] for one in live(site)}
        counts.add(len(found))
        return before not in found

    eventually(is_gone, "the former one goes")
    gone = time.monotonic()
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    ready = time.monotonic()

    after = the_instance(site)
    assert max(counts) <= 2
    assert after["InstanceId"] != before
    assert after["Placement"]["Tenancy"] == "dedicated"
    assert after["SubnetId"] != former["SubnetId"]
    assert after["ImageId"] == older_image(site) != former["ImageId"]
    assert after["KeyName"] != former["KeyName"]
    given = site.ec2.describe_instance_attribute(InstanceId=after["InstanceId"], Attribute="userData")["UserData"]
    assert base64.b64decode(given["Value"]).decode().endswith(EXTRA)
    assert site.title(after["PublicIpAddress"]) == "Site"
    with capsys.disabled():
        print(f"\ntenancy, subnetIds: {ready - begun:.1f} s, {ready - gone:.1f} s of that without the former one")
