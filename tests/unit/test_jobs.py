"""Long work runs once for all who ask, is tried again when its time has come, and ends with the last who wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from nixops_operator import job_names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Lost, OperatorError, Retry
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.jobs import REMEMBERED_RESULTS, Done, Failed, Jobs, Running
from unit.counting import lines_run
from unit.fake_time import run

BUILD, EVALUATE = "build:drv", "evaluate:hash"


def who(name: str, namespace: str = "one") -> Key:
    return Key(Kind.MACHINE, namespace, name)


A, B, C = who("a"), who("b"), who("c")


class Bench:
    """Jobs that note who was woken when."""

    def __init__(self, limits: dict[str, int] | None = None) -> None:
        self.woken: list[tuple[float, Key]] = []
        self.jobs: Jobs[Key] = Jobs(limits or {}, self._wake)
        self.runs = 0

    def _wake(self, waiter: Key) -> None:
        self.woken.append((asyncio.get_running_loop().time(), waiter))

    def work(self, seconds: float = 10, error: BaseException | None = None) -> Callable[..., Awaitable[str]]:
        async def do(progress: Callable[[str], None]) -> str:
            self.runs += 1
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return "product"

        return do

    def state(self, waiter: Key = A, name: str = BUILD) -> object:
        return self.jobs.states(waiter).get(name)


def test_a_job_is_shared_by_all_who_ask():
    async def go() -> Bench:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work())
        bench.jobs.start(BUILD, B, bench.work())
        assert isinstance(bench.state(A), Running)
        await asyncio.sleep(11)
        assert bench.state(A) == bench.state(B) == Done("product")
        return bench

    bench = run(go())
    assert bench.runs == 1
    assert sorted(bench.woken) == [(10.0, A), (10.0, B)]


def test_who_asks_for_a_finished_job_is_woken_at_once():
    async def go() -> list[tuple[float, Key]]:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work())
        await asyncio.sleep(20)
        bench.jobs.start(BUILD, C, bench.work())
        return bench.woken

    assert run(go())[-1] == (20.0, C)


def test_a_limit_of_one_kind_holds_no_other_up():
    async def go() -> tuple[int, int]:
        bench = Bench({"build": 1})
        for number in range(3):
            bench.jobs.start(f"build:{number}", A, bench.work())
        bench.jobs.start("copy:x", A, bench.work())
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
    async def go() -> tuple[object, object, list[tuple[float, Key]]]:
        bench = Bench()
        bench.jobs.start(EVALUATE, A, bench.work(0, error))
        await asyncio.sleep(seconds - 0.5)
        before = bench.state(name=EVALUATE)
        await asyncio.sleep(1)
        return before, bench.state(name=EVALUATE), bench.woken

    before, after, woken = run(go())
    assert isinstance(before, Failed)
    assert not before.is_due
    assert isinstance(after, Failed)
    assert after.is_due
    assert [moment for moment, _ in woken] == [0.0, float(seconds)]


@pytest.mark.parametrize("job", ["fetch:tree", "build:drv", "realise:host:drv"])
def test_what_others_lack_now_is_soon_looked_for_again_and_then_ever_more_slowly(job):
    """A path that a cache does not have yet, a source that its server lost for a moment."""
    waits: list[float] = []

    async def go() -> None:
        bench = Bench()
        for _ in range(7):
            bench.jobs.start(job, A, bench.work(0, Blocked(Reason.BUILD_FAILED, "not there")))
            began = asyncio.get_running_loop().time()
            while True:
                await asyncio.sleep(1)
                state = bench.state(name=job)
                if isinstance(state, Failed) and state.is_due:
                    break
            waits.append(asyncio.get_running_loop().time() - began)

    run(go())
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_bug_is_told_without_its_text():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work(0, RuntimeError("a secret")))
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
            bench.jobs.start(BUILD, A, bench.work(0, Retry(Reason.COPY_FAILED, "cut")))
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
        bench.jobs.start(BUILD, A, bench.work(0, error))
        await asyncio.sleep(3)
        bench.jobs.start(BUILD, A, bench.work(10))
        return bench.state()

    found = run(go())
    assert isinstance(found, Running)
    assert isinstance(found.last_error, OperatorError)


def test_a_job_that_nobody_wants_any_more_is_cancelled():
    async def go() -> tuple[object, object, object]:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work())
        bench.jobs.start(BUILD, B, bench.work())
        await asyncio.sleep(1)
        bench.jobs.release(A, frozenset(), ("build",))
        await asyncio.sleep(1)
        still = bench.state(B)
        bench.jobs.release(B, frozenset(), ("build",))
        await asyncio.sleep(1)
        return still, bench.state(B), dict(bench.jobs.running())

    still, gone, running = run(go())
    assert isinstance(still, Running)
    assert gone is None
    assert running == {}


def test_what_is_still_wanted_goes_on():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work())
        bench.jobs.release(A, frozenset({BUILD}), ("build",))
        await asyncio.sleep(20)
        return bench.state()

    assert run(go()) == Done("product")


def test_a_step_on_a_host_is_never_cut_and_stays_in_sight():
    """Its failure has to be told; the host itself tells of its success."""

    async def go() -> tuple[object, object]:
        bench = Bench()
        step = "host:id:commit"
        bench.jobs.start(step, A, bench.work(5, Retry(Reason.ACTIVATION_FAILED, "boot loader")), keep=False)
        bench.jobs.release(A, frozenset(), ("evaluate", "build", "copy"))
        await asyncio.sleep(1)
        during = bench.state(name=step)
        await asyncio.sleep(5)
        bench.jobs.release(A, frozenset(), ("evaluate", "build", "copy"))
        return during, bench.state(name=step)

    during, after = run(go())
    assert isinstance(during, Running)
    assert isinstance(after, Failed)


def test_the_success_of_a_step_on_a_host_is_forgotten():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start("host:id:commit", A, bench.work(1), keep=False)
        await asyncio.sleep(2)
        return bench.state(name="host:id:commit")

    assert run(go()) is None


def test_a_forgotten_result_is_made_again():
    async def go() -> int:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work(1))
        await asyncio.sleep(2)
        bench.jobs.forget(BUILD)
        bench.jobs.start(BUILD, A, bench.work(1))
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

        bench.jobs.start(BUILD, A, chatter)
        await asyncio.sleep(9.95)
        return len(bench.woken), bench.state()

    assert run(go()) == (2, Running("99 of 100"))


def test_closing_ends_what_runs():
    async def go() -> dict[str, int]:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work())
        await asyncio.sleep(1)
        await bench.jobs.close()
        return dict(bench.jobs.running())

    assert run(go()) == {}


def test_namespaces_take_turns_whatever_each_asks_for():
    """One tenant with a hundred evaluations before another's one: the other waits for one, not for a hundred."""

    async def go() -> tuple[object, object]:
        bench = Bench({"evaluate": 1})
        for number in range(100):
            bench.jobs.start(f"evaluate:{number}", who(f"m{number}", "greedy"), bench.work(300))
        await asyncio.sleep(1)
        bench.jobs.start("evaluate:x", who("web", "modest"), bench.work(10))
        await asyncio.sleep(311)
        modest = bench.state(who("web", "modest"), "evaluate:x")
        await asyncio.sleep(300 * 99)
        return modest, bench.state(who("m99", "greedy"), "evaluate:99")

    assert run(go()) == (Done("product"), Done("product"))


