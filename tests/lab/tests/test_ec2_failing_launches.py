"""Launches that find no room, and instances that do not live: capacity, quotas, deaths, machines that go off."""

import json
import urllib.error

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.testing import eventually

pytest_plugins = ["nixops_lab.ec2.fixtures"]


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


NO_ROOM = ("InsufficientInstanceCapacity", 500)


def place(letter):
    return {"Placement": {"AvailabilityZone": f"us-west-2{letter}"}}


# Capacity.


def test_a_type_without_capacity_is_refused_as_a_fault_of_the_server_until_it_is_back(cases, ec2, layer):
    layer.turn(**{"capacity.t3.small": 0})
    assert refusal(cases.reply, ClientToken="n1-one") == NO_ROOM
    assert ec2.describe_instances()["Reservations"] == []
    assert cases.launch(InstanceType="t3.micro")
    layer.turn(**{"capacity.t3.small": 1})
    assert cases.launch(ClientToken="n1-one")
    assert refusal(cases.reply) == NO_ROOM
    layer.turn(**{"capacity.t3.small": "unlimited"})
    assert cases.launch()


def test_a_zone_without_capacity_leaves_the_others(cases, layer):
    layer.turn(**{"capacity.t3.small.us-west-2a": 0})
    assert refusal(cases.reply, **place("a")) == NO_ROOM
    assert cases.launch(**place("b"))


def test_a_zone_may_not_offer_a_type(cases, layer):
    layer.turn(**{"not_offered.t3.small": "us-west-2a"})
    assert refusal(cases.reply, **place("a")) == ("Unsupported", 400)
    assert cases.launch(**place("b"))


def test_a_stopped_instance_gives_its_place_away_and_may_find_none_at_its_start(cases, ec2, layer):
    layer.turn(**{"capacity.t3.small": 1})
    first = cases.running()
    ec2.stop_instances(InstanceIds=[first])
    cases.until(first, "stopped")
    second = cases.running()
    assert refusal(ec2.start_instances, InstanceIds=[first]) == NO_ROOM
    assert cases.state(first) == "stopped"
    ec2.terminate_instances(InstanceIds=[second])
    cases.until(second, "terminated")
    ec2.start_instances(InstanceIds=[first])
    cases.until(first, "running")


def test_instances_that_are_started_together_need_room_together(cases, ec2, layer):
    ids = [cases.running() for _ in range(2)]
    ec2.stop_instances(InstanceIds=ids)
    for instance_id in ids:
        cases.until(instance_id, "stopped")
    layer.turn(**{"capacity.t3.small": 1})
    assert refusal(ec2.start_instances, InstanceIds=ids) == NO_ROOM
    assert [cases.state(name) for name in ids] == ["stopped", "stopped"]


def test_a_launch_of_several_takes_what_there_is_if_that_is_enough(cases, layer):
    layer.turn(**{"capacity.t3.small": 3})
    assert refusal(cases.reply, MinCount=4, MaxCount=5) == NO_ROOM
    assert len(cases.reply(MinCount=2, MaxCount=5)["Instances"]) == 3


def test_a_launch_that_happened_is_given_again_without_capacity(cases, layer):
    instance_id = cases.launch(ClientToken="n1-one")
    layer.turn(**{"capacity.t3.small": 0, "quota.vcpus": 0})
    assert cases.launch(ClientToken="n1-one") == instance_id


def test_a_quota_counts_the_processors_of_what_is_not_stopped(cases, ec2, layer):
    layer.turn(**{"quota.vcpus": 5})
    first = cases.running(InstanceType="t3.small")
    cases.launch(InstanceType="t3.large")
    assert refusal(cases.reply, InstanceType="t3.small") == ("VcpuLimitExceeded", 400)
    ec2.stop_instances(InstanceIds=[first])
    cases.until(first, "stopped")
    assert cases.launch(InstanceType="t3.small")


# Deaths.


@pytest.mark.parametrize("code", ["Client.InternalError", "Server.InternalError", "Client.VolumeLimitExceeded"])
def test_a_launch_dies_with_its_reason_and_without_a_machine(code, cases, ec2, layer):
    layer.turn(**{"launch.dies": f"{code}:0.1"})
    (launched,) = cases.reply(ClientToken="n1-one")["Instances"]
    assert launched["State"]["Name"] == "pending"
    instance_id = cases.until(launched["InstanceId"], "terminated")
    shown = cases.describe(instance_id)
    assert (shown["StateReason"]["Code"], shown["StateTransitionReason"]) == (code, "")
    assert shown["StateReason"]["Message"].startswith(f"{code}: ")
    assert (ec2.describe_volumes()["Volumes"], layer.machines.calls) == ([], [])
    assert refusal(cases.reply, ClientToken="n1-one")[0] == "IdempotentInstanceTerminated"


def test_a_launch_that_is_terminated_before_it_dies_keeps_the_callers_reason(cases, ec2, layer):
    layer.turn(**{"launch.dies": "Client.InternalError:3600"})
    instance_id = cases.launch()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"


def test_launches_live_again_when_the_knob_is_off(cases, layer):
    layer.turn(**{"launch.dies": "Client.InternalError:0"})
    cases.until(cases.launch(), "terminated")
    layer.turn(**{"launch.dies": "off"})
    assert cases.running()


@pytest.mark.parametrize("pending", [0, 3600], ids=["already shown as running", "still pending"])
def test_a_machine_goes_off_at_each_boot(pending, cases, ec2, layer):
    layer.turn(**{"boot.poweroff": 0.1, "pending_seconds": pending})
    instance_id = cases.until(cases.launch(), "stopped")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert layer.machines.state(instance_id) == "off"
    ec2.start_instances(InstanceIds=[instance_id])
    eventually(lambda: layer.machines.calls.count(("start", instance_id)) == 2)
    cases.until(instance_id, "stopped")
    layer.turn(**{"boot.poweroff": "off", "pending_seconds": 0})
    ec2.start_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "running")


def test_a_machine_that_goes_off_ends_where_the_instance_says_so(cases, layer):
    layer.turn(**{"boot.poweroff": 0})
    instance_id = cases.until(cases.launch(InstanceInitiatedShutdownBehavior="terminate"), "terminated")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


# The knobs' names and values.


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("capacity.t3.smal", 0, "there is no such knob; did you mean capacity.t3.small?"),
        ("capacity.t3", 0, "there is no such knob"),
        ("capacity.t3.small.west", 0, "there is no such knob"),
        ("capacity.t3.small", -1, "takes a number, or `unlimited`"),
        ("quota.vcpus", "many", "takes a number, or `unlimited`"),
        ("launch.dies", "soon", "takes a StateReason and seconds, as Client.InternalError:5"),
        ("launch.dies", "Client.InternalError", "takes a StateReason and seconds, as Client.InternalError:5"),
        ("boot.poweroff", "soon", "could not convert string to float: 'soon'"),
    ],
)
def test_a_knob_is_refused(name, value, told, layer):
    with pytest.raises(urllib.error.HTTPError) as caught:
        layer.turn(**{name: value})
    with caught.value as reply:
        assert json.load(reply)["error"].startswith(f"{name}: {told}")


def test_the_knobs_that_are_set_are_told(layer):
    layer.turn(**{"capacity.t3.small": 2, "launch.dies": "Server.InternalError:5", "boot.poweroff": 3})
    knobs = layer.control("GET", "/knobs")
    assert (knobs["capacity.t3.small"], knobs["launch.dies"], knobs["boot.poweroff"], knobs["quota.vcpus"]) == (
        2,
        "Server.InternalError:5",
        3,
        None,
    )
