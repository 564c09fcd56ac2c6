"""What is changed behind the operator's back, on the machine, in EC2 or in the cluster, comes back as declared."""

from __future__ import annotations

import pytest

from cluster import specs
from cluster.place import Place, condition, is_ready, standing
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
FIRST, SECOND = "The first page", "The second page"
HTTPS = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "198.18.0.0/15"}]}
EVERYTHING = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "198.18.0.0/15"}]}  # has no ports


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Place:
    """One machine on EC2 that runs its second system, so that there is a first one to go back to."""
    shared_place.aws_secret()
    shared_place.apply(specs.on_ec2(specs.page(FIRST)))
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    shared_place.apply(specs.on_ec2(specs.page(SECOND)))
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def address_of(site: Place) -> str:
    return str(site.get("nixmachine", MACHINE)["status"].get("addresses", {}).get("ssh", ""))


def instance_of(site: Place) -> str:
    return str(site.get("nixmachine", MACHINE)["status"]["instance"]["id"])


def is_whole(site: Place) -> bool:
    """Both objects say that all is as declared, UpToDate included."""
    found = [site.find("nixdeployment", DEPLOYMENT), site.find("nixmachine", MACHINE)]
    return all(
        thing is not None
        and is_ready(thing)
        and condition(thing, "UpToDate").get("status") == "True"
        and not condition(thing, "Reconciling")
        for thing in found
    )


def await_whole(site: Place) -> None:
    eventually(
        lambda: is_whole(site),
        "deployment and machine are as declared again",
        last=lambda: "\n".join(map(standing, site.objects())),
    )


def test_a_changed_module_is_activated(site: Place) -> None:
    machine = instance_of(site)
    first, second = (site.on(machine, "readlink", f"/nix/var/nix/profiles/system-{n}-link") for n in (2, 3))
    assert first != second
    assert site.system_of(machine) == second
    assert site.title(address_of(site)) == SECOND


def test_a_system_switched_by_hand_is_switched_back(site: Place) -> None:
    machine, since = instance_of(site), site.mark()
    declared = site.system_of(machine)
    site.on(machine, "/nix/var/nix/profiles/system-2-link/bin/switch-to-configuration", "test")

    eventually(lambda: ("False", "SystemDrift") in site.told(MACHINE, "UpToDate", since), "the drift is told")
    eventually(lambda: site.system_of(machine) == declared, "the declared system runs")
    await_whole(site)
    assert site.title(address_of(site)) == SECOND
    assert "Unknown" in {status for status, _ in site.told(MACHINE, "Ready", since)}
    assert "False" in {status for status, _ in site.told(MACHINE, "ConfigurationActive", since)}


def test_a_profile_changed_by_hand_is_put_back_while_the_machine_stays_ready(site: Place) -> None:
    machine, since = instance_of(site), site.mark()
    declared = site.system_of(machine)
    attempts = site.activations(machine)
    site.on(machine, "nix-env", "--profile", "/nix/var/nix/profiles/system", "--switch-generation", "2")

    eventually(
        lambda: site.on(machine, "readlink", "--canonicalize", "/nix/var/nix/profiles/system") == declared,
        "the profile is the declared system",
    )
    await_whole(site)
    assert ("False", "ProfileDrift") in site.told(MACHINE, "UpToDate", since)
    assert {status for status, _ in site.told(MACHINE, "Ready", since)} <= {"True"}
    assert site.activations(machine) == attempts


def test_a_revoked_rule_is_authorized_again_and_an_added_one_revoked(site: Place) -> None:
    since = site.mark()
    (group,) = site.groups()
    http = [each for each in group["IpPermissions"] if each["FromPort"] == 80]
    site.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=http)
    site.ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[HTTPS, EVERYTHING])

    def ports() -> list[int]:
        (now,) = site.groups()
        return sorted(each.get("FromPort", -1) for each in now["IpPermissions"])

    assert ports() == [-1, 22, 443]
    eventually(lambda: ports() == [22, 80], "exactly the declared rules", last=ports)
    await_whole(site)
    assert site.title(address_of(site)) == SECOND
    assert ("False", "SecurityGroupDrift") in site.told(DEPLOYMENT, "UpToDate", since)
    assert {status for status, _ in site.told(DEPLOYMENT, "Ready", since)} <= {"True"}


