"""A system that goes wrong is left alone, whenever the operator dies, and however often another one is declared in
between."""

from __future__ import annotations

from typing import Any
from unittest import mock

from crash.bench import HOWS, OURS, Cut, Worlds
from crash.workloads import SHOP, WORKLOADS, play, reference
from fakes.host import FakeMachine, Switch
from nixops_operator.facts.kube import Key, Kind

WEB = Key(Kind.MACHINE, OURS, "shop-web")
BAD, GOOD = "{ services.nginx.enable = true; }", "{ services.httpd.enable = true; }"
OF_INTEREST = ("host.claim", "host.activate", "kube.write_intent")


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


def _is_refused(worlds: Worlds) -> None:
    """At rest: the bad one is told, the good one runs. What stands in the status is all that is remembered."""
    status, machine = _status(worlds), _machine(worlds)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    bad = status["system"]["desired"]
    assert (ready["status"], ready["reason"]) == ("False", "ActivationFailed"), worlds.standing()
    assert [one["toplevel"] for one in status["failedRevisions"]] == [bad]
    assert machine.current_system == machine.profile_system == machine.boot_entry != bad
    assert machine.switches.count(bad) == 1, machine.switches


def bad_revision(worlds: Worlds) -> None:
    """Every system but the one that runs ends with exit code 2. It is declared, taken back, and declared again."""
    machine = _machine(worlds)
    machine.outcomes = {str(machine.current_system): Switch()}
    machine.other_switches = Switch(2)
    _declare(BAD, worlds)

    def take_back(worlds: Worlds) -> None:
        _is_refused(worlds)
        _declare(GOOD, worlds)

    def declare_again(worlds: Worlds) -> None:
        assert worlds.is_ready(), worlds.standing()
        _declare(BAD, worlds)

    worlds.at_rest += [take_back, declare_again]


def _cuts() -> list[Cut]:
    with mock.patch.dict(WORKLOADS, {"bad revision": bad_revision}):
        trace = reference("bad revision").trace
    return [
        Cut(effect, number, how)
        for effect in OF_INTEREST
        for number in range(1, trace.count(effect) + 1)
        for how in HOWS
    ]


def test_it_is_tried_once():
    with mock.patch.dict(WORKLOADS, {"bad revision": bad_revision}):
        _is_refused(reference("bad revision").after.worlds)


def test_it_is_tried_once_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"bad revision": bad_revision}):
        for cut in _cuts():
            try:
                worlds, was_met = play("bad revision", cut)
                _is_refused(worlds)
            except AssertionError as error:
                raise AssertionError(f"{cut}: {error}") from error
            assert was_met, cut
