"""One pass: finalizer, look, plan, steps, one status; and when it looks again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar, cast

import pytest

from fakes.kube import FakeKube, key_of
from nixops_operator import names
from nixops_operator.api.conditions import Condition, Truth, merge_conditions
from nixops_operator.api.group import API_VERSION
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.cache import Cache, resource_version
from nixops_operator.errors import Blocked, Conflict, InvalidSpec, NamesNothing, OperatorError, Retry
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.planning import Finding, Plan
from nixops_operator.reconcile import JOB_PACE, PASS_DEADLINE, UNTOLD, Reconciler
from nixops_operator.rest import REST, Notes
from nixops_operator.step import JobStep, Step
from nixops_operator.verdict import Outcome, Verdict
from nixops_operator.watch import Intake
from nixops_operator.workqueue import WorkQueue
from unit.builders import NOON
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")
SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
RESYNC = timedelta(seconds=60)
WORKING = Verdict(Outcome.WORKING, Reason.PROVISIONING, "working")
IN_SYNC = Verdict(Outcome.IN_SYNC, Reason.SUCCEEDED, "runs")


@dataclass(frozen=True)
class Do(Step):
    name: str = "step"


@dataclass(frozen=True)
class Other(Step):
    name: str = "other"


@dataclass(frozen=True)
class OfField(Step):
    name: str = "step"

    @property
    def of_field(self) -> str:
        return "spec.target.ec2.tags"


@dataclass(frozen=True)
class Start(JobStep):
    name: str = "start"

    is_harmless: ClassVar[bool] = True


@dataclass(frozen=True)
class StartOnHost(JobStep):
    name: str = "start on the host"


def plan_of(verdict: Verdict, *steps: Any) -> Plan:
    """A plan that stands so, each step for itself."""
    found = Finding(verdict.outcome, verdict.reason, verdict.message, look_again=verdict.look_again)
    return Plan(tuple(replace(found, steps=(step,)) for step in steps) or (found,))


@dataclass
class Script:
    """A controller that follows a test: `plan` may change between passes; `errors` are raised by steps, by name."""

    kube: FakeKube
    plan_now: Plan = field(default_factory=lambda: plan_of(IN_SYNC))
    errors: dict[str, OperatorError] = field(default_factory=dict)
    invalid: InvalidSpec | None = None
    taken: list[tuple[float, str]] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    forgotten: list[Key] = field(default_factory=list)
    told_of: list[Body] = field(default_factory=list)  # the objects that statuses were worked out from
    after_step: Callable[[Any], None] = lambda _: None
    step_takes: float = 0  # seconds
    is_silent: bool = False  # a look that never ends
    is_noted: bool = False  # all that it asks
    says_when: Callable[[datetime], str] = lambda _: ""  # what its status says of the time

    def noting(self, notes: Notes) -> Script:
        if not self.is_noted:
            notes.give_up()
        return self

    def desired(self, body: Body) -> Body:
        if self.invalid is not None:
            raise self.invalid
        return body

    async def observe(self, desired: Body) -> None:
        self.passes.append(asyncio.get_running_loop().time())
        if self.is_silent:
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # as every real look does; without it a hot loop would never come by the loop's clock

    def plan(self, desired: Body, observed: None, now: Any) -> Plan:
        return self.plan_now

    async def apply(self, step: Any, desired: Body, body: Body) -> Body:
        self.taken.append((asyncio.get_running_loop().time(), step.name))
        if step.name in self.errors:
            raise self.errors[step.name]
        await asyncio.sleep(self.step_takes)
        self.after_step(step)
        return await self.kube.write_intent(body, {"accountId": "1"}) if step.name == "intent" else body

    def status(self, desired: Body, observed: None, plan: Plan, now: Any) -> dict[str, Any]:
        self.told_of.append(desired)
        verdict, generation = plan.verdict, desired["metadata"]["generation"]
        truth = Truth.TRUE if verdict.outcome is Outcome.IN_SYNC else Truth.UNKNOWN
        ready = Condition(ConditionType.READY, truth, verdict.reason, verdict.message, generation)
        previous = desired["status"].get("conditions", ())
        told = {"conditions": merge_conditions(previous, [ready], now), "observedGeneration": generation}
        return told | ({"state": self.says_when(now)} if self.says_when(now) else {})

    async def leave(self, desired: Body, body: Body) -> Body:
        return body

    def settle(self, desired: Body, observed: None) -> None:
        """Nothing to let go of."""

    async def forget(self, key: Key) -> None:
        self.forgotten.append(key)


class Bench:
    """A reconciler with one worker on a fake API server whose watch is never late."""

    def __init__(self) -> None:
        self.kube = FakeKube(now=lambda: NOON)
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        self.intake = Intake(self.cache, self.queue)
        self.is_watching = True
        self.clock = NOON
        self.kube.watchers.append(self._hear)
        self.machine = Script(self.kube)
        self.deployment = Script(self.kube)
        both = {Kind.MACHINE: self.machine, Kind.DEPLOYMENT: self.deployment}
        self.reconciler = Reconciler(self.kube, self.cache, self.queue, both, RESYNC, lambda: self.clock)

    def _hear(self, what: str, body: Body) -> None:
        if not self.is_watching:
            return
        if what == "DELETED":
            self.intake.gone(key_of(body), resource_version(body))
        else:
            self.intake.saw(key_of(body).kind, body)

    def apply(self, *, annotations: Mapping[str, str] = MappingProxyType({}), **spec: Any) -> None:
        metadata = {"namespace": "default", "name": "web", "annotations": dict(annotations)}
        self.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": spec})

    def writes(self) -> list[str]:
        return [call.effect for call in self.kube.effects.calls if call.effect.startswith("kube.")]

    def ready(self) -> tuple[str, str]:
        body = self.kube.body(WEB)
        assert body is not None
        ready = body["status"]["conditions"][0]
        return ready["status"], ready["message"]


def living(test: Callable[[Bench], Any]) -> Bench:
    """Run a test beside a worker."""

    async def go() -> Bench:
        bench = Bench()
        worker = asyncio.create_task(bench.reconciler.work())
        await test(bench)
        bench.queue.close()
        await worker
        return bench

    return run(go())


def test_the_finalizer_is_on_before_anything_is_looked_at():
    async def test(bench: Bench) -> None:
        bench.kube.effects.gates["kube.set_finalizer"] = asyncio.Event()
        bench.apply()
        await asyncio.sleep(1)
        assert bench.machine.passes == []
        bench.kube.effects.gates["kube.set_finalizer"].set()
        await asyncio.sleep(1)

    bench = living(test)
    assert bench.machine.passes
    assert bench.writes()[0] == "kube.set_finalizer"


def test_a_pass_writes_one_status_and_none_where_nothing_differs():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        assert len(bench.kube.effects.of("kube.patch_status")) == 1
        await asyncio.sleep(600)

    bench = living(test)
    assert len(bench.machine.passes) >= 10
    assert bench.writes() == ["kube.set_finalizer", "kube.patch_status", "kube.post_event"]


def test_an_object_at_rest_is_looked_at_once_a_resync():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        bench.machine.passes.clear()
        await asyncio.sleep(600)

    assert 9 <= len(living(test).machine.passes) <= 11


def test_looks_at_an_object_at_rest_are_no_passes_until_the_rest_is_over():
    async def test(bench: Bench) -> None:
        bench.machine.is_noted = True
        bench.apply()
        await asyncio.sleep(1.5 * RESYNC.total_seconds())
        bench.machine.passes.clear()
        await asyncio.sleep(REST.total_seconds() / 2)
        assert bench.machine.passes == []
        bench.clock += REST + timedelta(seconds=1)
        await asyncio.sleep(1.5 * RESYNC.total_seconds())

    assert len(living(test).machine.passes) == 1


def test_what_wakes_an_object_ends_its_rest():
    async def test(bench: Bench) -> None:
        bench.machine.is_noted = True
        bench.apply()
        await asyncio.sleep(3 * RESYNC.total_seconds())
        bench.machine.passes.clear()
        bench.queue.add(WEB)
        await asyncio.sleep(1)
        assert len(bench.machine.passes) == 1
        # It may have been woken for what its questions do not show; the next look is a pass again.
        await asyncio.sleep(3 * RESYNC.total_seconds())

    assert len(living(test).machine.passes) == 2


def test_a_look_at_another_version_of_the_object_is_a_pass():
    async def test(bench: Bench) -> None:
        bench.machine.is_noted = True
        bench.apply()
        await asyncio.sleep(3 * RESYNC.total_seconds())
        bench.machine.passes.clear()
        bench.kube.edit(WEB, lambda body: body["status"].update(accountId="1"))
        await asyncio.sleep(1.5 * RESYNC.total_seconds())

    assert len(living(test).machine.passes) == 1


def test_an_object_that_a_pass_has_told_of_is_not_at_rest_yet():
    async def test(bench: Bench) -> None:
        bench.machine.is_noted = True
        numbers = itertools.count()
        bench.machine.says_when = lambda _: str(next(numbers))
        bench.apply()
        await asyncio.sleep(600)

    assert len(living(test).machine.passes) >= 9


def test_what_the_status_would_say_later_keeps_an_object_from_rest():
    async def test(bench: Bench) -> None:
        bench.machine.is_noted = True
        bench.machine.says_when = lambda now: "later" if now > NOON else "now"
        bench.apply()
        await asyncio.sleep(600)

    assert len(living(test).machine.passes) >= 9


def test_merely_looking_writes_nothing():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(Verdict(Outcome.LOOKING))
        bench.apply()
        await asyncio.sleep(60)

    assert living(test).writes() == ["kube.set_finalizer"]


def test_steps_run_in_order_and_the_next_pass_follows_at_once():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do("one"), Other("two"))

        def done(step: Any) -> None:
            if step.name == "two":
                bench.machine.plan_now = plan_of(IN_SYNC)

        bench.machine.after_step = done
        bench.apply()
        await asyncio.sleep(0.5)

    bench = living(test)
    assert bench.machine.taken == [(0.0, "one"), (0.0, "two")]
    assert bench.machine.passes == [0.0, 0.0]
    assert bench.ready() == ("True", "runs")


def test_quick_steps_are_told_of_once_they_are_over():
    """A machine's status was written fifteen times until it was ready: each of its steps was told for a moment."""

    async def test(bench: Bench) -> None:
        following = {
            "one": plan_of(WORKING, Start("2", "two")),
            "two": plan_of(WORKING, Start("3", "three")),
            "three": plan_of(IN_SYNC),
        }

        def done(step: Any) -> None:
            bench.machine.plan_now = following[step.name]

        bench.machine.after_step = done
        for number in range(2):
            bench.machine.plan_now = plan_of(WORKING, Start("1", "one"))
            bench.apply(target=f"target {number}")
            await asyncio.sleep(100)
            # That the edit was seen, and how it ended.
            assert len(bench.kube.effects.of("kube.patch_status")) == 2 * (1 + number)

    bench = living(test)
    assert [name for _, name in bench.machine.taken] == ["one", "two", "three"] * 2
    assert bench.ready() == ("True", "runs")


