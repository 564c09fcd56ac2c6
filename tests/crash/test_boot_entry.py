"""A boot loader that refuses a system for ever keeps nobody from declaring another one, or from making room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from crash.bench import OURS, SHORT_LAG, Worlds
from crash.workloads import SHOP, follow
from fakes.host import FakeMachine, Switch
from nixops_operator.facts.kube import Key, Kind

WEB = Key(Kind.MACHINE, OURS, "shop-web")
REFUSED, MENDED = "{ services.nginx.enable = true; }", "{ services.httpd.enable = true; }"
NO_ROOM = Switch(boot_loader_error="no space in /boot")
TO_BE_BOOTED = Switch(100, moves_link=False, is_begun=False, needs_restart=True, boot_loader_error="no space in /boot")
HOUR = 3600


def _declare(worlds: Worlds, module: str, **activation: Any) -> None:
    def edit(body: dict[str, Any]) -> None:
        web = body["spec"]["machines"][1]
        web["configuration"]["modules"] = [{"inline": module}]
        web["activation"] = activation
        web["disruption"] = {"reboot": "WhenNeeded"}

    worlds.kube.edit(SHOP, edit)


def _status(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return dict(body["status"])


def _machine(worlds: Worlds) -> FakeMachine:
    return worlds.hosts.machines[_status(worlds)["addresses"]["ssh"]]


def _ready(worlds: Worlds) -> tuple[str, str]:
    ready = next(one for one in _status(worlds)["conditions"] if one["type"] == "Ready")
    return ready["status"], ready["reason"]


async def _until(is_so: Callable[[], object], worlds: Worlds) -> None:
    for _ in range(HOUR):
        if is_so():
            return
        await asyncio.sleep(1)
    raise AssertionError(worlds.standing())


async def _refuse(worlds: Worlds, outcome: Switch, **activation: Any) -> str:
    """The boot loader of the machine refuses every system but the one that runs; one of them is declared. Returns it,
    once that is told."""
    machine = _machine(worlds)
    machine.outcomes = {str(machine.current_system): Switch()}
    machine.other_switches = outcome
    machine.boots_once = False
    _declare(worlds, REFUSED, **activation)
    await _until(lambda: _ready(worlds) == ("False", "BootEntryFailed"), worlds)
    refused = str(_status(worlds)["system"]["desired"])
    machine.outcomes[refused] = outcome
    machine.other_switches = Switch()
    await asyncio.sleep(90)
    assert _ready(worlds) == ("False", "BootEntryFailed"), worlds.standing()
    return refused


@pytest.mark.parametrize(
    ("outcome", "mode"),
    [
        pytest.param(NO_ROOM, "Switch", id="it was switched to"),
        pytest.param(NO_ROOM, "Boot", id="it is declared to be booted"),
        pytest.param(TO_BE_BOOTED, "Switch", id="it has to be booted"),
    ],
)
def test_the_system_that_is_declared_next_takes_its_place(outcome: Switch, mode: str) -> None:
    async def script(worlds: Worlds) -> None:
        await _refuse(worlds, outcome, mode=mode)
        _declare(worlds, MENDED, mode=mode)

    worlds = follow(script, SHORT_LAG, from_rest=True)

    machine = _machine(worlds)
    assert worlds.is_ready(), worlds.standing()
    assert (
        machine.current_system == machine.profile_system == machine.boot_entry == _status(worlds)["system"]["desired"]
    )
    assert not machine.boot_entry_unsure
    told = [one["reason"] for one in _status(worlds).get("failedRevisions") or ()]
    assert told == (["RebootRequired"] if outcome.needs_restart else [])


def test_one_that_is_to_be_booted_gives_way_to_another_mode() -> None:
    async def script(worlds: Worlds) -> None:
        refused = await _refuse(worlds, NO_ROOM, mode="Boot")
        assert refused not in _machine(worlds).switches
        _declare(worlds, REFUSED, mode="Test")
        await _until(lambda: _ready(worlds) == ("True", "Succeeded"), worlds)
        assert _machine(worlds).current_system == refused

    follow(script, SHORT_LAG, from_rest=True)


def test_old_generations_go_to_make_room_for_it() -> None:
    async def script(worlds: Worlds) -> None:
        machine = _machine(worlds)
        for number in range(8):
            machine.set_profile(f"/nix/store/{number:032d}-nixos-system-by-hand")
        machine.set_profile(str(machine.current_system))
        refused = await _refuse(worlds, NO_ROOM)
        assert len(machine.generations) > 8
        _declare(worlds, REFUSED, keepGenerations=2)
        await _until(lambda: len(machine.generations) < 5, worlds)
        machine.outcomes[refused] = Switch()

    worlds = follow(script, SHORT_LAG, from_rest=True)

    machine = _machine(worlds)
    assert worlds.is_ready(), worlds.standing()
    assert machine.current_system == machine.profile_system == machine.boot_entry
    assert not machine.boot_entry_unsure


def test_its_keys_are_kept_meanwhile() -> None:
    async def script(worlds: Worlds) -> None:
        await _refuse(worlds, NO_ROOM)
        machine = _machine(worlds)
        before = {path: file.content for path, file in machine.files.items()}
        assert before, "this machine has no keys"
        worlds.rotate_tokens()
        await _until(lambda: all(machine.files[path].content != old for path, old in before.items()), worlds)
        machine.other_switches = Switch()
        machine.outcomes.clear()

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_ready(), worlds.standing()
