"""A given host belongs to one NixMachine, and says so itself: whoever asks second is told whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from contract.host_benches import BENCHES, Bench, MachineBench, on_machine, reached
from nixops_operator.ports.host import Host, HostOwner

WEB = HostOwner("7f5cc2c1-9a86-4f2b-8d6e-1f0e8f4f0a11", "0c9e0b5e-3a54-4a43-9d0e-5d2f7a3b1c22", "shop/web")
OTHER = HostOwner(WEB.cluster, "5b1d7d0a-6f55-4b0c-a8ce-2f9d4e7c8b33", "shop/other")
ELSEWHERE = replace(WEB, cluster="another-cluster")


@pytest.fixture(params=["memory", pytest.param("machine", marks=pytest.mark.lab)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with BENCHES[request.param]() as bench:
        yield bench


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    host = await reached(bench)
    yield host
    await host.close()


async def test_a_host_is_nobodys_until_it_is_somebodys(host: Host) -> None:
    assert (await host.facts()).owner is None
    assert await host.own(WEB)
    assert (await host.facts()).owner == WEB
    assert await host.own(WEB)


async def test_the_second_is_refused_and_learns_whose_it_is(host: Host) -> None:
    assert await host.own(WEB)
    for second in (OTHER, ELSEWHERE):
        assert not await host.own(second)
        assert not await host.disown(second)
        assert not await host.own(second, instead_of=replace(second, uid="6d3c"))
    assert (await host.facts()).owner == WEB


async def test_of_two_who_ask_at_once_one_gets_it(bench: Bench, host: Host) -> None:
    second = await reached(bench)
    answers = await asyncio.gather(host.own(WEB), second.own(OTHER))
    assert sorted(answers) == [False, True]
    assert (await host.facts()).owner == (WEB if answers[0] else OTHER)
    await second.close()


async def test_an_owner_that_has_gone_can_be_replaced(host: Host) -> None:
    assert await host.own(WEB)
    assert await host.own(OTHER, instead_of=WEB)
    assert not await host.own(ELSEWHERE, instead_of=WEB)
    assert (await host.facts()).owner == OTHER


async def test_an_object_keeps_its_host_under_another_name(host: Host) -> None:
    assert await host.own(WEB)
    assert await host.own(replace(WEB, name="shop/renamed"))
    assert (await host.facts()).owner == replace(WEB, name="shop/renamed")


async def test_a_host_that_was_let_go_can_be_had(host: Host) -> None:
    assert await host.own(WEB)
    for _ in range(2):
        assert await host.disown(WEB)
    assert (await host.facts()).owner is None
    assert await host.own(OTHER)


@pytest.mark.lab
async def test_a_person_lets_go_of_a_host_by_removing_the_file() -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        assert await host.own(WEB)
        assert (await machine.run("cat", "/var/lib/nixops/owner")) == f"{WEB.cluster} {WEB.uid} {WEB.name}\n"
        await machine.run("rm", "/var/lib/nixops/owner")
        assert (await host.facts()).owner is None
        assert await host.own(OTHER)
        await host.close()


@pytest.mark.lab
@pytest.mark.parametrize("text", ["", "\n", "me", "a b c$(reboot)", "a  b", "../.. b <c>"])
async def test_a_file_that_cannot_be_read_is_somebodys(text: str) -> None:
    async with on_machine() as machine:
        host = await reached(machine)
        await spoil(machine, text)
        assert (await host.facts()).owner == HostOwner("", "", "")
        assert not await host.own(WEB)
        assert not await host.disown(WEB)
        await host.close()


async def spoil(machine: MachineBench, text: str) -> None:
    await machine.run("sh", "-c", "mkdir -p -m 700 /var/lib/nixops; cat >/var/lib/nixops/owner", stdin=text.encode())
