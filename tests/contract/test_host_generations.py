"""Old generations go with their boot entries; what runs, was booted, or ran before the last activation stays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contract.host_benches import BENCHES, Bench, MachineBench, on_machine, reached, request, seen
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import ActivationState, HostFacts
from nixops_operator.ports.host import Host


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


def numbers(facts: HostFacts) -> list[int]:
    return [one.number for one in facts.generations]


def used(facts: HostFacts) -> list[int]:
    return [one.number for one in facts.generations if one.is_used]


async def activated(bench: Bench, host: Host, name: str) -> str:
    """The system of that name runs, and is the newest generation."""
    asked = request(await bench.deliver(host, name), await host.facts())
    assert await host.claim(asked)
    await host.activate(asked)
    await seen(bench, ActivationState.SWITCHED)
    assert await host.confirm(asked.id)
    await host.commit(asked.id)
    return asked.toplevel


async def test_what_is_needed_is_told_and_stays(bench: Bench, host: Host) -> None:
    """Booted: the base system; before the last activation: the good one; now: the better one."""
    before = numbers(await host.facts())  # of the base system
    good = await activated(bench, host, "good")
    await bench.set_profile(await bench.deliver(host, "guarded"))
    await bench.set_profile(good)
    better = await activated(bench, host, "better")
    facts = await host.facts()
    first = max(before, default=0) + 1  # good, guarded, good, better
    assert numbers(facts) == [*before, first, first + 1, first + 2, first + 3]
    assert used(facts) == [*before, first, first + 2, first + 3]

    for _ in range(2):
        await host.remove_generations(numbers(facts))
    after = await host.facts()
    assert numbers(after) == used(facts)
    assert (after.profile_system, after.current_system, after.boot_entry_unsure) == (better, better, False)
    assert await bench.boot_entry() == better


async def test_nothing_goes_while_an_activation_is_under_way(bench: Bench, host: Host) -> None:
    other = await bench.deliver(host, "guarded")
    await bench.set_profile(other)
    await bench.set_profile(bench.base)
    facts = await host.facts()
    assert await host.claim(request(await bench.deliver(host, "good"), facts))
    with pytest.raises(Retry, match="is under way") as caught:
        await host.remove_generations(numbers(facts))
    assert caught.value.reason is Reason.ACTIVATION_FAILED
    assert numbers(await host.facts()) == numbers(facts)


async def test_a_boot_loader_that_refuses_is_told_and_made_up_for(bench: Bench, host: Host) -> None:
    await bench.set_profile(await bench.deliver(host, "good"))
    await bench.set_profile(await bench.deliver(host, "refuses to boot"))
    facts = await host.facts()
    with pytest.raises(Retry) as caught:
        await host.remove_generations(numbers(facts))
    assert caught.value.reason is Reason.BOOT_ENTRY_FAILED
    assert (await host.facts()).boot_entry_unsure
    await host.adopt(bench.base)
    assert not (await host.facts()).boot_entry_unsure


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as machine:
        yield machine


@pytest.mark.lab
async def test_a_machine_with_hundreds_of_generations_tells_them_all(machine: MachineBench) -> None:
    host = await reached(machine)
    other = await machine.deliver(host, "good")
    made = f"for each in $(seq 100 499); do ln -s {other} /nix/var/nix/profiles/system-$each-link; done"
    await machine.run("sh", "-c", made)
    facts = await host.facts()
    assert {*range(100, 500)} <= {one.number for one in facts.generations if not one.is_used}
    await host.remove_generations(range(100, 499))
    assert 499 in numbers(await host.facts())
    assert len(numbers(await host.facts())) <= 3
    await host.close()
