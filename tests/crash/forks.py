"""Many plans at once: a workload's life is played once, and the process forks wherever one of them begins.

    create, undisturbed  ──┬────────┬────────┬─────►  its end is of no interest
                           └ plan   ├ plan   └ plan
                                    └ plan

Until the call that a plan names nothing of it has happened: what comes before is the same for all that name a call of
that life. A process of one thread, whose worlds are in its memory, goes on in its copy as it would have by itself;
there the plan comes in between, and at its end the copy tells how it ended.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from crash.bench import Cut, Lags, Worlds
from crash.plans import Course, Plan
from crash.workloads import play_interrupted

WELL = "well"


@dataclass(frozen=True)
class Outcome:
    """How a plan ended: why it failed, if it did, and the CPU that its process took."""

    plan: Plan
    failure: str | None
    seconds: float


def failures(plans: Iterable[Plan]) -> list[str]:
    """Why those of them fail that do."""
    outcomes: list[Outcome] = []
    play(plans, 1, outcomes.append)
    return [outcome.failure for outcome in outcomes if outcome.failure is not None]


def play(plans: Iterable[Plan], at_once: int, tell: Callable[[Outcome], object]) -> None:
    """Each outcome is told as soon as it is known. While `at_once` copies are busy, the process waits."""
    lives: dict[tuple[str, Lags], list[Plan]] = {}
    for plan in plans:
        plan.wanted()  # here, or each copy plays it for itself
        lives.setdefault((plan.workload, plan.lags), []).append(plan)
    for (workload, lags), branches in lives.items():
        _Life(branches, at_once, tell).play(workload, lags)


class _Life:
    """The undisturbed life in this process, and in each of its copies the one that a plan makes of it."""

    def __init__(self, branches: Sequence[Plan], at_once: int, tell: Callable[[Outcome], object]) -> None:
        self._at_once = at_once
        self._tell = tell
        self._left: dict[tuple[str, int], list[Plan]] = {}
        for plan in branches:
            self._left.setdefault((plan.effect, plan.number), []).append(plan)
        self._busy: dict[int, tuple[Plan, int]] = {}  # where a copy tells its outcome → its plan and process
        self._course: Course | None = None  # in a copy
        self._told_to = -1

    def play(self, workload: str, lags: Lags) -> None:
        said = ""
        try:
            worlds = play_interrupted(workload, self._interrupt, lags)
            if self._course is not None:
                self._course.judge(worlds)
            said = WELL
        except Exception as error:
            if self._course is None:
                raise
            said = f"{self._course.plan}\n    {error!r}"
        finally:
            if self._course is not None:
                self._leave(said)
        while self._busy:
            self._listen()
        for plans in self._left.values():
            for plan in plans:
                self._tell(Outcome(plan, f"{plan}\n    the place was not met", 0.0))

    def _interrupt(self, worlds: Worlds, effect: str, number: int) -> Cut | None:
        for plan in self._left.pop((effect, number), ()) if self._course is None else ():
            while len(self._busy) >= self._at_once:
                self._listen()
            if self._is_copy(plan):
                break
        return self._course.interrupt(worlds, effect, number) if self._course is not None else None

    def _is_copy(self, plan: Plan) -> bool:
        loop = asyncio.get_running_loop()
        heard, told_to = os.pipe()
        process = os.fork()
        if process:
            os.close(told_to)
            self._busy[heard] = plan, process
            return False
        self._course, self._told_to = Course(plan), told_to
        asyncio._set_running_loop(loop)  # which asyncio knows by the number of the process
        gc.disable()  # it would write to all that the copy shares
        return True

    def _leave(self, said: str) -> NoReturn:
        """Whatever is to be done at the end of a process, the first one does; and if that is gone, nobody."""
        try:
            with os.fdopen(self._told_to, "w") as told:
                told.write(said)
        finally:
            os._exit(0 if said else 1)

    def _listen(self) -> None:
        """Until a copy has ended."""
        heard, *_ = select.select([*self._busy], [], [])[0]
        with os.fdopen(heard) as told:
            said = told.read()
        plan, process = self._busy.pop(heard)
        _, status, used = os.wait4(process, 0)
        said = said or f"{plan}\n    its process ended with {os.waitstatus_to_exitcode(status)}"
        self._tell(Outcome(plan, None if said == WELL else said, used.ru_utime + used.ru_stime))
