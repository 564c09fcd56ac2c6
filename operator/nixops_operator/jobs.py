"""Work that takes longer than a pass may: evaluations, builds, copies, steps on hosts. Keyed by what it produces,
shared by all who ask for it.

A job's name is `<kind>:<product>` (`evaluate:<input hash>`, `build:<drv>`, `copy:<machine>:<toplevel>`). A pass looks
(`look`), starts what is missing
(`start`) and returns; when the job ends it wakes every key that asked for it. Jobs live in memory only: after a crash
the next pass finds the world as
it is and starts what is still missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Lost, OperatorError, Retry

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Work = Callable[[Callable[[str], None]], Awaitable[Any]]
"""The work itself; called with a function that takes a progress text."""

log = logging.getLogger(__name__)

REMEMBERED_RESULTS = 2000  # finished results kept, least recently asked for go first; a result is a path or two
PROGRESS_PERIOD = timedelta(
    seconds=5
)  # a progress text wakes its keys at most that often: each wake may write a status
RETRY_AFTER = timedelta(seconds=2)  # a job that failed for now may be started again after this; doubles up to the next
LONGEST_RETRY = timedelta(minutes=5)
BLOCKED_AFTER = timedelta(
    minutes=10
)  # a job that failed for good is tried again this slowly: a disk may have been full


@dataclass(frozen=True)
class Running:
    """Waits for a slot, or works. `progress` is for people, empty at first; `last_error`: what the run before ended
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


@dataclass
class _Job(Generic[K]):
    state: JobState
    waiters: set[K]
    task: asyncio.Task[None] | None = None
    retry_at: float = 0.0
    told_at: float = float("-inf")
    is_kept: bool = True
    failures: int = 0
    last_error: OperatorError | None = None


class Jobs(Generic[K]):
    """See the module. `limits`: kind → how many at once (kinds not named are unlimited). `wake` is called with each
    waiter."""

    def __init__(self, limits: Mapping[str, int], wake: Callable[[K], None]) -> None:
        self._slots = {kind: asyncio.Semaphore(count) for kind, count in limits.items()}
        self._wake = wake
        self._jobs: OrderedDict[str, _Job[K]] = OrderedDict()

    def states(self, waiter: K) -> Mapping[str, JobState]:
        """All jobs that this waiter has asked for, by name."""
        return {name: self._state(job) for name, job in self._jobs.items() if waiter in job.waiters}

    def _state(self, job: _Job[K]) -> JobState:
        if isinstance(job.state, Failed):
            return Failed(job.state.error, asyncio.get_running_loop().time() >= job.retry_at)
        return job.state

    def start(self, name: str, waiter: K, work: Work, *, keep: bool = True) -> None:
        """Ask for a job: it starts unless it runs or is known. `waiter` is woken when it ends.

        `keep=False`: success is forgotten at once, because the world tells it (a step on a host); failures are
        remembered until their time.
        """
        known = self._jobs.get(name)
        if known is not None:
            self._jobs.move_to_end(name)
            known.waiters.add(waiter)
            state = self._state(known)
            if isinstance(state, Running):
                return
            if isinstance(state, Done):
                self._wake(waiter)
                return
            if not state.is_due:
                return  # its timer wakes all waiters; waking now would be a hot loop
        job = _Job[K](Running(), {waiter}, is_kept=keep)
        if known is not None:
            job.waiters, job.failures = known.waiters, known.failures
            job.last_error = known.state.error if isinstance(known.state, Failed) else None
            job.state = Running(last_error=job.last_error)
        self._jobs[name] = job
        job.task = asyncio.get_running_loop().create_task(self._run(name, job, work), name=name)

    def forget(self, name: str) -> None:
        """Drop what is known of a finished job, so that it may run again at once; a running one goes on."""
        job = self._jobs.get(name)
        if job is not None and not isinstance(job.state, Running):
            del self._jobs[name]

    def release(self, waiter: K, wanted: frozenset[str], abandon: tuple[str, ...]) -> None:
        """Of the kinds `abandon` the waiter wants only `wanted` from now on; what nobody waits for any more is
        cancelled.
        Jobs of other kinds stay: they are the waiter's own, and their failures must be seen."""
        for name, job in list(self._jobs.items()):
            if name.partition(":")[0] not in abandon or name in wanted or waiter not in job.waiters:
                continue
            job.waiters.discard(waiter)
            if not job.waiters and job.task is not None:
                job.task.cancel()

    def running(self) -> Mapping[str, int]:
        """Kind → number of running jobs, for metrics."""
        counts: dict[str, int] = {}
        for name, job in self._jobs.items():
            if isinstance(job.state, Running):
                kind = name.partition(":")[0]
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, name: str, job: _Job[K], work: Work) -> None:
        loop = asyncio.get_running_loop()

        def progress(text: str) -> None:
            job.state = Running(text, job.last_error)
            if loop.time() - job.told_at >= PROGRESS_PERIOD.total_seconds():
                job.told_at = loop.time()
                self._tell(job)

        try:
            slots = self._slots.get(name.partition(":")[0])
            if slots is None:
                result = await work(progress)
            else:
                async with slots:
                    result = await work(progress)
        except asyncio.CancelledError:
            self._jobs.pop(name, None)
            raise
        except OperatorError as error:
            self._fail(job, error, loop.time())
        except Exception as error:  # a job's end is one of the two places that must survive any bug
            log.exception("job %s ended with an unexpected error", name)
            self._fail(job, unexpected(error), loop.time())
        else:
            if job.is_kept:
                job.state = Done(result)
                job.failures = 0
            elif self._jobs.get(name) is job:
                del self._jobs[name]
            while len(self._jobs) > REMEMBERED_RESULTS:
                oldest = next((n for n, j in self._jobs.items() if not isinstance(j.state, Running)), None)
                if oldest is None:
                    break
                del self._jobs[oldest]
        finally:
            job.task = None
        self._tell(job)

    def _fail(self, job: _Job[K], error: OperatorError, now: float) -> None:
        job.failures += 1
        if isinstance(error, Blocked | Lost):
            wait = BLOCKED_AFTER
        elif isinstance(error, Retry) and error.after is not None:
            wait = error.after
        else:
            wait = min(RETRY_AFTER * 2 ** min(job.failures - 1, 10), LONGEST_RETRY)
        job.state = Failed(error)
        job.retry_at = now + wait.total_seconds()
        loop = asyncio.get_running_loop()
        loop.call_at(job.retry_at, self._tell, job)

    def _tell(self, job: _Job[K]) -> None:
        for waiter in list(job.waiters):
            self._wake(waiter)


def unexpected(error: Exception) -> Retry:
    """A bug, as a person should see it: named, retried, no traceback (that is in the log)."""
    return Retry(Reason.PROGRESSING_WITH_RETRY, f"internal error ({type(error).__name__}); see the operator's log")
