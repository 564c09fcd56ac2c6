"""The pass, for any kind. Level-triggered: the newest object and the world as it is, nothing else.

    object ─► finalizer? ─► at rest? ─► parse ─► observe ─► plan ─► apply ─► status (one PATCH, only if it differs)
                 ▲                                                                        │
                 └──────────────────────────────── look again ◄───────────────────────────┘

The single status writer, the only place that adds and removes finalizers, and the only one that posts Events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from nixops_operator import logs, names
from nixops_operator.annotations import unknown_annotations
from nixops_operator.api.conditions import Condition, Truth, merge_conditions
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.cache import Cache, resource_version
from nixops_operator.errors import (
    Blocked,
    Conflict,
    InvalidSpec,
    NamesNothing,
    OperatorError,
    Retry,
    TurnKept,
    at_field,
)
from nixops_operator.facts.kube import Body, Event, Key, Kind
from nixops_operator.holds import Holds
from nixops_operator.objects import is_leaving, is_paused
from nixops_operator.planning import Finding, Plan, after_failure
from nixops_operator.ports.kube import Kube
from nixops_operator.ready import ready_conditions
from nixops_operator.rest import REST, Notes, Rest, Rests, is_settled
from nixops_operator.step import JobStep, Step, name_of
from nixops_operator.verdict import Outcome, Verdict, verdict_of
from nixops_operator.workqueue import OWNER_PACE, Closed, WorkQueue

log = logging.getLogger(__name__)

TURN_PACE = timedelta(milliseconds=250)
"""How late a call may come to its turn."""
PASS_DEADLINE = timedelta(seconds=45)
"""A pass waits for the API server and, in a step, for one call to EC2, which ends after 35 s (ports/cloud.py). One that
takes longer is ended and reported for its object; the others go on."""
REPORT_LIMIT = timedelta(seconds=10)
"""For saying so."""
UNTOLD = timedelta(seconds=1)
"""How long a status may be left to the next pass. One that has started an evaluation or a build is followed by another
soon, which sees what became of it: those that are known already are not worth a write each."""
JOB_PACE = timedelta(milliseconds=50)
"""After the start of a job; its end comes sooner or takes its time."""
_TROUBLE = (Outcome.STALLED, Outcome.RETRYING, Outcome.UNHEALTHY, Outcome.WEDGED)


class Controller(Protocol):
    """What makes a kind: the same few words for each."""

    def noting(self, notes: Notes) -> Controller:
        """The same, which notes down what it asks."""

    def desired(self, body: Body) -> Any:
        """The object as a pass wants it. Raises InvalidSpec, but never for one in deletion: what was made must go
        whatever the spec says."""

    async def observe(self, desired: Any) -> Any:
        """Looks only; raises nothing that concerns one part of the world alone."""

    def plan(self, desired: Any, observed: Any, now: datetime) -> Plan: ...

    async def apply(self, step: Step, desired: Any, body: Body) -> Body:
        """One step; returns the newest body. Raises what ports raise."""

    def status(self, desired: Any, observed: Any, plan: Plan, now: datetime) -> dict[str, Any]: ...

    async def leave(self, desired: Any, body: Body) -> Body:
        """Nothing of it is left: let go of what was kept for the way out, before the finalizer goes. Returns the newest
        body. Raises what ports raise; repeated until it succeeds."""

    def settle(self, desired: Any, observed: Any) -> None:
        """After the steps: let go of work that nobody needs any more."""

    async def forget(self, key: Key) -> None:
        """The object is gone: end looks and work for it."""


class Reconciler:
    """Runs passes, over what the cache holds."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        queue: WorkQueue[Key],
        controllers: Mapping[Kind, Controller],
        resync_period: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._queue = queue
        self._controllers = controllers
        self._resync_period = resync_period
        self._now = now
        self._holds: Holds[Key] = Holds()
        self._rests: Rests[Key] = Rests()
        self._passes = 0
        self._slips: dict[Key, str] = {}  # what was told of annotations that mean nothing
        self._untold: dict[Key, float] = {}  # the loop's time of the first pass whose status was left to the next
        self.running: dict[Key, float] = {}  # key → loop time at which its pass began

    async def work(self) -> None:
        """One worker: passes until the queue is closed."""
        while True:
            try:
                key = await self._queue.get()
            except Closed:
                return
            self.running[key] = asyncio.get_running_loop().time()
            self._passes += 1
            logs.speak_of(key, self._passes)
            try:
                async with asyncio.timeout(PASS_DEADLINE.total_seconds()):
                    await self.reconcile(key)
            except Conflict as error:
                log.debug("%s: %s; starting from the newest object", key, error)
                await self._read_anew(key)
                self._queue.backoff(key)
            except OperatorError as error:
                log.warning("%s: %s", key, error, extra={"reason": error.reason})
                self._queue.backoff(key, error.after if isinstance(error, Retry) else None)
            except TimeoutError:
                log.exception("%s: the pass was ended after %.0f s", key, PASS_DEADLINE.total_seconds())
                await self._report(key, Retry(Reason.PROGRESSING_WITH_RETRY, _OVERDUE))
                self._queue.backoff(key)
            except Exception:  # a worker is one of the two places that must survive any bug
                log.exception("%s: pass ended with an unexpected error", key)
                await self._report(key, Retry(Reason.PROGRESSING_WITH_RETRY, _INTERNAL))
                self._queue.backoff(key)
            finally:
                del self.running[key]
                self._queue.done(key)

    async def reconcile(self, key: Key) -> None:
        """One pass, or a look that shows that none is needed. Raises Conflict, Retry, Blocked from the Kubernetes port;
        everything else becomes status."""
        body = self._cache.get(key)
        if body is None:
            await self._forget(key)
            return
        finalizers = body["metadata"].get("finalizers") or ()
        if names.FINALIZER not in finalizers:
            if body["metadata"].get("deletionTimestamp"):
                return  # others' finalizers hold it; ours is off
            taken_up = await self._taken_up(key, body)
            if taken_up is None:
                return
            body = taken_up
        is_look = not self._queue.was_woken(key)
        if is_look and await self._rests.goes_on(key, body, self._now()):
            self._queue.add_after(key, self._resync_period)
            return
        self._rests.end(key)
        await self._tell_slips(key, body)
        controller, notes = self._controllers[key.kind], Notes()
        looking = controller.noting(notes) if is_look else controller
        try:
            desired = looking.desired(body)
        except InvalidSpec as error:
            await self._write_error(key, body, error)
            self._queue.add_after(key, self._resync_period)
            return
        observed = await looking.observe(desired)
        plan = controller.plan(desired, observed, self._now())
        if plan.verdict.outcome is Outcome.GONE:
            await self._let_go(key, body, desired, plan.verdict)
            return
        newest, plan, done = await self._apply(key, body, desired, plan, controller)
        controller.settle(desired, observed)
        if not self._is_left_to_next(key, newest, plan, done):
            self._untold.pop(key, None)
            if plan.verdict.outcome is not Outcome.LOOKING:
                # Steps may have written intents; a status worked out from the older object would take them back.
                if newest is not body:
                    desired = controller.desired(newest)
                fields = controller.status(desired, observed, plan, self._now())
                await self._write_status(key, newest, fields, plan.verdict)
                if is_look and notes.has_all:
                    self._rest(key, body, desired, observed, plan, notes)
        self._plan_next(key, plan, done)

    def _rest(self, key: Key, body: Body, desired: Any, observed: Any, plan: Plan, notes: Notes) -> None:
        """Passes may be left out from now on if this one would find the same at the end of the rest, too. One that has
        written something has made another object of it."""
        controller, until = self._controllers[key.kind], self._now() + REST
        at_the_end = controller.plan(desired, observed, until)
        if is_settled(plan, at_the_end) and not _changed(body, controller.status(desired, observed, at_the_end, until)):
            self._rests.begin(key, Rest(body, notes, until))

    # --- steps ----------------------------------------------------------------------------------------------------

    async def _apply(
        self, key: Key, body: Body, desired: Any, plan: Plan, controller: Controller
    ) -> tuple[Body, Plan, list[Step]]:
        """Take the steps that may run now, finding by finding; within one the first that fails or is held ends it.
        Returns the newest body, the plan with what failed in it, and the steps that were taken."""
        findings: list[Finding] = []
        done: list[Step] = []
        for finding in plan.findings:
            after = finding
            for step in finding.steps:
                held = self._holds.held(key, _generation(body), step, _loop_time())
                error = held[0] if held is not None else None
                if held is not None and isinstance(error, TurnKept | NamesNothing):
                    # What woke this pass too early has used up the timer.
                    self._queue.add_after(key, max(held[1], TURN_PACE))
                if error is None and self._holds.is_resting(key, _generation(body), step, _loop_time()):
                    break
                if error is None:
                    try:
                        body = self._put(key, await controller.apply(step, desired, body))
                    except Conflict:
                        raise
                    except OperatorError as failure:
                        error = at_field(failure, step.of_field)
                        body = self._newest(key, body)
                        log.warning("%s: %s: %s", key, name_of(step), error, extra={"reason": str(error.reason)})
                        wait = self._holds.failed(key, _generation(body), step, error, _loop_time())
                    else:
                        wait = self._holds.succeeded(key, _generation(body), step, _loop_time())
                        done.append(step)
                    self._queue.add_after(key, wait)
                if error is not None:
                    after = after_failure(finding, error)
                    break
            findings.append(after)
        return body, replace(plan, findings=tuple(findings)), done

    def _newest(self, key: Key, body: Body) -> Body:
        """A step that failed may have written an intent before."""
        known = self._cache.get(key)
        is_newer = known is not None and resource_version(known) > resource_version(body)
        return known if known is not None and is_newer else body

    def _is_left_to_next(self, key: Key, body: Body, plan: Plan, done: Sequence[Step]) -> bool:
        """Whether the status can wait for the pass that follows soon. That an edit was seen is told at once, and so is
        whatever may have changed cloud or machine."""
        is_told = (body.get("status") or {}).get("observedGeneration") == _generation(body)
        is_quiet = done and all(isinstance(step, JobStep) and step.is_harmless for step in done)
        if not is_told or not is_quiet or plan.verdict.outcome is Outcome.RETRYING or self._queue.is_closed:
            return False
        return _loop_time() - self._untold.setdefault(key, _loop_time()) < UNTOLD.total_seconds()

    def _plan_next(self, key: Key, plan: Plan, done: Sequence[Step]) -> None:
        verdict = plan.verdict
        if verdict.outcome is Outcome.RETRYING:
            self._queue.backoff(key)
        else:
            self._queue.succeeded(key)
            if any(not isinstance(step, JobStep) for step in done):
                self._queue.add(key)
                return
            if done:
                self._queue.add_after(key, JOB_PACE)
        self._queue.add_after(key, min(verdict.look_again or self._resync_period, self._resync_period))

    # --- status, Events, finalizer --------------------------------------------------------------------------------

    async def _taken_up(self, key: Key, body: Body) -> Body | None:
        """The object with our finalizer, which comes before anything is made. A refusal is told: nothing will ever
        happen otherwise."""
        try:
            return self._put(key, await self._kube.add_finalizer(body))
        except Blocked as error:
            message = f"cannot be taken up, its finalizer is refused: {error.message}"
            await self._tell(Event(key, body["metadata"]["uid"], "Warning", error.reason, message))
            await self._write_error(key, body, Blocked(error.reason, message))
            self._queue.add_after(key, self._resync_period)
            return None

    async def _write_status(self, key: Key, body: Body, fields: Mapping[str, Any], verdict: Verdict) -> None:
        changed = _changed(body, fields)
        if changed:
            self._put(key, await self._kube.patch_status(body, _merge(body.get("status") or {}, changed)))
            self._wake_owner(body)
        event = _event(key, body, fields, verdict)
        if event is not None:
            log.info("%s: %s: %s", key, event.reason, event.message, extra={"reason": event.reason})
            await self._tell(event)

    async def _write_error(self, key: Key, body: Body, error: OperatorError) -> None:
        """How an object stands when this error is all there is to say."""
        generation, verdict = _generation(body), verdict_of(error)
        previous = (body.get("status") or {}).get("conditions") or ()
        wanted = ready_conditions(previous, generation, verdict, is_serving=False)
        if not is_leaving(body) and is_paused(body, suspend=body["spec"].get("suspend") is True):
            message = "suspended, nothing is changed"
            wanted.append(Condition(ConditionType.PAUSED, Truth.TRUE, Reason.SUSPENDED, message, generation))
        fields = {"conditions": merge_conditions(previous, wanted, self._now()), "observedGeneration": generation}
        await self._write_status(key, body, fields, verdict)

    async def _report(self, key: Key, error: OperatorError) -> None:
        """Say of an object that its pass came to no end. Best effort: the next pass says more."""
        body = self._cache.get(key)
        if body is None or names.FINALIZER not in (body["metadata"].get("finalizers") or ()):
            return
        try:
            async with asyncio.timeout(REPORT_LIMIT.total_seconds()):
                await self._write_error(key, body, error)
        except (OperatorError, TimeoutError) as failure:
            log.warning("%s: this cannot be told either: %s", key, failure)
        except Exception:  # as in `work`, which this is a part of
            log.exception("%s: this cannot be told either", key)

    async def _tell(self, event: Event) -> None:
        """Events are for people, and best effort: a terminating namespace takes none, and must end all the same."""
        try:
            await self._kube.post_event(event)
        except OperatorError as error:
            log.warning("%s: the Event %s cannot be posted: %s", event.key, event.reason, error)

    async def _tell_slips(self, key: Key, body: Body) -> None:
        """An Event, once in this process: nothing is wrong with the object, but somebody waits for what never comes."""
        message = unknown_annotations(key.kind, body["metadata"].get("annotations") or ())
        if not message:
            self._slips.pop(key, None)
        elif self._slips.get(key) != message:
            self._slips[key] = message
            await self._tell(Event(key, body["metadata"]["uid"], "Warning", Reason.UNKNOWN_ANNOTATION, message))

    async def _let_go(self, key: Key, body: Body, desired: Any, verdict: Verdict) -> None:
        """`verdict` has a message only if something stays behind; that is told first, since a repeat tells it once."""
        if verdict.message:
            await self._tell(Event(key, body["metadata"]["uid"], "Warning", verdict.reason, verdict.message))
        try:
            body = await self._controllers[key.kind].leave(desired, body)
        except Conflict:
            raise
        except OperatorError as error:
            log.warning("%s: nothing of it is left, and it cannot go: %s", key, error)
            await self._write_error(key, self._newest(key, body), error)
            self._queue.backoff(key)
            return
        await self._kube.remove_finalizer(body)
        self._cache.drop(key, resource_version(body))
        await self._forget(key)
        self._wake_owner(body)
        log.info("%s: deleted, %s", key, verdict.message or "nothing of it is left")

    async def _forget(self, key: Key) -> None:
        self._holds.forget(key)
        self._rests.end(key)
        self._slips.pop(key, None)
        self._untold.pop(key, None)
        self._queue.forget(key)
        await self._controllers[key.kind].forget(key)

    def _put(self, key: Key, body: Body) -> Body:
        self._cache.put(key, body)
        return body

    def _wake_owner(self, body: Body) -> None:
        """Our own write is no news to the watch, but it is to the owner."""
        owner = self._cache.owner_key(body)
        if owner is not None:
            self._queue.add_paced(owner, OWNER_PACE)

    async def _read_anew(self, key: Key) -> None:
        """After a conflict the cache may be behind by more than the watch will tell soon."""
        known = self._cache.get(key)
        try:
            fresh = await self._kube.get(key)
        except OperatorError as error:
            log.warning("%s: cannot be read anew: %s", key, error)
            return
        except Exception:  # as in `work`, which this is a part of
            log.exception("%s: cannot be read anew", key)
            return
        if fresh is not None:
            self._cache.put(key, fresh)
        elif known is not None and self._cache.drop(key, resource_version(known)) is not None:
            self._wake_owner(known)