async def drifted(bench: Bench, step: Step) -> None:
    """At rest before; now there is something to be done."""
    bench.apply()
    await asyncio.sleep(10)
    assert bench.ready() == ("True", "runs")
    bench.kube.effects.calls.clear()
    bench.machine.plan_now = plan_of(WORKING, step)
    bench.queue.add(WEB)


def test_that_an_edit_was_seen_is_told_at_once():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Start("a job"))
        bench.machine.after_step = lambda _: None
        bench.apply()
        await asyncio.sleep(JOB_PACE.total_seconds() / 2)
        assert bench.ready() == ("Unknown", "working")

    living(test)


@pytest.mark.parametrize("step", [Do(), StartOnHost("a job")], ids=["in the cloud", "on a host"])
def test_what_may_have_changed_something_is_told_of_at_once(step: Step):
    async def test(bench: Bench) -> None:
        def done(_: Any) -> None:
            bench.machine.plan_now = plan_of(IN_SYNC)

        bench.machine.after_step = done
        await drifted(bench, step)
        await asyncio.sleep(1)
        assert len(bench.kube.effects.of("kube.patch_status")) == 2

    living(test)


def test_steps_that_take_their_time_are_told_of_meanwhile():
    async def test(bench: Bench) -> None:
        numbers = itertools.count(1)

        def another(_: Any) -> None:
            number = str(next(numbers))
            bench.machine.plan_now = plan_of(WORKING, Start(number, number))

        bench.machine.after_step = another
        bench.machine.step_takes = 0.4
        await drifted(bench, Start("0", "0"))
        await asyncio.sleep(UNTOLD.total_seconds() + 3 * bench.machine.step_takes)
        assert bench.ready() == ("Unknown", "working")

    living(test)


