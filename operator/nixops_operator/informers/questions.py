"""Questions to a peer that may be slow or silent: each is asked by a task of its own and answered from memory.

    read() ── last answer | its error | NotYet ──► a pass, which never waits
       │ hurries                         ▲
       ▼                                 │ wakes whom it concerns
    task: ask (with a deadline) ─► settle ─► pause (the pace, or a backoff after an error) ─► ask …

A question that nobody reads for some of its periods rests, and is forgotten after a while; what was found out about
absence outlives the rest. An error is remembered and asked for anew by the task alone: however many passes read it,
the peer hears one voice, ever more rarely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, NotYet, OperatorError, Retry
from nixops_operator.facts.kube import Key

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE = timedelta(seconds=60)
"""Of one asking, all pages of it: 3,000 instances take some three seconds; assumed to be out of order beyond this."""
SPACING = timedelta(milliseconds=500)
"""Shortest time from one asking to the next, however hurried: many own writes at once share one look."""
FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(seconds=30)
LONGEST_BLOCKED_RETRY = timedelta(minutes=5)
"""What waits for a person (a right that is missing) is tried this slowly in the end."""
READ_WITHIN = 3
"""Periods: a question that was not read for so many rests."""
KEPT = timedelta(minutes=10)
"""How long one that rests is remembered: longer than an object's slowest retry, or its absence never adds up."""


@dataclass(frozen=True)
class Look(Generic[T]):
    """An answer. `begun`: monotonic seconds of the loop at which the asking began: what an own write changed later may
    be missing.

    `empty_for`: from the first to the last of the askings in a row that found nothing (zero after the first); None
    where the last one found something. Failed askings neither count nor interrupt.
    """

    answer: T
    begun: float
    empty_for: timedelta | None = None


