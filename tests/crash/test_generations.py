"""Old generations go, wherever the operator dies; what runs, was booted, or ran before stays, and so does the boot
entry."""

from __future__ import annotations

from unittest import mock

from crash.bench import HOWS, Cut, Worlds
from crash.workloads import WORKLOADS, play, reference
from fakes.host import BASE_SYSTEM


def many_generations(worlds: Worlds) -> None:
    """Somebody has made thirty generations by hand, and has gone back to the declared system."""
    for machine in worlds.machines.values():
        declared = str(machine.profile_system)
        for number in range(30):
            machine.set_profile(f"/nix/store/{number:032d}-nixos-system-by-hand")
        machine.set_profile(declared)


def _are_few(worlds: Worlds) -> None:
    assert worlds.is_ready(), worlds.standing()
    for machine in worlds.machines.values():
        systems = set(machine.generations.values())
        assert len(machine.generations) <= 12
        assert {machine.current_system, BASE_SYSTEM} <= systems
        assert machine.boot_entry == machine.profile_system == machine.current_system
        assert not machine.boot_entry_unsure


def test_old_generations_go_wherever_the_operator_dies():
    with mock.patch.dict(WORKLOADS, {"many generations": many_generations}):
        trace = reference("many generations").trace
        _are_few(reference("many generations").after.worlds)
        assert trace.count("host.remove_generations") == 2
        for number in (1, 2):
            for how in HOWS:
                cut = Cut("host.remove_generations", number, how)
                try:
                    _are_few(play("many generations", cut)[0])
                except AssertionError as error:
                    raise AssertionError(f"{cut}: {error}") from error
