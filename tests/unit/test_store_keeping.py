"""The operator's store keeps room by itself, and says so when it cannot."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from fakes.cloud import NIXOS_OWNER
from fakes.kube import CLUSTER_ID
from fakes.nix import FakeNix
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.facts.nix import Archive, Folder, StoreSpace, Tree
from nixops_operator.host_policy import HostPolicy
from nixops_operator.jobs import Jobs
from nixops_operator.metrics import Metrics
from nixops_operator.store_keeping import StoreKeeper, make_room
from nixops_operator.store_room import StoreLimits, stored_at
from nixops_operator.world import Policy, World
from unit.builders import NOON
from unit.fake_time import run

GIB = 1024**3
LIMITS = StoreLimits(min_free=4 * GIB, max_free=8 * GIB)
NIXPKGS = Archive("https://example.org/nixpkgs.tar.gz", f"sha256-{'A' * 43}=")
NEW, OLD = (f"/nix/store/{letter * 32}-nixos-system-web-25.11" for letter in "12")
WEB = Key(Kind.MACHINE, "default", "web")


def body(key: Key, toplevel: str, version: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"namespace": key.namespace, "name": key.name, "resourceVersion": str(version)},
        "spec": {},
        "status": {"system": {"current": toplevel}},
    }


class Bench:
    """A keeper over a store in memory. `said`: what it asked to be kept, each time."""

    def __init__(self, nixpkgs: Tree | None = None) -> None:
        self.nix = FakeNix()
        self.cache = Cache()
        self.jobs: Jobs[Key] = Jobs({}, lambda _: None)
        self.metrics = Metrics()
        self.world = World(
            cluster_id=CLUSTER_ID,
            policy=Policy(NIXOS_OWNER, "nixos/25.11*", HostPolicy(), nixpkgs, timedelta(minutes=30)),
            kube=cast("Any", None),
            nix=self.nix,
            cache=self.cache,
            clouds=cast("Any", None),
            hosts=cast("Any", None),
            jobs=self.jobs,
            reads=cast("Any", None),
            wake=lambda _: None,
            now=lambda: NOON,
            digest_key=b"for tests",
        )
        self.keeper = StoreKeeper(self.world, LIMITS, self.metrics)
        self.times: list[float] = []

    def collected(self) -> int:
        return len(self.nix.effects.of("nix.collect"))

    def lives(self, script: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def go() -> None:
            keeping = asyncio.create_task(self.keeper.run())
            try:
                await script()
                assert not keeping.done()
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

        run(go())

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"nixops_{name}")


def test_before_it_was_looked_at_nothing_is_said_of_the_room():
    bench = Bench()
    assert all(math.isnan(bench.sample(f"store_{name}_bytes") or 0) for name in ("free", "used"))


def test_with_room_nothing_is_collected():
    bench = Bench()
    bench.nix.room = StoreSpace(free=4 * GIB)
    bench.lives(lambda: asyncio.sleep(3600))
    assert bench.collected() == 0
    assert bench.sample("store_free_bytes") == 4 * GIB


def test_without_room_it_is_collected_at_once_and_what_machines_run_stays(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.cache.put(WEB, body(WEB, NEW))

    async def script() -> None:
        bench.nix.built |= {NEW, OLD}
        await asyncio.sleep(3600)
        bench.nix.room = StoreSpace(free=4 * GIB - 1)
        await asyncio.sleep(11)

    bench.lives(script)
    assert bench.collected() == 1
    assert bench.nix.built == {NEW}
    assert bench.sample("store_collected_bytes_total") == 1024**2


def test_what_a_machine_that_is_gone_ran_goes():
    bench = Bench()
    bench.cache.put(WEB, body(WEB, NEW))
    bench.cache.drop(WEB, 2)
    assert bench.keeper.wanted() == frozenset()


def test_what_jobs_go_on_with_stays_and_what_nobody_asks_for_is_forgotten():
    bench = Bench()

    async def works(_progress: Callable[[str], None]) -> str:
        return NEW

    async def go() -> tuple[frozenset[str], frozenset[str], object]:
        bench.jobs.start("build:drv", WEB, works)
        await asyncio.sleep(1)
        with_waiter = bench.keeper.wanted()
        bench.jobs.release(WEB, frozenset(), ("build",))
        without = bench.keeper.wanted()
        bench.jobs.start("build:drv", WEB, works)
        return with_waiter, without, bench.jobs.running()

    with_waiter, without, running = run(go())
    assert (with_waiter, without) == ({NEW}, frozenset())
    assert running == {"build": 1}  # it is built anew


def test_the_default_nixpkgs_by_hash_stays():
    """Also where this process did not fetch it."""
    assert Bench(NIXPKGS).keeper.wanted() == stored_at(NIXPKGS)


def test_the_default_nixpkgs_of_a_folder_stays_once_it_was_read(tmp_path: Path):
    (tmp_path / "default.nix").write_text("{ }: { }")
    bench = Bench(Folder(tmp_path))
    assert bench.keeper.wanted() == frozenset()
    source = run(bench.world.tree(Folder(tmp_path)))
    assert bench.keeper.wanted() == {source.store_path}


def test_a_store_that_stays_short_is_told_and_not_collected_without_end(caplog: pytest.LogCaptureFixture):
    """All of it is needed, or somebody else fills the disk."""
    bench = Bench()
    bench.nix.room = StoreSpace(free=2 * GIB)
    bench.lives(lambda: asyncio.sleep(3590))
    assert bench.collected() == 30
    assert bench.sample("store_short") == 1
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 30
    assert "collected 0.0 GiB, 2.0 GiB are free" in warned[0]
    assert "store.sizeLimit" in warned[0]


def test_it_is_told_when_there_is_room_again():
    bench = Bench()

    async def script() -> None:
        bench.nix.room = StoreSpace(free=2 * GIB)
        await asyncio.sleep(1)
        assert bench.sample("store_short") == 1
        bench.nix.room = replace(bench.nix.room, free=50 * GIB)
        await asyncio.sleep(121)

    bench.lives(script)
    assert bench.sample("store_short") == 0


MACHINES = [body(WEB, NEW)]


@pytest.mark.parametrize(
    ("free", "kept"),
    [
        pytest.param(2 * GIB, {NEW}, id="short: what no machine has goes before anything is tried"),
        pytest.param(4 * GIB, {NEW, OLD}, id="room enough: nobody is asked"),
    ],
)
def test_an_operator_makes_room_before_it_tries_what_needs_some(free: int, kept: set[str]):
    nix, asked = FakeNix(), []
    nix.built, nix.room = {NEW, OLD}, StoreSpace(free)

    async def machines() -> list[dict[str, Any]]:
        asked.append(True)
        return MACHINES

    run(make_room(nix, LIMITS, machines, ()))
    assert nix.built == kept
    assert bool(asked) == (kept == {NEW})


def test_room_that_cannot_be_made_keeps_no_operator_from_its_start(caplog: pytest.LogCaptureFixture):
    nix = FakeNix()
    nix.room = StoreSpace(GIB)
    nix.effects.next_error["nix.collect"] = Retry(Reason.PROGRESSING_WITH_RETRY, "the data base is locked")

    async def machines() -> list[dict[str, Any]]:
        return MACHINES

    run(make_room(nix, LIMITS, machines, ()))
    assert "the data base is locked" in caplog.text


def test_a_collection_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    bench.nix.room = StoreSpace(free=2 * GIB)
    bench.nix.effects.next_error["nix.collect"] = Retry(Reason.PROGRESSING_WITH_RETRY, "the data base is locked")
    bench.lives(lambda: asyncio.sleep(130))
    assert bench.collected() == 2
    assert "the data base is locked" in caplog.text
