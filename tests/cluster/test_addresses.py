"""Elastic addresses and subnets on machines that are reached there: declared, changed by hand in EC2, taken out again.
How long each took is printed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
EC2 = "/spec/machines/0/target/ec2"
OF_ADDRESS = f"{EC2}/elasticIp"


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Place:
    shared_place.aws_secret()
    shared_place.apply(specs.on_ec2(specs.page("Site")))
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def addresses(site: Place) -> list[dict[str, Any]]:
    """Those that the operator has allocated here."""
    ours = [{"Name": "tag:nixops.dev:namespace", "Values": [site.namespace]}]
    return [dict(one) for one in site.ec2.describe_addresses(Filters=ours)["Addresses"]]


def the_instance(site: Place) -> dict[str, Any]:
    (found,) = site.live_instances()
    return found


def is_at(site: Place, address: str) -> Callable[[], bool]:
    """Whether the machine serves there, and says so."""

    def look() -> bool:
        told = site.get("nixmachine", MACHINE)["status"]["addresses"]
        return told.get("public") == told.get("ssh") == address and site.title(address) == "Site"

    return look


def standing(site: Place) -> Callable[[], object]:
    return lambda: (site.get("nixmachine", MACHINE)["status"].get("conditions"), addresses(site))


def test_an_address_is_allocated_and_stays_the_machine_s(site: Place, tell: Callable[[str, float], None]) -> None:
    host_keys = site.get("nixmachine", MACHINE)["status"]["hostKeys"]
    before = the_instance(site)["PublicIpAddress"]
    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": OF_ADDRESS, "value": {"allocate": True}})
    address = eventually(lambda: next(iter(addresses(site)), None), "it is allocated")["PublicIp"]
    eventually(is_at(site, address), "it is reached there", last=standing(site))
    tell("in the spec", begun)
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")

    begun = time.monotonic()
    site.ec2.disassociate_address(AssociationId=addresses(site)[0]["AssociationId"])
    eventually(lambda: not addresses(site)[0].get("AssociationId") or time.monotonic() > begun + 1, "it is off")
    eventually(lambda: addresses(site)[0].get("InstanceId") and is_at(site, address)(), "back", last=standing(site))
    tell("taken off by hand", begun)

    begun = time.monotonic()
    site.ec2.stop_instances(InstanceIds=[the_instance(site)["InstanceId"]])
    eventually(lambda: the_instance(site)["State"]["Name"] != "running", "it stops")
    eventually(lambda: the_instance(site)["State"]["Name"] == "running" and is_at(site, address)(), "it is back there")
    tell("stopped by hand", begun)

    assert len(addresses(site)) == 1
    assert site.get("nixmachine", MACHINE)["status"]["hostKeys"] == host_keys
    assert before != address


def test_an_address_of_the_user_s_takes_its_place(site: Place, tell: Callable[[str, float], None]) -> None:
    given = site.ec2.allocate_address(Domain="vpc")
    begun = time.monotonic()
    value = {"id": given["AllocationId"]}
    site.patch("nixdeployment", DEPLOYMENT, {"op": "replace", "path": OF_ADDRESS, "value": value})
    eventually(is_at(site, given["PublicIp"]), "it is reached there", last=standing(site))
    tell("another one in the spec", begun)
    eventually(lambda: addresses(site) == [], "ours is released", last=standing(site))

    begun = time.monotonic()
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": OF_ADDRESS})
    kept = [{"Name": "allocation-id", "Values": [given["AllocationId"]]}]

    def is_off() -> bool:
        (shown,) = site.ec2.describe_addresses(Filters=kept)["Addresses"]
        now = the_instance(site).get("PublicIpAddress", "")
        return not shown.get("AssociationId") and now != given["PublicIp"] and is_at(site, now)()

    eventually(is_off, "it is off, and the user's still", last=standing(site))
    tell("taken out", begun)
    site.ec2.release_address(AllocationId=given["AllocationId"])


def test_an_address_that_others_use_is_left_to_them(site: Place) -> None:
    image = the_instance(site)["ImageId"]
    other = site.ec2.run_instances(ImageId=image, InstanceType="t2.micro", MinCount=1, MaxCount=1)
    instance_id = other["Instances"][0]["InstanceId"]
    given = site.ec2.allocate_address(Domain="vpc")
    site.ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
    held = site.ec2.associate_address(AllocationId=given["AllocationId"], InstanceId=instance_id)["AssociationId"]

    value = {"address": given["PublicIp"]}
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": OF_ADDRESS, "value": value})
    machine = site.await_condition("nixmachine", MACHINE, {"Stalled": "True/AdoptionConflict"})

    assert instance_id in condition(machine, "UpToDate")["message"]
    (shown,) = site.ec2.describe_addresses(AllocationIds=[given["AllocationId"]])["Addresses"]
    assert shown["AssociationId"] == held
    site.patch("nixdeployment", DEPLOYMENT, {"op": "remove", "path": OF_ADDRESS})
    site.ec2.terminate_instances(InstanceIds=[instance_id])
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded"})


def test_with_the_machine_its_address_goes(site: Place, tell: Callable[[str, float], None]) -> None:
    site.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": OF_ADDRESS, "value": {"allocate": True}})
    eventually(lambda: any(one.get("InstanceId") for one in addresses(site)), "it is associated", last=standing(site))
    begun = time.monotonic()
    site.kubectl("delete", "nixdeployment", DEPLOYMENT, "--wait=false")
    eventually(lambda: site.find("nixdeployment", DEPLOYMENT) is None, "the deployment is gone", last=site.objects)
    tell("deleted", begun)

    assert addresses(site) == []


def test_an_instance_is_launched_where_there_is_room(place: Place, tell: Callable[[str, float], None]) -> None:
    default = [{"Name": "default-for-az", "Values": ["true"]}]
    subnets = {
        one["AvailabilityZone"]: one["SubnetId"] for one in place.ec2.describe_subnets(Filters=default)["Subnets"]
    }
    first, second, *_ = sorted(subnets)
    place.lab.set(**{f"capacity.t2.micro.{first}": 0})
    place.aws_secret()
    begun = time.monotonic()
    several = {"subnetIds": [subnets[first], subnets[second]]}
    place.apply(specs.on_ec2(specs.page("Site"), ec2=several))
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    tell("ready in another zone after", begun)

    assert the_instance(place)["Placement"]["AvailabilityZone"] == second
    (full,) = place.get("nixmachine", MACHINE)["status"]["fullSubnets"]
    assert (full["zone"], full["subnetId"]) == (first, subnets[first])
