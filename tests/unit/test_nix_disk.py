"""Nobody fills the operator's disk: below a reserve nothing begins, and what runs is ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.disk import Disk, DiskLowError, Volume
from nixops_operator.adapters.nix.folder_size import FolderSize
from unit.fake_time import run

STORE, SCRATCH = Path("/nix"), Path("/scratch")
MIB = 1024**2
WAY_OUT = (
    "garbage is collected, and this is tried again by itself; if it stays, give that volume more room (in the chart: "
    "store.sizeLimit, a larger store.existingClaim, scratch.sizeLimit), or set nix.build.on to Target"
)


class Bench:
    """Two folders, whose free space the test sets."""

    def __init__(self, **free: int) -> None:
        self.free = {STORE: free.get("store", 90_000 * MIB), SCRATCH: free.get("scratch", 90_000 * MIB)}
        self.taken = {STORE: 0, SCRATCH: 0}
        volumes = [
            self._volume(STORE, 20 * 1024 * MIB, "nix.store.maxSize", "store.sizeLimit"),
            self._volume(SCRATCH, 2000 * MIB, "nix.scratch.maxSize", "scratch.sizeLimit"),
        ]
        self.disk = Disk((STORE, SCRATCH), 1024 * MIB, volumes, self.free.__getitem__)

    def _volume(self, folder: Path, limit: int, setting: str, value: str) -> Volume:
        async def measure() -> int:
            return self.taken[folder]

        size = FolderSize(folder, {}, free=self.free.__getitem__, measure=measure, clock=lambda: 0.0)
        return Volume(folder, size, limit, setting, value)

    def write(self, folder: Path, count: int) -> None:
        self.taken[folder] += count
        self.free[folder] -= count

    def check(self) -> None:
        run(self.disk.check())


def test_enough_is_enough():
    Bench(store=1024 * MIB).check()


@pytest.mark.parametrize("folder", ["store", "scratch"])
def test_what_is_short_is_named_with_what_to_do(folder):
    path = {"store": "/nix", "scratch": "/scratch"}[folder]
    with pytest.raises(DiskLowError) as low:
        Bench(**{folder: 12 * MIB}).check()
    assert str(low.value) == f"the operator's disk is full: less than 1.0 GiB is free at {path}; {WAY_OUT}"


def test_what_is_said_of_a_short_disk_stays_the_same_while_it_is_short():
    """Each other text would be another write of every status that has it."""
    bench, said = Bench(store=12 * MIB), set()
    for free in (12, 11, 900):
        bench.free[STORE] = free * MIB
        with pytest.raises(DiskLowError) as low:
            bench.check()
        said.add(str(low.value))
    assert len(said) == 1


def test_work_that_fills_the_disk_is_ended():
    bench = Bench()
    ended: list[float] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
            bench.free[SCRATCH] = 1000 * MIB
            await asyncio.sleep(3600)
        finally:
            ended.append(asyncio.get_running_loop().time())

    with pytest.raises(DiskLowError):
        run(bench.disk.watched(work()))
    assert 60 <= ended[0] <= 65


@pytest.mark.parametrize(
    ("folder", "most", "message"),
    [
        pytest.param(
            STORE,
            19 * 1024 * MIB,
            "less than 1.0 GiB is left at /nix of the 20.0 GiB of the setting nix.store.maxSize, beyond which the "
            "kubelet evicts the pod; garbage is collected, and this is tried again by itself; if it stays, raise "
            "store.sizeLimit of the chart, or set nix.build.on to Target",
            id="the store",
        ),
        pytest.param(
            SCRATCH,
            1900 * MIB,
            "less than 100 MiB is left at /scratch of the 2.0 GiB of the setting nix.scratch.maxSize, beyond which the "
            "kubelet evicts the pod; garbage is collected, and this is tried again by itself; if it stays, raise "
            "scratch.sizeLimit of the chart, or set nix.build.on to Target",
            id="a small volume keeps a twentieth",
        ),
    ],
)
def test_work_that_fills_a_volume_is_ended_before_the_kubelet_evicts_the_pod(folder, most, message):
    bench = Bench()
    ended: list[float] = []

    async def work() -> None:
        try:
            bench.write(folder, most)
            await asyncio.sleep(60)
            bench.write(folder, 1)
            await asyncio.sleep(3600)
        finally:
            ended.append(asyncio.get_running_loop().time())

    with pytest.raises(DiskLowError) as low:
        run(bench.disk.watched(work()))
    assert str(low.value) == f"the operator's disk is full: {message}"
    assert 60 <= ended[0] <= 65


def test_what_others_write_on_the_disk_of_a_volume_ends_nothing():
    bench = Bench()

    async def work() -> str:
        bench.write(SCRATCH, 1800 * MIB)
        await asyncio.sleep(60)
        bench.free[SCRATCH] -= 500 * MIB
        await asyncio.sleep(3600)
        return "built"

    assert run(bench.disk.watched(work())) == "built"


def test_work_that_does_not_is_let_be():
    async def work() -> str:
        await asyncio.sleep(3600)
        return "built"

    assert run(Bench().disk.watched(work())) == "built"


def test_an_error_of_the_work_stays_what_it_is():
    async def work() -> None:
        raise OSError("of its own")

    with pytest.raises(OSError, match="of its own"):
        run(Bench().disk.watched(work()))


def test_work_that_is_not_wanted_any_more_has_ended_when_that_is_said():
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1)
            ended.append(True)

    async def go() -> None:
        task = asyncio.create_task(Bench().disk.watched(work()))
        await asyncio.sleep(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]

    run(go())


@pytest.mark.parametrize(
    ("said", "is_ours"),
    [
        pytest.param("writing to file: No space left on device", True, id="a file"),
        pytest.param("executing SQLite query: database or disk is full", True, id="the data base"),
        pytest.param("the operator's disk is full: less than 1 GiB", True, id="our own words"),
        pytest.param("path is not valid", False, id="anything else"),
    ],
)
def test_an_error_of_a_full_disk_says_where_and_how_much(said, is_ours):
    explained = Bench(store=0, scratch=3 * MIB).disk.explained(said)
    expected = f"the operator's disk is full (free: 0 MiB at /nix, 3 MiB at /scratch): {said}; {WAY_OUT}"
    assert explained == (expected if is_ours else None)
