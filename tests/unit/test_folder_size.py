"""How large a folder is: measured now and then, and in between never said to be smaller than it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nixops_operator.adapters.nix.folder_size import FolderSize
from unit.fake_time import run

GIB = 1024**3


class Bench:
    def __init__(self) -> None:
        self.free, self.used, self.now, self.looks = 100 * GIB, 5 * GIB, 0.0, 0
        self.size = FolderSize(
            Path("/nix"), {}, free=lambda _: self.free, measure=self._measure, clock=lambda: self.now
        )

    async def _measure(self) -> int:
        self.looks += 1
        await asyncio.sleep(0)  # others run meanwhile
        return self.used

    def grow(self, count: int) -> None:
        self.free, self.used = self.free - count, self.used + count

    def seen(self) -> int:
        return run(self.size.now())


def test_what_the_disk_lost_since_is_taken_for_the_store_s():
    bench = Bench()
    assert bench.seen() == 5 * GIB
    bench.grow(GIB // 2)
    assert (bench.seen(), bench.looks) == (5 * GIB + GIB // 2, 1)


def test_after_a_gigabyte_it_is_looked_at():
    bench = Bench()
    bench.seen()
    bench.free -= 2 * GIB  # somebody else's
    assert (bench.seen(), bench.looks) == (5 * GIB, 2)


def test_after_ten_minutes_it_is_looked_at():
    bench = Bench()
    bench.seen()
    bench.now, bench.used = 599.0, 2 * GIB
    assert bench.seen() == 5 * GIB
    bench.now = 600.0
    assert bench.seen() == 2 * GIB


def test_a_limit_is_exceeded_only_by_what_was_measured():
    bench = Bench()
    bench.seen()
    bench.free -= GIB // 2  # somebody else's
    assert not run(bench.size.exceeds(5 * GIB))
    bench.grow(1)
    assert run(bench.size.exceeds(5 * GIB))


def test_below_a_limit_it_is_measured_once_a_minute():
    """What another has freed meanwhile hides what it has grown by."""
    bench = Bench()
    bench.seen()
    bench.used = 9 * GIB
    bench.now = 59.0
    assert (run(bench.size.exceeds(8 * GIB)), bench.looks) == (False, 1)
    bench.now = 60.0
    assert run(bench.size.exceeds(8 * GIB))


def test_a_folder_is_measured_once_for_all_who_ask_at_the_same_time():
    bench = Bench()

    async def ask() -> list[int]:
        return await asyncio.gather(*(bench.size.now() for _ in range(3)))

    assert (run(ask()), bench.looks) == ([5 * GIB] * 3, 1)