def test_a_job_that_ends_soon_is_told_of_with_its_end_and_another_before_it():
    async def test(bench: Bench) -> None:
        def started(_: Any) -> None:
            bench.machine.plan_now = plan_of(WORKING)

        bench.machine.after_step = started
        await drifted(bench, Start("a job"))
        before = len(bench.machine.passes)
        await asyncio.sleep(JOB_PACE.total_seconds() / 2)
        assert bench.kube.effects.of("kube.patch_status") == []
        await asyncio.sleep(JOB_PACE.total_seconds())
        assert bench.ready() == ("Unknown", "working")
        assert len(bench.machine.passes) - before == 2

    living(test)


def test_an_operator_that_stops_leaves_no_status_to_another_pass():
    async def test(bench: Bench) -> None:
        bench.machine.after_step = lambda _: bench.queue.close()
        await drifted(bench, Start("a job"))
        await asyncio.sleep(1)

    assert living(test).ready() == ("Unknown", "working")


def test_the_status_is_written_on_what_an_intent_left():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do("intent"))
        bench.apply()
        await asyncio.sleep(0.1)

    bench = living(test)
    body = bench.kube.body(WEB)
    assert body is not None
    assert body["status"]["accountId"] == "1"
    assert bench.machine.told_of[0]["status"]["accountId"] == "1", "an older object's status would take it back"
    assert bench.writes()[:3] == ["kube.set_finalizer", "kube.write_intent", "kube.patch_status"]


