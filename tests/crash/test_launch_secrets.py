"""What a launch leaves in Secrets: one frozen request while it is tried, none afterwards; and the client key that the
instance admits, whatever becomes of the key pair and of its Secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from crash.bench import Worlds
from crash.workloads import SHOP, WORKLOADS, Reference, at_rest, reference, replace
from fakes.kube import Secret
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.ssh_keys import generate_ed25519

NAMESPACE = "default"
KEY = (NAMESPACE, names.key_pair_secret(SHOP.name, "main"))
QUOTA = Blocked(Reason.QUOTA_EXCEEDED, "You have requested more vCPU capacity than your limit").as_refusal()
MINUTE = 60.0


def follow(name: str, begin: Callable[[Worlds], object]) -> Reference:
    with mock.patch.dict(WORKLOADS, {name: begin}):
        return reference(name)


def launch_secrets(worlds: Worlds) -> list[str]:
    return sorted(name for _, name in worlds.kube.secrets if "-launch-" in name)


def _later(seconds: float, change: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, change)


def _other_tags(body: dict[str, Any]) -> None:
    for machine in body["spec"]["machines"]:
        machine["target"]["ec2"]["tags"] = {"team": "web"}


def test_refusals_leave_one_frozen_request():
    """With the same parameters the attempt is asked for again; 144 Secrets with private keys a day lay about."""
    found: dict[str, list[str]] = {}

    def under_a_quota(worlds: Worlds) -> None:
        replace(worlds)
        refusals = worlds.cloud.effects.standing_error
        refusals["ec2.run_instances"] = QUOTA
        calls = worlds.cloud.effects

        def look(when: str) -> None:
            found[when] = launch_secrets(worlds)
            found[f"calls {when}"] = [one.arguments["token"] for one in calls.of("ec2.run_instances")]

        _later(15 * MINUTE, lambda: look("first"))
        _later(15 * MINUTE, lambda: worlds.kube.edit(SHOP, _other_tags))
        _later(17 * MINUTE, lambda: look("edited"))
        _later(17 * MINUTE, refusals.clear)

    end = follow("under a quota", under_a_quota)

    assert len(found["calls first"]) > 1, "it is tried again"
    assert len({*found["calls first"]}) == 1, "with the same token"
    assert [len(found[when]) for when in ("first", "edited")] == [1, 1]
    assert found["first"] != found["edited"], "other parameters are another attempt"
    assert launch_secrets(end.after.worlds) == []


def test_a_machine_that_is_deleted_while_its_launch_is_refused_leaves_no_secret():
    def deleted(worlds: Worlds) -> None:
        replace(worlds)
        worlds.cloud.effects.standing_error["ec2.run_instances"] = QUOTA
        _later(120, lambda: worlds.kube.delete(SHOP))

    end = follow("deleted under a quota", deleted)
    assert (end.end["objects"], launch_secrets(end.after.worlds)) == ({}, [])


def _change_key(worlds: Worlds) -> None:
    worlds.kube.secrets[KEY].data[names.SSH_PRIVATE_KEY] = generate_ed25519().text.encode()


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(("ec2.import_key_pair", "ec2.delete_key_pair"), id="the old pair alone is there for a while"),
        pytest.param(("ec2.delete_key_pair",), id="both are there for a while"),
    ],
)
def test_an_instance_is_launched_with_the_key_that_it_is_going_to_be_reached_with(refused):
    """It was launched with the pair that was there, and admitted nobody for good; or it waited for one to go."""

    def workload(worlds: Worlds) -> None:
        _change_key(worlds)
        replace(worlds)
        refusals = worlds.cloud.effects.standing_error
        refusals |= dict.fromkeys(refused, Retry(Reason.THROTTLED, "slow down").as_refusal())
        _later(10 * MINUTE, refusals.clear)

    before = {*at_rest().worlds.cloud.key_pairs}
    end = follow(f"changed key, {refused} refused", workload)
    (pair,) = end.after.worlds.cloud.key_pairs
    assert pair not in before
    live = {one.key_name for one in end.after.worlds.cloud.instances.values() if one.state.is_live}
    assert live == {pair, *before}, "the one that lives on keeps its own"


def _replaced_by_garbage(worlds: Worlds) -> None:
    worlds.kube.secrets[KEY] = Secret({names.SSH_PRIVATE_KEY: b"no key"})


def _gone(worlds: Worlds) -> None:
    del worlds.kube.secrets[KEY]


def _renamed(worlds: Worlds) -> None:
    """Another entry, another pair, another key."""

    def change(body: dict[str, Any]) -> None:
        body["spec"]["keyPairs"] = [{"name": "other"}]
        for machine in body["spec"]["machines"]:
            machine["target"]["ec2"]["keyPair"] = "other"

    worlds.kube.edit(SHOP, change)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_change_key, id="another key in the Secret"),
        pytest.param(_replaced_by_garbage, id="garbage in its place"),
        pytest.param(_gone, id="Secret gone"),
        pytest.param(_renamed, id="key pair renamed"),
    ],
)
def test_a_machine_is_logged_in_to_with_the_key_that_it_was_launched_with(change):
    """The connections of the process before are gone; each machine is reached anew, and a new system goes there."""
    logins: list[int] = []

    def workload(worlds: Worlds) -> None:
        change(worlds)
        for machine in worlds.hosts.machines.values():
            machine.login_attempts = 0
        _later(30, lambda: logins.extend(len(one.connections) for one in worlds.hosts.machines.values()))
        _later(31, lambda: _mend(worlds))

    end = follow(f"launched with {change.__name__}", workload)
    assert len(logins) == 2
    assert all(logins)
    assert end.after.worlds.is_ready()


def _mend(worlds: Worlds) -> None:
    """The deployment itself is Stalled without its key, which is another matter."""
    if KEY not in worlds.kube.secrets or b"KEY" not in worlds.kube.secrets[KEY].data[names.SSH_PRIVATE_KEY]:
        worlds.kube.secrets[KEY] = Secret({names.SSH_PRIVATE_KEY: generate_ed25519().text.encode()})
        worlds.kube.edit(
            SHOP, lambda body: body["spec"].update(keyPairs=[{"name": "main", "privateKeySecretRef": {"name": KEY[1]}}])
        )


def test_a_key_that_is_changed_between_launch_and_pin_locks_nobody_out():
    def workload(worlds: Worlds) -> None:
        replace(worlds)

        def hear(what: str, body: Any) -> None:
            launch = (body.get("status") or {}).get("launch") or {}
            if launch.get("attempt") == 2 and launch.get("token") and KEY in worlds.kube.secrets:
                worlds.kube.watchers.remove(hear)
                # The bench finds the private half of what EC2 gives to the instance in whatever Secret it lies.
                worlds.kube.secrets[NAMESPACE, "backup"] = Secret(dict(worlds.kube.secrets[KEY].data))
                _change_key(worlds)

        worlds.kube.watchers.append(hear)

    end = follow("key changed after the launch was frozen", workload)
    running = [one for one in end.after.worlds.cloud.instances.values() if one.state is InstanceState.RUNNING]
    assert len(running) == 2
    assert end.after.worlds.is_ready()
