"""One held connection a machine: asked regularly, made again after a cut, and woken for news alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from fakes.host import FakeHosts, FakeMachine
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.hosts import HostInformer, HostInformers
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")


class Bench:
    def __init__(self) -> None:
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine("192.0.2.10"))
        self.woken: list[float] = []
        self.informers = HostInformers(self.hosts, timedelta(seconds=5), self._wake)

    def _wake(self, key: Key) -> None:
        self.woken.append(asyncio.get_running_loop().time())

    async def watch(self) -> HostInformer:
        return await self.informers.watch(WEB, self.machine.target())

    def asked(self) -> int:
        return len(self.hosts.effects.of("facts"))

    def connected(self) -> int:
        return len(self.hosts.effects.of("host.connect"))


def test_the_first_answer_wakes_and_equal_ones_do_not():
    async def go() -> Bench:
        bench = Bench()
        look = await bench.watch()
        assert look.answer.facts is None
        assert look.answer.error is None
        await asyncio.sleep(60)
        assert look.answer.facts is not None
        await bench.informers.close()
        return bench

    bench = run(go())
    assert bench.woken == [0.0]
    assert bench.connected() == 1
    assert 11 <= bench.asked() <= 13


def test_free_space_is_no_news_and_another_system_is():
    async def go() -> list[float]:
        bench = Bench()
        await bench.watch()
        await asyncio.sleep(1)
        bench.machine.free_bytes -= 1
        await asyncio.sleep(10)
        bench.machine.current_system = "/nix/store/by-hand"
        await asyncio.sleep(10)
        await bench.informers.close()
        return bench.woken

    first, second = run(go())
    assert first == 0
    assert 11 <= second <= 16


def test_after_a_cut_there_are_no_facts_until_it_answers_again():
    async def go() -> tuple[object, object]:
        bench = Bench()
        look = await bench.watch()
        await asyncio.sleep(1)
        bench.machine.is_silent = True
        await asyncio.sleep(10)
        cut = look.answer
        with pytest.raises(Retry):
            look.host()
        bench.machine.is_silent = False
        await asyncio.sleep(40)
        await bench.informers.close()
        return cut, look.answer

    cut, again = run(go())
    assert cut.facts is None
    assert cut.error.reason is Reason.CONNECT_TIMEOUT
    assert again.facts is not None
    assert again.error is None


def test_a_silent_machine_is_knocked_at_more_and_more_slowly():
    async def go() -> int:
        bench = Bench()
        bench.machine.is_silent = True
        await bench.watch()
        await asyncio.sleep(600)
        await bench.informers.close()
        return bench.connected()

    assert 20 <= run(go()) <= 30


def test_a_machine_that_answers_and_then_fails_is_not_knocked_at_in_a_loop():
    async def go() -> int:
        bench = Bench()
        bench.hosts.effects.standing_error["facts"] = Retry(Reason.CONNECT_TIMEOUT, "no answer")
        await bench.watch()
        await asyncio.sleep(600)
        await bench.informers.close()
        return bench.connected()

    assert run(go()) <= 30


def test_while_something_moves_it_asks_twice_a_second_for_a_while():
    async def go() -> tuple[int, int]:
        bench = Bench()
        look = await bench.watch()
        await asyncio.sleep(1)
        before = bench.asked()
        look.hurry()
        await asyncio.sleep(5)
        hurried = bench.asked() - before
        await asyncio.sleep(50)
        calm = bench.asked() - before - hurried
        await bench.informers.close()
        return hurried, calm

    hurried, calm = run(go())
    assert 9 <= hurried <= 12
    assert 9 <= calm <= 11


def test_another_target_is_another_connection():
    async def go() -> Bench:
        bench = Bench()
        first = await bench.watch()
        await asyncio.sleep(1)
        same = await bench.watch()
        other = await bench.informers.watch(WEB, replace(bench.machine.target(), port=2222))
        assert first is same
        assert other is not first
        assert bench.machine.connections == []
        await bench.informers.close()
        return bench

    assert run(go()).connected() == 1


def test_a_confirmation_goes_over_a_connection_of_its_own():
    async def go() -> tuple[int, bool]:
        bench = Bench()
        look = await bench.watch()
        await asyncio.sleep(1)
        fresh = await look.connect_anew()
        is_other = fresh is not look.host()
        await fresh.close()
        await bench.informers.close()
        return bench.connected(), is_other

    assert run(go()) == (2, True)


def test_nothing_is_held_once_the_key_is_dropped():
    async def go() -> list[object]:
        bench = Bench()
        await bench.watch()
        await asyncio.sleep(1)
        await bench.informers.drop(WEB)
        with pytest.raises(Retry):
            bench.informers.of(WEB)
        return bench.machine.connections

    assert run(go()) == []