def test_a_step_that_changes_nothing_becomes_no_hot_loop():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do())
        bench.apply()
        await asyncio.sleep(600)

    assert len(living(test).machine.taken) <= 20


def test_a_failed_step_is_held_back_longer_and_longer():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do())
        bench.machine.errors["step"] = Retry(Reason.THROTTLED, "slow down")
        bench.apply()
        await asyncio.sleep(600)

    bench = living(test)
    moments = [moment for moment, _ in bench.machine.taken]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert all(gap >= 2 * 2**number * 0.99 for number, gap in enumerate(gaps))
    assert len(moments) <= 9
    assert len(bench.kube.effects.of("kube.patch_status")) == 1, "retries tell nothing new"
    assert len(bench.kube.events) == 1


@pytest.mark.parametrize(
    ("error", "least"),
    [
        pytest.param(Blocked(Reason.QUOTA_EXCEEDED, "quota"), 540, id="a person is needed: slowly"),
        pytest.param(NamesNothing("spec.x", "unknown"), 2, id="others may have made it a moment ago: soon"),
        pytest.param(Retry(Reason.THROTTLED, "slow", timedelta(seconds=90)), 89, id="with advice: as advised"),
    ],
)
def test_how_long_a_failed_step_waits(error, least):
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do())
        bench.machine.errors["step"] = error
        bench.apply()
        await asyncio.sleep(900)

    assert least <= living(test).machine.taken[1][0] <= 1.25 * least


def test_other_steps_go_on_while_one_is_held_back():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do(), Other())
        bench.machine.errors["step"] = Blocked(Reason.QUOTA_EXCEEDED, "quota")
        bench.apply()
        await asyncio.sleep(100)

    taken = [name for _, name in living(test).machine.taken]
    assert taken.count("step") == 1
    assert taken.count("other") > 1


