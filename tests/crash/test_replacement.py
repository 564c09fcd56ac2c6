"""An instance is replaced while it serves; where the other one cannot take over, the former one stays, undisturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from crash.bench import SHORT_LAG, Worlds
from crash.changes import WEB
from crash.faults import DENIED, NO_CAPACITY, RUN, Script, _until
from crash.workloads import SHOP, follow, substitute
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.machine.replacement import ANSWERS_WITHIN, TRIED_AGAIN_AFTER

_A_WHILE = 120


def _web(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return body


def _live(worlds: Worlds) -> list[Instance]:
    return worlds.cloud.live(_web(worlds)["metadata"]["uid"])


def _told(worlds: Worlds) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in _web(worlds)["status"]["conditions"]}


def _serves(worlds: Worlds, instance: Instance) -> bool:
    host = worlds.machines[instance.id]
    return not host.is_silent and worlds.cloud.instances[instance.id].state is InstanceState.RUNNING


def _edit(worlds: Worlds, change: Callable[[dict[str, Any]], object]) -> None:
    worlds.kube.edit(SHOP, lambda body: change(body["spec"]["machines"][1]))


def _back(worlds: Worlds) -> None:
    _edit(worlds, lambda machine: machine["target"]["ec2"].pop("tenancy"))


def _play(script: Script) -> Worlds:
    worlds = follow(script, SHORT_LAG, from_rest=True)
    (instance,) = _live(worlds)
    assert _web(worlds)["status"]["launch"]["instanceId"] == instance.id
    assert _serves(worlds, instance)
    assert not [name for _, name in worlds.kube.secrets if "launch" in name], "a frozen request is left"
    return worlds


@pytest.mark.parametrize(
    ("refusal", "reason"), [(NO_CAPACITY, "InsufficientCapacity"), (DENIED.as_refusal(), "AccessDenied")]
)
def test_what_ec2_refuses_costs_nothing_and_is_tried_again(refusal, reason):
    former: list[Instance] = []

    async def script(worlds: Worlds) -> None:
        former.extend(_live(worlds))
        worlds.cloud.effects.standing_error[RUN] = refusal
        substitute(worlds)
        for _ in range(2 * int(TRIED_AGAIN_AFTER.total_seconds())):
            await asyncio.sleep(1)
            assert _live(worlds) == former
            assert _serves(worlds, *former)
        assert _told(worlds)["Ready"] == ("False", reason)
        assert len(worlds.cloud.effects.of(RUN)) <= 4, "asked without end"
        del worlds.cloud.effects.standing_error[RUN]
        await _until(lambda: worlds.is_ready() and _live(worlds) != former)

    worlds = _play(script)

    assert worlds.is_ready(), worlds.standing()
    assert _live(worlds)[0].tenancy == "dedicated"


def test_a_refused_edit_that_is_taken_back_leaves_everything_as_it_was():
    former: list[Instance] = []

    async def script(worlds: Worlds) -> None:
        former.extend(_live(worlds))
        worlds.cloud.effects.standing_error[RUN] = NO_CAPACITY
        substitute(worlds)
        await _until(lambda: _told(worlds)["Ready"] == ("False", "InsufficientCapacity"))
        _back(worlds)
        del worlds.cloud.effects.standing_error[RUN]

    worlds = _play(script)

    assert worlds.is_ready(), worlds.standing()
    assert _live(worlds) == former


def _dies(worlds: Worlds) -> None:
    worlds.becomes = lambda instance: (InstanceState.TERMINATED, "Server.InternalError")


def _stays_silent(worlds: Worlds) -> None:
    worlds.stays_silent = True


def _is_taken_back(worlds: Worlds) -> None:
    worlds.becomes = lambda instance: (InstanceState.PENDING, "")
    _back(worlds)


def _is_forbidden(worlds: Worlds) -> None:
    worlds.becomes = lambda instance: (InstanceState.PENDING, "")
    _edit(worlds, lambda machine: machine["disruption"].update(replace="WhenLost"))


@pytest.mark.parametrize("what", [_dies, _stays_silent, _is_taken_back, _is_forbidden])
def test_the_former_instance_stays_where_the_other_one(what):
    former: list[Instance] = []

    async def script(worlds: Worlds) -> None:
        former.extend(_live(worlds))
        substitute(worlds)
        await _until(lambda: len(worlds.cloud.instances) > len(worlds.machines))
        what(worlds)
        others = {one.id for one in worlds.cloud.instances.values() if one.tenancy == "dedicated"}
        for _ in range(int(ANSWERS_WITHIN.total_seconds()) + _A_WHILE):
            await asyncio.sleep(1)
            assert _serves(worlds, *former)
        assert all(worlds.cloud.instances[one].state is InstanceState.TERMINATED for one in others)
        if what in (_dies, _stays_silent):
            assert _told(worlds)["Ready"][0] == "False"
            _back(worlds)

    worlds = _play(script)

    assert [one.id for one in _live(worlds)] == [one.id for one in former]
    if what is not _is_forbidden:
        assert worlds.is_ready(), worlds.standing()


def test_a_former_instance_that_dies_meanwhile_is_not_missed():
    async def script(worlds: Worlds) -> None:
        (former,) = _live(worlds)
        substitute(worlds)
        await _until(lambda: len(worlds.cloud.instances) > len(worlds.machines))
        worlds.cloud.set_state(former.id, InstanceState.TERMINATED, "Client.UserInitiatedShutdown")

    worlds = _play(script)

    assert worlds.is_ready(), worlds.standing()
    assert _live(worlds)[0].tenancy == "dedicated"


def test_a_protected_instance_is_not_replaced():
    async def script(worlds: Worlds) -> None:
        (former,) = _live(worlds)
        _edit(worlds, lambda machine: machine["target"]["ec2"].update(terminationProtection=True))
        await asyncio.sleep(_A_WHILE)
        substitute(worlds)
        await asyncio.sleep(_A_WHILE)
        assert _told(worlds)["Ready"] == ("False", "ChangeForbidden")
        assert [one.id for one in _live(worlds)] == [former.id]
        _edit(worlds, lambda machine: machine["target"]["ec2"].update(terminationProtection=False))

    worlds = _play(script)

    assert worlds.is_ready(), worlds.standing()
    assert _live(worlds)[0].tenancy == "dedicated"


def test_machines_of_a_deployment_are_replaced_one_after_the_other():
    replaced_at_once: list[int] = []

    def both(body: dict[str, Any]) -> None:
        for machine in body["spec"]["machines"]:
            machine["target"]["ec2"]["tenancy"] = "Dedicated"
            machine["disruption"] = {"replace": "WhenNeeded"}

    async def script(worlds: Worlds) -> None:
        worlds.kube.edit(SHOP, both)
        while not (worlds.is_ready() and replaced_at_once):
            await asyncio.sleep(1)
            live = [one for one in worlds.cloud.instances.values() if one.state.is_live]
            replaced_at_once.append(len(live) - 2)
            known = [one for one in live if one.id in worlds.machines and worlds.machines[one.id].switches]
            assert any(_serves(worlds, one) for one in known), "both are out of service"

    worlds = _play(script)

    assert worlds.is_ready(), worlds.standing()
    assert {one.tenancy for one in worlds.cloud.instances.values() if one.state.is_live} == {"dedicated"}
    assert max(replaced_at_once) == 1
