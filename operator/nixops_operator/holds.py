"""Steps that failed are not taken again before their time, nor are steps that succeeded and are planned again as they
were: what they did is not to be seen yet, or is undone each time. Per object and step identity; in memory only.

A hold grows from one failure to the next of the same identity, whatever succeeded beside it, and ends with success or
with an edit of the spec. A rest grows from one success of an equal step to the next, and is forgotten once the step has
not come for a while.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from nixops_operator.errors import Blocked, NamesNothing, OperatorError, Retry, TurnKept
from nixops_operator.step import Identity, Step

K = TypeVar("K", bound=Hashable)

FIRST_HOLD = timedelta(seconds=2)
LONGEST_HOLD = timedelta(minutes=5)
BLOCKED_HOLD = timedelta(minutes=10)
"""What needs a person is tried again this slowly, or at once after an edit."""
FORGOTTEN = 60.0
"""Seconds after the end of a rest in which its step did not come again: then it is another occasion."""


@dataclass(frozen=True)
class _Hold:
    generation: int
    error: OperatorError
    until: float  # the loop's seconds
    failures: int


@dataclass(frozen=True)
class _Rest:
    generation: int
    step: Step
    until: float
    times: int  # that this very step succeeded


class Holds(Generic[K]):
    """Time is the event loop's, in seconds."""

    def __init__(self) -> None:
        self._holds: dict[K, dict[Identity, _Hold]] = {}
        self._rests: dict[K, dict[Identity, _Rest]] = {}

    def held(self, key: K, generation: int, step: Step, now: float) -> tuple[OperatorError, timedelta] | None:
        """Why the step has to wait, and for how long; None: it may be taken."""
        holds = self._holds.get(key, {})
        for identity in (step.identity, *step.held_with):
            hold = holds.get(identity)
            if hold is not None and hold.generation == generation and now < hold.until:
                return hold.error, timedelta(seconds=hold.until - now)
        return None

    def failed(self, key: K, generation: int, step: Step, error: OperatorError, now: float) -> timedelta:
        """Hold the step; returns for how long."""
        holds = self._holds.setdefault(key, {})
        known = holds.get(step.identity)
        failures = known.failures + 1 if known is not None and known.generation == generation else 1
        wait = _wait(step, error, failures)
        holds[step.identity] = _Hold(generation, error, now + wait.total_seconds(), failures)
        return wait

    def is_resting(self, key: K, generation: int, step: Step, now: float) -> bool:
        """Whether this very step was taken a moment ago, and need not be taken again yet."""
        rest = self._rests.get(key, {}).get(step.identity)
        return rest is not None and rest.generation == generation and rest.step == step and now < rest.until

    def succeeded(self, key: K, generation: int, step: Step, now: float) -> timedelta:
        """The next failure of this identity starts again at the shortest hold; an equal step rests, for so long."""
        self._holds.get(key, {}).pop(step.identity, None)
        rests = self._rests.setdefault(key, {})
        known = rests.get(step.identity)
        times = 1
        if known is not None and (known.generation, known.step) == (generation, step) and now - known.until < FORGOTTEN:
            times = known.times + 1
        wait: timedelta = min(FIRST_HOLD * 2 ** min(times - 1, 10), LONGEST_HOLD)
        rests[step.identity] = _Rest(generation, step, now + wait.total_seconds(), times)
        return wait

    def forget(self, key: K) -> None:
        self._holds.pop(key, None)
        self._rests.pop(key, None)


def _wait(step: Step, error: OperatorError, failures: int) -> timedelta:
    if isinstance(error, TurnKept) and error.after is not None:
        return error.after
    if isinstance(error, Blocked) and not isinstance(error, NamesNothing):
        return step.blocked_hold or BLOCKED_HOLD
    growing: timedelta = min(FIRST_HOLD * 2 ** min(failures - 1, 10), LONGEST_HOLD)
    if isinstance(error, Retry) and error.after is not None:
        # The adapter's advice is about this one answer; what goes on being refused is asked for less and less.
        return max(error.after, growing)
    return growing