@pytest.mark.parametrize(
    ("slots", "held"),
    [pytest.param(slots, (slots + 1) // 2, id=f"{slots} places") for slots in (1, 2, 3, 4)],
)
def test_a_namespace_holds_more_than_half_only_while_nobody_else_waits(slots, held):
    running: dict[str, int] = {"greedy": 0, "modest": 0}

    async def go() -> tuple[dict[str, int], dict[str, int]]:
        bench = Bench({"build": slots})

        def work(namespace: str) -> Callable[..., Awaitable[None]]:
            async def do(_: object) -> None:
                running[namespace] += 1
                await asyncio.sleep(10)
                running[namespace] -= 1

            return do

        for number in range(20):
            bench.jobs.start(f"build:g{number}", who(f"m{number}", "greedy"), work("greedy"))
        await asyncio.sleep(5)
        alone = dict(running)
        for number in range(20):
            bench.jobs.start(f"build:m{number}", who(f"m{number}", "modest"), work("modest"))
        await asyncio.sleep(10)
        return alone, dict(running)

    alone, together = run(go())
    assert alone == {"greedy": slots, "modest": 0}
    assert together["greedy"] + together["modest"] == slots
    assert max(together.values()) == held


def test_a_job_of_two_namespaces_comes_in_the_turn_of_the_luckier():
    async def go() -> object:
        bench = Bench({"evaluate": 1})
        for number in range(50):
            bench.jobs.start(f"evaluate:{number}", who("a", "greedy"), bench.work(10))
        await asyncio.sleep(1)
        bench.jobs.start("evaluate:49", who("web", "modest"), bench.work(10))
        await asyncio.sleep(20)
        return bench.state(who("web", "modest"), "evaluate:49")

    assert run(go()) == Done("product")


def test_a_place_that_was_waited_for_in_vain_is_free_again():
    async def go() -> tuple[object, dict[str, int]]:
        bench = Bench({"build": 1})
        bench.jobs.start("build:never", A, bench.work())
        bench.jobs.release(A, frozenset(), ("build",))  # before its task has taken a step
        bench.jobs.start("build:first", A, bench.work(10))
        bench.jobs.start("build:second", B, bench.work(10))
        await asyncio.sleep(1)
        bench.jobs.release(B, frozenset(), ("build",))  # while it waits
        bench.jobs.start("build:third", C, bench.work(10))
        await asyncio.sleep(20)
        return bench.state(C, "build:third"), dict(bench.jobs.running())

    assert run(go()) == (Done("product"), {})


COPY = "copy:host:toplevel"


@pytest.mark.parametrize(
    ("given", "ended", "message"),
    [
        pytest.param({}, 300, "the copy to the machine made no progress for 5m: ended, tried again", id="a copy"),
        pytest.param(
            {"stall": timedelta(seconds=90)},
            90,
            "the copy to the machine made no progress for 1m30s: ended, tried again",
            id="as given",
        ),
        pytest.param(
            {"stall": timedelta(hours=9)},
            6 * 3600,
            "the copy to the machine took longer than 6h: ended, tried again",
            id="its deadline, if that is sooner",
        ),
    ],
)
def test_a_copy_in_which_nothing_moves_is_ended(given, ended, message):
    """A machine that answers everything but its Nix daemon holds a place for minutes, not for ever."""

    async def go() -> tuple[object, object, object]:
        bench = Bench({"copy": 1})
        bench.jobs.start(COPY, A, bench.work(10**6), **given)
        bench.jobs.start("copy:other:toplevel", B, bench.work(5))
        await asyncio.sleep(ended - 0.5)
        before = bench.state(name=COPY)
        await asyncio.sleep(6)
        return before, bench.state(name=COPY), bench.state(B, "copy:other:toplevel")

    before, after, other = run(go())
    assert isinstance(before, Running)
    assert isinstance(after, Failed)
    assert after.error == Retry(Reason.COPY_FAILED, message)
    assert other == Done("product")


def test_a_copy_that_moves_goes_on_to_its_deadline():
    async def go() -> tuple[object, object]:
        bench = Bench()

        async def slow(progress: Callable[[str], None]) -> None:
            while True:
                await asyncio.sleep(299)
                progress("1 of 2 copied")

        bench.jobs.start(COPY, A, slow)
        await asyncio.sleep(6 * 3600 - 1)
        before = bench.state(name=COPY)
        await asyncio.sleep(1.5)
        return before, bench.state(name=COPY)

    before, after = run(go())
    assert before == Running("1 of 2 copied")
    assert isinstance(after, Failed)
    assert after.error.message == "the copy to the machine took longer than 6h: ended, tried again"


@pytest.mark.parametrize("kind", ["evaluate", "build", "copy", "host"])
def test_no_kind_of_job_works_for_ever(kind):
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(f"{kind}:x", A, bench.work(10**9))
        await asyncio.sleep(25 * 3600)
        return bench.state(name=f"{kind}:x")

    assert isinstance(run(go()), Failed)


def test_the_wait_for_a_place_counts_for_no_deadline():
    async def go() -> object:
        bench = Bench({"evaluate": 1})
        for number in range(10):
            bench.jobs.start(f"evaluate:{number}", A, bench.work(50), deadline=timedelta(seconds=60))
        await asyncio.sleep(501)
        return set(bench.jobs.states(A).values())

    assert run(go()) == {Done("product")}


def test_a_time_out_inside_of_the_work_is_not_taken_for_the_deadline():
    async def go() -> object:
        bench = Bench()
        bench.jobs.start(COPY, A, bench.work(1, TimeoutError()))
        await asyncio.sleep(2)
        return bench.state(name=COPY)

    found = run(go())
    assert isinstance(found, Failed)
    assert "TimeoutError" in found.error.message


def test_what_somebody_wants_is_never_forgotten():
    """However many machines there are, each is evaluated once."""
    machines = REMEMBERED_RESULTS + 500

    async def go() -> tuple[int, int]:
        bench = Bench()
        for number in range(machines):
            bench.jobs.start(f"evaluate:{number}", who(str(number)), bench.work(0))
        await asyncio.sleep(1)
        for number in range(machines):
            bench.jobs.release(who(str(number)), frozenset({f"evaluate:{number}"}), ("evaluate",))
            if bench.state(who(str(number)), f"evaluate:{number}") is None:
                bench.jobs.start(f"evaluate:{number}", who(str(number)), bench.work(0))
        await asyncio.sleep(1)
        kept = sum(bench.state(who(str(number)), f"evaluate:{number}") == Done("product") for number in range(machines))
        return bench.runs, kept

    assert run(go()) == (machines, machines)


def test_what_nobody_wants_is_remembered_up_to_a_limit():
    asked = REMEMBERED_RESULTS + 10

    async def go() -> tuple[int, int]:
        bench = Bench()
        for number in range(asked):
            bench.jobs.start(f"build:{number}", A, bench.work(0))
        await asyncio.sleep(1)
        bench.jobs.release(A, frozenset(), ("build",))
        for number in reversed(range(asked)):
            bench.jobs.start(f"build:{number}", A, bench.work(0))
        await asyncio.sleep(1)
        return bench.runs, len(bench.jobs.states(A))

    assert run(go()) == (asked + 10, asked)


def test_the_failures_of_steps_on_hosts_that_have_gone_do_not_pile_up():
    async def go() -> int:
        bench = Bench()
        for number in range(REMEMBERED_RESULTS + 10):
            gone = Blocked(Reason.ACTIVATION_FAILED, "gone")
            bench.jobs.start(f"host:{number}:a:commit", who(str(number)), bench.work(0, gone), keep=False)
        await asyncio.sleep(1)
        return sum(
            bench.state(who(str(number)), f"host:{number}:a:commit") is not None
            for number in range(REMEMBERED_RESULTS + 10)
        )

    assert run(go()) == REMEMBERED_RESULTS


def test_a_look_costs_what_its_own_jobs_cost():
    """Whatever the number of others; counted in lines, not in seconds."""

    def lines_of(others: int) -> int:
        async def go() -> int:
            bench = Bench()
            bench.jobs.start(BUILD, A, bench.work(0))
            for number in range(others):
                bench.jobs.start(f"build:{number}", who(str(number)), bench.work(0))
            await asyncio.sleep(1)
            return lines_run(lambda: (bench.jobs.states(A), bench.jobs.release(A, frozenset({BUILD}), ("build",))))

        return run(go())

    assert lines_of(others=1000) == lines_of(others=1)


def test_who_asks_while_an_abandoned_job_ends_gets_one_of_their_own():
    async def go() -> object:
        bench = Bench()

        async def reluctant(_: object) -> str:
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(5)
            return "never"

        bench.jobs.start(BUILD, A, reluctant)
        await asyncio.sleep(1)
        bench.jobs.release(A, frozenset(), ("build",))
        bench.jobs.start(BUILD, B, bench.work(10))
        await asyncio.sleep(11)
        return bench.state(B)

    assert run(go()) == Done("product")


def test_a_job_that_is_cancelled_from_inside_has_failed():
    async def go() -> tuple[object, list[tuple[float, Key]]]:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work(1, asyncio.CancelledError()))
        await asyncio.sleep(1.5)
        return bench.state(), bench.woken

    state, woken = run(go())
    assert isinstance(state, Failed)
    assert woken == [(1.0, A)]


def test_every_kind_has_a_name_of_its_own():
    made = [
        job_names.evaluate("h"),
        job_names.build("/nix/store/a.drv"),
        job_names.copy("host:22", "/nix/store/a"),
        job_names.on_host("host:22", "id", "commit"),
        job_names.adopt("host:22", "/nix/store/a"),
    ]
    assert len(set(made)) == len(made)
    assert [job_names.kind_of(name) for name in made] == ["evaluate", "build", "copy", "host", "host"]


def test_results_are_kept_for_those_who_wait_and_others_can_be_forgotten():
    """Before what they name is deleted."""

    async def go() -> tuple[object, object, object, int]:
        bench = Bench()
        bench.jobs.start(BUILD, A, bench.work(1))
        bench.jobs.start(EVALUATE, B, bench.work(1))
        bench.jobs.start("build:broken", A, bench.work(1, Blocked(Reason.BUILD_FAILED, "no")))
        bench.jobs.start("build:slow", B, bench.work(100))
        await asyncio.sleep(2)
        both = bench.jobs.results()
        bench.jobs.release(B, frozenset({"build:slow"}), ("evaluate", "build"))
        bench.jobs.forget_unused()
        bench.jobs.start(EVALUATE, C, bench.work(1))
        states = (bench.state(C, EVALUATE), bench.state(A, BUILD), bench.state(A, "build:broken"))
        assert isinstance(states[2], Failed)
        return both, states[0], states[1], len(bench.jobs.results())

    assert run(go()) == (("product", "product"), Running(), Done("product"), 1)
