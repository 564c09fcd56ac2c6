"""Machines with another Nix than this computer's: the copy, its judgement, and an activation from end to end."""

from __future__ import annotations

import pytest

from contract.host_benches import on_machine, reached, request, seen
from nixops_operator.facts.host import ActivationState

pytestmark = pytest.mark.lab

SUITES = {"trixie": "2.26", "forky": "2.34"}
"""Debian release → how its version of Nix begins."""


@pytest.mark.timeout(900)  # the root file system may have to be made first
@pytest.mark.parametrize(
    "suite",
    ["trixie", pytest.param("forky", marks=pytest.mark.long(instead="contract/test_host_nix_versions.py"))],
)
async def test_a_system_is_copied_judged_activated_and_returned_from(suite: str) -> None:
    async with on_machine(suite=suite) as machine:
        version = (await machine.run("nix-store", "--version")).split()[-1]
        assert version.startswith(SUITES[suite])
        host = await reached(machine)
        status, said = await machine.copy(host, machine.systems.unsigned())
        assert status != 0
        assert "signature" in said
        good = await machine.deliver(host, "good")
        assert await host.root_next(good)

        wanted = request(good, await host.facts())
        assert await host.claim(wanted)
        await host.activate(wanted)
        await seen(machine, ActivationState.SWITCHED)
        assert await host.confirm(wanted.id)
        await host.commit(wanted.id)
        facts = await seen(machine, ActivationState.COMMITTED)
        assert (facts.current_system, await machine.boot_entry()) == (good, good)

        failing = await machine.deliver(host, "fails in a snippet")
        assert await host.root_next(failing)
        wanted = request(failing, facts)
        assert await host.claim(wanted)
        await host.activate(wanted)
        facts = await seen(machine, ActivationState.ROLLED_BACK)
        assert (facts.current_system, await machine.boot_entry()) == (good, good)
        await host.close()
