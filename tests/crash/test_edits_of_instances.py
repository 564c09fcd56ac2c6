"""Edits that EC2 refuses, or that nobody expected, end with the machine told about and nothing done again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from crash.bench import SHORT_LAG, Worlds
from crash.changes import WEB
from crash.faults import Script, _until
from crash.workloads import SHOP, follow
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.cloud import Instance, InstanceState


def _web(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return body


def _instance(worlds: Worlds) -> Instance:
    (found,) = worlds.cloud.live(_web(worlds)["metadata"]["uid"])
    return found


def _told(worlds: Worlds) -> tuple[str, str, str]:
    (ready,) = (one for one in _web(worlds)["status"]["conditions"] if one["type"] == "Ready")
    return ready["status"], ready["reason"], ready["message"]


def _edit(worlds: Worlds, change: Callable[[dict[str, Any]], object]) -> None:
    worlds.kube.edit(SHOP, lambda body: change(body["spec"]["machines"][1]))


def _play(script: Script) -> Worlds:
    return follow(script, SHORT_LAG, from_rest=True)


def test_of_two_values_that_need_a_stop_one_is_refused_and_costs_one_stop():
    async def script(worlds: Worlds) -> None:
        worlds.cloud.placement_groups.add("near")
        text = "ModifyInstancePlacement: InvalidParameterCombination: not with this type"
        worlds.cloud.effects.standing_error["ec2.set_placement_group"] = Blocked(Reason.INVALID_SPEC, text).as_refusal()

        def edit(machine: dict[str, Any]) -> None:
            machine["target"]["ec2"] |= {"instanceType": "t3.medium", "placementGroup": "near"}
            machine["disruption"] = {"stop": "WhenNeeded"}

        _edit(worlds, edit)
        await _until(lambda: _told(worlds)[0] == "False")
        del worlds.cloud.effects.standing_error["ec2.set_placement_group"]
        await asyncio.sleep(30 * 60)
        assert len(worlds.cloud.effects.of("ec2.stop_instance")) == 1

    worlds = _play(script)

    assert _told(worlds)[:2] == ("False", "InvalidSpec")
    assert "not with this type" in _told(worlds)[2]
    assert (_instance(worlds).instance_type, _instance(worlds).state) == ("t3.small", InstanceState.RUNNING)
