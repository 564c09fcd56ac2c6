"""A queue of keys: one run per key at a time, adds coalesce, failures back off. Knows nothing of Kubernetes.

    add(key) ──► soon ──► get() ──► (a worker runs) ──► done(key)
    add_paced(key, s) ──► the first at once, then one for all that come within s
    add_after(key, s) ──► timer ──► later ──► get()

An add while the key runs gives one more run afterwards. `soon` (edits, finished work) goes before `later` (periodic
looks), but for every fourth run: who edits without end must not keep others from ever being looked at. Inside of both,
lanes take turns: with a lane for each kind in each namespace, a thousand objects of one tenant do not hold up another's
edit. Nor do their runs, however long they take: a lane gets one more worker only while it has fewer than twice as many
as are free. One lane alone takes two thirds of them, the next two thirds of the rest, and there is one left for who
comes now (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from contextvars import copy_context
from datetime import timedelta
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
_K_contra = TypeVar("_K_contra", contravariant=True)

FIRST_BACKOFF = timedelta(seconds=1)
LONGEST_BACKOFF = timedelta(minutes=5)
JITTER = 0.2  # ± share of a delay, so that objects that failed together do not come back together
OWNER_PACE = timedelta(seconds=1)
"""For an owner's look at its children: while a hundred of them come up, each has news several times a second."""
SHARE = 2  # workers of a lane, by workers that are free
SOON_IN_A_ROW = 3  # runs of `soon` after which one of `later` has its turn


class Closed(Exception):
    """The queue takes and gives no more keys."""


class Meter(Protocol[_K_contra]):
    """Is told what becomes of keys."""

    def waited(self, key: _K_contra, seconds: float) -> None:
        """It was given out, so long after its turn had come."""

    def ran(self, key: _K_contra, seconds: float) -> None:
        """Its run ended."""

    def backed_off(self, key: _K_contra) -> None:
        """It failed and is planned again."""


class _Lanes(Generic[K]):
    """Waiting keys and since when, first in, first out in each lane, lanes in turn."""

    def __init__(self, lane_of: Callable[[K], Hashable]) -> None:
        self._lane_of = lane_of
        self._lines: OrderedDict[Hashable, OrderedDict[K, float]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._lines.get(self._lane_of(key), ())

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, key: K, since: float) -> None:
        self._lines.setdefault(self._lane_of(key), OrderedDict()).setdefault(key, since)

    def discard(self, key: K) -> float | None:
        """Take the key out; since when it waited, or None if it did not."""
        line = self._lines.get(self._lane_of(key))
        if line is None:
            return None
        since = line.pop(key, None)
        if not line:
            del self._lines[self._lane_of(key)]
        return since

    def take(self, may_run: Callable[[Hashable], bool]) -> tuple[K, float] | None:
        """The next key of the lanes that may, and since when it waited; None if they have none."""
        lane = next(filter(may_run, self._lines), None)
        if lane is None:
            return None
        line = self._lines[lane]
        key, since = line.popitem(last=False)
        if line:
            self._lines.move_to_end(lane)
        else:
            del self._lines[lane]
        return key, since

    def oldest(self) -> float | None:
        """Since when the first of all lines has waited."""
        return min((next(iter(line.values())) for line in self._lines.values()), default=None)


