"""A collection is alone with the store, and holds nobody up for longer than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from nixops_operator.adapters.nix.store_use import StoreUse
from unit.fake_time import run

HOUR = 3600.0


class Bench:
    """Notes when each piece of work began and ended."""

    def __init__(self) -> None:
        self.use = StoreUse(clock=lambda: asyncio.get_running_loop().time())
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    async def work(
        self, name: str, way: Callable[[], AbstractAsyncContextManager[None]], seconds: float, after: float = 0
    ) -> None:
        await asyncio.sleep(after)
        async with way():
            self.began[name] = asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
        self.ended[name] = asyncio.get_running_loop().time()


def test_who_uses_the_store_waits_for_nobody_while_nothing_is_collected():
    async def go() -> dict[str, float]:
        bench, use = Bench(), StoreUse()
        await asyncio.gather(*(bench.work(f"{n}", way, 10) for n, way in enumerate((use.building, use.briefly) * 2)))
        return bench.began

    assert set(run(go()).values()) == {0.0}


def test_a_collection_waits_for_builds_and_holds_up_only_builds_meanwhile():
    async def go() -> Bench:
        bench = Bench()
        use = bench.use
        await asyncio.gather(
            bench.work("build", use.building, HOUR),
            bench.work("collection", use.alone, 60, after=10),
            bench.work("evaluation", use.briefly, 100, after=20),
            bench.work("next build", use.building, 100, after=20),
        )
        return bench

    bench = run(go())
    assert bench.began["evaluation"] == 20
    assert bench.began["collection"] == bench.ended["build"] == HOUR
    assert bench.began["next build"] == bench.ended["collection"]


def test_when_no_build_is_left_nothing_begins_until_it_is_collected():
    """Evaluations that follow each other without a pause would put it off for ever."""

    async def go() -> Bench:
        bench = Bench()
        use = bench.use
        await asyncio.gather(
            bench.work("evaluation", use.briefly, 100),
            bench.work("collection", use.alone, 60, after=10),
            bench.work("next evaluation", use.briefly, 100, after=20),
        )
        return bench

    bench = run(go())
    assert bench.began["collection"] == bench.ended["evaluation"] == 100
    assert bench.began["next evaluation"] == bench.ended["collection"] == 160


def test_a_collection_that_fails_or_is_given_up_leaves_the_store_to_others():
    async def go() -> list[float]:
        bench = Bench()
        use = bench.use
        build = asyncio.create_task(bench.work("build", use.building, HOUR))
        collection = asyncio.create_task(bench.work("collection", use.alone, 60, after=1))
        await asyncio.sleep(10)
        collection.cancel()
        await asyncio.gather(collection, return_exceptions=True)
        await bench.work("next build", use.building, 1)
        build.cancel()
        await asyncio.gather(build, return_exceptions=True)
        await bench.work("another collection", use.alone, 1)
        return [bench.began["next build"], bench.began["another collection"]]

    assert run(go()) == [10.0, 11.0]


def test_what_was_given_to_somebody_stays_for_an_hour():
    async def go() -> list[frozenset[str]]:
        use = Bench().use
        use.lend("early")
        await asyncio.sleep(HOUR / 2)
        use.lend("late")
        seen = [use.lent()]
        await asyncio.sleep(HOUR / 2)
        return [*seen, use.lent()]

    assert run(go()) == [frozenset({"early", "late"}), frozenset({"late"})]
