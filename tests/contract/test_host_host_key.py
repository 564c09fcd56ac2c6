"""A machine shows another host key, which it has made itself; connections that are open stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from contract.host_benches import BENCHES, LIMIT, Bench, MachineBench, on_machine, reached
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.ports.host import Host

KEY = "/etc/ssh/ssh_host_ed25519_key"


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def shows(bench: Bench, key: str) -> bool:
    try:
        connection = await bench.hosts.connect(replace(bench.target, host_keys=(key,)))
    except Blocked as error:
        if error.reason is not Reason.HOST_KEY_MISMATCH:
            raise
        return False
    await connection.close()
    return True


async def comes_to_show(bench: Bench, key: str) -> None:
    """sshd needs a moment to read it, or to come up."""
    bench.target = replace(bench.target, host_keys=(key,))
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                connection = await reached(bench)
            except Blocked:
                await bench.pause()
            else:
                await connection.close()
                return


async def test_a_staged_key_is_the_same_until_it_is_installed(bench: Bench, host: Host) -> None:
    first = bench.target.host_keys[0]
    staged = await host.stage_host_key()
    assert staged != first
    assert await host.stage_host_key() == staged
    assert await shows(bench, first)
    assert not await shows(bench, staged)


async def test_an_installed_key_is_the_one_that_is_shown(bench: Bench, host: Host) -> None:
    first = bench.target.host_keys[0]
    staged = await host.stage_host_key()
    for _ in range(2):  # the second call: its reply was lost
        assert await host.install_host_key(staged)
    await comes_to_show(bench, staged)
    assert not await shows(bench, first)
    assert await host.facts()  # over the connection that the first one vouched for


async def test_it_is_shown_after_a_restart(bench: Bench, host: Host) -> None:
    staged = await host.stage_host_key()
    assert await host.install_host_key(staged)
    await bench.reboot()
    await comes_to_show(bench, staged)


async def test_a_key_that_was_not_staged_is_not_installed(bench: Bench, host: Host) -> None:
    first = bench.target.host_keys[0]
    staged = await host.stage_host_key()
    assert await host.install_host_key(staged)
    assert await host.stage_host_key() != staged
    assert not await host.install_host_key(first)


@pytest.fixture
async def machine() -> AsyncIterator[MachineBench]:
    async with on_machine() as machine:
        yield machine


@pytest.mark.lab
async def test_a_key_that_was_cut_while_it_was_written_is_made_anew(machine: MachineBench) -> None:
    host = await reached(machine)
    await host.stage_host_key()
    await machine.run("truncate", "--size=200", f"{KEY}.nixops-new")
    staged = await host.stage_host_key()
    assert await host.install_host_key(staged)
    await host.close()
    await comes_to_show(machine, staged)
    told = await machine.run("stat", "-c", "%a %U %G", KEY)
    assert told.strip() == "600 root root"
    assert (await machine.run("cat", f"{KEY}.pub")).split()[:2] == staged.split()
    assert (await machine.run("sh", "-c", f"ls {KEY}*")).split() == [KEY, f"{KEY}.pub"]


@pytest.mark.lab
async def test_a_call_that_was_cut_before_sshd_was_told_is_made_up_for(machine: MachineBench) -> None:
    host = await reached(machine)
    staged = await host.stage_host_key()
    await machine.run("mv", "-T", f"{KEY}.nixops-new", KEY)
    assert await host.install_host_key(staged)
    await host.close()
    await comes_to_show(machine, staged)


@pytest.mark.lab
async def test_an_sshd_that_reads_its_keys_once_is_told() -> None:
    """From OpenSSH 9.8 on the listener hands the keys that it has read to each connection's own process."""
    async with on_machine(suite="trixie") as machine:
        host = await reached(machine)
        staged = await host.stage_host_key()
        assert await host.install_host_key(staged)
        await host.close()
        await comes_to_show(machine, staged)
