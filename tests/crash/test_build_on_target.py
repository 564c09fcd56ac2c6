"""What a user does while a machine builds its system: the build that is of no use ends, whoever began it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import pytest

from crash.bench import SHORT_LAG, Worlds
from crash.workloads import SHOP, follow
from fakes.host import Build, FakeMachine
from nixops_operator.machine import build_on_target

HOURS = Build(seconds=3600)
"""What is not ended goes on through the whole test."""

Edit = Callable[[dict[str, Any]], object]


def _suspend(body: dict[str, Any]) -> None:
    body["spec"]["machines"][1]["suspend"] = True


def _have_the_operator_build(body: dict[str, Any]) -> None:
    body["spec"]["machines"][1]["configuration"]["build"]["on"] = "Operator"


def _want_another_system(body: dict[str, Any]) -> None:
    body["spec"]["machines"][1]["configuration"]["modules"] = [{"inline": "{ services.nginx.enable = true; }"}]


def _while_it_builds(edit: Edit, ends: list[FakeMachine]) -> Callable[[Worlds], Coroutine[Any, Any, None]]:
    async def script(worlds: Worlds) -> None:
        machine = await _building(worlds)
        began = machine.building
        worlds.kube.edit(SHOP, edit)
        await _is_over(machine, began)
        machine.other_builds = Build()
        if machine.building is not None:  # what takes its place takes hours, too
            began = machine.building
            worlds.kube.edit(SHOP, _suspend)
            await _is_over(machine, began)
        ends.append(machine)
        worlds.kube.edit(SHOP, lambda body: body["spec"]["machines"][1].pop("suspend", None))

    return script


async def _is_over(machine: FakeMachine, drv_path: str | None) -> None:
    for _ in range(120):
        if machine.building != drv_path:
            return
        await asyncio.sleep(1)
    raise AssertionError("the build goes on")


async def _building(worlds: Worlds) -> FakeMachine:
    while True:
        await asyncio.sleep(0.1)
        for machine in worlds.hosts.machines.values():
            machine.other_builds = HOURS
            if machine.building is not None:
                return machine


EDITS = [
    pytest.param(_suspend, id="suspended"),
    pytest.param(_have_the_operator_build, id="the operator is to build"),
    pytest.param(_want_another_system, id="another system is wanted"),
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_build_of_no_use_is_ended_and_the_end_is_reached(edit: Edit) -> None:
    ends: list[FakeMachine] = []
    worlds = follow(_while_it_builds(edit, ends), SHORT_LAG, from_rest=False)
    assert worlds.is_ready(), worlds.standing()
    assert ends[0].building is None


def test_without_the_step_that_ends_it_a_build_goes_on() -> None:
    with (
        mock.patch.object(build_on_target, "_is_useless", return_value=False),
        pytest.raises(AssertionError, match="the build goes on"),
    ):
        follow(_while_it_builds(_suspend, []), SHORT_LAG, from_rest=False)