def test_an_edit_ends_the_hold():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do())
        bench.machine.errors["step"] = Blocked(Reason.IMAGE_NOT_FOUND, "no such image")
        bench.apply()
        await asyncio.sleep(10)
        assert len(bench.machine.taken) == 1
        bench.machine.errors.clear()
        bench.apply(target="another")
        await asyncio.sleep(0.1)

    bench = living(test)
    assert [moment for moment, _ in bench.machine.taken][:2] == [0.0, 10.0]


def test_the_error_of_a_step_is_what_the_status_says():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do())
        bench.machine.errors["step"] = Blocked(Reason.IMAGE_NOT_FOUND, "no such image")
        bench.apply()
        await asyncio.sleep(100)

    assert living(test).ready()[1] == "no such image"


def test_what_aws_refuses_of_a_value_is_told_with_the_field_of_its_step():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, OfField())
        bench.machine.errors["step"] = Blocked(Reason.INVALID_SPEC, "CreateTags: InvalidParameterValue: too long")
        bench.apply()
        await asyncio.sleep(100)

    assert living(test).ready()[1] == "spec.target.ec2.tags: CreateTags: InvalidParameterValue: too long"


def test_an_unusable_spec_is_told_and_mended_by_an_edit():
    async def test(bench: Bench) -> None:
        bench.machine.invalid = InvalidSpec("spec.target", "missing")
        bench.apply()
        await asyncio.sleep(1)
        assert bench.ready() == ("False", "spec.target: missing")
        bench.machine.invalid = None
        bench.apply(target="here")
        await asyncio.sleep(1)

    assert living(test).ready() == ("True", "runs")


def test_an_annotation_that_means_nothing_is_told_once_until_it_changes():
    async def test(bench: Bench) -> None:
        for key in ("nixops.dev/pause", "nixops.dev/pause", "nixops.dev/paused", "nixops.dev/pause"):
            bench.apply(annotations={key: "true"})
            await asyncio.sleep(1)

    told = [posted for posted in living(test).kube.events if posted.event.reason == Reason.UNKNOWN_ANNOTATION]
    text = "the annotation nixops.dev/pause means nothing on a NixMachine; did you mean nixops.dev/paused?"
    assert [(posted.event.type, posted.event.message, posted.count) for posted in told] == [("Warning", text, 2)]


def test_that_an_object_is_paused_is_told_beside_a_spec_that_is_unusable():
    async def test(bench: Bench) -> None:
        bench.machine.invalid = InvalidSpec("spec.target", "missing")
        bench.apply(suspend=True)
        await asyncio.sleep(1)

    body = living(test).kube.body(WEB)
    assert body is not None
    assert [one["type"] for one in body["status"]["conditions"]] == ["Ready", "Stalled", "Paused"]


def test_a_conflict_starts_again_from_the_newest_object():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        bench.is_watching = False
        bench.kube.edit(WEB, lambda body: body["metadata"].update(labels={"a": "b"}))
        bench.machine.plan_now = plan_of(WORKING)
        bench.queue.add(WEB)
        await asyncio.sleep(5)

    bench = living(test)
    assert bench.ready() == ("Unknown", "working")
    cached = bench.cache.get(WEB)
    assert cached is not None
    assert cached["metadata"]["labels"] == {"a": "b"}


@pytest.mark.parametrize("call", ["kube.patch_status", "get"])
def test_a_worker_survives_what_cannot_even_be_told(call: str):
    async def test(bench: Bench) -> None:
        errors = cast(dict[str, Exception], bench.kube.effects.standing_error)
        errors["kube.patch_status"] = Conflict("changed meanwhile")
        errors[call] = ValueError("of a bug")
        bench.apply()
        await asyncio.sleep(60)
        bench.kube.effects.standing_error.clear()
        await asyncio.sleep(600)
        assert bench.ready()

    living(test)


