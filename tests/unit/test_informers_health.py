"""When a machine is asked after its health, and what counts as an answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from fakes.host import BASE_SYSTEM, FakeHosts, FakeMachine
from nixops_operator.facts.health import Check, CheckResult, Standing, TcpProbe
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.hosts import HostInformer, HostInformers
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")
MAIL = TcpProbe(25)


def check(delay: float = 0, threshold: int = 3) -> Check:
    times = timedelta(seconds=delay), timedelta(seconds=10), timedelta(seconds=5)
    return Check("mail", MAIL, *times, threshold)


class Bench:
    def __init__(self) -> None:
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine("192.0.2.10"))
        self.wakes = 0
        self.informers = HostInformers(self.hosts, timedelta(seconds=5), self._wake)

    def _wake(self, key: Key) -> None:
        self.wakes += 1

    async def connected(self) -> HostInformer:
        look = self.informers.watch(WEB, self.machine.target())
        await asyncio.sleep(1)
        return look

    async def after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.machine.advance(seconds)

    def fails(self, words: str = "nothing listens") -> None:
        self.machine.unwell = {BASE_SYSTEM: {MAIL: words}}


def test_it_is_asked_after_its_delay_and_then_each_period():
    async def test() -> None:
        bench = Bench()
        look = await bench.connected()
        assert look.health("system", (check(delay=30),)) == (CheckResult("mail"),)
        await bench.after(29)
        assert bench.machine.probed == []
        for asked in (1, 2, 3):
            await bench.after(10)
            assert len(bench.machine.probed) == asked
        await bench.informers.close()

    run(test())


def test_it_passes_at_once_and_fails_when_it_has_failed_often_enough():
    async def test() -> None:
        bench = Bench()
        look = await bench.connected()
        standings = []
        look.health("system", (check(),))
        bench.wakes = 0
        for number in range(8):
            await bench.after(1 if number == 0 else 10)
            (result,) = look.health("system", (check(),))
            standings.append((result.standing, bench.wakes))
            bench.fails(f"failure {number}")
            if number == 5:
                bench.machine.unwell = {}
        passes, fails = Standing.PASSES, Standing.FAILS
        assert standings[:3] == [(passes, 1), (passes, 1), (passes, 1)]
        assert standings[3:6] == [(fails, 2)] * 3
        assert standings[6] == (passes, 3)
        await bench.informers.close()

    run(test())


def test_the_words_are_those_with_which_it_began_to_fail():
    """Others each time would change the status each time."""
    failing = CheckResult("mail").after(check(threshold=1), "refused")

    assert failing.after(check(threshold=1), "silent").words == "refused"
    assert failing.after(check(threshold=1), "").words == ""


def test_no_answer_says_nothing():
    async def test() -> None:
        bench = Bench()
        look = await bench.connected()
        look.health("system", (check(threshold=1),))
        await bench.after(1)
        bench.machine.is_silent = True
        await bench.after(60)
        assert look.health("system", (check(threshold=1),))[0].standing is Standing.PASSES
        await bench.informers.close()

    run(test())


def test_of_another_system_nothing_is_known_at_first():
    async def test() -> None:
        bench = Bench()
        look = await bench.connected()
        look.health("system", (check(),))
        await bench.after(1)
        assert look.health("system", (check(),))[0].standing is Standing.PASSES
        assert look.health("another", (check(),))[0].standing is Standing.UNKNOWN
        await bench.after(1)
        assert look.health("another", (check(),))[0].standing is Standing.PASSES
        assert look.health("another", (check(threshold=1),))[0].standing is Standing.UNKNOWN
        await bench.informers.close()

    run(test())


def test_who_is_let_go_of_is_asked_no_more():
    async def test() -> None:
        bench = Bench()
        look = await bench.connected()
        look.health("system", (check(),))
        await bench.after(1)
        bench.informers.drop(WEB)
        asked = len(bench.machine.probed)
        await bench.after(60)
        assert len(bench.machine.probed) == asked
        await bench.informers.close()

    run(test())