def test_a_deleted_key_pair_is_imported_again(site: Place) -> None:
    (before,) = site.key_pairs()
    site.ec2.delete_key_pair(KeyName=before["KeyName"])

    eventually(site.key_pairs, "a key pair is there")
    (after,) = site.key_pairs()
    assert (after["KeyName"], after["KeyFingerprint"]) == (before["KeyName"], before["KeyFingerprint"])
    assert after["KeyPairId"] != before["KeyPairId"]
    await_whole(site)


def test_a_stopped_instance_is_started(site: Place) -> None:
    machine, since = instance_of(site), site.mark()
    site.ec2.stop_instances(InstanceIds=[machine])

    def is_running() -> bool:
        return any(i["InstanceId"] == machine and i["State"]["Name"] == "running" for i in site.live_instances())

    assert not is_running()
    eventually(is_running, "the instance runs")
    eventually(lambda: site.title(address_of(site)) == SECOND, "the page is served")
    await_whole(site)
    assert len(site.live_instances()) == 1
    assert any(status != "True" for status, _ in site.told(MACHINE, "Ready", since))


def test_an_edited_child_is_put_back(site: Place) -> None:
    declared = site.get("nixmachine", MACHINE)
    site.patch(
        "nixmachine",
        MACHINE,
        {"op": "replace", "path": "/spec/configuration/modules/0/inline", "value": specs.page("An edit by hand")},
        {"op": "add", "path": "/spec/deletionPolicy", "value": "Retain"},
        {"op": "remove", "path": "/metadata/labels/nixops.dev~1machine"},
    )

    def is_back() -> bool:
        now = site.get("nixmachine", MACHINE)
        return bool(now["spec"] == declared["spec"] and now["metadata"]["labels"] == declared["metadata"]["labels"])

    eventually(is_back, "spec and labels are as before")
    await_whole(site)
    assert site.title(address_of(site)) == SECOND


def test_a_terminated_instance_is_replaced_only_once_the_policy_allows_it(site: Place) -> None:
    lost = instance_of(site)
    site.ec2.terminate_instances(InstanceIds=[lost])

    machine = site.await_condition(
        "nixmachine", MACHINE, {"Ready": "False/InstanceLost", "Stalled": "True/InstanceLost"}
    )
    told = condition(machine, "Stalled")["message"]
    assert lost in told
    assert "disruption.replace" in told
    deployment = site.await_condition("nixdeployment", DEPLOYMENT, {"Stalled": "True/InstanceLost"})
    assert condition(deployment, "Stalled")["message"] == f"web: {told}"
    assert ("Warning", "InstanceLost", told) in site.events(MACHINE)
    assert site.live_instances() == []

    site.apply(specs.on_ec2(specs.page(SECOND), disruption={"replace": "WhenLost"}))
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    (instance,) = site.live_instances()
    assert instance["InstanceId"] != lost
    assert site.title(instance["PublicIpAddress"]) == SECOND

    since = site.mark()
    site.ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    eventually(
        lambda: [each for each in site.live_instances() if each["InstanceId"] != instance["InstanceId"]],
        "another instance",
    )
    await_whole(site)
    (third,) = site.live_instances()
    assert site.title(third["PublicIpAddress"]) == SECOND
    assert len(site.instances()) == 3
    assert ("False", "SystemDrift") not in site.told(MACHINE, "UpToDate", since), "a new machine has not drifted"


def test_a_deleted_child_is_made_again(site: Place) -> None:
    before, machine = site.get("nixmachine", MACHINE), instance_of(site)
    site.kubectl("delete", "nixmachine", MACHINE, "--wait=false")

    def is_new() -> bool:
        now = site.find("nixmachine", MACHINE)
        return now is not None and now["metadata"]["uid"] != before["metadata"]["uid"]

    eventually(is_new, "another object of the same name")
    await_whole(site)
    assert site.get("nixmachine", MACHINE)["spec"] == before["spec"]
    (instance,) = site.live_instances()
    assert instance["InstanceId"] != machine
    assert site.title(instance["PublicIpAddress"]) == SECOND