class WorkQueue(Generic[K]):
    """See the module. Must be used from one event loop; time is the loop's."""

    def __init__(
        self,
        lane_of: Callable[[K], Hashable],
        chance: random.Random,
        longest_backoff: timedelta = LONGEST_BACKOFF,
        workers: float = float("inf"),
        meter: Meter[K] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`workers`: how many will take keys, of which no lane gets all."""
        self._lane_of = lane_of
        self._soon = _Lanes(lane_of)
        self._later = _Lanes(lane_of)
        self._soon_in_a_row = 0
        self._running: dict[K, float] = {}  # since when
        self._by_timer: set[K] = set()  # of those that run
        self._workers = workers
        self._held: Counter[Hashable] = Counter()  # workers, by lane
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._context = copy_context()
        self._paced: dict[K, float] = {}  # the loop's time of the last paced add that counted
        self._failures: dict[K, int] = {}
        self._chance = chance
        self._longest = longest_backoff
        self._meter = meter
        self._clock = clock  # of what is measured; a loop's own, which timers follow, is the same
        self._idle: deque[asyncio.Future[None]] = deque()  # workers that wait for a key
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait to run now."""
        return len(self._soon) + len(self._later)

    @property
    def is_closed(self) -> bool:
        return self._closed

    def oldest(self) -> float:
        """For how many seconds the first of the waiting keys has waited; 0 if none does."""
        waiting = [since for since in (self._soon.oldest(), self._later.oldest()) if since is not None]
        return self._clock() - min(waiting) if waiting else 0.0

    def add(self, key: K) -> None:
        """Run the key as soon as a worker is free; its waiting time and backoff end here."""
        if self._closed:
            return
        self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
            return
        waited_since = self._later.discard(key)
        self._soon.put(key, self._clock() if waited_since is None else waited_since)
        self._wake_one()

    def add_paced(self, key: K, pace: timedelta) -> None:
        """As `add`, for news of which many may come: the first counts at once, and those that come within `pace` of it
        together at its end. The last of them is never lost: a run begins after it."""
        if self._closed or key in self._soon:
            return  # the run that is due will see it
        now = asyncio.get_running_loop().time()
        due = self._paced.get(key, float("-inf")) + pace.total_seconds()
        if now >= due:
            self._paced[key] = now
            self.add(key)
            return
        timer = self._timers.get(key)
        if timer is None or timer.when() > due:
            self._cancel_timer(key)
            self._timers[key] = self._at(due, self._fire_paced, key)

    def add_after(self, key: K, delay: timedelta) -> None:
        """Run the key in about `delay` (± 10 %), unless an earlier run is planned already."""
        if self._closed:
            return
        seconds = delay.total_seconds() * self._chance.uniform(0.9, 1.1)
        due = asyncio.get_running_loop().time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = self._at(due, self._fire, key)

    def backoff(self, key: K, at_least: timedelta | None = None) -> timedelta:
        """Plan the next run of a key that failed: 1 s, 2 s, 4 s … 5 min, ± 20 %; returns the delay.

        `at_least`: what the other side has asked for, as with `Retry-After`. All who were told the same come back
        spread over a fifth of it.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = self._longest.total_seconds()
        seconds = min(FIRST_BACKOFF.total_seconds() * 2 ** min(failures, 20), longest)
        delay = timedelta(seconds=seconds * self._chance.uniform(1 - JITTER, 1 + JITTER))
        if at_least is not None:
            delay = max(delay, min(at_least, self._longest) * self._chance.uniform(1, 1 + JITTER))
        self.add_after(key, delay)
        if self._meter is not None:
            self._meter.backed_off(key)
        return delay

    def succeeded(self, key: K) -> None:
        """The next failure of the key starts again at the shortest delay."""
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """The object is gone: drop all that is planned for it."""
        self._cancel_timer(key)
        self._paced.pop(key, None)
        self._failures.pop(key, None)
        self._soon.discard(key)
        self._later.discard(key)
        self._again.discard(key)

    async def get(self) -> K:
        """The next key; it counts as running until `done`. Raises Closed after `close`."""
        while True:
            if self._closed:
                raise Closed
            if (taken := self._take()) is not None:
                key, since = taken
                self._running[key] = self._clock()
                self._held[self._lane_of(key)] += 1
                if self._meter is not None:
                    self._meter.waited(key, self._clock() - since)
                return key
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def was_woken(self, key: K) -> bool:
        """Whether the key runs because somebody had news of it; False: its time had come."""
        return key not in self._by_timer

    def done(self, key: K) -> None:
        """The run of a key ended; adds that came meanwhile run it once more."""
        began = self._running.pop(key, None)
        self._by_timer.discard(key)
        if began is not None:
            lane = self._lane_of(key)
            self._held[lane] -= 1
            if not self._held[lane]:
                del self._held[lane]
            if self._soon or self._later:
                self._wake_one()  # for a key whose lane was held back until now
        if self._meter is not None and began is not None:
            self._meter.ran(key, self._clock() - began)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Give out no more keys; what runs may finish."""
        self._closed = True
        for key in list(self._timers):
            self._cancel_timer(key)
        while self._idle:
            self._wake_one()

    def _take(self) -> tuple[K, float] | None:
        taken = self._soon.take(self._may_run) if self._soon_in_a_row < SOON_IN_A_ROW or not self._later else None
        self._soon_in_a_row = 0 if taken is None else self._soon_in_a_row + 1
        if taken is None and (taken := self._later.take(self._may_run)) is not None:
            self._by_timer.add(taken[0])
        return taken or self._soon.take(self._may_run)

    def _may_run(self, lane: Hashable) -> bool:
        return self._held[lane] < SHARE * (self._workers - len(self._running))

    def _wake_one(self) -> None:
        """One worker for one key: if all woke for each, most of an idle operator's time would go into that."""
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return

    def _fire(self, key: K) -> None:
        del self._timers[key]
        if key in self._running:
            self._again.add(key)
        elif key not in self._soon:
            self._later.put(key, self._clock())
            self._wake_one()

    def _fire_paced(self, key: K) -> None:
        self._paced[key] = asyncio.get_running_loop().time()
        self.add(key)

    def _at(self, due: float, fire: Callable[[K], None], key: K) -> asyncio.TimerHandle:
        """A timer of no pass: there is one for each key, and each would hold what its pass had put into its context."""
        return asyncio.get_running_loop().call_at(due, fire, key, context=self._context)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
