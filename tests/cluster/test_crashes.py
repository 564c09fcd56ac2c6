"""The operator killed at the worst moments, and configurations that cut the machine off: once made, never twice, and
never locked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from cluster.polling import eventually

DEPLOYMENT, MACHINE, HOST = "site", "site-web", "host"
OLD, BAD, GOOD = "The old page", "The page behind a closed door", "The good page"
SLOW_SWITCH = "test.stc.slow = 6;"


def kill_after_lost_reply(place: Place, operation: str, act: Callable[[], None]) -> None:
    """`act`; then the operator dies right after EC2 has carried out its first `operation`, without the reply: further
    ones hang, so that it learns nothing before its end."""
    place.lab.fault(match={"op": operation}, do="commit-drop")
    place.lab.fault(match={"op": operation}, do="hang", times=1000)
    act()
    eventually(lambda: place.calls(operation), f"{operation} has taken effect")
    kill(place)
    place.lab.reset()


def kill(place: Place) -> None:
    """Its Lease goes as well, since nobody is left who could act under it: the next operator need not sit it out."""
    place.lab.operator.kill()
    place.kubectl("delete", "lease", "nixops-operator", "--namespace=nixops-system")


def activation_of(place: Place, name: str) -> dict[str, Any]:
    thing = place.find("nixmachine", name) or {}
    return dict((thing.get("status") or {}).get("activation") or {})


def state_on(place: Place, machine: str, activation: str) -> str:
    """What the machine itself says of an activation; empty if it knows none."""
    found = place.lab.machine_exec(machine, ["ls", f"/var/lib/nixops/activation/{activation}"], check=False).stdout
    return next((line.removeprefix("state.") for line in found.split() if line.startswith("state.")), "")


def test_killed_at_every_unanswered_call_and_during_the_activation_all_is_made_once(place: Place) -> None:
    operator = place.lab.operator
    place.aws_secret()
    kill_after_lost_reply(place, "ImportKeyPair", lambda: place.apply(specs.on_ec2(specs.page(GOOD, SLOW_SWITCH))))
    kill_after_lost_reply(place, "CreateSecurityGroup", operator.restart)
    kill_after_lost_reply(place, "RunInstances", operator.restart)
    (instance,) = place.live_instances()
    machine = instance["InstanceId"]

    operator.restart()
    activation = eventually(lambda: activation_of(place, MACHINE).get("id"), "an activation is intended")
    eventually(lambda: state_on(place, machine, activation) == "switching", "the machine switches")
    kill(place)
    assert state_on(place, machine, activation) in {"switching", "switched"}
    operator.restart()
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")

    assert [each["InstanceId"] for each in place.instances()] == [machine]
    launches = place.calls("RunInstances")
    assert {resource for call in launches for resource in call["resources"] if resource.startswith("i-")} == {machine}
    assert len({call["token"] for call in launches}) == 1
    assert len(place.key_pairs()) == len(place.calls("ImportKeyPair")) == 1
    assert len(place.groups()) == len(place.calls("CreateSecurityGroup")) == 1
    assert place.activations(machine) == [activation]
    assert state_on(place, machine, activation) == "committed"
    assert place.title(instance["PublicIpAddress"]) == GOOD

    place.kubectl("delete", "nixdeployment", DEPLOYMENT, "--wait=false")
    eventually(lambda: not place.live_instances(), "the instance is being terminated")
    kill(place)
    assert place.find("nixdeployment", DEPLOYMENT) is not None
    operator.restart()
    eventually(lambda: not place.objects(), "the objects are gone")
    assert place.left_in_ec2() == []
    assert len(place.instances()) == 1


def host_with(place: Place, title: str, more: str = "") -> None:
    place.apply(specs.on_host(place.lab, specs.page(title, more), HOST, activation=specs.QUICK))


@pytest.fixture
def host(place: Place) -> str:
    """The given host runs OLD's system, which is returned."""
    place.ssh_secret()
    host_with(place, OLD)
    place.wait_ready(f"nixmachine/{HOST}")
    return place.system_of(GIVEN_HOST)


def assert_rolled_back(place: Place, old: str) -> None:
    """The host runs `old` again, can be reached, and its status says what happened."""
    assert place.system_of(GIVEN_HOST) == old
    machine = place.await_condition(
        "nixmachine",
        HOST,
        {
            "Ready": "False/ActivationFailed",
            "Stalled": "True/ActivationFailed",
            "ConfigurationActive": "False/RolledBack",
            "Reachable": "True/Succeeded",
        },
    )
    message = condition(machine, "Stalled")["message"]
    assert "the previous system runs again" in message
    assert ("Warning", "ActivationFailed", message) in place.events(HOST)
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == OLD


def assert_mended_by_a_good_spec(place: Place) -> None:
    attempts = len(place.activations(GIVEN_HOST))
    host_with(place, GOOD)
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == GOOD
    assert len(place.activations(GIVEN_HOST)) <= attempts + 1


def test_a_machine_that_a_configuration_cuts_off_returns_to_its_old_system(place: Place, host: str) -> None:
    before = activation_of(place, HOST)["id"]
    host_with(place, BAD, "services.openssh.enable = lib.mkForce false;")
    bad = eventually(lambda: (found := activation_of(place, HOST).get("id")) != before and found, "a new activation")
    eventually(lambda: state_on(place, GIVEN_HOST, str(bad)) == "rolledback", "the machine has returned by itself")
    assert_rolled_back(place, host)
    assert_mended_by_a_good_spec(place)


def test_a_machine_that_is_cut_off_returns_without_the_operator_too(place: Place, host: str) -> None:
    before = activation_of(place, HOST)["id"]
    host_with(place, BAD, "test.stc.killSshd = true;" + SLOW_SWITCH)
    bad = eventually(lambda: (found := activation_of(place, HOST).get("id")) != before and found, "a new activation")
    eventually(lambda: state_on(place, GIVEN_HOST, str(bad)) == "switching", "the machine switches")
    kill(place)
    eventually(lambda: state_on(place, GIVEN_HOST, str(bad)) == "rolledback", "the machine has returned by itself")
    assert not place.lab.operator.is_running
    assert place.system_of(GIVEN_HOST) == host

    place.lab.operator.restart()
    assert_rolled_back(place, host)
    assert_mended_by_a_good_spec(place)