def test_a_conflict_in_a_step_ends_the_pass():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, Do(), Other())
        bench.machine.errors["step"] = Conflict("changed meanwhile")
        bench.apply()
        await asyncio.sleep(0.5)

    bench = living(test)
    assert {name for _, name in bench.machine.taken} == {"step"}
    assert "kube.patch_status" not in bench.writes()


def test_the_api_servers_errors_back_off():
    async def test(bench: Bench) -> None:
        bench.kube.effects.standing_error["kube.patch_status"] = Retry(Reason.PROGRESSING_WITH_RETRY, "HTTP 500")
        bench.apply()
        await asyncio.sleep(300)

    assert len(living(test).machine.passes) <= 12


def test_an_api_server_that_asks_for_time_is_given_it():
    async def test(bench: Bench) -> None:
        busy = Retry(Reason.PROGRESSING_WITH_RETRY, "HTTP 429", after=timedelta(seconds=30))
        bench.kube.effects.standing_error["kube.patch_status"] = busy
        bench.apply()
        await asyncio.sleep(29)
        assert bench.writes().count("kube.patch_status") == 1
        await asyncio.sleep(8)
        assert bench.writes().count("kube.patch_status") == 2

    living(test)


def test_a_bug_in_one_object_does_not_end_the_worker():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, "no step")
        bench.apply()
        bench.kube.apply({"kind": "NixDeployment", "metadata": {"namespace": "default", "name": "shop"}, "spec": {}})
        await asyncio.sleep(5)

    assert living(test).deployment.passes


def test_a_bug_is_told_on_the_object_that_met_it():
    async def test(bench: Bench) -> None:
        bench.machine.plan_now = plan_of(WORKING, "no step")
        bench.apply()
        await asyncio.sleep(5)

    truth, message = living(test).ready()
    assert truth == "False"
    assert "internal error" in message


def test_a_pass_without_an_end_is_ended_and_told_and_others_go_on():
    """Eight hosts that never answered held all workers until the process was restarted, and again after that."""

    async def test(bench: Bench) -> None:
        bench.machine.is_silent = True
        bench.apply()
        await asyncio.sleep(1)
        bench.kube.apply({"kind": "NixDeployment", "metadata": {"namespace": "default", "name": "shop"}, "spec": {}})
        await asyncio.sleep(PASS_DEADLINE.total_seconds() + 5)

    bench = living(test)
    assert bench.ready()[0] == "False"
    assert "took too long" in bench.ready()[1]
    assert bench.deployment.passes


def test_the_steps_of_one_finding_end_at_the_first_that_fails():
    """What must be written down before an effect stands before it."""

    async def test(bench: Bench) -> None:
        bench.machine.plan_now = Plan((Finding(Outcome.WORKING, steps=(Do("intent first"), Other("effect"))),))
        bench.machine.errors["intent first"] = Retry(Reason.PROGRESSING_WITH_RETRY, "HTTP 500")
        bench.apply()
        await asyncio.sleep(60)

    assert {name for _, name in living(test).machine.taken} == {"intent first"}


def test_an_event_that_cannot_be_posted_holds_nothing_up():
    """A terminating namespace takes no new Events, for ever; the finalizer has to go all the same."""

    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        refused = Blocked(Reason.ACCESS_DENIED, "the namespace is being terminated")
        bench.kube.effects.standing_error["kube.post_event"] = refused
        bench.machine.plan_now = plan_of(Verdict(Outcome.GONE, Reason.AUTH_FAILURE, "let go of i-1 untagged"))
        bench.kube.delete(WEB)
        await asyncio.sleep(5)
        assert bench.kube.body(WEB) is None

    living(test)


def test_an_object_that_cannot_be_taken_up_says_so():
    """A finalizer that the API server refuses was logged and nothing else: no condition, no Event."""

    async def test(bench: Bench) -> None:
        refused = Blocked(Reason.INVALID_SPEC, "spec.machines[0].target: needs exactly one of ec2 and host")
        bench.kube.effects.standing_error["kube.set_finalizer"] = refused
        bench.apply()
        await asyncio.sleep(5)

    bench = living(test)
    assert bench.ready()[0] == "False"
    assert "exactly one of ec2 and host" in bench.ready()[1]
    assert bench.kube.events[0].event.type == "Warning"
    assert bench.machine.passes == []


