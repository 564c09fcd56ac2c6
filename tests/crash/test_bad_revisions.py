"""A system that goes wrong is left alone, whenever the operator dies, and however often another one is declared in
between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from crash.bench import HOWS, OURS, Cut, Worlds
from crash.workloads import SHOP, WORKLOADS, play, reference
from fakes.host import FakeMachine, Switch
from nixops_operator.facts.health import HttpProbe
from nixops_operator.facts.kube import Key, Kind

WEB = Key(Kind.MACHINE, OURS, "shop-web")
BAD, GOOD = "{ services.nginx.enable = true; }", "{ services.httpd.enable = true; }"
OF_INTEREST = ("host.claim", "host.activate", "host.hold", "host.rollback", "kube.write_intent")
PAGE = HttpProbe(80, "localhost", "/", 200)


def _declare(module: str, worlds: Worlds) -> None:
    def edit(body: dict[str, Any]) -> None:
        body["spec"]["machines"][1]["configuration"]["modules"] = [{"inline": module}]

    worlds.kube.edit(SHOP, edit)


def _status(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return dict(body["status"])


def _machine(worlds: Worlds) -> FakeMachine:
    return worlds.hosts.machines[_status(worlds)["addresses"]["ssh"]]


def _is_refused(worlds: Worlds, reason: str) -> None:
    """At rest: the bad one is told, the good one runs. What stands in the status is all that is remembered."""
    status, machine = _status(worlds), _machine(worlds)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    bad = status["system"]["desired"]
    assert (ready["status"], ready["reason"]) == ("False", reason), worlds.standing()
    assert [one["toplevel"] for one in status["failedRevisions"]] == [bad]
    assert machine.current_system == machine.profile_system == machine.boot_entry != bad
    assert machine.switches.count(bad) == 1, machine.switches


def _declare_take_back_and_declare_again(reason: str, worlds: Worlds) -> None:
    _declare(BAD, worlds)

    def take_back(worlds: Worlds) -> None:
        _is_refused(worlds, reason)
        _declare(GOOD, worlds)

    def declare_again(worlds: Worlds) -> None:
        assert worlds.is_ready(), worlds.standing()
        _declare(BAD, worlds)

    worlds.at_rest += [take_back, declare_again]


def switch_fails(worlds: Worlds) -> None:
    """Every system but the one that runs ends with exit code 2."""
    machine = _machine(worlds)
    machine.outcomes = {str(machine.current_system): Switch()}
    machine.other_switches = Switch(2)
    _declare_take_back_and_declare_again("ActivationFailed", worlds)


def check_fails(worlds: Worlds) -> None:
    """Every system but the one that runs has a page that nobody serves."""
    machine = _machine(worlds)
    machine.unwell = {str(machine.current_system): {}}
    machine.others_unwell = {PAGE: "nothing listens on port 80"}
    _declare_take_back_and_declare_again("HealthCheckFailed", worlds)


BAD_REVISIONS = [
    pytest.param(switch_fails, "ActivationFailed", id="its switch fails"),
    pytest.param(
        check_fails,
        "HealthCheckFailed",
        id="its health check fails",
        marks=pytest.mark.long(instead="crash/test_bad_revisions.py"),
    ),
]


@pytest.mark.parametrize(("workload", "reason"), BAD_REVISIONS)
def test_it_is_tried_once_wherever_the_operator_dies(workload: Callable[[Worlds], None], reason: str) -> None:
    with mock.patch.dict(WORKLOADS, {workload.__name__: workload}):
        uncut = reference(workload.__name__)
        _is_refused(uncut.after.worlds, reason)
        for cut in _cuts(uncut.trace):
            try:
                worlds, was_met = play(workload.__name__, cut)
                _is_refused(worlds, reason)
            except AssertionError as error:
                raise AssertionError(f"{cut}: {error}") from error
            assert was_met, cut


def _cuts(trace: tuple[str, ...]) -> list[Cut]:
    return [
        Cut(effect, number, how)
        for effect in OF_INTEREST
        for number in range(1, trace.count(effect) + 1)
        for how in HOWS
    ]
