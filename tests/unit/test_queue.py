"""Keys wait their turn: one run at a time, coalesced, slower after failures."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta

import pytest

from nixops_operator.workqueue import Closed, WorkQueue
from unit.fake_time import run

Queue = WorkQueue[tuple[str, str]]
A, B, C = ("machine", "a"), ("machine", "b"), ("deployment", "c")


def queue(longest: timedelta = timedelta(minutes=5)) -> Queue:
    return WorkQueue(lambda key: key[0], random.Random(1), longest)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_adds_before_a_run_coalesce():
    async def go() -> int:
        waiting = queue()
        for _ in range(3):
            waiting.add(A)
        return len(waiting)

    assert run(go()) == 1


def test_adds_during_a_run_give_exactly_one_more_after_it():
    async def go() -> tuple[int, int, int]:
        waiting = queue()
        waiting.add(A)
        key = await waiting.get()
        waiting.add(A)
        waiting.add(A)
        during = len(waiting)
        waiting.done(key)
        after = len(waiting)
        waiting.done(await waiting.get())
        return during, after, len(waiting)

    assert run(go()) == (0, 1, 0)


PACE = timedelta(seconds=1)


def test_of_many_news_the_first_counts_at_once_and_the_others_together():
    """Each change of each of 128 machines woke their deployment: 413 passes over all of them until they were ready."""
    began: list[float] = []

    async def worker(waiting: Queue) -> None:
        while True:
            key = await waiting.get()
            began.append(now())
            waiting.done(key)

    async def go() -> float:
        waiting = queue()
        working = asyncio.create_task(worker(waiting))
        for _ in range(95):
            waiting.add_paced(A, PACE)
            await asyncio.sleep(0.1)
        last = now() - 0.1
        await asyncio.sleep(60)
        working.cancel()
        return last

    last = run(go())
    assert began[0] == 0
    assert len(began) == 11
    assert last <= began[-1] <= last + 1


def test_news_during_a_run_are_seen_by_another_one():
    async def go() -> float:
        waiting = queue()
        waiting.add_paced(A, PACE)
        key = await waiting.get()
        await asyncio.sleep(0.5)
        waiting.add_paced(A, PACE)
        waiting.succeeded(key)
        waiting.add_after(key, timedelta(minutes=1))  # what every pass ends with
        waiting.done(key)
        await waiting.get()
        return now()

    assert run(go()) == 1


def test_news_end_a_backoff():
    async def go() -> float:
        waiting = queue()
        waiting.add_paced(A, PACE)
        key = await waiting.get()
        for _ in range(8):
            waiting.backoff(key)
        waiting.done(key)
        waiting.add_after(B, timedelta(hours=1))
        waiting.add_paced(A, PACE)
        await waiting.get()
        return now()

    assert run(go()) <= 1


def test_two_workers_never_run_the_same_key():
    running: set[tuple[str, str]] = set()
    runs = 0

    async def worker(waiting: Queue) -> None:
        nonlocal runs
        while True:
            try:
                key = await waiting.get()
            except Closed:
                return
            assert key not in running
            running.add(key)
            await asyncio.sleep(3)
            running.discard(key)
            runs += 1
            waiting.done(key)

    async def go() -> None:
        waiting = queue()
        workers = [asyncio.create_task(worker(waiting)) for _ in range(3)]
        for _ in range(10):
            waiting.add(A)
            waiting.add_after(A, timedelta(seconds=1))
            await asyncio.sleep(1)
        await asyncio.sleep(20)
        waiting.close()
        await asyncio.gather(*workers)

    run(go())
    assert 3 <= runs <= 6


def test_an_edit_goes_before_periodic_looks():
    async def go() -> tuple[str, str]:
        waiting = queue()
        waiting.add_after(A, timedelta(seconds=1))
        await asyncio.sleep(2)
        waiting.add(B)
        return await waiting.get()

    assert run(go()) == B


def test_kinds_take_turns():
    async def go() -> list[tuple[str, str]]:
        waiting = queue()
        for key in (A, B, C):
            waiting.add(key)
        return [await waiting.get() for _ in range(3)]

    assert run(go()) == [A, C, B]


@pytest.mark.parametrize("failures", range(12))
def test_failures_back_off_to_five_minutes_with_jitter(failures):
    async def go() -> timedelta:
        waiting = queue()
        for _ in range(failures):
            waiting.backoff(A)
        return waiting.backoff(A)

    expected = min(2**failures, 300)
    assert 0.8 * expected <= run(go()).total_seconds() <= 1.2 * expected


def test_a_success_ends_the_backoff():
    async def go() -> timedelta:
        waiting = queue()
        for _ in range(6):
            waiting.backoff(A)
        waiting.succeeded(A)
        return waiting.backoff(A)

    assert run(go()) <= timedelta(seconds=1.2)


def test_an_edit_does_not_wait_for_the_backoff():
    async def go() -> tuple[float, int]:
        waiting = queue()
        for _ in range(8):
            waiting.backoff(A)
        waiting.add(A)
        waiting.done(await waiting.get())
        asked = now()
        await asyncio.sleep(400)
        return asked, len(waiting)

    assert run(go()) == (0.0, 0), "and the planned run is not made as well"


def test_the_earliest_of_two_planned_runs_counts():
    async def go() -> float:
        waiting = queue()
        waiting.add_after(A, timedelta(seconds=10))
        waiting.add_after(A, timedelta(seconds=60))
        await waiting.get()
        return now()

    assert 9 <= run(go()) <= 11


def test_a_forgotten_key_does_not_come_back():
    async def go() -> int:
        waiting = queue()
        waiting.add(A)
        waiting.add_after(A, timedelta(seconds=1))
        waiting.backoff(A)
        waiting.forget(A)
        await asyncio.sleep(600)
        return len(waiting)

    assert run(go()) == 0


def test_a_closed_queue_sends_its_workers_home():
    async def go() -> None:
        waiting = queue()
        getting = asyncio.create_task(waiting.get())
        await asyncio.sleep(1)
        waiting.close()
        waiting.add(A)
        await getting

    with pytest.raises(Closed):
        run(go())


class Metered:
    """What a meter is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []

    def waited(self, key: tuple[str, str], seconds: float) -> None:
        self.told.append(("waited", key[1], seconds))

    def ran(self, key: tuple[str, str], seconds: float) -> None:
        self.told.append(("ran", key[1], seconds))

    def backed_off(self, key: tuple[str, str]) -> None:
        self.told.append(("backed off", key[1], 0))


