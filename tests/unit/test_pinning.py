"""What is pinned of an instance: what it was launched with, restored where the pins are damaged, and nothing that is
written into somebody else's Secret."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fakes.kube import FakeKube
from fakes.kube import Secret as StoredSecret
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError
from nixops_operator.facts.cloud import InstanceState, LaunchRequest
from nixops_operator.facts.kube import Kind, OwnerReference, Secret
from nixops_operator.machine import apply, host_keys, steps
from nixops_operator.machine.desired import Desired, read_machine
from nixops_operator.machine.host_keys import Launched, Pins
from nixops_operator.ssh_keys import generate_ed25519
from nixops_operator.verdict import Outcome
from unit.builders import UID, cloud, ec2_machine, instance, planned, seen
from unit.builders import launch as launched_as
from unit.fake_time import run
from unit.test_in_use import Place

HOST_KEY, OTHER_KEY = generate_ed25519(), generate_ed25519()
PINNED = {"instanceId": b"i-1", "pinned": json.dumps([HOST_KEY.public]).encode()}
SECRET = Secret("web-host-keys", "u", "1", PINNED, owner_uids=frozenset({UID}))
REQUEST = LaunchRequest("ami-1", "t3.small", "subnet-1", host_keys.user_data(HOST_KEY.text, HOST_KEY.public)).as_json()


def of(data: dict[str, bytes]) -> Secret:
    return replace(SECRET, data=data)


def foreign() -> OperatorError:
    with pytest.raises(Blocked) as refused:
        host_keys.pins(replace(SECRET, owner_uids=frozenset()), UID)
    return refused.value


@pytest.mark.parametrize(
    ("status", "instances"),
    [
        pytest.param({}, (), id="the first one"),
        pytest.param(launched_as(instance="i-1"), (instance(state=InstanceState.TERMINATED),), id="one that was lost"),
        pytest.param(launched_as(refused=1), (), id="one that EC2 refused before"),
    ],
)
def test_no_instance_is_launched_whose_host_key_could_not_be_pinned(status, instances):
    """A Secret of somebody else was seen after the launch, of a machine that nobody could get onto."""
    machine = ec2_machine(status, disruption={"replace": "WhenLost"})
    plan = planned(machine, seen(cloud(*instances, pins=Pins(), pins_error=foreign())))
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.ADOPTION_CONFLICT)
    assert [step for step in plan.steps if isinstance(step, steps.RecordLaunch | steps.RecordCall | steps.Launch)] == []


# --- what the instance was launched with ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "found"),
    [
        pytest.param(of(host_keys.launch_secret(REQUEST, "key")), Launched((HOST_KEY.public,), "key"), id="frozen"),
        pytest.param(of(host_keys.launch_secret(REQUEST, None)), Launched((HOST_KEY.public,)), id="no client key then"),
        pytest.param(None, None, id="gone"),
        pytest.param(of({"request": b"{}"}), None, id="no request"),
        pytest.param(of({}), None, id="empty"),
        pytest.param(
            replace(of(host_keys.launch_secret(REQUEST, "key")), owner_uids=frozenset()), None, id="somebody else's"
        ),
    ],
)
def test_what_a_frozen_launch_says_of_its_instance(secret, found):
    assert host_keys.launched(secret, UID) == found


@pytest.mark.parametrize(
    ("damaged", "client_key"),
    [
        pytest.param(None, None, id="gone"),
        pytest.param(of({"clientKey": b"key"}), "key", id="the instance id is lost"),
        pytest.param(of({"clientKey": b"key", "instanceId": b"i-1"}), "key", id="the keys are lost"),
        pytest.param(of({"clientKey": b"key", "instanceId": b"i-0"}), None, id="of the instance before"),
    ],
)
def test_damaged_pins_keep_the_client_key_of_their_instance(damaged, client_key):
    assert host_keys.restored(damaged, "i-1", (HOST_KEY.public,)) == Launched((HOST_KEY.public,), client_key)


class Pinning:
    """A machine that was launched, and its Secrets."""

    def __init__(self, **status: Any) -> None:
        self.place = Place()
        kube, self.world = self.place.kube, self.place.world
        body = self.place.add("web", leaving=False, **launched_as(instance="i-1"), **status)
        desired = read_machine(body, has_owner=False)
        assert isinstance(desired, Desired)
        self.desired, self.body = desired, body
        self.kube: FakeKube = kube

    def put(self, name: str, data: dict[str, bytes], *, is_ours: bool = True) -> None:
        owner = OwnerReference(Kind.MACHINE, "web", self.desired.uid) if is_ours else None
        self.kube.secrets["default", name] = StoredSecret(dict(data), owner)

    async def pin(self) -> None:
        await apply.apply(steps.PinHostKey("i-1", 1), self.desired, self.body, self.world)

    @property
    def pins(self) -> dict[str, bytes]:
        return self.kube.secrets["default", "web-host-keys"].data


TOLD = {"instance": {"id": "i-1"}, "hostKeys": [HOST_KEY.public]}


@pytest.mark.parametrize("damage", [{}, {"pinned": b"x"}, {"instanceId": b"i-1", "clientKey": b"mine"}])
def test_damaged_pins_are_restored_from_the_status_of_the_same_instance(damage):
    async def test() -> None:
        bench = Pinning(**TOLD)
        bench.put("web-host-keys", damage)
        await bench.pin()
        assert {**PINNED, "launchesLeft": b""}.items() <= bench.pins.items()
        assert bench.pins.get("clientKey") == damage.get("clientKey")

    run(test())


def test_pins_are_not_restored_from_the_status_of_another_instance():
    async def test() -> None:
        bench = Pinning(**{**TOLD, "instance": {"id": "i-0"}})
        with pytest.raises(Blocked) as refused:
            await bench.pin()
        assert refused.value.reason is Reason.HOST_KEY_UNKNOWN

    run(test())


def test_somebody_elses_secret_is_not_written():
    async def test() -> None:
        bench = Pinning(**TOLD)
        bench.put("web-host-keys", {"mine": b"1"}, is_ours=False)
        with pytest.raises(Blocked):
            await bench.pin()
        assert bench.pins == {"mine": b"1"}

    run(test())


def test_pins_say_what_was_frozen_and_not_what_the_spec_names_now():
    async def test() -> None:
        bench = Pinning()
        bench.put(names.launch_secret("web", 1), host_keys.launch_secret(REQUEST, "then"))
        bench.put("client", {names.SSH_PRIVATE_KEY: OTHER_KEY.text.encode()}, is_ours=False)
        await bench.pin()
        assert bench.pins["clientKey"] == b"then"
        assert ("default", names.launch_secret("web", 1)) not in bench.kube.secrets

    run(test())
