"""Who may act, on a real API server. Time passes only where a holder sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from component.conftest import ApiServer
from contract.kube_worlds import RealWorld, real_world
from nixops_operator.adapters.kube import Connection, Lease
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError, Retry


@pytest.fixture
async def world(crds: ApiServer) -> AsyncIterator[RealWorld]:
    async with real_world(crds.kubeconfig) as made:
        yield made


class Clock:
    """Monotonic seconds of one process; `before_waking` runs in each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.before_waking: Callable[[], Awaitable[None]] | None = None

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.before_waking is not None:
            await self.before_waking()
        await asyncio.sleep(0)


@dataclass
class Cut:
    """A connection that can be cut."""

    connection: Connection
    is_cut: bool = False

    async def request(self, *arguments: Any, **settings: Any) -> Any:
        if self.is_cut:
            raise Retry(Reason.PROGRESSING_WITH_RETRY, "cut")
        return await self.connection.request(*arguments, **settings)


def lease(world: RealWorld, identity: str, clock: Clock, connection: Any = None) -> Lease:
    return Lease(
        connection or world.connection,
        world.namespace,
        "nixops-operator",
        identity,
        monotonic=clock,
        sleep=clock.sleep,
    )


async def record(world: RealWorld) -> dict[str, Any]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/nixops-operator"
    found = await world.connection.request("GET", path, "get lease")
    assert found is not None
    return dict(found["spec"])


async def test_the_first_takes_it_at_once(world: RealWorld) -> None:
    clock = Clock()
    first = lease(world, "first", clock)
    assert not first.is_held

    await first.acquire()

    assert clock.now == 1000
    assert first.is_held
    assert first.renewed_at == 1000
    spec = await record(world)
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("first", 15, 0)


async def test_a_lease_that_is_not_renewed_is_taken_after_its_duration(world: RealWorld) -> None:
    await lease(world, "first", Clock()).acquire()
    clock = Clock()
    second = lease(world, "second", clock)

    await second.acquire()

    # Counted from when the second saw it first: wall clocks of two hosts are not compared.
    assert 15 <= clock.now - 1000 <= 17
    spec = await record(world)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)


async def test_the_holder_says_how_long_it_may_be_silent(world: RealWorld) -> None:
    clock = Clock()
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases"
    spec = {"holderIdentity": "slow", "leaseDurationSeconds": 40}
    body = {"metadata": {"name": "nixops-operator"}, "spec": spec}
    await world.connection.request("POST", path, "create lease", body=body)

    await lease(world, "second", clock).acquire()

    assert 40 <= clock.now - 1000 <= 42


async def test_a_lease_that_is_renewed_is_not_taken(world: RealWorld) -> None:
    first_clock, second_clock = Clock(), Clock()
    first, second = lease(world, "first", first_clock), lease(world, "second", second_clock)
    await first.acquire()
    renewals = 0

    async def first_renews() -> None:
        nonlocal renewals
        renewals += 1
        if renewals == 20:
            raise TimeoutError("twenty renewals are enough")
        first_clock.now += 2
        await first.acquire()

    second_clock.before_waking = first_renews
    with pytest.raises(TimeoutError):
        await second.acquire()

    assert second_clock.now - 1000 >= 30
    assert second.renewed_at is None
    assert (await record(world))["holderIdentity"] == "first"


async def test_a_released_lease_is_taken_at_once(world: RealWorld) -> None:
    first, clock = lease(world, "first", Clock()), Clock()
    await first.acquire()

    await first.release()
    await lease(world, "second", clock).acquire()

    assert not first.is_held
    assert clock.now == 1000


async def test_releasing_leaves_another_holder_alone(world: RealWorld) -> None:
    first = lease(world, "first", Clock())
    await first.acquire()
    await lease(world, "second", Clock()).acquire()

    await first.release()

    assert (await record(world))["holderIdentity"] == "second"


async def test_holding_renews_and_ends_when_the_server_is_away_too_long(world: RealWorld) -> None:
    clock, connection = Clock(), Cut(world.connection)
    held = lease(world, "first", clock, connection)
    await held.acquire()
    lost_at: list[float] = []

    async def cut_after_ten_seconds() -> None:
        if clock.now >= 1010:
            connection.is_cut = True

    clock.before_waking = cut_after_ten_seconds
    await held.hold(lambda: lost_at.append(clock.now))

    # Last renewed at 1008; the deadline is 10 s later, and nobody else may take it before 15 s.
    assert lost_at == [1018]
    assert not held.is_held
    assert held.renewed_at is None


async def test_a_short_outage_does_not_cost_the_lease(world: RealWorld) -> None:
    clock, connection = Clock(), Cut(world.connection)
    held = lease(world, "first", clock, connection)
    await held.acquire()

    async def cut_for_six_seconds() -> None:
        connection.is_cut = 1004 <= clock.now < 1010
        if clock.now >= 1020:
            raise TimeoutError("long enough")

    clock.before_waking = cut_for_six_seconds
    with pytest.raises(TimeoutError):
        await held.hold(pytest.fail)

    assert held.renewed_at == 1018


async def test_holding_ends_when_another_took_it(world: RealWorld) -> None:
    clock = Clock()
    held = lease(world, "first", clock)
    await held.acquire()
    await lease(world, "second", Clock()).acquire()
    lost: list[bool] = []

    await held.hold(lambda: lost.append(True))

    assert lost == [True]
    assert clock.now == 1002


async def test_of_two_that_come_at_once_one_gets_it(world: RealWorld) -> None:
    holders = [lease(world, name, Clock()) for name in ("a", "b")]

    async def attempt(one: Lease) -> bool:
        try:
            async with asyncio.timeout(5):
                return await one._take_or_renew()
        except OperatorError:
            return False

    results = await asyncio.gather(*(attempt(one) for one in holders))

    assert sorted(results) == [False, True]
    assert [one.is_held for one in holders] == results