# --- the way out ------------------------------------------------------------------------------------------------------


def test_the_finalizer_stays_until_nothing_is_left():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        bench.machine.plan_now = plan_of(
            Verdict(Outcome.DELETING, Reason.DELETING, "waiting", look_again=timedelta(seconds=2))
        )
        bench.kube.delete(WEB)
        await asyncio.sleep(100)
        body = bench.kube.body(WEB)
        assert body is not None
        assert body["metadata"]["finalizers"] == [names.FINALIZER]
        bench.machine.plan_now = plan_of(Verdict(Outcome.GONE))
        await asyncio.sleep(5)
        assert bench.kube.body(WEB) is None

    assert living(test).machine.forgotten[0] == WEB


def test_what_stays_behind_is_told_by_an_event():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        bench.machine.plan_now = plan_of(Verdict(Outcome.GONE, Reason.AUTH_FAILURE, "let go of i-1 untagged"))
        bench.kube.delete(WEB)
        await asyncio.sleep(5)
        assert bench.kube.body(WEB) is None

    told = [(one.event.type, one.event.reason, one.event.message) for one in living(test).kube.events]
    assert told[-1] == ("Warning", "AuthFailure", "let go of i-1 untagged")


def test_an_object_in_deletion_without_our_finalizer_is_left_alone():
    async def test(bench: Bench) -> None:
        bench.is_watching = False
        bench.apply()
        bench.kube.edit(WEB, lambda body: body["metadata"].update(finalizers=["example.org/other"]))
        bench.is_watching = True
        bench.kube.delete(WEB)
        await asyncio.sleep(100)

    bench = living(test)
    assert bench.machine.passes == []
    assert bench.writes() == []


def test_an_object_that_is_gone_is_forgotten():
    async def test(bench: Bench) -> None:
        bench.apply()
        await asyncio.sleep(1)
        bench.kube.edit(WEB, lambda body: body["metadata"].pop("finalizers"))
        bench.is_watching = True
        bench.kube.delete(WEB)
        await asyncio.sleep(1)

    assert WEB in living(test).machine.forgotten


# --- owners -----------------------------------------------------------------------------------------------------------


def apply_owned(bench: Bench) -> None:
    """The machine web, of the deployment shop."""
    metadata = {"namespace": "default", "name": "shop"}
    shop = bench.kube.apply({"kind": "NixDeployment", "metadata": metadata, "spec": {}})
    named = {"apiVersion": API_VERSION, "kind": "NixDeployment", "name": "shop", "uid": shop["metadata"]["uid"]}
    owner = {**named, "controller": True}
    metadata = {"namespace": "default", "name": "web", "ownerReferences": [owner]}
    bench.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": {}})


def test_a_written_status_wakes_the_owner():
    async def test(bench: Bench) -> None:
        apply_owned(bench)
        await asyncio.sleep(10)
        bench.is_watching = False
        bench.deployment.passes.clear()
        bench.machine.plan_now = plan_of(WORKING)
        bench.queue.add(WEB)
        await asyncio.sleep(1)

    assert living(test).deployment.passes == [10.0]


def test_an_object_that_a_conflict_shows_to_be_gone_is_dropped_and_its_owner_woken():
    async def test(bench: Bench) -> None:
        apply_owned(bench)
        await asyncio.sleep(10)
        bench.is_watching = False
        bench.kube.edit(WEB, lambda body: body["metadata"].pop("finalizers"))
        bench.kube.delete(WEB)
        bench.deployment.passes.clear()
        bench.machine.plan_now = plan_of(WORKING)
        bench.queue.add(WEB)
        await asyncio.sleep(1)

    bench = living(test)
    assert bench.cache.get(WEB) is None
    assert WEB in bench.machine.forgotten
    assert bench.deployment.passes == [10.0]