def test_waiting_and_running_are_measured_from_the_first_add_to_the_end_of_the_run():
    async def go() -> tuple[list[tuple[str, str, float]], list[float]]:
        meter = Metered()
        waiting: Queue = WorkQueue(lambda key: key[0], random.Random(1), meter=meter, clock=now)
        oldest = [waiting.oldest()]
        waiting.add(A)
        await asyncio.sleep(2)
        waiting.add(A)  # waits since its first add
        waiting.add(B)
        await asyncio.sleep(1)
        oldest.append(waiting.oldest())
        key = await waiting.get()
        oldest.append(waiting.oldest())
        await asyncio.sleep(5)
        waiting.backoff(key)
        waiting.done(key)
        return meter.told, oldest

    told, oldest = run(go())

    assert told == [("waited", "a", 3), ("backed off", "a", 0), ("ran", "a", 5)]
    assert oldest == [0, 3, 1]


def test_a_tenant_with_a_thousand_objects_holds_up_another_s_edit_by_one_run():
    async def go() -> list[tuple[str, str]]:
        waiting = queue()
        for number in range(1000):
            waiting.add(("greedy", str(number)))
        waiting.done(await waiting.get())
        waiting.add(("modest", "web"))
        return [await waiting.get() for _ in range(2)]

    assert ("modest", "web") in run(go())


def test_edits_without_end_do_not_keep_others_from_being_looked_at():
    async def go() -> list[tuple[str, str]]:
        waiting = queue()
        waiting.add_after(B, timedelta(seconds=1))
        await asyncio.sleep(2)
        ran = []
        for _ in range(8):
            waiting.add(A)
            ran.append(await waiting.get())
            waiting.done(ran[-1])
        return ran

    assert run(go()) == [A, A, A, B, A, A, A, A]


def working(waiting: Queue, workers: int, began: list[tuple[str, float]]) -> list[asyncio.Task[None]]:
    """Workers whose runs take a second; a key that was run is added again for ever, so that its lane is never empty."""

    async def work() -> None:
        while True:
            key = await waiting.get()
            began.append((key[0], now()))
            await asyncio.sleep(1)
            waiting.done(key)
            if key[0] != "modest":
                waiting.add(key)

    return [asyncio.create_task(work()) for _ in range(workers)]


async def at_work(workers: int, *lanes: str) -> list[str]:
    """Whose runs are under way when each of these lanes has more keys than there are workers."""
    waiting: Queue = WorkQueue(lambda key: key[0], random.Random(1), workers=workers)
    began: list[tuple[str, float]] = []
    tasks = working(waiting, workers, began)
    for lane in lanes:
        for number in range(2 * workers):
            waiting.add((lane, str(number)))
    await asyncio.sleep(10.5)
    for task in tasks:
        task.cancel()
    return [lane for lane, since in began if since > now() - 1]


@pytest.mark.parametrize(
    ("lanes", "runs"),
    [
        pytest.param(("a",), {"a": 6}, id="one alone leaves a third of the workers"),
        pytest.param(("a", "b"), {"a": 4, "b": 4}, id="two take turns"),
        pytest.param(tuple("abcd"), dict.fromkeys("abcd", 2), id="so do four, and one is left"),
        pytest.param(tuple("abcdefghi"), dict.fromkeys("abcdefghi", 1), id="as many as there are workers"),
    ],
)
def test_a_lane_gets_a_worker_while_it_has_fewer_than_twice_as_many_as_are_free(
    lanes: tuple[str, ...], runs: dict[str, int]
):
    assert Counter(run(at_work(9, *lanes))) == runs


def test_runs_that_take_long_do_not_hold_up_another_lane():
    """Passes over 256 machines took 120 ms each, and all workers at once: an edit beside them waited for that long."""

    async def go() -> list[float]:
        waiting: Queue = WorkQueue(lambda key: key[0], random.Random(1), workers=8)
        began: list[tuple[str, float]] = []
        tasks = working(waiting, 8, began)
        for number in range(100):
            waiting.add(("greedy", str(number)))
        await asyncio.sleep(3.5)
        waiting.add(("modest", "web"))
        await asyncio.sleep(3)
        for task in tasks:
            task.cancel()
        return [since for lane, since in began if lane == "modest"]

    assert run(go()) == [3.5]


def test_the_end_of_a_run_wakes_a_worker_for_the_lane_that_was_held_back():
    """Whoever ended it takes another lane's key."""

    async def go() -> list[tuple[str, str]]:
        waiting: Queue = WorkQueue(lambda key: key[0], random.Random(1), workers=5)
        for number in "123":
            waiting.add(("a", number))
            waiting.add(("b", number))
        workers = [asyncio.create_task(waiting.get()) for _ in range(5)]
        await asyncio.sleep(1)
        began = [worker.result() for worker in workers if worker.done()]
        waiting.done(("b", "1"))
        began.append(await waiting.get())
        await asyncio.sleep(1)
        return [*began, workers[-1].result()]

    assert run(go()) == [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2"), ("a", "3"), ("b", "3")]
