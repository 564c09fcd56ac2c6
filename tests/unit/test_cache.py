"""Watch, lists and replies come in any order; what is known of an object only ever gets newer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from fakes.kube import FakeKube, key_of
from nixops_operator.api.group import API_VERSION
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import GONE_KEPT, Cache, resource_version
from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Body, Key, Kind, Page, is_controlled_by
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
    assert cache.get(WEB) == newer


def test_what_many_objects_say_is_in_memory_once():
    """A body of 4.6 kB took 9 kB there."""
    text = json.dumps(body(10) | {"status": {"conditions": [{"message": "lies in no network"}]}})
    cache = Cache()
    for name in ("web", "db"):
        cache.put(Key(Kind.MACHINE, "default", name), json.loads(text))
    web, db = (cache.get(Key(Kind.MACHINE, "default", name)) for name in ("web", "db"))

    assert web == db == json.loads(text)
    assert _texts(web["status"]["conditions"]) == _texts(db["status"]["conditions"])


def test_what_has_not_changed_stays_in_memory_once():
    cache = Cache()
    for version, message in ((10, "evaluating"), (20, "built")):
        before, status = cache.get(WEB), {"conditions": [{"message": message}, {"message": "reached"}]}
        text = json.dumps(body(version) | {"spec": {"suspend": False}, "status": status})
        cache.put(WEB, json.loads(text))
    after = cache.get(WEB)

    assert after == json.loads(text)
    assert after["spec"] is before["spec"]
    assert after["status"]["conditions"][1] is before["status"]["conditions"][1]


def _texts(conditions: list[dict[str, str]]) -> set[int]:
    return {id(text) for condition in conditions for pair in condition.items() for text in pair}


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


# Who owns whom

SHOP = Key(Kind.DEPLOYMENT, "default", "shop")


def child(machine: str, version: int = 1, namespace: str = "default", **reference: object) -> dict[str, Any]:
    """A NixMachine that names an owner: by default the deployment `shop` of uid `u`."""
    owner = {"apiVersion": API_VERSION, "kind": "NixDeployment", "name": "shop", "uid": "u", "controller": True}
    metadata = {
        "namespace": namespace,
        "name": machine,
        "uid": f"{namespace}/{machine}",
        "resourceVersion": str(version),
    }
    return {"kind": "NixMachine", "metadata": metadata | {"ownerReferences": [owner | reference]}}


def deployment(version: int = 1, uid: str = "u", namespace: str = "default") -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": "shop", "uid": uid, "resourceVersion": str(version)}
    return {"kind": "NixDeployment", "metadata": metadata}


def cache_of(*bodies: Body) -> Cache:
    cache = Cache()
    for one in bodies:
        cache.put(key_of(one), one)
    return cache


def names_of(bodies: Iterable[Body]) -> list[str]:
    return [one["metadata"]["name"] for one in bodies]


def test_the_children_of_a_deployment_are_told_by_name():
    cache = cache_of(child("web-1"), deployment(), child("web-0"), child("db", name="other"))

    assert names_of(cache.children(SHOP, "u")) == ["web-0", "web-1"]
    assert cache.owner_key(child("web-0")) == SHOP


FORGED = [
    pytest.param(child("web", namespace="theirs"), id="from another namespace"),
    pytest.param(child("web", uid="another"), id="of an earlier life"),
    pytest.param(child("web", name="another"), id="by another name"),
    pytest.param(child("web", kind="NixMachine"), id="of another kind"),
    pytest.param(child("web", apiVersion="example.org/v1alpha1"), id="of another group"),
    pytest.param(child("web", controller=False), id="not as its controller"),
]


@pytest.mark.parametrize("forged", FORGED)
def test_a_reference_makes_nobody_a_child_unless_place_and_owner_are_right(forged: Body):
    """Or a tenant would have the deployment of another one delete machines."""
    cache = cache_of(deployment(), deployment(uid="v", namespace="theirs"), forged)

    assert cache.children(SHOP, "u") == ()
    assert cache.children(Key(Kind.DEPLOYMENT, "theirs", "shop"), "v") == ()
    assert cache.owner_key(forged) is None
    assert not is_controlled_by(forged, deployment())


def test_a_reference_of_another_version_of_our_api_counts():
    assert is_controlled_by(child("web", apiVersion="nixops.dev/v1"), deployment())


def test_a_child_follows_its_reference():
    cache = cache_of(child("web"))
    cache.put(key_of(child("web")), child("web", 2, uid="v"))

    assert cache.children(SHOP, "u") == ()
    assert names_of(cache.children(SHOP, "v")) == ["web"]


def test_an_older_reference_does_not_come_back():
    cache = cache_of(child("web", 2, uid="v"))
    cache.put(key_of(child("web")), child("web", 1))

    assert cache.children(SHOP, "u") == ()


def test_what_has_gone_is_nobody_s_child():
    cache = cache_of(deployment(), child("web"))
    cache.drop(key_of(child("web")), 2)

    assert cache.children(SHOP, "u") == ()
    assert cache.in_namespace(Kind.MACHINE, "default") == ()


def test_what_lies_in_a_namespace_is_told_by_kind_and_name():
    cache = cache_of(child("b"), deployment(), child("a"), child("c", namespace="theirs"))

    assert names_of(cache.in_namespace(Kind.MACHINE, "default")) == ["a", "b"]
    assert names_of(cache.in_namespace(Kind.DEPLOYMENT, "default")) == ["shop"]
    assert cache.in_namespace(Kind.MACHINE, "nowhere") == ()


class CountedBody(dict[str, Any]):
    """Counts how often anything is read from any of its kind."""

    reads = 0

    def __getitem__(self, name: str) -> Any:
        type(self).reads += 1
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        type(self).reads += 1
        return super().get(name, default)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(lambda cache: cache.children(SHOP, "u"), id="children"),
        pytest.param(lambda cache: cache.owner_key(child("web")), id="owner"),
        pytest.param(lambda cache: cache.in_namespace(Kind.DEPLOYMENT, "default"), id="of a namespace"),
        pytest.param(lambda cache: cache.newest_version(Kind.MACHINE), id="newest version"),
        pytest.param(lambda cache: cache.put(key_of(child("web")), child("web", 2)), id="a write"),
        pytest.param(lambda cache: cache.drop(key_of(child("web")), 2), id="an end"),
    ],
)
def test_no_question_walks_over_what_it_is_not_about(asked: Callable[[Cache], object]):
    """With 10,000 objects a walk takes milliseconds, at every write and every pass of a deployment."""
    others = [CountedBody(child(f"m{number}", namespace=f"n{number}")) for number in range(10_000)]
    cache = cache_of(*others, deployment(), child("web"))
    CountedBody.reads = 0

    asked(cache)

    assert CountedBody.reads == 0


def test_of_a_thousand_owners_each_finds_its_own():
    """Against a walk over everything, after a thousand random changes."""
    rng = random.Random(7)
    cache, known = Cache(), dict[Key, Body]()
    for version in range(1, 1001):
        one = child(f"m{rng.randrange(50)}", version, rng.choice(["default", "theirs"]), uid=rng.choice("uvw"))
        if rng.random() < 0.2:
            cache.drop(key_of(one), version)
            known.pop(key_of(one), None)
        else:
            cache.put(key_of(one), one)
            known[key_of(one)] = one

    for namespace in ("default", "theirs"):
        owner = Key(Kind.DEPLOYMENT, namespace, "shop")
        here = [known[key] for key in sorted(known) if key.namespace == namespace]
        assert list(cache.in_namespace(Kind.MACHINE, namespace)) == here
        for uid in "uvw":
            wanted = [one for one in here if one["metadata"]["ownerReferences"][0]["uid"] == uid]
            assert list(cache.children(owner, uid)) == wanted


def woken_by(cache: Cache, seen: Body) -> set[Key]:
    """The keys that the news of a machine puts into the queue."""

    async def waiting() -> set[Key]:
        queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        Intake(cache, queue).saw(Kind.MACHINE, seen)
        return {await queue.get() for _ in range(len(queue))}

    return asyncio.run(waiting())


@pytest.mark.parametrize("forged", FORGED)
def test_the_watch_wakes_nobody_for_a_reference_that_is_none(forged: Body):
    assert woken_by(cache_of(deployment()), forged) == {key_of(forged)}


def test_the_watch_wakes_both_owners_when_a_child_changes_hands():
    other = deployment()
    other["metadata"] |= {"name": "other", "uid": "o"}
    cache = cache_of(deployment(), other, child("web"))

    assert woken_by(cache, child("web", 2, name="other", uid="o")) == {key_of(child("web")), key_of(other), SHOP}


# What a list is worth that was under way for long


class SlowLists(FakeKube):
    """Things happen between what a list shows and its arrival."""

    def __init__(self) -> None:
        super().__init__(now=lambda: NOON)
        self.meanwhile: Callable[[], Any] = lambda: None
        self.after_a_page: Callable[[], Any] = lambda: None

    async def list(self, kind: Kind) -> AsyncIterator[Page]:
        async for page in super().list(kind):
            if kind is Kind.MACHINE:
                self.meanwhile()
            yield page
            if kind is Kind.MACHINE:
                self.after_a_page()


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


def test_what_is_on_any_page_of_a_list_is_there():
    bench = Bench()
    bench.kube.page_size = 1
    for name in ("a", "b", "c"):
        bench.create(name)
    bench.kube.watchers.clear()
    bench.kube.delete(Key(Kind.MACHINE, "default", "b"))

    assert bench.resync() == 1
    assert [key.name for key in bench.cache.known()] == ["a", "c"]


def test_a_list_that_ends_half_way_takes_nothing_away():
    """Its continuation has expired, or the API server has gone."""

    def expired() -> None:
        raise Retry(Reason.PROGRESSING_WITH_RETRY, "the continue parameter is too old")

    bench = Bench()
    bench.kube.page_size = 1
    for name in ("a", "b"):
        bench.create(name)
    bench.kube.after_a_page = expired

    with pytest.raises(Retry):
        bench.resync()
    assert [key.name for key in bench.cache.known()] == ["a", "b"]


def test_versions_that_have_gone_back_end_the_process():
    """An etcd restored from a backup: everything would be taken for old news, for ever."""
    bench = Bench()
    bench.create()
    earlier = Bench()

    bench.kube = earlier.kube

    with pytest.raises(WatchDeadError, match="lists version 1000, but 1001 was seen before"):
        bench.resync()


# Who needs which Secret


def using(name: str, secret: object = "aws", account: str | None = "1", version: int = 1) -> Body:
    spec = {"aws": {"credentials": {"secretRef": {"name": secret}}}}
    return {**body(version, name, name), "spec": spec, "status": {"accountId": account}}


@pytest.mark.parametrize(
    ("one", "is_user"),
    [
        pytest.param(using("web"), True, id="names it, and has an account"),
        pytest.param(using("web", account=None), False, id="nothing is in any account"),
        pytest.param(using("web", "other"), False, id="names another"),
        pytest.param(using("web", 7), False, id="names no text"),
        pytest.param({**using("web"), "spec": {"aws": "none"}}, False, id="a spec that cannot be read"),
        pytest.param({**using("web"), "spec": None}, False, id="no spec"),
    ],
)
def test_an_object_needs_the_secret_with_which_it_may_have_made_something(one: Body, is_user: bool):
    cache = Cache()
    cache.put(WEB, one)
    assert list(cache.users_of_secret("default", "aws")) == ([one] if is_user else [])
    assert list(cache.users_of_secret("theirs", "aws")) == []


def test_users_of_a_secret_change_with_what_is_known():
    cache = Cache()
    cache.put(WEB, using("web"))
    assert list(cache.users_of_secret("default", "aws", besides=WEB)) == []
    cache.put(WEB, using("web", "other", version=2))
    assert list(cache.users_of_secret("default", "aws")) == []
    assert len(list(cache.users_of_secret("default", "other"))) == 1
    cache.drop(WEB, 3)
    assert list(cache.users_of_secret("default", "other")) == []
