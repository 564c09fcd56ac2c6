"""EC2 is looked at once for all objects of an identity, and no pass ever waits for it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from fakes.cloud import FakeClouds
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.errors import Blocked, InvalidSpec, NotYet, OperatorError, Retry
from nixops_operator.facts.cloud import InstanceState, KeyPair, SecurityGroup, Subnet
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.cloud import QUESTIONS_PER_KEY, CloudInformers, CloudView
from nixops_operator.informers.questions import KEPT
from unit.builders import CLUSTER, NOON, instance
from unit.fake_time import run

IDENTITY = AwsIdentity("AKIDTEST", "secret")
OTHER = AwsIdentity("AKIDTEST", "another secret")
REGION = "us-west-2"
WEB, DB = (Key(Kind.MACHINE, "default", name) for name in ("web", "db"))
U1, U2 = frozenset({"u1"}), frozenset({"u2"})
SLOW_DOWN = Retry(Reason.THROTTLED, "slow down")
DENIED = Blocked(Reason.ACCESS_DENIED, "DescribeSecurityGroups: UnauthorizedOperation: ask your administrator")

T = TypeVar("T")


class Bench:
    def __init__(self) -> None:
        self.clouds = FakeClouds(now=lambda: NOON)
        self.ec2 = self.clouds.world()
        self.woken: list[Key] = []
        self.informers = CloudInformers(self.clouds, timedelta(seconds=10), timedelta(seconds=30), self.woken.append)

    async def view(self, key: Key = WEB, uids: frozenset[str] = U1, identity: AwsIdentity = IDENTITY) -> CloudView:
        return self.informers.view(key, uids, identity, REGION, CLUSTER)

    def put(self, name: str, uid: str, state: InstanceState = InstanceState.RUNNING, **fields: Any) -> None:
        tags = {"nixops.dev:cluster": CLUSTER, "nixops.dev:uid": uid}
        self.ec2.instances[name] = instance(name, state, tags=tags, **fields)

    def asked(self, what: str = "sweep_instances") -> int:
        return len(self.ec2.effects.of(what))

    def fail(self, what: str, error: OperatorError) -> None:
        self.ec2.effects.standing_error[what] = error

    def silence(self, what: str) -> asyncio.Event:
        """No answer until the event is set."""
        return self.ec2.effects.gates.setdefault(what, asyncio.Event())


async def answer(read: Callable[[], T]) -> T:
    """What `read` gives in the end, by passes that come often."""
    for _ in range(1000):
        try:
            return read()
        except NotYet:
            await asyncio.sleep(0.1)
    raise AssertionError("never answered")


def test_one_sweep_a_period_however_many_watch():
    async def go() -> int:
        bench = Bench()
        for key, uids in ((WEB, U1), (DB, U2)):
            view = await bench.view(key, uids)
            await answer(lambda view=view, uids=uids: view.snapshot(uids))
        await asyncio.sleep(1)
        before = bench.asked()
        await asyncio.sleep(100)
        return bench.asked() - before

    assert 9 <= run(go()) <= 11


def test_while_something_moves_sweeps_come_more_often():
    async def go() -> int:
        bench = Bench()
        bench.put("i-1", "u1", InstanceState.PENDING)
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        before = bench.asked()
        await asyncio.sleep(20)
        return bench.asked() - before

    assert 8 <= run(go()) <= 11


def test_the_first_read_is_not_yet_and_its_answer_wakes_whoever_read():
    async def go() -> tuple[list[Key], set[str]]:
        bench = Bench()
        bench.put("i-1", "u2")
        view = await bench.view()
        with pytest.raises(NotYet, match=r"EC2 \(us-west-2\)") as told:
            view.snapshot(U1)
        assert told.value.reason is Reason.PROGRESSING_WITH_RETRY
        await asyncio.sleep(1)
        return bench.woken, set(view.snapshot(U1).instances)

    woken, seen = run(go())
    assert WEB in woken
    assert seen == {"i-1"}


def test_a_silent_endpoint_keeps_nobody_waiting():
    """Eight passes that call EC2 under one lock wait for as long as it is silent."""

    async def go() -> list[Key]:
        bench = Bench()
        for what in ("account_id", "sweep_instances", "sweep_security_groups", "sweep_key_pairs", "get_subnet"):
            bench.silence(what)
        loop = asyncio.get_running_loop()
        view = await bench.view()
        for second in range(50):
            with pytest.raises(NotYet):
                view.snapshot(U1)
            with pytest.raises(NotYet):
                view.subnet("subnet-1")
            assert loop.time() == second, "reading took time"
            await asyncio.sleep(1)
        bench.woken.clear()
        await asyncio.sleep(15)
        with pytest.raises(Retry, match=r"EC2 \(us-west-2\) did not answer within 60 s"):
            view.snapshot(U1)
        return bench.woken

    assert WEB in run(go()), "that it failed is news"


def test_a_silent_look_is_given_up_and_tried_again():
    async def go() -> set[str]:
        bench = Bench()
        bench.put("i-1", "u1")
        gate = bench.silence("sweep_instances")
        view = await bench.view()
        await asyncio.sleep(65)
        gate.set()
        await asyncio.sleep(60)
        return set(view.snapshot(U1).instances)

    assert run(go()) == {"i-1"}


def test_a_right_that_is_missing_hides_nothing_else():
    async def go() -> None:
        bench = Bench()
        bench.put("i-1", "u1")
        bench.ec2.key_pairs["web"] = KeyPair("key-1", "web", "ssh-ed25519 A", {"nixops.dev:cluster": CLUSTER})
        bench.fail("sweep_security_groups", DENIED)
        view = await bench.view()
        await asyncio.sleep(1)

        assert set(view.instances(U1).answer) == {"i-1"}
        assert set(view.key_pairs(U1).answer) == {"web"}
        for read in (view.security_groups, view.snapshot):
            with pytest.raises(Blocked, match="ask your administrator"):
                read(U1)

    run(go())


@pytest.mark.parametrize(
    ("error", "most"), [pytest.param(DENIED, 15, id="blocked"), pytest.param(SLOW_DOWN, 70, id="retry")]
)
def test_an_error_is_remembered_and_not_asked_for_by_every_pass(error: OperatorError, most: int):
    async def go() -> tuple[int, int]:
        bench = Bench()
        bench.fail("sweep_security_groups", error)
        bench.fail("get_subnet", error)
        view = await bench.view()
        with pytest.raises(NotYet):
            view.subnet("subnet-1")
        await asyncio.sleep(1)
        for _ in range(1800):
            view.note_write("u1")
            for read in (lambda: view.security_groups(U1), lambda: view.subnet("subnet-1")):
                with pytest.raises(type(error), match=error.message):
                    read()
            await asyncio.sleep(1)
        return bench.asked("sweep_security_groups"), bench.asked("get_subnet")

    sweeps, subnets = run(go())
    assert 5 <= sweeps <= most
    assert 5 <= subnets <= most


def test_an_error_that_many_read_keeps_none_of_them_in_memory():
    """An exception that is raised again and again grows by the frames of each."""

    async def go() -> int:
        bench = Bench()
        bench.fail("sweep_instances", SLOW_DOWN)
        view = await bench.view()
        await asyncio.sleep(1)
        for _ in range(20):
            with pytest.raises(Retry) as told:
                view.instances(U1)
        return len(list(traceback.walk_tb(told.value.__traceback__)))

    assert run(go()) < 10


def test_a_snapshot_is_never_older_than_the_own_write():
    async def go() -> tuple[set[str], set[str]]:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        await asyncio.sleep(1)
        bench.put("i-1", "u1")
        stale = set(view.snapshot(U1).instances)
        view.note_write("u1")
        with pytest.raises(NotYet):
            view.snapshot(U1)
        assert set(view.snapshot(U2).instances) == stale, "another's write is no reason to wait"
        return stale, set((await answer(lambda: view.snapshot(U1))).instances)

    assert run(go()) == (set(), {"i-1"})


def test_a_look_under_way_during_the_own_write_does_not_count():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        gate = bench.silence("sweep_instances")
        await asyncio.sleep(12)
        before = bench.asked()
        view.note_write("u1")
        with pytest.raises(NotYet):
            view.snapshot(U1)
        gate.set()
        await answer(lambda: view.snapshot(U1))
        return bench.asked() - before

    assert run(go()) == 1


def test_whoever_waits_for_a_look_after_a_write_is_answered_without_reading_again():
    """The look under way is not the one that counts; the next one must not wait for the period."""

    async def go() -> set[str]:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        gate = bench.silence("sweep_security_groups")
        await asyncio.sleep(32)
        view.note_write("u1")
        with pytest.raises(NotYet):
            view.snapshot(U1)
        gate.set()
        await asyncio.sleep(3)
        return set(view.security_groups(U1).answer)

    assert run(go()) == set()


def test_many_writes_at_once_share_a_look():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        before = bench.asked()
        for _ in range(100):
            view.note_write("u1")
            with pytest.raises(NotYet):
                view.snapshot(U1)
            await asyncio.sleep(0.01)
        return bench.asked() - before

    assert run(go()) <= 3


def test_a_change_wakes_whom_it_concerns_and_nobody_else():
    async def go() -> list[Key]:
        bench = Bench()
        for key, uids in ((WEB, U1), (DB, U2)):
            view = await bench.view(key, uids)
            await answer(lambda view=view, uids=uids: view.snapshot(uids))
        await asyncio.sleep(15)
        bench.woken.clear()
        bench.put("i-1", "u1")
        await asyncio.sleep(15)
        return bench.woken

    assert run(go()) == [WEB]


def test_a_failed_look_is_an_error_and_not_an_empty_answer():
    async def go() -> list[Key]:
        bench = Bench()
        view = await bench.view()
        bench.put("i-1", "u1")
        await answer(lambda: view.snapshot(U1))
        bench.woken.clear()
        bench.fail("sweep_instances", SLOW_DOWN)
        await asyncio.sleep(15)
        with pytest.raises(Retry, match="slow down"):
            view.snapshot(U1)
        assert WEB in bench.woken, "who had an answer hears that there is none"
        bench.woken.clear()
        bench.ec2.effects.standing_error.clear()
        await asyncio.sleep(60)
        assert set(view.snapshot(U1).instances) == {"i-1"}
        return bench.woken

    assert WEB in run(go()), "who waits hears that looking works again"


def test_a_fault_of_ours_is_told_and_looking_goes_on(caplog: pytest.LogCaptureFixture):
    class Fault(Exception):
        pass

    async def go() -> set[str]:
        bench = Bench()
        bench.put("i-1", "u1")
        bench.ec2.effects.standing_error["sweep_instances"] = Fault("no such attribute")  # type: ignore[assignment]
        view = await bench.view()
        await asyncio.sleep(1)
        with pytest.raises(Retry, match=r"internal error \(Fault\)"):
            view.snapshot(U1)
        bench.ec2.effects.standing_error.clear()
        await asyncio.sleep(60)
        return set(view.snapshot(U1).instances)

    assert run(go()) == {"i-1"}
    assert "no such attribute" in caplog.text


# Absence.


def test_absence_is_measured_between_complete_sweeps():
    async def go() -> tuple[timedelta | None, ...]:
        bench = Bench()
        view = await bench.view()
        bench.put("i-1", "u1")
        await answer(lambda: view.snapshot(U1))
        unasked = view.missing_for("i-1")
        await asyncio.sleep(30)
        shown = view.missing_for("i-1")
        del bench.ec2.instances["i-1"]
        await asyncio.sleep(10)
        just_missed = view.missing_for("i-1")
        await asyncio.sleep(75)
        long_missed = view.missing_for("i-1")
        bench.put("i-1", "u1")
        await asyncio.sleep(15)
        return unasked, shown, just_missed, long_missed, view.missing_for("i-1")

    unasked, shown, just_missed, long_missed, shown_again = run(go())
    assert unasked is shown is shown_again is None
    assert just_missed == timedelta(0)
    assert long_missed is not None
    assert timedelta(seconds=60) <= long_missed <= timedelta(seconds=80)


def test_groups_and_key_pairs_go_missing_as_instances_do():
    async def go() -> tuple[timedelta | None, ...]:
        bench = Bench()
        tags = {"nixops.dev:cluster": CLUSTER, "nixops.dev:uid": "u1"}
        bench.ec2.security_groups["sg-1"] = SecurityGroup("sg-1", "web", "", "vpc-1", tags, ())
        bench.ec2.key_pairs["web"] = KeyPair("key-1", "web", "ssh-ed25519 A", tags)
        view = await bench.view()
        for name in ("sg-1", "sg-2", "web", "db"):
            view.missing_for(name)
        await asyncio.sleep(100)
        return tuple(view.missing_for(name) for name in ("sg-1", "sg-2", "web", "db"))

    group, no_group, pair, no_pair = run(go())
    assert group is pair is None
    assert no_group == no_pair == timedelta(seconds=60), "from the second look to the fourth"


def test_a_group_goes_missing_by_its_name_as_well():
    """Before its id is known, its name is all that there is to ask for."""

    async def go() -> tuple[timedelta | None, ...]:
        bench = Bench()
        tags = {"nixops.dev:cluster": CLUSTER, "nixops.dev:uid": "u1"}
        bench.ec2.security_groups["sg-1"] = SecurityGroup("sg-1", "http", "", "vpc-1", tags, ())
        view = await bench.view()
        for name in ("http", "ssh"):
            view.missing_for(name)
        await asyncio.sleep(100)
        return tuple(view.missing_for(name) for name in ("http", "ssh"))

    shown, missed = run(go())
    assert shown is None
    assert missed == timedelta(seconds=60)


def test_failed_sweeps_do_not_count_towards_absence():
    async def go() -> timedelta | None:
        bench = Bench()
        view = await bench.view()
        view.missing_for("i-1")
        await asyncio.sleep(1)
        bench.fail("sweep_instances", SLOW_DOWN)
        await asyncio.sleep(600)
        return view.missing_for("i-1")

    assert run(go()) is None


def test_only_looks_begun_after_the_thing_was_made_count():
    async def go() -> tuple[timedelta | None, ...]:
        bench = Bench()
        view = await bench.view()
        view.missing_for("web")
        await asyncio.sleep(100)
        before = view.missing_for("web")
        view.note_write("u1")
        other = view.missing_for("web")
        view.note_write("u1", "web")
        at_once = view.missing_for("web")
        await asyncio.sleep(31)
        return before, other, at_once, view.missing_for("web")

    before, other, at_once, later = run(go())
    assert before == other == timedelta(seconds=60)
    assert at_once is None
    assert later == timedelta(0)


def test_a_look_under_way_when_absence_is_asked_for_does_not_count():
    """It may have begun before the thing was made."""

    async def go() -> timedelta | None:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        gate = bench.silence("sweep_instances")
        await asyncio.sleep(12)
        view.missing_for("i-1")
        gate.set()
        await asyncio.sleep(1)
        return view.missing_for("i-1")

    assert run(go()) is None


# Questions.


def test_what_is_asked_for_by_itself_is_answered_and_asked_for_again_while_it_is_read():
    async def go() -> tuple[list[int], list[Key]]:
        bench = Bench()
        view = await bench.view()
        assert (await answer(lambda: view.instance_by_id("i-1"))).answer == ()
        counts = [bench.asked("find_instances")]
        for _ in range(10):
            await asyncio.sleep(10)
            view.instance_by_id("i-1")
        counts.append(bench.asked("find_instances"))
        bench.woken.clear()
        bench.put("i-1", "u1")
        await asyncio.sleep(10)
        woken = list(bench.woken)
        assert [one.id for one in view.instance_by_id("i-1").answer] == ["i-1"]
        await asyncio.sleep(60)
        counts.append(bench.asked("find_instances"))
        await asyncio.sleep(300)
        counts.append(bench.asked("find_instances"))
        return counts, woken

    (first, while_read, then, unread), woken = run(go())
    assert first == 1
    assert 9 <= while_read - first <= 11
    assert then - while_read <= 5
    assert unread == then, "nobody has read it for three periods"
    assert WEB in woken


def test_a_question_that_rested_is_not_believed_before_it_is_asked_again():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.instance_by_id("i-1"))
        await asyncio.sleep(KEPT.total_seconds() / 2)
        bench.put("i-1", "u1")
        with pytest.raises(NotYet):
            view.instance_by_id("i-1")
        return len((await answer(lambda: view.instance_by_id("i-1"))).answer)

    assert run(go()) == 1


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda view: view.instance_by_id("i-1"), id="id"),
        pytest.param(lambda view: view.instances_by_token("n1-x"), id="token"),
    ],
)
def test_emptiness_is_measured_between_answers(read: Callable[[CloudView], Any]):
    """Even where passes come so rarely that the question rests between them."""

    async def go() -> list[timedelta | None]:
        bench = Bench()
        view = await bench.view()
        found = [(await answer(lambda: read(view))).empty_for]
        await asyncio.sleep(301)
        found.append((await answer(lambda: read(view))).empty_for)
        view.note_write("u1", "i-1", "n1-x")
        found.append((await answer(lambda: read(view))).empty_for)
        bench.put("i-1", "u1", client_token="n1-x")
        await asyncio.sleep(20)
        found.append((await answer(lambda: read(view))).empty_for)
        return found

    first, later, after_call, shown = run(go())
    assert first == timedelta(0)
    assert later is not None
    assert later >= timedelta(seconds=300)
    assert after_call == timedelta(0), "the call may have made what is asked for"
    assert shown is None


def test_an_answer_under_way_during_the_call_says_nothing_about_what_it_made():
    async def go() -> timedelta | None:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.instances_by_token("n1-x"))
        gate = bench.silence("find_instances")
        await asyncio.sleep(12)
        view.note_write("u1", "n1-x")
        await asyncio.sleep(5)
        gate.set()
        return (await answer(lambda: view.instances_by_token("n1-x"))).empty_for

    assert run(go()) == timedelta(0)


def test_an_answer_is_never_older_than_the_own_write():
    async def go() -> tuple[int, int]:
        bench = Bench()
        view = await bench.view()
        before = len((await answer(lambda: view.instances_by_token("n1-x"))).answer)
        bench.put("i-1", "u1", client_token="n1-x")
        view.note_write("u1")
        with pytest.raises(NotYet):
            view.instances_by_token("n1-x")
        return before, len((await answer(lambda: view.instances_by_token("n1-x"))).answer)

    assert run(go()) == (0, 1)


def test_what_uses_a_group_is_asked_for():
    async def go() -> tuple[tuple[str, ...], tuple[str, ...]]:
        bench = Bench()
        view = await bench.view()
        group_id = await bench.ec2.create_security_group("web", "", next(iter(bench.ec2.subnets.values())).vpc_id, {})
        bench.put("i-1", "u1", security_group_ids=(group_id,))
        return (
            await answer(lambda: view.interfaces_in_group(group_id)),
            await answer(lambda: view.groups_naming(group_id)),
        )

    interfaces, groups = run(go())
    assert len(interfaces) == 1
    assert groups == ()


def test_facts_that_hardly_ever_change_are_asked_for_once_an_hour():
    async def go() -> tuple[int, int]:
        bench = Bench()
        view = await bench.view()
        for _ in range(50):
            assert await answer(lambda: view.architecture("t3.small")) == "x86_64"
            await asyncio.sleep(60)
        few = bench.asked("architecture")
        await asyncio.sleep(3600)
        view.architecture("t3.small")
        return few, bench.asked("architecture")

    assert run(go()) == (1, 2)


def test_what_does_not_exist_is_asked_for_every_minute():
    async def go() -> list[Key]:
        bench = Bench()
        view = await bench.view()
        assert await answer(lambda: view.subnet("subnet-1")) is None
        await asyncio.sleep(50)
        bench.ec2.subnets["subnet-1"] = Subnet("subnet-1", "vpc-1", "us-west-2a")
        bench.woken.clear()
        await asyncio.sleep(15)
        assert view.subnet("subnet-1") is not None
        return bench.woken

    assert WEB in run(go())


def test_a_fact_outlives_a_failure_to_ask_for_it_anew():
    async def go() -> str:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.architecture("t3.small"))
        bench.fail("architecture", SLOW_DOWN)
        await asyncio.sleep(2 * 3600)
        return view.architecture("t3.small")

    assert run(go()) == "x86_64"


def test_a_type_of_nobody_is_an_error_of_the_spec():
    async def go() -> None:
        bench = Bench()
        view = await bench.view()
        with pytest.raises(InvalidSpec):
            await answer(lambda: view.architecture("t9.colossal"))

    run(go())


def test_an_object_that_asks_for_ever_more_is_not_remembered_for_ever():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        for number in range(3 * QUESTIONS_PER_KEY):
            with pytest.raises(NotYet):
                view.subnet(f"subnet-{number}")
            await asyncio.sleep(1)
        return len(view._informer._questions)

    assert run(go()) <= 2 * QUESTIONS_PER_KEY


def test_questions_that_nobody_reads_are_forgotten():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        for number in range(20):
            await answer(lambda number=number: view.instance_by_id(f"i-{number}"))
        await asyncio.sleep(2 * KEPT.total_seconds())
        return len(view._informer._questions)

    assert run(go()) == 0


# Who shares a look.


def test_tenants_never_share_a_look():
    async def go() -> tuple[bool, bool]:
        bench = Bench()
        one, two = await bench.view(), await bench.view(DB, U2, OTHER)
        same = await bench.view(DB, U2)
        return one._informer is two._informer, one._informer is same._informer

    assert run(go()) == (False, True)


def test_a_look_ends_with_its_last_watcher():
    async def go() -> int:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        await answer(lambda: view.instance_by_id("i-1"))
        bench.informers.drop(WEB)
        before = len(bench.ec2.effects.calls)
        await asyncio.sleep(100)
        return len(bench.ec2.effects.calls) - before

    assert run(go()) == 0


def test_who_comes_while_a_look_ends_gets_one_that_lives():
    async def go() -> set[str]:
        bench = Bench()
        view = await bench.view()
        await answer(lambda: view.snapshot(U1))
        bench.informers.drop(WEB)
        later = await bench.view(DB, U2)
        bench.put("i-1", "u2")
        await asyncio.sleep(15)
        return set((await answer(lambda: later.snapshot(U2))).instances)

    assert run(go()) == {"i-1"}
