"""One look for all objects of an identity; nothing is believed that is older than what was written last."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from fakes.cloud import FakeClouds
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.errors import Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.cloud import CloudInformer, CloudInformers
from unit.builders import CLUSTER, NOON, instance
from unit.fake_time import run

IDENTITY = AwsIdentity("AKIDTEST", "secret")
OTHER = AwsIdentity("AKIDTEST", "another secret")
REGION = "us-west-2"
WEB, DB = (Key(Kind.MACHINE, "default", name) for name in ("web", "db"))
U1, U2 = frozenset({"u1"}), frozenset({"u2"})


class Bench:
    def __init__(self) -> None:
        self.clouds = FakeClouds(now=lambda: NOON)
        self.ec2 = self.clouds.world()
        self.woken: list[Key] = []
        self.informers = CloudInformers(self.clouds, timedelta(seconds=10), timedelta(seconds=30), self.woken.append)

    async def watch(self, key: Key, uids: frozenset[str], identity: AwsIdentity = IDENTITY) -> CloudInformer:
        return await self.informers.watch(key, uids, identity, REGION, CLUSTER)

    def put(self, name: str, uid: str, state: InstanceState = InstanceState.RUNNING) -> None:
        tags = {"nixops.dev:cluster": CLUSTER, "nixops.dev:uid": uid}
        self.ec2.instances[name] = instance(name, state, tags=tags)

    def sweeps(self) -> int:
        return len(self.ec2.effects.of("sweep_instances"))


def test_one_sweep_a_period_however_many_watch():
    async def go() -> int:
        bench = Bench()
        for key, uids in ((WEB, U1), (DB, U2)):
            await (await bench.watch(key, uids)).snapshot(uids)
        await asyncio.sleep(1)
        before = bench.sweeps()
        await asyncio.sleep(100)
        return bench.sweeps() - before

    assert 9 <= run(go()) <= 11


def test_while_something_moves_sweeps_come_more_often():
    async def go() -> int:
        bench = Bench()
        bench.put("i-1", "u1", InstanceState.PENDING)
        await (await bench.watch(WEB, U1)).snapshot(U1)
        before = bench.sweeps()
        await asyncio.sleep(20)
        return bench.sweeps() - before

    assert 8 <= run(go()) <= 11


def test_a_snapshot_is_never_older_than_the_own_write():
    async def go() -> tuple[set[str], set[str]]:
        bench = Bench()
        look = await bench.watch(WEB, U1)
        await look.snapshot(U1)
        await asyncio.sleep(1)
        bench.put("i-1", "u1")
        stale = set((await look.snapshot(U1)).instances)
        look.note_write("u1")
        await asyncio.sleep(0.1)
        return stale, set((await look.snapshot(U1)).instances)

    assert run(go()) == (set(), {"i-1"})


def test_a_change_wakes_whom_it_concerns_and_nobody_else():
    async def go() -> list[Key]:
        bench = Bench()
        for key, uids in ((WEB, U1), (DB, U2)):
            await (await bench.watch(key, uids)).snapshot(uids)
        await asyncio.sleep(15)
        bench.woken.clear()
        bench.put("i-1", "u1")
        await asyncio.sleep(15)
        return bench.woken

    assert run(go()) == [WEB]


def test_a_failed_look_is_an_error_and_not_an_empty_answer():
    async def go() -> Bench:
        bench = Bench()
        look = await bench.watch(WEB, U1)
        bench.put("i-1", "u1")
        await look.snapshot(U1)
        bench.ec2.effects.standing_error["sweep_instances"] = Retry(Reason.THROTTLED, "slow down")
        await asyncio.sleep(15)
        with pytest.raises(Retry, match="slow down"):
            await look.snapshot(U1)
        bench.woken.clear()
        bench.ec2.effects.standing_error.clear()
        await asyncio.sleep(60)
        assert set((await look.snapshot(U1)).instances) == {"i-1"}
        return bench

    assert WEB in run(go()).woken, "who waits hears that looking works again"


def test_failing_looks_back_off():
    async def go() -> int:
        bench = Bench()
        bench.ec2.effects.standing_error["sweep_instances"] = Retry(Reason.THROTTLED, "slow down")
        await bench.watch(WEB, U1)
        await asyncio.sleep(600)
        return bench.sweeps()

    assert run(go()) <= 30


def test_absence_is_measured_between_complete_sweeps():
    async def go() -> tuple[timedelta, timedelta, timedelta]:
        bench = Bench()
        look = await bench.watch(WEB, U1)
        bench.put("i-1", "u1")
        await look.snapshot(U1)
        first = look.missing_for("i-1")
        await asyncio.sleep(30)
        shown = look.missing_for("i-1")
        del bench.ec2.instances["i-1"]
        await asyncio.sleep(75)
        return first, shown, look.missing_for("i-1")

    first, shown, missing = run(go())
    assert first == shown == timedelta(0)
    assert timedelta(seconds=55) <= missing <= timedelta(seconds=75)


def test_failed_sweeps_do_not_count_towards_absence():
    async def go() -> timedelta:
        bench = Bench()
        look = await bench.watch(WEB, U1)
        await look.snapshot(U1)
        look.missing_for("i-1")
        bench.ec2.effects.standing_error["sweep_instances"] = Retry(Reason.THROTTLED, "slow down")
        await asyncio.sleep(600)
        return look.missing_for("i-1")

    assert run(go()) == timedelta(0)


def test_tenants_never_share_a_look():
    async def go() -> tuple[bool, bool]:
        bench = Bench()
        one, two = await bench.watch(WEB, U1), await bench.watch(DB, U2, OTHER)
        same = await bench.watch(DB, U2)
        return one is two, one is same

    assert run(go()) == (False, True)


def test_a_look_ends_with_its_last_watcher():
    async def go() -> int:
        bench = Bench()
        await (await bench.watch(WEB, U1)).snapshot(U1)
        await bench.informers.drop(WEB)
        before = bench.sweeps()
        await asyncio.sleep(100)
        return bench.sweeps() - before

    assert run(go()) == 0


def test_facts_that_hardly_change_are_asked_for_once_an_hour():
    async def go() -> tuple[int, int]:
        bench = Bench()
        look = await bench.watch(WEB, U1)
        for _ in range(5):
            await look.architecture("t3.small")
            await asyncio.sleep(60)
        few = len(bench.ec2.effects.of("architecture"))
        await asyncio.sleep(3600)
        await look.architecture("t3.small")
        return few, len(bench.ec2.effects.of("architecture"))

    assert run(go()) == (1, 2)
