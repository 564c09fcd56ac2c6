"""Edits of what an instance on EC2 already has: carried out on the live machine, or refused in words; never nothing."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE = "site", "site-web"
EC2 = "/spec/machines/0/target/ec2"
MODULE = "/spec/machines/0/configuration/modules/0/inline"


@pytest.fixture(scope="module")
def site(shared_place: Place) -> Place:
    """One machine on EC2, with a second key pair beside its own."""
    shared_place.aws_secret()
    deployment = specs.on_ec2(specs.page("Before"))
    deployment["spec"]["keyPairs"].append({"name": "other"})
    shared_place.apply(deployment)
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def edit(site: Place, *operations: dict[str, Any]) -> None:
    site.patch("nixdeployment", DEPLOYMENT, *operations)


def put(path: str, value: Any) -> dict[str, Any]:
    """Sets a field, whether or not it is there."""
    return {"op": "add", "path": path, "value": value}


def instance(site: Place) -> dict[str, Any]:
    """The one that runs; that there never was another one."""
    (found,) = site.instances()
    return found


def tags(site: Place) -> dict[str, str]:
    """Those that are not the operator's."""
    found = {tag["Key"]: tag["Value"] for tag in instance(site)["Tags"]}
    return {key: value for key, value in found.items() if not key.startswith("nixops.dev:") and key != "Name"}


def title(site: Place) -> str:
    return site.title(str(instance(site).get("PublicIpAddress", "")))


def test_tags_and_monitoring_follow_on_the_running_instance(site: Place) -> None:
    edit(site, put(f"{EC2}/tags", {"team": "web", "cost": "7"}), put(f"{EC2}/monitoring", True))
    eventually(lambda: tags(site) == {"team": "web", "cost": "7"}, "the tags are set", last=lambda: tags(site))
    eventually(lambda: instance(site)["Monitoring"]["State"] == "enabled", "it is monitored")

    site.ec2.create_tags(Resources=[instance(site)["InstanceId"]], Tags=[{"Key": "others", "Value": "stays"}])
    edit(site, put(f"{EC2}/tags", {"team": "web"}))
    eventually(lambda: tags(site) == {"team": "web", "others": "stays"}, "ours alone goes", last=lambda: tags(site))
    site.wait_ready(f"nixdeployment/{DEPLOYMENT}")


def test_a_type_that_cannot_be_changed_is_refused_in_words_and_keeps_no_configuration_away(site: Place) -> None:
    edit(site, put(f"{EC2}/instanceType", "t3.small"), put(MODULE, specs.page("Beside")))
    machine = site.await_condition(
        "nixmachine",
        MACHINE,
        {"Ready": "False/ChangeForbidden", "Stalled": "True/ChangeForbidden", "ConfigurationActive": "True/Succeeded"},
    )
    message = condition(machine, "Stalled")["message"]
    assert [part for part in ("t2.micro", "t3.small", "put the old value back") if part not in message] == [], message
    assert title(site) == "Beside"
    site.await_condition("nixdeployment", DEPLOYMENT, {"Stalled": "True/ChangeForbidden"})

    edit(site, put(f"{EC2}/instanceType", "t2.micro"))
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_a_renamed_key_pair_locks_nobody_out(site: Place) -> None:
    edit(site, put(f"{EC2}/keyPair", "other"), {"op": "remove", "path": "/spec/keyPairs/0"})
    machine = site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    assert "counts at the next launch" in condition(machine, "UpToDate")["message"]
    eventually(lambda: len(site.key_pairs()) == 1, "the earlier key pair is gone")

    edit(site, put(MODULE, specs.page("After")))
    eventually(lambda: title(site) == "After", "the new page is served", last=lambda: title(site))
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_a_group_of_another_description_takes_the_place_of_the_earlier_one(site: Place) -> None:
    (before,) = site.groups()
    edit(site, put("/spec/securityGroups/0/description", "Another description"))

    def after() -> bool:
        found = site.groups()
        return [each["Description"] for each in found] == ["Another description"] and {
            each["GroupId"] for each in instance(site)["SecurityGroups"]
        } == {each["GroupId"] for each in found}

    eventually(after, "the new group alone is there, and attached", last=site.groups)
    assert site.groups()[0]["GroupId"] != before["GroupId"]
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_with_permission_it_is_stopped_for_another_type_and_started_again(site: Place) -> None:
    before = instance(site)
    edit(site, put(f"{EC2}/instanceType", "t3.small"), put("/spec/machines/0/disruption", {"stop": "WhenNeeded"}))
    site.await_condition("nixmachine", MACHINE, {"Ready": "Unknown/Stopping"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"})
    after = instance(site)
    assert (after["InstanceId"], after["InstanceType"]) == (before["InstanceId"], "t3.small")
    assert after["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert "stop" not in site.get("nixmachine", MACHINE)["status"]
    eventually(lambda: title(site) != "", "it serves again")


def test_where_there_is_no_room_for_the_new_type_it_runs_as_it_was(site: Place) -> None:
    site.lab.set(**{"quota.vcpus": "3"})
    edit(site, put(f"{EC2}/instanceType", "t3.2xlarge"))
    machine = site.await_condition(
        "nixmachine", MACHINE, {"Stalled": "True/QuotaExceeded", "ConfigurationActive": "True/Succeeded"}
    )
    message = condition(machine, "Stalled")["message"]
    assert [part for part in ("t3.small", "t3.2xlarge", "vCPU", "Edit the spec") if part not in message] == [], message
    assert (instance(site)["InstanceType"], instance(site)["State"]["Name"]) == ("t3.small", "running")

    site.lab.set(**{"quota.vcpus": "unlimited"})
    edit(site, put(f"{EC2}/instanceType", "t3.small"))
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_a_machine_is_switched_off_and_on_by_the_spec(site: Place) -> None:
    edit(site, put(f"{EC2}/powerState", "Stopped"))
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "Reachable": "Unknown/Stopped"})
    assert instance(site)["State"]["Name"] == "stopped"
    site.ec2.start_instances(InstanceIds=[instance(site)["InstanceId"]])
    eventually(lambda: instance(site)["State"]["Name"] in ("stopping", "stopped"), "started by hand: stopped again")
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})

    edit(site, put(f"{EC2}/powerState", "Running"), put(MODULE, specs.page("Awake")))
    eventually(lambda: title(site) == "Awake", "it runs, with what was edited meanwhile", last=lambda: title(site))
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})


def test_a_suspended_deployment_changes_nothing_and_heals_when_it_is_resumed(site: Place) -> None:
    edit(site, put("/spec/suspend", True))
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded", "Paused": "True/Suspended"})
    site.await_condition("nixmachine", MACHINE, {"Ready": "True/Succeeded", "Paused": "True/Suspended"})
    status = site.get("nixdeployment", DEPLOYMENT)
    assert status["status"]["observedGeneration"] == status["metadata"]["generation"]

    site.ec2.stop_instances(InstanceIds=[instance(site)["InstanceId"]])
    site.await_condition("nixmachine", MACHINE, {"InfrastructureReady": "False/Stopped", "Paused": "True/Suspended"})
    calls = len(site.lab.ec2_log())
    eventually(
        lambda: sum(call["operation"] == "DescribeInstances" for call in site.lab.ec2_log()[calls:]) >= 3,
        "it has looked again and again",
    )
    assert instance(site)["State"]["Name"] == "stopped"

    edit(site, {"op": "remove", "path": "/spec/suspend"})
    site.await_condition("nixdeployment", DEPLOYMENT, {"Ready": "True/Succeeded"})
    assert title(site) == "Awake"
