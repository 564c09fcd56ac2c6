"""Machines that read each other's addresses become ready from nothing together, wherever the operator dies, and follow
when an address becomes another one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from crash import bench
from crash.bench import HOWS, OURS, SHORT_LAG, Cut, Worlds
from crash.workloads import WORKLOADS, create, follow, play
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.shared_facts import address_path

READS = {
    "web": ("nodes", "nodes.db", address_path("db", "privateIPv4"), "resources.ec2SecurityGroups.http.groupId"),
    "db": (address_path("web", "publicIPv4"),),
}
CUTS = (
    *(("nix.evaluate", number) for number in range(1, 6)),
    *(("kube.patch_status", number) for number in range(1, 12, 2)),
    ("kube.create_machine", 2),
    ("ec2.run_instances", 1),
    ("ec2.run_instances", 2),
    ("host.claim", 1),
)


def create_apart(worlds: Worlds) -> None:
    """As `create`, of machines whose configurations name each other."""
    worlds.nix.reads = dict(READS)
    create(worlds)


def instance_of(worlds: Worlds, machine: str) -> Instance:
    found = _status(worlds, machine)["instance"]["id"]
    return worlds.cloud.instances[found]


def told(worlds: Worlds, machine: str) -> dict[str, Any]:
    """What the system that runs was made for."""
    running = _status(worlds, machine)["system"]["current"]
    return {path: json.loads(str(value)) for path, value in worlds.nix.told[running].items() if path != "nodes.db"}


def _status(worlds: Worlds, machine: str) -> dict[str, Any]:
    body = worlds.kube.body(Key(Kind.MACHINE, OURS, f"shop-{machine}"))
    assert body is not None
    return dict(body["status"])


def _is_right(worlds: Worlds) -> None:
    assert worlds.is_ready(), worlds.standing()
    http = next(one for one in worlds.cloud.security_groups.values() if one.description == "Web")
    assert told(worlds, "web") == {
        "nodes": ["db", "web"],
        address_path("db", "privateIPv4"): instance_of(worlds, "db").private_address,
        "resources.ec2SecurityGroups.http.groupId": http.id,
    }
    assert told(worlds, "db") == {address_path("web", "publicIPv4"): instance_of(worlds, "web").public_address}


@pytest.mark.parametrize("effect", sorted({effect for effect, _ in CUTS}))
def test_they_become_ready_from_nothing_wherever_the_operator_dies(effect: str):
    with mock.patch.dict(WORKLOADS, {"create": create_apart}):
        for number in (number for name, number in CUTS if name == effect):
            for how in HOWS:
                cut = Cut(effect, number, how)
                worlds, was_met = play("create", cut)
                try:
                    assert was_met
                    _is_right(worlds)
                except BaseException as error:
                    error.add_note(str(cut))
                    raise


def test_who_reads_an_address_follows_when_it_changes_and_nobody_else_is_evaluated():
    before: dict[str, Any] = {}

    async def stop_and_start(worlds: Worlds) -> None:
        await _until(worlds.is_ready)
        before.update(told=told(worlds, "db"), evaluations=_evaluations(worlds))
        # EC2 gives another public address at the next start, which the operator asks for.
        worlds.cloud.set_state(instance_of(worlds, "web").id, InstanceState.STOPPED, "Client.UserInitiatedShutdown")
        await _until(lambda: told(worlds, "db") != before["told"] and worlds.is_ready())
        before["seconds"] = asyncio.get_running_loop().time()
        before["after"] = _evaluations(worlds)

    # Whoever waits is woken: nobody is looked at by himself for most of an hour.
    seldom = mock.patch.object(bench, "RESYNC", timedelta(hours=1))
    with seldom, mock.patch.dict(WORKLOADS, {"create": create_apart}):
        worlds = follow(stop_and_start, SHORT_LAG, from_rest=False)
    _is_right(worlds)
    assert before["seconds"] < timedelta(minutes=30).total_seconds()
    again = before["after"][len(before["evaluations"]) :]
    assert again
    assert set(again) == {"db"}


def _evaluations(worlds: Worlds) -> list[str]:
    """Names of the machines that were evaluated, in order."""
    return [call.arguments["request"].name for call in worlds.nix.effects.calls if call.effect == "nix.evaluate"]


def test_what_names_no_other_machine_is_evaluated_once():
    evaluated: list[str] = []

    async def watch(worlds: Worlds) -> None:
        await _until(worlds.is_ready)
        evaluated.extend(_evaluations(worlds))

    follow(watch, SHORT_LAG, from_rest=False)
    assert sorted(evaluated) == ["db", "web"]


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody could set an event: these are the worlds' states
        await asyncio.sleep(1)
