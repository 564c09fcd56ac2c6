"""The pass, for any kind. Level-triggered: the newest object and the world as it is, nothing else.

    object ─► finalizer? ─► parse ─► observe ─► plan ─► apply ─► status (one PATCH, only if it differs) ─► look again

The single status writer, the only place that adds and removes finalizers, and the only one that posts Events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog

from nixops_operator import names
from nixops_operator.api.conditions import merge_conditions
from nixops_operator.api.reasons import ConditionType
from nixops_operator.cache import Cache, owner_uid, resource_version
from nixops_operator.errors import Blocked, Conflict, InvalidSpec, OperatorError
from nixops_operator.facts.kube import Body, Event, Key, Kind
from nixops_operator.ports.kube import Kube
from nixops_operator.ready import ready_conditions
from nixops_operator.verdict import Outcome, Verdict, verdict_of
from nixops_operator.workqueue import Closed, WorkQueue

log = logging.getLogger(__name__)

FIRST_HOLD = timedelta(seconds=2)
LONGEST_HOLD = timedelta(minutes=5)
BLOCKED_HOLD = timedelta(minutes=10)  # what needs a person is tried again this slowly, or at once after an edit
_TROUBLE = (Outcome.STALLED, Outcome.RETRYING, Outcome.WEDGED)


class Plan(Protocol):
    """What both kinds' plans have."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def steps(self) -> Sequence[Any]: ...


class Controller(Protocol):
    """What makes a kind: four words, the same for each."""

    def desired(self, body: Body) -> Any:
        """The object as a pass wants it. Raises InvalidSpec."""

    async def observe(self, desired: Any) -> Any:
        """Looks only; raises nothing that concerns one part of the world alone."""

    def plan(self, desired: Any, observed: Any, now: datetime) -> Plan: ...

    async def apply(self, step: Any, desired: Any, body: Body) -> Body:
        """One step; returns the newest body. Raises what ports raise."""

    def status(self, desired: Any, observed: Any, plan: Any, now: datetime) -> dict[str, Any]: ...

    def settle(self, desired: Any, plan: Any) -> None:
        """After the steps: let go of work that nobody needs any more."""

    async def forget(self, key: Key) -> None:
        """The object is gone: end looks and work for it."""


@dataclass
class _Hold:
    """A step that failed is not taken again before its time. Steps of one type share the hold, and an edit of the spec
    ends it."""

    generation: int
    error: OperatorError
    until: float
    failures: int