class Question(Generic[T]):
    """One remembered question.

    `where`: the peer, for people. `pace`: seconds from one asking to the next, worked out from the last answer.
    `forget` is called when it has rested for long and its task ends. Made inside a running loop; `close` ends its task.
    """

    is_lasting = False
    """Whether an answer stays good while asking anew fails."""
    is_permanent = False
    """Whether it is asked for until it is closed, read or not."""

    def __init__(
        self,
        where: str,
        ask: Callable[[], Awaitable[T]],
        pace: Callable[[T], float],
        wake: Callable[[Key], None],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.look: Look[T] | None = None
        self.error: OperatorError | None = None
        self._where = where
        self._ask = ask
        self._pace = pace
        self._wake = wake
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._readers: dict[Key, None] = {}
        self._waiting: set[Key] = set()
        self._read_at = self._loop.time()
        self._asking_since: float | None = None
        self._begun = float("-inf")
        self._took = 0.0
        self._failures = 0
        self._counts_from = float("-inf")
        self._empty_since: float | None = None
        self._nudge = asyncio.Event()
        self._is_resting = False
        self._task = self._loop.create_task(self._ask_for_ever(), name=f"look at {where}")

    def read(self, key: Key, newer_than: float = float("-inf")) -> Look[T]:
        """The last answer, if its asking began after `newer_than`. Raises NotYet where there is none yet (`key` is
        woken when there is), or what asking raised last (`key` is woken when that changes)."""
        self._readers[key] = None
        self._read_at = self._loop.time()
        if self._is_resting:
            self._nudge.set()
        if self.error is not None and not (self.is_lasting and self.look is not None):
            # Raised for many: without taking the frames of each into memory.
            raise self.error.with_traceback(None)
        if self.look is None or self.look.begun <= newer_than or self._is_resting:
            self._waiting.add(key)
            if self._asking_since is None or self._asking_since <= newer_than:
                self._nudge.set()
            raise NotYet(f"{self._where} is being looked at")
        return self.look

    def drop(self, key: Key) -> bool:
        """`key` reads it no more. Returns whether anybody else does."""
        self._readers.pop(key, None)
        self._waiting.discard(key)
        return bool(self._readers)

    def count_anew(self) -> None:
        """What is asked for may have been made just now: emptiness counts from askings that begin later."""
        self._counts_from = self._loop.time()
        self._empty_since = None

    def end(self) -> None:
        """Asks no more; `close` also waits for the end."""
        self._task.cancel()

    async def close(self) -> None:
        self.end()
        await asyncio.gather(self._task, return_exceptions=True)

    def _concerned(self, before: T | None, after: T) -> Iterable[Key]:
        """Whom an answer that differs from the one before concerns."""
        return self._readers if before is None or before != after else ()

    def _everyone(self) -> Iterable[Key]:
        """Whom an error concerns, and its end."""
        return self._readers

    async def _ask_for_ever(self) -> None:
        while True:
            try:
                await self._ask_once()
                is_due = await self._is_due()
            except Exception as error:
                # A task that ends by a fault of ours must not look like a world in which nothing happens.
                log.exception("looking at %s", self._where)
                text = f"{self._where}: internal error ({type(error).__name__}); the operator's log has more"
                failure = Retry(Reason.PROGRESSING_WITH_RETRY, text)
                self._fail(failure)
                await asyncio.sleep(self._backoff(failure))
            else:
                if not is_due:
                    self._forget()
                    return

    async def _ask_once(self) -> None:
        begun = self._asking_since = self._loop.time()
        self._nudge.clear()
        try:
            async with asyncio.timeout(DEADLINE.total_seconds()):
                answer = await self._ask()
        except TimeoutError:
            seconds = f"{DEADLINE.total_seconds():.0f}"
            self._fail(Retry(Reason.PROGRESSING_WITH_RETRY, f"{self._where} did not answer within {seconds} s"))
        except OperatorError as error:
            self._fail(error)
        else:
            self._settle(begun, answer)
        finally:
            self._begun, self._asking_since, self._took = begun, None, self._loop.time() - begun

    def _settle(self, begun: float, answer: T) -> None:
        before, had_failed = self.look, self.error is not None
        self.error, self._failures = None, 0
        if answer is not None and answer != ():
            self._empty_since = None
        elif self._empty_since is None and begun > self._counts_from:
            self._empty_since = begun
        empty_for = timedelta(seconds=begun - self._empty_since) if self._empty_since is not None else None
        self.look = Look(answer, begun, empty_for)
        concerned = set(self._everyone()) if had_failed else set()
        concerned.update(self._concerned(before.answer if before is not None else None, answer), self._waiting)
        self._waiting.clear()
        self._tell(concerned)

    def _fail(self, error: OperatorError) -> None:
        before, self.error = self.error, error
        self._failures += 1
        concerned = set(self._everyone()) if error != before else set()
        concerned |= self._waiting
        self._waiting.clear()
        self._tell(concerned)

    def _tell(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._wake(key)

    async def _is_due(self) -> bool:
        """Returns when it is time to ask again; False if nobody has read it for so long that it is forgotten."""
        if self.error is not None:
            await asyncio.sleep(self._backoff(self.error))
        else:
            assert self.look is not None  # noqa: S101 - no error: it was settled
            # At most a fifth of the time is spent on asking; half of it while somebody waits.
            await self._nudged(max(self._pace(self.look.answer), 4 * self._took))
            earliest = self._begun + max(SPACING.total_seconds(), 2 * self._took)
            await asyncio.sleep(max(0.0, earliest - self._loop.time()))
        if self.is_permanent or self._nudge.is_set() or self._loop.time() - self._read_at <= self._patience():
            return True
        self._is_resting = True
        is_read_again = await self._nudged(KEPT.total_seconds())
        self._is_resting = False
        return is_read_again

    def _patience(self) -> float:
        period = self._pace(self.look.answer) if self.look is not None else 0.0
        return READ_WITHIN * max(period, self._backoff(self.error) if self.error is not None else 0.0)

    def _backoff(self, error: OperatorError) -> float:
        longest = LONGEST_BLOCKED_RETRY if isinstance(error, Blocked) else LONGEST_RETRY
        wait: timedelta = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), longest)
        advice = error.after if isinstance(error, Retry) else None
        return max(wait, advice or wait).total_seconds()

    async def _nudged(self, seconds: float) -> bool:
        """Whether somebody hurried it within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
        except TimeoutError:
            pass
        return self._nudge.is_set()


class Fact(Question[T]):
    """A question whose answer hardly ever changes: an old one is better than none."""

    is_lasting = True
