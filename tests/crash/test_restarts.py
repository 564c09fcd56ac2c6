"""A machine that has to be restarted is restarted once, whenever the operator dies; one that does not come back with
its new system comes back with its old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

from crash.bench import HOWS, OURS, Cut, Worlds
from crash.workloads import SHOP, WORKLOADS, play, reference
from fakes.host import FakeMachine, Switch
from nixops_operator.facts.kube import Key, Kind

WEB = Key(Kind.MACHINE, OURS, "shop-web")
NEW_KERNEL = "{ boot.kernelPackages = pkgs.linuxPackages_latest; }"
OF_INTEREST = ("host.restart", "host.claim", "host.confirm", "host.commit", "host.rollback", "kube.write_intent")


def _declare(worlds: Worlds) -> None:
    def edit(body: dict[str, Any]) -> None:
        web = body["spec"]["machines"][1]
        web["configuration"]["modules"] = [{"inline": NEW_KERNEL}]
        web["disruption"]["reboot"] = "WhenNeeded"

    worlds.kube.edit(SHOP, edit)


def _status(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return dict(body["status"])


def _machine(worlds: Worlds) -> FakeMachine:
    return worlds.hosts.machines[_status(worlds)["addresses"]["ssh"]]


def cannot_switch(worlds: Worlds) -> None:
    """A running machine cannot become the new system."""
    machine = _machine(worlds)
    machine.outcomes = {str(machine.current_system): Switch()}
    machine.other_switches = Switch(100, moves_link=False, is_begun=False, needs_restart=True)
    _declare(worlds)


def does_not_come_back(worlds: Worlds) -> None:
    """Nor can it be reached when it has booted that."""
    cannot_switch(worlds)
    machine = _machine(worlds)
    machine.other_switches = Switch(100, moves_link=False, is_begun=False, needs_restart=True, boots_silent=True)


def forgets(worlds: Worlds) -> None:
    """Nothing that the operator has left there outlives a boot."""
    cannot_switch(worlds)
    _machine(worlds).forgets = True


def panics(worlds: Worlds) -> None:
    """Nor does its kernel come up."""
    cannot_switch(worlds)
    machine = _machine(worlds)
    machine.other_switches = Switch(100, moves_link=False, is_begun=False, needs_restart=True, panics=True)


def _cuts(workload: str, effects: Sequence[str] = OF_INTEREST) -> list[Cut]:
    trace = reference(workload).trace
    calls = [(effect, number) for effect in effects for number in range(1, trace.count(effect) + 1)]
    return [Cut(*call, how) for call in calls for how in HOWS]


def _runs_the_new(worlds: Worlds, boots: int) -> None:
    machine, status = _machine(worlds), _status(worlds)
    assert worlds.is_ready(), worlds.standing()
    new = status["system"]["desired"]
    assert (machine.booted_system, machine.current_system, machine.profile_system) == (new, new, new)
    assert (machine.boot_entry, machine.boot_entry_unsure) == (new, False)
    assert machine.boots == boots + 1


def _runs_the_old(worlds: Worlds, boots: int, restarts: int = 2) -> None:
    machine, status = _machine(worlds), _status(worlds)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ActivationFailed"), worlds.standing()
    assert machine.current_system == machine.profile_system == machine.boot_entry != status["system"]["desired"]
    assert machine.boots == boots + restarts


def test_a_machine_is_restarted_once_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"cannot switch": cannot_switch}):
        boots = _machine(reference("create").after.worlds).boots
        _runs_the_new(reference("cannot switch").after.worlds, boots)
        for cut in _cuts("cannot switch"):
            try:
                _runs_the_new(play("cannot switch", cut)[0], boots)
            except AssertionError as error:
                raise AssertionError(f"{cut}: {error}") from error


def test_a_machine_that_forgets_is_restarted_once_nevertheless():
    with mock.patch.dict(WORKLOADS, {"forgets": forgets}):
        boots = _machine(reference("create").after.worlds).boots
        _runs_the_new(reference("forgets").after.worlds, boots)


def test_a_machine_that_does_not_come_back_boots_its_old_system_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"does not come back": does_not_come_back}):
        boots = _machine(reference("create").after.worlds).boots
        _runs_the_old(reference("does not come back").after.worlds, boots)
        for cut in _cuts("does not come back"):
            try:
                _runs_the_old(play("does not come back", cut)[0], boots)
            except AssertionError as error:
                raise AssertionError(f"{cut}: {error}") from error


def test_a_kernel_that_does_not_come_up_is_left_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"panics": panics}):
        boots = _machine(reference("create").after.worlds).boots
        _runs_the_old(reference("panics").after.worlds, boots, restarts=1)
        for cut in _cuts("panics", ("host.restart", "host.rollback")):
            try:
                _runs_the_old(play("panics", cut)[0], boots, restarts=1)
            except AssertionError as error:
                raise AssertionError(f"{cut}: {error}") from error
