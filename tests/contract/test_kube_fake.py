"""What the API in memory offers to tests beyond the port: faults, a watch, the garbage collector."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from contract.kube_worlds import event, key, machine, owned_by
from fakes.kube import FakeKube, key_of
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OutcomeUnknown, Retry
from nixops_operator.facts.kube import Body, Kind, OwnerReference


def deployment() -> Body:
    return {"kind": "NixDeployment", "metadata": {"namespace": "shop", "name": "shop"}, "spec": {}}


async def test_an_error_that_a_test_sets_is_raised_once_and_changes_nothing() -> None:
    kube = FakeKube()
    body = kube.apply(machine("shop"))
    kube.effects.next_error["kube.patch_status"] = Retry(Reason.PROGRESSING_WITH_RETRY, "away")

    with pytest.raises(Retry):
        await kube.patch_status(body, {"accountId": "1"})
    assert kube.body(key("shop")) == body

    await kube.patch_status(body, {"accountId": "1"})
    assert [call.effect for call in kube.effects.calls] == ["kube.patch_status", "kube.patch_status"]


async def test_a_standing_error_is_raised_until_it_is_removed() -> None:
    kube = FakeKube()
    kube.effects.standing_error["read_secret"] = Blocked(Reason.ACCESS_DENIED, "no")
    for _ in range(2):
        with pytest.raises(Blocked):
            await kube.read_secret("shop", "keys")

    del kube.effects.standing_error["read_secret"]

    assert await kube.read_secret("shop", "keys") is None


async def test_a_dropped_reply_comes_after_the_change() -> None:
    kube = FakeKube()
    kube.effects.drop_reply.add("kube.create_machine")

    with pytest.raises(OutcomeUnknown):
        await kube.create_machine(machine("shop"))

    assert kube.body(key("shop")) is not None
    assert not kube.effects.drop_reply


async def test_a_gate_holds_a_call() -> None:
    kube = FakeKube()
    gate = kube.effects.gates["kube.create_machine"] = asyncio.Event()
    call = asyncio.create_task(kube.create_machine(machine("shop")))
    for _ in range(10):
        await asyncio.sleep(0)
    assert [one.effect for one in kube.effects.calls] == ["kube.create_machine"]
    assert kube.body(key("shop")) is None

    gate.set()

    assert (await call)["metadata"]["name"] == "web"


async def test_watchers_are_told_of_every_change() -> None:
    kube = FakeKube()
    told: list[tuple[str, str]] = []
    kube.watchers.append(lambda what, body: told.append((what, body["metadata"]["resourceVersion"])))

    body = await kube.add_finalizer(kube.apply(machine("shop")))
    kube.apply(machine("shop"))
    kube.delete(key("shop"))
    body = kube.body(key("shop")) or body
    await kube.remove_finalizer(body)

    assert [what for what, _ in told] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
    assert len({version for _, version in told}) == 4


async def test_the_garbage_collector_follows_owners() -> None:
    kube = FakeKube()
    owner = kube.apply(deployment())
    kube.apply(owned_by(owner, "shop", "web"))
    kube.apply(machine("shop", "on-its-own"))
    of_owner = OwnerReference(Kind.DEPLOYMENT, "shop", owner["metadata"]["uid"])
    await kube.create_secret("shop", "keys", {}, owner=of_owner, type_="Opaque", immutable=False)
    await kube.create_secret("shop", "theirs", {}, owner=None, type_="Opaque", immutable=False)

    kube.collect_garbage()
    assert len(kube.bodies(Kind.MACHINE)) == 2
    kube.delete(key_of(owner))
    assert kube.body(key_of(owner)) is None
    kube.collect_garbage()

    assert [body["metadata"]["name"] for body in kube.bodies(Kind.MACHINE)] == ["on-its-own"]
    assert list(kube.secrets) == [("shop", "theirs")]


def test_the_garbage_collector_comes_late() -> None:
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    kube = FakeKube(now=lambda: moment, gc_delay=timedelta(seconds=30))
    owner = kube.apply(deployment())
    kube.apply(owned_by(owner, "shop", "web"))
    kube.delete(key_of(owner))

    moment += timedelta(seconds=29)
    kube.collect_garbage()
    assert kube.body(key("shop")) is not None

    moment += timedelta(seconds=1)
    kube.collect_garbage()
    assert kube.body(key("shop")) is None


def test_nobody_is_owned_from_another_namespace() -> None:
    """The garbage collector looks for the owner in the dependent's own namespace, and does not find it."""
    kube = FakeKube()
    owner = kube.apply(deployment())
    kube.apply(owned_by(owner, "theirs", "web"))

    kube.collect_garbage()

    assert kube.bodies(Kind.MACHINE) == []


def test_uids_come_in_no_order() -> None:
    kube = FakeKube()
    uids = [kube.apply(machine("shop", f"m{number}"))["metadata"]["uid"] for number in range(20)]

    assert len(set(uids)) == 20
    assert uids != sorted(uids)
    assert uids != sorted(uids, reverse=True)


@pytest.mark.parametrize("missing", ["apiVersion", "kind", "name", "uid"])
def test_an_owner_reference_is_whole(missing: str) -> None:
    kube = FakeKube()
    child = owned_by(kube.apply(deployment()), "shop", "web")
    del child["metadata"]["ownerReferences"][0][missing]

    with pytest.raises(Blocked, match=missing):
        kube.apply(child)


async def test_an_event_of_another_hour_is_a_new_one() -> None:
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    kube = FakeKube(now=lambda: moment)
    body = kube.apply(machine("shop"))

    await kube.post_event(event(body, "started"))
    moment += timedelta(minutes=11)
    await kube.post_event(event(body, "started"))

    assert [posted.count for posted in kube.events] == [1, 1]
