"""Long work runs once for all who ask, is tried again when its time has come, and ends with the last who wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Lost, OperatorError, Retry
from nixops_operator.jobs import Done, Failed, Jobs, Running
from unit.fake_time import run

BUILD = "build:drv"


class Bench:
    """Jobs that note who was woken when."""

    def __init__(self, limits: dict[str, int] | None = None) -> None:
        self.woken: list[tuple[float, str]] = []
        self.jobs: Jobs[str] = Jobs(limits or {}, self._wake)
        self.runs = 0

    def _wake(self, waiter: str) -> None:
        self.woken.append((asyncio.get_running_loop().time(), waiter))

    def work(self, seconds: float = 10, error: BaseException | None = None) -> Callable[..., Awaitable[str]]:
        async def do(progress: Callable[[str], None]) -> str:
            self.runs += 1
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return "product"

        return do

    def state(self, waiter: str = "a", name: str = BUILD) -> object:
        return self.jobs.states(waiter).get(name)


def test_a_job_is_shared_by_all_who_ask():
    async def go() -> Bench:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work())
        bench.jobs.start(BUILD, "b", bench.work())
        assert isinstance(bench.state("a"), Running)
        await asyncio.sleep(11)
        assert bench.state("a") == bench.state("b") == Done("product")
        return bench

    bench = run(go())
    assert bench.runs == 1
    assert sorted(bench.woken) == [(10.0, "a"), (10.0, "b")]


def test_who_asks_for_a_finished_job_is_woken_at_once():
    async def go() -> list[tuple[float, str]]:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work())
        await asyncio.sleep(20)
        bench.jobs.start(BUILD, "c", bench.work())
        return bench.woken

    assert run(go())[-1] == (20.0, "c")


def test_a_limit_of_one_kind_holds_no_other_up():
    async def go() -> tuple[int, int]:
        bench = Bench({"build": 1})
        for number in range(3):
            bench.jobs.start(f"build:{number}", "a", bench.work())
        bench.jobs.start("copy:x", "a", bench.work())
        await asyncio.sleep(1)
        first = bench.runs
        await asyncio.sleep(40)
        return first, bench.runs

    assert run(go()) == (2, 4)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(Retry(Reason.COPY_FAILED, "cut"), 2, id="for now: soon"),
        pytest.param(Retry(Reason.COPY_FAILED, "cut", timedelta(seconds=40)), 40, id="with advice: as advised"),
        pytest.param(Blocked(Reason.BUILD_FAILED, "no"), 600, id="for good: slowly, a disk may have been full"),
        pytest.param(Lost(Reason.TERMINATED, "gone"), 600, id="lost: slowly"),
        pytest.param(RuntimeError("a bug"), 2, id="a bug: as for now"),
    ],
)
def test_a_failed_job_is_due_again_in_time_and_says_so(error, seconds):
    async def go() -> tuple[object, object, list[tuple[float, str]]]:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work(0, error))
        await asyncio.sleep(seconds - 0.5)
        before = bench.state()
        await asyncio.sleep(1)
        return before, bench.state(), bench.woken

    before, after, woken = run(go())
    assert isinstance(before, Failed)
    assert not before.is_due
    assert isinstance(after, Failed)
    assert after.is_due
    assert [moment for moment, _ in woken] == [0.0, float(seconds)]


def test_a_bug_is_told_without_its_text():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work(0, RuntimeError("a secret")))
        await asyncio.sleep(1)
        return bench.state()

    found = run(go())
    assert isinstance(found, Failed)
    assert "RuntimeError" in found.error.message
    assert "secret" not in found.error.message


def test_failures_in_a_row_wait_longer_and_longer():
    waits: list[float] = []

    async def go() -> None:
        bench = Bench()
        for _ in range(10):
            bench.jobs.start(BUILD, "a", bench.work(0, Retry(Reason.COPY_FAILED, "cut")))
            began = asyncio.get_running_loop().time()
            while True:
                await asyncio.sleep(1)
                state = bench.state()
                if isinstance(state, Failed) and state.is_due:
                    break
            waits.append(asyncio.get_running_loop().time() - began)

    run(go())
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_job_that_runs_again_still_tells_why_it_failed():
    async def go() -> object:
        bench = Bench()
        error = Retry(Reason.COPY_FAILED, "cut")
        bench.jobs.start(BUILD, "a", bench.work(0, error))
        await asyncio.sleep(3)
        bench.jobs.start(BUILD, "a", bench.work(10))
        return bench.state()

    found = run(go())
    assert isinstance(found, Running)
    assert isinstance(found.last_error, OperatorError)


def test_a_job_that_nobody_wants_any_more_is_cancelled():
    async def go() -> tuple[object, object, object]:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work())
        bench.jobs.start(BUILD, "b", bench.work())
        await asyncio.sleep(1)
        bench.jobs.release("a", frozenset(), ("build",))
        await asyncio.sleep(1)
        still = bench.state("b")
        bench.jobs.release("b", frozenset(), ("build",))
        await asyncio.sleep(1)
        return still, bench.state("b"), dict(bench.jobs.running())

    still, gone, running = run(go())
    assert isinstance(still, Running)
    assert gone is None
    assert running == {}


def test_what_is_still_wanted_goes_on():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work())
        bench.jobs.release("a", frozenset({BUILD}), ("build",))
        await asyncio.sleep(20)
        return bench.state()

    assert run(go()) == Done("product")


def test_a_step_on_a_host_is_never_cut_and_stays_in_sight():
    """Its failure has to be told; the host itself tells of its success."""

    async def go() -> tuple[object, object]:
        bench = Bench()
        step = "host:id:commit"
        bench.jobs.start(step, "a", bench.work(5, Retry(Reason.ACTIVATION_FAILED, "boot loader")), keep=False)
        bench.jobs.release("a", frozenset(), ("evaluate", "build", "copy"))
        await asyncio.sleep(1)
        during = bench.state(name=step)
        await asyncio.sleep(5)
        bench.jobs.release("a", frozenset(), ("evaluate", "build", "copy"))
        return during, bench.state(name=step)

    during, after = run(go())
    assert isinstance(during, Running)
    assert isinstance(after, Failed)


def test_the_success_of_a_step_on_a_host_is_forgotten():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start("host:id:commit", "a", bench.work(1), keep=False)
        await asyncio.sleep(2)
        return bench.state(name="host:id:commit")

    assert run(go()) is None


def test_a_forgotten_result_is_made_again():
    async def go() -> int:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work(1))
        await asyncio.sleep(2)
        bench.jobs.forget(BUILD)
        bench.jobs.start(BUILD, "a", bench.work(1))
        await asyncio.sleep(2)
        return bench.runs

    assert run(go()) == 2


def test_progress_wakes_its_waiters_at_most_every_five_seconds():
    async def go() -> tuple[int, object]:
        bench = Bench()

        async def chatter(progress: Callable[[str], None]) -> None:
            for number in range(100):
                progress(f"{number} of 100")
                await asyncio.sleep(0.1)

        bench.jobs.start(BUILD, "a", chatter)
        await asyncio.sleep(9.95)
        return len(bench.woken), bench.state()

    assert run(go()) == (2, Running("99 of 100"))


def test_closing_ends_what_runs():
    async def go() -> dict[str, int]:
        bench = Bench()
        bench.jobs.start(BUILD, "a", bench.work())
        await asyncio.sleep(1)
        await bench.jobs.close()
        return dict(bench.jobs.running())

    assert run(go()) == {}
