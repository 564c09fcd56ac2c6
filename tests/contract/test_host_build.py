"""A build on a machine: by its own Nix, in a unit that needs nobody, found again by the derivation alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from contract.host_benches import BENCHES, LIMIT, Bench, MachineBench, on_machine, reached
from nixops_operator.facts.host import BuildLook, BuildRequest, BuildState, HostOwner
from nixops_operator.nix.realisation import Realisation
from nixops_operator.ports.host import Host

BUILDING, BUILT, FAILED, STOPPED = BuildState.BUILDING, BuildState.BUILT, BuildState.FAILED, BuildState.STOPPED


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def asked_for(bench: Bench, host: Host, name: str) -> BuildRequest:
    """A build of that name, begun."""
    request = bench.to_build(name)
    await bench.bring_derivation(host, request.drv_path)
    assert await host.build(request) is BUILDING
    return request


async def seen(bench: Bench, host: Host, request: BuildRequest, is_so: Callable[[BuildLook], bool]) -> BuildLook:
    """The first look that is so."""
    look = None
    try:
        async with asyncio.timeout(LIMIT):
            while look is None or not is_so(look):
                await bench.pause()
                look = await host.build_look(request.drv_path, 0)
    except TimeoutError:
        raise AssertionError(f"never so; last seen: {look}") from None
    return look


async def ended(bench: Bench, host: Host, request: BuildRequest) -> BuildLook:
    return await seen(bench, host, request, lambda look: not look.is_unit_active)


async def test_what_is_not_there_cannot_be_built(bench: Bench, host: Host) -> None:
    request = bench.to_build("quick")
    assert await host.build(request) is None
    assert await host.build_look(request.drv_path, 0) is None
    assert (await host.facts()).building is None


async def test_a_system_is_built_and_rooted(bench: Bench, host: Host) -> None:
    request = await asked_for(bench, host, "quick")
    look = await ended(bench, host, request)
    assert (look.state, look.service_result, look.output) == (BUILT, "success", request.toplevel)
    assert not look.has_more
    assert await host.root_next(request.toplevel)
    assert await host.build(request) is BUILT
    assert (await host.facts()).building is None


async def test_a_build_is_shown_and_found_again_by_another_connection(bench: Bench, host: Host) -> None:
    request = await asked_for(bench, host, "slow")
    await host.close()
    again = await reached(bench)
    assert (await again.facts()).building == request.drv_path
    assert await again.build(request) is BUILDING
    look = await again.build_look(request.drv_path, 0)
    assert look is not None
    assert (look.state, look.is_unit_active, look.output) == (BUILDING, True, None)
    await again.close()


async def test_a_build_can_be_ended_and_begun_again(bench: Bench, host: Host) -> None:
    request = await asked_for(bench, host, "slow")
    await host.stop_build()
    await host.stop_build()
    look = await ended(bench, host, request)
    assert look.state is STOPPED
    assert (await host.facts()).building is None
    assert await host.build(request) is BUILDING
    assert (await host.facts()).building == request.drv_path


async def test_another_build_takes_the_place(bench: Bench, host: Host) -> None:
    slow = await asked_for(bench, host, "slow")
    quick = await asked_for(bench, host, "quick")
    assert (await ended(bench, host, quick)).state is BUILT
    assert await host.build_look(slow.drv_path, 0) is None


async def test_a_failed_build_says_so_and_may_be_tried_again(bench: Bench, host: Host) -> None:
    request = await asked_for(bench, host, "fails")
    look = await ended(bench, host, request)
    assert (look.state, look.service_result, look.output) == (FAILED, "exit-code", None)
    realisation = Realisation()
    realisation.read(look.log)
    assert "no such header" in realisation.failure().message
    assert not realisation.failure().is_passing
    assert await host.build(request) is BUILDING


async def test_a_restart_of_the_machine_cuts_a_build(bench: Bench, host: Host) -> None:
    request = await asked_for(bench, host, "slow")
    await bench.reboot()
    again = await reached(bench)
    look = await again.build_look(request.drv_path, 0)
    assert look is not None
    assert (look.state, look.is_unit_active) == (BUILDING, False)
    assert (await again.facts()).building is None
    assert await again.build(request) is BUILDING
    await again.close()


async def test_who_lets_go_of_a_host_ends_what_it_builds_for_him(bench: Bench, host: Host) -> None:
    owner = HostOwner("cluster", "uid", "default/box")
    assert await host.own(owner)
    request = await asked_for(bench, host, "slow")
    assert await host.disown(owner)
    assert (await ended(bench, host, request)).state is STOPPED


async def test_the_limit_ends_a_build(bench: Bench, host: Host) -> None:
    request = replace(bench.to_build("slow"), timeout=timedelta(seconds=2))
    await bench.bring_derivation(host, request.drv_path)
    assert await host.build(request) is BUILDING
    look = await ended(bench, host, request)
    assert (look.state, look.service_result) == (FAILED, "timeout")


# --- of the real one ----------------------------------------------------------------------------------------------


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as bench:
        yield bench


@pytest.mark.lab
async def test_derivations_need_no_signature(machine: MachineBench) -> None:
    host = await reached(machine)
    request = machine.to_build("quick")
    status, said = await machine.copy(
        host, request.drv_path, "--derivation", public_key="somebody-else-1:" + "A" * 43 + "="
    )
    assert status == 0, said
    assert await host.build(request) is BUILDING
    await ended(machine, host, request)
    await host.close()


@pytest.mark.lab
async def test_what_is_to_be_built_and_what_was_built_survives_the_garbage_collector(machine: MachineBench) -> None:
    host = await reached(machine)
    slow = await asked_for(machine, host, "slow")
    await machine.run("nix-store", "--gc")
    await machine.run("nix-store", "--check-validity", slow.drv_path)
    quick = await asked_for(machine, host, "quick")
    await ended(machine, host, quick)
    await machine.run("nix-store", "--gc")
    assert await host.root_next(quick.toplevel)
    await host.close()


@pytest.mark.lab
async def test_the_end_of_a_build_is_the_end_of_its_builders(machine: MachineBench) -> None:
    host = await reached(machine)
    request = await asked_for(machine, host, "slow")
    await seen(machine, host, request, lambda look: "begun" in look.log)
    assert "sleep 300" in await machine.run("ps", "-eo", "args")
    await host.stop_build()
    assert "sleep 300" not in await machine.run("ps", "-eo", "args")
    await host.close()


@pytest.mark.lab
async def test_a_log_is_read_in_parts(machine: MachineBench) -> None:
    host = await reached(machine)
    request = await asked_for(machine, host, "quick")
    whole = (await ended(machine, host, request)).log
    log = f"/var/lib/nixops/build/{request.id}/log"
    await machine.run("sh", "-c", f"head -c 1000000 /dev/zero | tr '\\0' x >>{log}")
    first = await host.build_look(request.drv_path, 0)
    assert first is not None
    assert (len(first.log), first.offset, first.has_more) == (512 << 10, 512 << 10, True)
    assert first.log.startswith(whole)
    second = await host.build_look(request.drv_path, first.offset)
    assert second is not None
    assert (second.offset, second.has_more) == (len(whole) + 1_000_000, False)
    await host.close()
