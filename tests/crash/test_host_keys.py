"""The host key of user data is replaced at first contact, wherever the operator dies and whenever the machine restarts;
what the machine shows is pinned at every moment (invariants.py)."""

from __future__ import annotations

import pytest

from crash.bench import HOWS, SHORT_LAG, Cut, Worlds
from crash.workloads import play, play_interrupted, reference

OF_INTEREST = ("host.stage_host_key", "host.install_host_key", "kube.put_secret")
REPLACED = (True, False)  # pinned alone, and not that of user data


def _calls() -> list[tuple[str, int]]:
    trace = reference("create").trace
    return [(effect, number) for effect in OF_INTEREST for number in range(1, trace.count(effect) + 1)]


def _is_replaced(worlds: Worlds) -> None:
    assert worlds.is_ready(), worlds.standing()
    assert worlds.end_state()["host keys"] == [REPLACED, REPLACED]


def test_it_is_replaced_once_and_the_first_one_is_accepted_no_more():
    trace = reference("create").trace
    _is_replaced(reference("create").after.worlds)
    assert (trace.count("host.stage_host_key"), trace.count("host.install_host_key")) == (2, 2)


@pytest.mark.parametrize("how", HOWS)
def test_it_is_replaced_wherever_the_operator_dies(how: str):
    for call in _calls():
        cut = Cut(*call, how)
        try:
            _is_replaced(play("create", cut)[0])
        except AssertionError as error:
            raise AssertionError(f"{cut}: {error}") from error


def test_it_is_replaced_whenever_the_machines_restart():
    for place in _calls():

        def restart(worlds: Worlds, effect: str, number: int, place: tuple[str, int] = place) -> None:
            if (effect, number) == place:
                for machine in worlds.machines.values():
                    machine.reboot()

        try:
            _is_replaced(play_interrupted("create", restart, SHORT_LAG))
        except AssertionError as error:
            raise AssertionError(f"machines restart before {place}: {error}") from error
