"""Watch, lists and replies come in any order; what is known of an object only ever gets newer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from fakes.kube import FakeKube, key_of
from nixops_operator.cache import GONE_KEPT, Cache, resource_version
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.watch import Intake, WatchDeadError, resync
from nixops_operator.workqueue import WorkQueue
from unit.builders import NOON

WEB = Key(Kind.MACHINE, "default", "web")


def body(version: int, uid: str = "a", name: str = "web") -> Body:
    return {"metadata": {"namespace": "default", "name": name, "uid": uid, "resourceVersion": str(version)}}


# What is known


@pytest.mark.parametrize("uid", ["a", "b"], ids=["of the same object", "of the one that had the name before"])
def test_an_older_version_never_replaces_a_newer_one(uid: str):
    cache = Cache()
    newer = body(20)
    cache.put(WEB, newer)

    older = body(10, uid)

    assert cache.put(WEB, older) is older
    assert cache.get(WEB) is newer


def test_nothing_brings_back_what_has_gone_since():
    cache = Cache()
    cache.put(WEB, body(10))
    assert cache.drop(WEB, 30) == body(10)

    cache.put(WEB, body(20))

    assert cache.get(WEB) is None


def test_an_earlier_end_does_not_uncover_what_a_later_one_covered():
    cache = Cache()
    cache.drop(WEB, 30)
    cache.drop(WEB, 10)

    cache.put(WEB, body(20))

    assert cache.get(WEB) is None


def test_the_next_object_of_that_name_is_seen():
    cache = Cache()
    cache.drop(WEB, 30)

    assert cache.put(WEB, body(31, "b")) is None
    assert cache.get(WEB) == body(31, "b")


def test_an_object_stays_that_is_younger_than_the_news_of_its_end():
    cache = Cache()
    cache.put(WEB, body(40, "b"))

    assert cache.drop(WEB, 30) is None
    assert cache.get(WEB) == body(40, "b")


def test_only_the_last_ends_are_remembered():
    cache = Cache()
    for number in range(GONE_KEPT + 1):
        cache.drop(Key(Kind.MACHINE, "default", f"m{number}"), 30)

    first, second = (Key(Kind.MACHINE, "default", name) for name in ("m0", "m1"))
    cache.put(first, body(20, name="m0"))
    cache.put(second, body(20, name="m1"))

    assert (cache.get(first) is None, cache.get(second) is None) == (False, True)


# What a list is worth that was under way for long


class SlowLists(FakeKube):
    """Things happen between what a list shows and its arrival."""

    def __init__(self) -> None:
        super().__init__(now=lambda: NOON)
        self.meanwhile: Callable[[], Any] = lambda: None

    async def list(self, kind: Kind) -> tuple[list[Body], str]:
        shown = await super().list(kind)
        if kind is Kind.MACHINE:
            self.meanwhile()
        return shown


class Bench:
    def __init__(self) -> None:
        self.kube = SlowLists()
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        self.intake = Intake(self.cache, self.queue)
        self.kube.watchers.append(self._hear)

    def _hear(self, what: str, body: Body) -> None:
        key = key_of(body)
        if what == "DELETED":
            self.intake.gone(key, resource_version(body))
        else:
            self.intake.saw(key.kind, body)

    def create(self, name: str = "web") -> None:
        self.kube.apply({"kind": "NixMachine", "metadata": {"namespace": "default", "name": name}, "spec": {}})

    def resync(self) -> int:
        return asyncio.run(resync(self.kube, self.cache, self.intake))


def test_what_was_made_while_a_list_was_under_way_stays():
    bench = Bench()
    bench.kube.meanwhile = bench.create

    assert bench.resync() == 0
    assert bench.cache.known() == (WEB,)


def test_what_has_gone_while_a_list_was_under_way_stays_gone():
    """A pass for it would make its groups and key pair once more, for nobody."""
    bench = Bench()
    bench.create()
    bench.kube.meanwhile = lambda: bench.kube.delete(WEB)

    assert bench.resync() == 0
    assert bench.cache.known() == ()


def test_what_no_event_told_of_is_found():
    bench = Bench()
    bench.create("old")
    bench.kube.watchers.clear()
    bench.kube.delete(Key(Kind.MACHINE, "default", "old"))
    bench.create()

    assert bench.resync() == 2
    assert bench.cache.known() == (WEB,)
    assert bench.resync() == 0


def test_versions_that_have_gone_back_end_the_process():
    """An etcd restored from a backup: everything would be taken for old news, for ever."""
    bench = Bench()
    bench.create()
    earlier = Bench()

    bench.kube = earlier.kube

    with pytest.raises(WatchDeadError, match="lists version 1000, but 1001 was seen before"):
        bench.resync()