_OVERDUE = "the last pass over this object was ended because it took too long; trying again"
_INTERNAL = "internal error in the last pass over this object, see the operator's log; trying again"


def _generation(body: Body) -> int:
    return int(body["metadata"]["generation"])


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _event(key: Key, body: Body, fields: Mapping[str, Any], verdict: Verdict) -> Event | None:
    """Told once, when Ready's status or reason changes; retries tell nothing."""
    before = _ready((body.get("status") or {}).get("conditions") or ())
    after = _ready(fields["conditions"])
    if after is None or (before and (before["status"], before["reason"]) == (after["status"], after["reason"])):
        return None
    kind = "Warning" if verdict.outcome in _TROUBLE else "Normal"
    reason = after["reason"] if after["status"] != "True" or verdict.outcome is not Outcome.IN_SYNC else "Ready"
    return Event(key, body["metadata"]["uid"], kind, reason, after["message"])


def _ready(conditions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((entry for entry in conditions if entry["type"] == ConditionType.READY), None)


def _changed(body: Body, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the status that are to say something else than they do."""
    before = body.get("status") or {}
    return {name: value for name, value in fields.items() if before.get(name) != _plain(value)}


def _plain(value: Any) -> Any:
    """None inside a map means "absent": the API server never returns it."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return value


def _merge(before: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch that leaves exactly `changed`: keys that a map had and has no more are removed by None."""
    patch: dict[str, Any] = {}
    for name, value in changed.items():
        known = before.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            patch[name] = {**dict.fromkeys(known.keys() - value.keys()), **_merge(known, value)}
        else:
            patch[name] = value
    return patch
