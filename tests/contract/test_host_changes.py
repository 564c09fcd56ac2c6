"""A machine tells of what somebody changes on it, over the connection that is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from contract.host_benches import BENCHES, LIMIT, Bench, MachineBench, MemoryBench, on_machine, reached
from fakes.host import File
from nixops_operator.facts.host import HostFacts, MachineKey
from nixops_operator.ports.host import Host

KEY = MachineKey("/run/keys/token", 0o600, "root", "root", "0" * 64, (), b"content")


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        if isinstance(bench, MemoryBench):
            bench.machine.can_watch = True
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def told(changes: AsyncIterator[None], host: Host, shows: Callable[[HostFacts], bool]) -> None:
    """Until a look that was asked for by what the host tells shows it."""
    async with asyncio.timeout(LIMIT):
        while not shows(await host.facts()):
            await anext(changes)


async def test_another_system_is_told(bench: Bench, host: Host) -> None:
    other = await bench.deliver(host, "good")
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await bench.point("/run/current-system", other)
        await told(changes, host, lambda facts: facts.current_system == other)


async def test_another_profile_is_told(bench: Bench, host: Host) -> None:
    other = await bench.deliver(host, "good")
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await bench.point("/nix/var/nix/profiles/system", other)
        await told(changes, host, lambda facts: facts.profile_system == other)


async def test_a_key_that_somebody_changes_is_told(bench: Bench, host: Host) -> None:
    await host.deliver_keys([KEY], ())
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await bench.write_file(KEY.path, File(b"by hand"))
        before = (await host.facts()).keys
        await bench.remove_file(KEY.path)
        await told(changes, host, lambda facts: facts.keys != before and facts.keys[0].file is None)


async def test_a_key_that_was_delivered_since_is_told_by_the_next_watch(bench: Bench, host: Host) -> None:
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await host.deliver_keys([KEY], ())
        if isinstance(bench, MachineBench):  # it ends: the folder is a new one
            async with asyncio.timeout(LIMIT):
                async for _ in changes:
                    pass
    await test_a_key_that_somebody_changes_is_told(bench, host)


async def test_what_is_told_ends_with_the_connection(bench: Bench, host: Host) -> None:
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await bench.reboot()
        async with asyncio.timeout(LIMIT):
            async for _ in changes:
                pass


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as machine:
        yield machine


@pytest.mark.lab
async def test_a_unit_that_fails_is_told(machine: MachineBench) -> None:
    host = await reached(machine)
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        await machine.run("systemd-run", "--unit=unlucky", "false")
        await told(changes, host, lambda facts: "unlucky.service" in facts.failed_units)
    await host.close()


@pytest.mark.lab
async def test_nothing_is_left_on_the_machine_when_nobody_listens(machine: MachineBench) -> None:
    host = await reached(machine)
    async with aclosing(host.changes()) as changes:
        await anext(changes)
        assert await watchers(machine) > 0
    async with asyncio.timeout(LIMIT):
        while await watchers(machine):
            await machine.pause()
    await host.close()


@pytest.mark.lab
async def test_a_look_changes_nothing_that_is_watched(machine: MachineBench) -> None:
    """Or every look would ask for another one."""
    host = await reached(machine)
    await host.deliver_keys([KEY], ())
    await host.facts()
    changed = "find /var/lib/nixops /run/keys /nix/var/nix/profiles -printf '%p %C@\\n' | sort"
    before = await machine.run("sh", "-c", changed)
    await host.facts()
    assert await machine.run("sh", "-c", changed) == before
    await host.close()


@pytest.mark.lab
async def test_a_machine_without_inotify_tools_tells_nothing(machine: MachineBench) -> None:
    host = await reached(machine)
    path = "PATH=/run/current-system/sw/bin:$PATH"
    gone = f"{path}; while found=$(command -v inotifywait); do rm $(readlink -e $found); done"
    await machine.run("sh", "-c", gone)
    assert [one async for one in host.changes()] == []
    await host.close()


async def watchers(machine: MachineBench) -> int:
    return int(await machine.run("sh", "-c", "pgrep -c -x 'inotifywait|journalctl' || true"))
