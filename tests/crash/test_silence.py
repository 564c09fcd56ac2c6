"""A machine that hangs is restarted, a few times at most, and only where that is allowed."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from crash.bench import HOWS, SHORT_LAG, Cut, Worlds
from crash.changes import WEB
from crash.faults import _until
from crash.workloads import SHOP, WORKLOADS, follow, play, reference
from fakes.host import FakeMachine
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine.silence import MOST_RESTARTS

_LONG = 62 * 60


def _body(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return body


def _machine(worlds: Worlds) -> FakeMachine:
    return worlds.machines[_body(worlds)["status"]["launch"]["instanceId"]]


def _told(worlds: Worlds, kind: str) -> tuple[str, str, str]:
    one = next(one for one in _body(worlds)["status"]["conditions"] if one["type"] == kind)
    return one["status"], one["reason"], one["message"]


def _allow(worlds: Worlds, **disruption: str) -> None:
    worlds.kube.edit(SHOP, lambda body: body["spec"]["machines"][1].update(disruption=disruption))


def hangs(worlds: Worlds) -> None:
    _machine(worlds).is_silent = True
    _machine(worlds).cut_connections()


def _calls(worlds: Worlds) -> list[str]:
    return [call.effect for call in worlds.cloud.effects.of("ec2.reboot_instance", "ec2.stop_instance")]


def test_one_that_hangs_is_rebooted_once_and_serves_again():
    async def script(worlds: Worlds) -> None:
        _allow(worlds, reboot="WhenNeeded")
        await asyncio.sleep(60)
        hangs(worlds)
        await asyncio.sleep(9 * 60)
        assert _calls(worlds) == []
        await _until(worlds.is_ready)
        assert _calls(worlds) == ["ec2.reboot_instance"]
        await asyncio.sleep(_LONG)
        assert "silence" not in _body(worlds)["status"], "forgotten after an hour"

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_ready(), worlds.standing()


@pytest.mark.parametrize("policy", ["Enforce", "Report"])
@pytest.mark.parametrize(
    ("disruption", "expected"),
    [
        pytest.param({"reboot": "WhenNeeded"}, ["ec2.reboot_instance"] * MOST_RESTARTS, id="reboots"),
        pytest.param(
            {"reboot": "WhenNeeded", "stop": "WhenNeeded"},
            ["ec2.reboot_instance", *["ec2.stop_instance"] * (MOST_RESTARTS - 1)],
            id="and stops",
        ),
        pytest.param({"stop": "WhenNeeded"}, [], id="not allowed"),
    ],
)
def test_one_that_never_answers_again_is_left_to_a_person(policy, disruption, expected):
    async def script(worlds: Worlds) -> None:
        worlds.kube.edit(SHOP, lambda body: body["spec"]["machines"][1].update(driftPolicy=policy))
        _allow(worlds, **disruption)
        await asyncio.sleep(60)
        worlds.stays_silent = True
        hangs(worlds)
        await asyncio.sleep(_LONG)
        assert _calls(worlds) == expected
        assert _told(worlds, "Ready")[0] == "False"
        text = _told(worlds, "Reachable")[2]
        assert ("restarted 3 times" if expected else "disruption.reboot") in text, text
        (instance,) = worlds.cloud.live(_body(worlds)["metadata"]["uid"])
        assert instance.state is InstanceState.RUNNING
        worlds.stays_silent = False
        if not expected:
            _machine(worlds).is_silent = False
        _allow(worlds, reboot="WhenNeeded", replace="WhenLost")
        await _until(worlds.is_ready)

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_ready(), worlds.standing()


def _hangs_and_may_be_rebooted(worlds: Worlds) -> None:
    _allow(worlds, reboot="WhenNeeded")
    hangs(worlds)


def test_it_is_rebooted_once_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"hang": _hangs_and_may_be_rebooted}):
        trace = reference("hang").trace
        assert trace.count("ec2.reboot_instance") == 1
        calls = [("kube.write_intent", number) for number in range(1, trace.count("kube.write_intent") + 1)]
        for call in [*calls, ("ec2.reboot_instance", 1)]:
            for how in HOWS:
                worlds, was_met = play("hang", Cut(*call, how))
                assert was_met
                assert worlds.is_ready(), worlds.standing()
                assert _machine(worlds).boots == reference("hang").after.worlds.machines[_instance_id(worlds)].boots


def _instance_id(worlds: Worlds) -> str:
    return str(_body(worlds)["status"]["launch"]["instanceId"])