class Reconciler:
    """Runs passes. `gate` is set once the cache holds everything that exists."""

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
        self._holds: dict[Key, dict[str, _Hold]] = {}
        self._last_steps: dict[Key, tuple[Any, ...]] = {}
        self._passes = 0
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
            structlog.contextvars.bind_contextvars(key=str(key), pass_id=self._passes)
            try:
                await self.reconcile(key)
            except Conflict as error:
                log.debug("%s: %s; starting from the newest object", key, error)
                await self._read_anew(key)
                self._queue.backoff(key)
            except OperatorError as error:
                log.warning("%s: %s", key, error, extra={"reason": error.reason})
                self._queue.backoff(key)
            except Exception:  # a worker is one of the two places that must survive any bug
                log.exception("%s: pass ended with an unexpected error", key)
                self._queue.backoff(key)
            finally:
                del self.running[key]
                self._queue.done(key)

    async def reconcile(self, key: Key) -> None:
        """One pass. Raises Conflict, Retry, Blocked from the Kubernetes port; everything else becomes status."""
        body = self._cache.get(key)
        if body is None:
            await self._forget(key)
            return
        finalizers = body["metadata"].get("finalizers") or ()
        if names.FINALIZER not in finalizers:
            if body["metadata"].get("deletionTimestamp"):
                return  # others' finalizers hold it; ours is off
            self._put(key, await self._kube.add_finalizer(body))
            self._queue.add(key)
            return
        controller = self._controllers[key.kind]
        try:
            desired = controller.desired(body)
        except InvalidSpec as error:
            await self._write_status(key, body, _invalid_status(body, error, self._now()), verdict_of(error))
            self._queue.add_after(key, self._resync_period)
            return
        observed = await controller.observe(desired)
        plan = controller.plan(desired, observed, self._now())
        if plan.verdict.outcome is Outcome.GONE:
            await self._let_go(key, body, plan.verdict)
            return
        body, verdict, has_changed = await self._apply(key, body, desired, plan, controller)
        controller.settle(desired, plan)
        if verdict.outcome is not Outcome.LOOKING:
            # Steps may have written intents; a status worked out from the older object would take them back.
            desired = controller.desired(body)
            fields = controller.status(desired, observed, replace(plan, verdict=verdict), self._now())  # type: ignore[type-var]  # plans are dataclasses
            await self._write_status(key, body, fields, verdict)
        self._plan_next(key, plan, verdict, has_changed)

    # --- steps ----------------------------------------------------------------------------------------------------

    async def _apply(
        self, key: Key, body: Body, desired: Any, plan: Plan, controller: Controller
    ) -> tuple[Body, Verdict, bool]:
        """Take the steps that may run now. Returns the newest body, the verdict with what failed in it, whether
        anything was done."""
        verdict, has_changed = plan.verdict, False
        generation = body["metadata"]["generation"]
        for step in plan.steps:
            hold = self._hold(key, generation, step)
            if hold is not None:
                verdict = _with_error(verdict, hold.error)
                continue
            try:
                body = self._put(key, await controller.apply(step, desired, body))
            except Conflict:
                raise
            except OperatorError as error:
                log.warning("%s: %s: %s", key, type(step).__name__, error, extra={"reason": str(error.reason)})
                self._remember_failure(key, generation, step, error)
                verdict = _with_error(verdict, error)
            else:
                self._holds.get(key, {}).pop(_gate(step), None)
                has_changed = True
        return body, verdict, has_changed

    def _hold(self, key: Key, generation: int, step: Any) -> _Hold | None:
        hold = self._holds.get(key, {}).get(_gate(step))
        if hold is None or hold.generation != generation:
            return None
        return hold if asyncio.get_running_loop().time() < hold.until else None

    def _remember_failure(self, key: Key, generation: int, step: Any, error: OperatorError) -> None:
        holds = self._holds.setdefault(key, {})
        known = holds.get(_gate(step))
        failures = known.failures + 1 if known is not None and known.generation == generation else 1
        if isinstance(error, Blocked):
            wait = getattr(step, "blocked_hold", BLOCKED_HOLD)
        else:
            wait = getattr(error, "after", None) or min(FIRST_HOLD * 2 ** min(failures - 1, 10), LONGEST_HOLD)
        until = asyncio.get_running_loop().time() + wait.total_seconds()
        holds[_gate(step)] = _Hold(generation, error, until, failures)
        self._queue.add_after(key, wait)

    def _plan_next(self, key: Key, plan: Plan, verdict: Verdict, has_changed: bool) -> None:
        steps = tuple(plan.steps)
        is_repeated = steps == self._last_steps.get(key) and bool(steps)
        self._last_steps[key] = steps
        if verdict.outcome is Outcome.RETRYING or (has_changed and is_repeated):
            # A step that changed nothing that can be seen must not become a hot loop.
            self._queue.backoff(key)
        else:
            self._queue.succeeded(key)
            if has_changed:
                self._queue.add(key)
                return
        self._queue.add_after(key, min(verdict.look_again or self._resync_period, self._resync_period))

    # --- status, Events, finalizer --------------------------------------------------------------------------------

    async def _write_status(self, key: Key, body: Body, fields: Mapping[str, Any], verdict: Verdict) -> None:
        before = body.get("status") or {}
        changed = {name: value for name, value in fields.items() if before.get(name) != _plain(value)}
        if changed:
            self._put(key, await self._kube.patch_status(body, _merge(before, changed)))
            self._wake_owner(body)
        event = _event(key, body, fields, verdict)
        if event is not None:
            log.info("%s: %s: %s", key, event.reason, event.message, extra={"reason": event.reason})
            await self._kube.post_event(event)

    async def _let_go(self, key: Key, body: Body, verdict: Verdict) -> None:
        """`verdict` has a message only if something stays behind; that is told first, since a repeat tells it once."""
        if verdict.message:
            await self._kube.post_event(Event(key, body["metadata"]["uid"], "Warning", verdict.reason, verdict.message))
        await self._kube.remove_finalizer(body)
        self._cache.drop(key, resource_version(body))
        await self._forget(key)
        self._wake_owner(body)
        log.info("%s: deleted, %s", key, verdict.message or "nothing of it is left")

    async def _forget(self, key: Key) -> None:
        self._holds.pop(key, None)
        self._last_steps.pop(key, None)
        self._queue.forget(key)
        await self._controllers[key.kind].forget(key)

    def _put(self, key: Key, body: Body) -> Body:
        self._cache.put(key, body)
        return body

    def _wake_owner(self, body: Body) -> None:
        """Our own write is no news to the watch, but it is to the owner."""
        uid = owner_uid(body)
        owner = self._cache.key_of_uid(uid) if uid is not None else None
        if owner is not None:
            self._queue.add(owner)

    async def _read_anew(self, key: Key) -> None:
        """After a conflict the cache may be behind by more than the watch will tell soon."""
        known = self._cache.get(key)
        try:
            fresh = await self._kube.get(key)
        except OperatorError as error:
            log.warning("%s: cannot be read anew: %s", key, error)
            return
        if fresh is not None:
            self._cache.put(key, fresh)
        elif known is not None and self._cache.drop(key, resource_version(known)) is not None:
            self._wake_owner(known)


def _gate(step: Any) -> str:
    return getattr(step, "gate", type(step).__name__)


def _with_error(verdict: Verdict, error: OperatorError) -> Verdict:
    """A failed step decides how the object stands, but for one that serves (it goes on) or is being deleted."""
    found = verdict_of(error, verdict.condition)
    if verdict.outcome is Outcome.DELETING:
        outcome = Outcome.WEDGED if isinstance(error, Blocked) else Outcome.DELETING
        return replace(found, outcome=outcome, look_again=verdict.look_again)
    if verdict.outcome is Outcome.REPAIRING and not isinstance(error, Blocked):
        return replace(verdict, message=f"{verdict.message}: {error.message}")
    if verdict.outcome in (Outcome.STALLED, Outcome.RETRYING):
        return verdict  # what the plan itself found stands; the step was work beside it
    return found


def _invalid_status(body: Body, error: InvalidSpec, now: datetime) -> dict[str, Any]:
    previous = (body.get("status") or {}).get("conditions") or ()
    generation = body["metadata"]["generation"]
    wanted = ready_conditions(previous, generation, verdict_of(error), is_serving=False)
    return {"conditions": merge_conditions(previous, wanted, now), "observedGeneration": generation}


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
