"""Work that takes longer than a pass may: evaluations, builds, copies, steps on hosts. Keyed by what it produces,
shared by all who ask for it.

A pass looks (`states`), starts what is missing (`start`) and returns; when the job ends it wakes every key that asked
for it. Names are made by job_names.py. Jobs live in memory only: after a crash the next pass finds the world as it is
and starts what is still missing.

    start ──► waits for a place of its kind ──► works ──► Done    until nobody wants it any more
                  (namespaces in turn)            │
                                                  └─────► Failed  until its time to be tried again

Every job ends: it has a deadline from the moment it works, and a copy ends earlier if nothing moves (`stall`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from nixops_operator.api.durations import format_duration
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Lost, OperatorError, Retry
from nixops_operator.job_names import BUILD, COPY, DRY_ACTIVATE, EVALUATE, FETCH, HOST, REALISE, kind_of


class Waiter(Protocol):
    """Who asks for jobs. Namespaces take turns, whatever number of waiters each has."""

    @property
    def namespace(self) -> str: ...

    def __hash__(self) -> int: ...


T = TypeVar("T")
K = TypeVar("K", bound=Waiter)
Work = Callable[[Callable[[str], None]], Awaitable[Any]]
"""The work itself; called with a function that takes a progress text. Calling it says that something moved."""

log = logging.getLogger(__name__)

REMEMBERED_RESULTS = 2000
"""Results that nobody wants at the moment and that are kept all the same, those wanted last; each is a path or two."""
PROGRESS_PERIOD = timedelta(seconds=5)
"""A progress text wakes its keys at most that often: each wake may write a status."""
RETRY_AFTER = timedelta(seconds=2)
"""A job that failed for now may be started again after this; doubles up to the next."""
LONGEST_RETRY = timedelta(minutes=5)
BLOCKED_AFTER = timedelta(minutes=10)
"""A job that failed for good (Blocked, Lost) is tried again this slowly: a disk may have been full."""
HEALING_AFTER = timedelta(seconds=30)
"""The first pause, doubled up to BLOCKED_AFTER, of those whose failure may lie with others: what a cache or a server
lacks now, it may have in a moment. The same evaluation fails for the same reason again, and a person must act."""
_MAY_HEAL = frozenset({FETCH, BUILD, REALISE})

DEADLINES: Mapping[str, timedelta] = {
    # Far above what the work allows itself: no bug and no silent peer holds a place for ever.
    FETCH: timedelta(hours=1),
    EVALUATE: timedelta(hours=1),
    BUILD: timedelta(hours=24),
    REALISE: timedelta(hours=24),
    DRY_ACTIVATE: timedelta(hours=1),
    HOST: timedelta(hours=1),
    # 10 GB at 4 Mbit/s; the copy after it goes on with what has arrived.
    COPY: timedelta(hours=6),
}
STALLS: Mapping[str, timedelta] = {COPY: timedelta(minutes=5)}
_ENDED: Mapping[str, tuple[Reason, str]] = {
    FETCH: (Reason.FETCHING, "fetching a source"),
    EVALUATE: (Reason.EVALUATING, "the evaluation"),
    BUILD: (Reason.BUILDING, "the build"),
    COPY: (Reason.COPY_FAILED, "the copy to the machine"),
    REALISE: (Reason.BUILDING, "following the build on the machine"),
    DRY_ACTIVATE: (Reason.ACTIVATING, "the dry run on the machine"),
    HOST: (Reason.PROGRESSING_WITH_RETRY, "a step on the machine"),
}


@dataclass(frozen=True)
class Running:
    """Waits for a place, or works. `progress` is for people, empty at first; `last_error`: what the run before ended
    with."""

    progress: str = ""
    last_error: OperatorError | None = None


@dataclass(frozen=True)
class Done(Generic[T]):
    result: T


@dataclass(frozen=True)
class Failed:
    """Ended with an error. `is_due`: its time to be tried again has come."""

    error: OperatorError
    is_due: bool = False


JobState = Running | Done[Any] | Failed


class Jobs(Generic[K]):
    """See the module. `limits`: kind → how many at once (kinds not named are unlimited). `wake` is called with each
    waiter. `stalls`: kind → how long without a progress text."""

    def __init__(
        self, limits: Mapping[str, int], wake: Callable[[K], None], stalls: Mapping[str, timedelta] = STALLS
    ) -> None:
        self._places = {kind: _Places(count) for kind, count in limits.items()}
        self._wake = wake
        self._stalls = stalls
        self._jobs: dict[str, _Job[K]] = {}
        self._of: dict[K, dict[str, _Job[K]]] = {}
        self._unused: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def states(self, waiter: K) -> Mapping[str, JobState]:
        """All jobs that this waiter has asked for, by name."""
        now = asyncio.get_running_loop().time()
        return {name: job.state_at(now) for name, job in self._of.get(waiter, {}).items()}

    def start(
        self,
        name: str,
        waiter: K,
        work: Work,
        *,
        keep: bool = True,
        deadline: timedelta | None = None,
        stall: timedelta | None = None,
    ) -> None:
        """Ask for a job: it starts unless it runs or is known. `waiter` is woken when it ends.

        `keep=False`: success is forgotten at once, because the world tells it (a step on a host); failures are
        remembered until their time. `deadline`: how long it may work, `stall`: how long without a progress text; None
        means its kind's in DEADLINES and `stalls`. A job over either is ended and fails for now.
        """
        known = self._jobs.get(name)
        if known is not None:
            self._join(known, waiter)
            match known.state_at(asyncio.get_running_loop().time()):
                case Running():
                    return
                case Done():
                    self._wake(waiter)
                    return
                case Failed(is_due=False):
                    return  # its timer wakes all waiters; waking now would be a hot loop
            job = self._renewed(known, keep)
        else:
            job = _Job[K](name, is_kept=keep)
            self._jobs[name] = job
            self._join(job, waiter)
        kind = kind_of(name)
        bounds = _Bounds(deadline or DEADLINES.get(kind), stall or self._stalls.get(kind))
        job.task = asyncio.get_running_loop().create_task(self._run(job, work, bounds), name=name)
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)

    def forget(self, name: str) -> None:
        """Drop what is known of a finished job, so that it may run again at once; a running one goes on."""
        job = self._jobs.get(name)
        if job is not None and not isinstance(job.state, Running):
            self._drop(job)

    def results(self) -> tuple[Any, ...]:
        """Of finished jobs that somebody waits for."""
        return tuple(job.state.result for job in self._jobs.values() if isinstance(job.state, Done) and job.waiters)

    def forget_unused(self) -> None:
        """Drop the results that nobody wants at the moment: what they name is about to go."""
        for job in [self._jobs[name] for name in self._unused]:
            if isinstance(job.state, Done) and not job.waiters:
                self._drop(job)

    def release(self, waiter: K, wanted: frozenset[str], abandon: tuple[str, ...]) -> None:
        """Of the kinds `abandon` the waiter wants only `wanted` from now on; what nobody waits for any more is
        cancelled, or may be forgotten. What somebody wants is remembered as long as that lasts.

        Jobs of other kinds stay: they are the waiter's own, and their failures must be seen.
        """
        for name, job in list(self._of.get(waiter, {}).items()):
            if kind_of(name) not in abandon or name in wanted:
                continue
            self._leave(job, waiter)
            if job.waiters:
                continue
            if job.task is not None:
                # Out of sight at once: who asks for it before it has ended must not be told of its end.
                self._drop(job)
                job.task.cancel()
            else:
                self._bound(job)

    def running(self) -> Mapping[str, int]:
        """Kind → number of jobs that work or wait for a place, for metrics."""
        return Counter(kind_of(name) for name, job in self._jobs.items() if isinstance(job.state, Running))

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        for job in list(self._jobs.values()):
            if job.task is not None:
                self._drop(job)
                job.task.cancel()
            elif job.timer is not None:
                job.timer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: _Job[K], work: Work, bounds: _Bounds) -> None:
        try:
            result = await self._in_its_place(job, work, bounds)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody ended the job: something inside of the work was cancelled, and somebody still waits.
            log.exception("job %s was cancelled from inside", job.name)
            self._fail(job, unexpected(error))
        except OperatorError as error:
            self._fail(job, error)
        except Exception as error:  # a job's end is one of the two places that must survive any bug
            log.exception("job %s ended with an unexpected error", job.name)
            self._fail(job, unexpected(error))
        else:
            self._succeed(job, result)

    async def _in_its_place(self, job: _Job[K], work: Work, bounds: _Bounds) -> Any:
        places = self._places.get(kind_of(job.name))
        if places is None:
            return await self._bounded(job, work, bounds)
        job.ticket = places.ticket({waiter.namespace for waiter in job.waiters})
        try:
            await job.ticket.turn
            return await self._bounded(job, work, bounds)
        finally:
            places.leave(job.ticket)
            job.ticket = None

    async def _bounded(self, job: _Job[K], work: Work, bounds: _Bounds) -> Any:
        """The work's result. Raises Retry if it takes too long, or nothing moves for too long."""
        loop = asyncio.get_running_loop()
        end = bounds.end_after(loop.time())
        limit = asyncio.timeout_at(bounds.next_end(loop.time(), end))

        def progress(text: str) -> None:
            if job.task is None or limit.expired():
                return
            limit.reschedule(bounds.next_end(loop.time(), end))
            job.state = Running(text, job.last_error)
            if loop.time() - job.told_at >= PROGRESS_PERIOD.total_seconds():
                job.told_at = loop.time()
                self._tell(job)

        try:
            async with limit:
                return await work(progress)
        except TimeoutError as error:
            if not limit.expired():
                raise
            reason, what = _ENDED.get(kind_of(job.name), (Reason.PROGRESSING_WITH_RETRY, "the work"))
            raise Retry(reason, f"{what} {bounds.exceeded(loop.time(), end)}: ended, tried again") from error

    def _succeed(self, job: _Job[K], result: Any) -> None:
        if self._jobs.get(job.name) is not job:
            return  # nobody wanted it any more, and it ended all the same before it was cancelled
        job.task = None
        job.state = Done(result)
        job.failures = 0
        waiters = list(job.waiters)
        if job.is_kept:
            self._bound(job)
        else:
            self._drop(job)
        for waiter in waiters:
            self._wake(waiter)

    def _fail(self, job: _Job[K], error: OperatorError) -> None:
        if self._jobs.get(job.name) is not job:
            return
        job.task = None
        job.failures += 1
        wait = _pause(kind_of(job.name), error, job.failures)
        job.state = Failed(error)
        loop = asyncio.get_running_loop()
        job.retry_at = loop.time() + wait.total_seconds()
        job.timer = loop.call_at(job.retry_at, self._tell, job)
        self._tell(job)
        self._bound(job)

    def _renewed(self, known: _Job[K], keep: bool) -> _Job[K]:
        """A failed job that is due, as one that runs again and knows how often it failed."""
        known.last_error = known.state.error if isinstance(known.state, Failed) else None
        known.state = Running(last_error=known.last_error)
        known.is_kept = keep
        known.told_at = float("-inf")
        self._unused.pop(known.name, None)
        return known

    def _join(self, job: _Job[K], waiter: K) -> None:
        job.waiters.add(waiter)
        self._of.setdefault(waiter, {})[job.name] = job
        if job.is_kept:
            self._unused.pop(job.name, None)
        places = self._places.get(kind_of(job.name))
        if places is not None and job.ticket is not None:
            places.join(job.ticket, waiter.namespace)

    def _leave(self, job: _Job[K], waiter: K) -> None:
        job.waiters.discard(waiter)
        of_waiter = self._of[waiter]
        del of_waiter[job.name]
        if not of_waiter:
            del self._of[waiter]

    def _drop(self, job: _Job[K]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        for waiter in list(job.waiters):
            self._leave(job, waiter)
        del self._jobs[job.name]
        self._unused.pop(job.name, None)

    def _bound(self, job: _Job[K]) -> None:
        """Remember a finished job that nobody wants among a limited number of others. The failure of a step on a host
        is among them from the start: its waiter never says that it has seen enough."""
        if job.waiters and job.is_kept:
            return
        self._unused[job.name] = None
        self._unused.move_to_end(job.name)
        while len(self._unused) > REMEMBERED_RESULTS:
            self._drop(self._jobs[next(iter(self._unused))])

    def _tell(self, job: _Job[K]) -> None:
        for waiter in list(job.waiters):
            self._wake(waiter)


@dataclass(eq=False)
class _Job(Generic[K]):
    name: str
    is_kept: bool
    state: JobState = field(default_factory=Running)
    waiters: set[K] = field(default_factory=set)
    task: asyncio.Task[None] | None = None  # while it waits for a place or works
    ticket: _Ticket | None = None
    timer: asyncio.TimerHandle | None = None  # wakes the waiters when a failed job is due
    retry_at: float = 0.0
    told_at: float = float("-inf")
    failures: int = 0
    last_error: OperatorError | None = None

    def state_at(self, now: float) -> JobState:
        return Failed(self.state.error, now >= self.retry_at) if isinstance(self.state, Failed) else self.state


@dataclass(frozen=True)
class _Bounds:
    """How long a job may work, and how long without progress; None is without end. Times are the loop's, in seconds."""

    deadline: timedelta | None
    stall: timedelta | None

    def end_after(self, now: float) -> float:
        return float("inf") if self.deadline is None else now + self.deadline.total_seconds()

    def next_end(self, now: float, end: float) -> float | None:
        """When it is to be ended unless it says something before; None: never."""
        stalled = float("inf") if self.stall is None else now + self.stall.total_seconds()
        first = min(end, stalled)
        return None if first == float("inf") else first

    def exceeded(self, now: float, end: float) -> str:
        if self.stall is None or now >= end:
            return f"took longer than {format_duration(self.deadline or timedelta())}"
        return f"made no progress for {format_duration(self.stall)}"


class _Ticket:
    """One job's wait for a place. `turn` is done when it has one."""

    def __init__(self) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.namespaces: list[str] = []  # in whose lines it stands
        self.charged_to: str | None = None  # the namespace that holds the place


class _Places:
    """The places of one kind. A free one goes to the waiting namespace that holds fewest, among those to the one whose
    turn is longest ago, and there to the job that waits longest.

    So a namespace gets more than half of the places only while nobody else waits, and a job that two namespaces ask for
    waits as long as the luckier of them.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._held: Counter[str] = Counter()
        self._lines: dict[str, OrderedDict[_Ticket, None]] = {}
        self._turns = 0
        self._last_turn: dict[str, int] = {}  # one number per namespace that ever had a turn

    def ticket(self, namespaces: set[str]) -> _Ticket:
        """Begin to wait, in the lines of these namespaces."""
        ticket = _Ticket()
        for namespace in sorted(namespaces):
            self.join(ticket, namespace)
        return ticket

    def join(self, ticket: _Ticket, namespace: str) -> None:
        """One more namespace wants it."""
        if ticket.charged_to is not None or namespace in ticket.namespaces:
            return
        ticket.namespaces.append(namespace)
        self._lines.setdefault(namespace, OrderedDict())[ticket] = None
        self._give()

    def leave(self, ticket: _Ticket) -> None:
        """It has ended, or waits no longer."""
        self._out_of_line(ticket)
        if ticket.charged_to is not None:
            self._held[ticket.charged_to] -= 1
            if not self._held[ticket.charged_to]:
                del self._held[ticket.charged_to]
            self._free += 1
        self._give()

    def _give(self) -> None:
        while self._free and self._lines:
            namespace = min(self._lines, key=lambda each: (self._held[each], self._last_turn.get(each, 0)))
            ticket = next(iter(self._lines[namespace]))
            self._out_of_line(ticket)
            self._turns += 1
            self._last_turn[namespace] = self._turns
            ticket.charged_to = namespace
            self._held[namespace] += 1
            self._free -= 1
            if not ticket.turn.done():  # else it was cancelled, and leaves in a moment
                ticket.turn.set_result(None)

    def _out_of_line(self, ticket: _Ticket) -> None:
        for namespace in ticket.namespaces:
            line = self._lines.get(namespace)
            if line is not None:
                line.pop(ticket, None)
                if not line:
                    del self._lines[namespace]
        ticket.namespaces.clear()


def _pause(kind: str, error: OperatorError, failures: int) -> timedelta:
    """How long a job waits to be tried again, after that many failures in a row."""
    doubled: int = 2 ** min(failures - 1, 10)
    if isinstance(error, Blocked | Lost):
        return min(HEALING_AFTER * doubled, BLOCKED_AFTER) if kind in _MAY_HEAL else BLOCKED_AFTER
    if isinstance(error, Retry) and error.after is not None:
        return error.after
    return min(RETRY_AFTER * doubled, LONGEST_RETRY)


def unexpected(error: BaseException) -> Retry:
    """A bug, as a person should see it: named, retried, no traceback (that is in the log)."""
    return Retry(Reason.PROGRESSING_WITH_RETRY, f"internal error ({type(error).__name__}); see the operator's log")
