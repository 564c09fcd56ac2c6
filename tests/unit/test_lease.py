"""What a holder of the Lease does about an API server that answers late or never. tests/contract judges the rest, on a
real API server."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nixops_operator.adapters.kube.lease import Lease, Timing
from unit import fake_time


class OneLease:
    """An API server with one Lease. Requests hang while `hangs` says so; time is the loop's."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.hangs: list[bool] = []
        self.begun: list[float] = []

    async def request(self, method: str, path: str, what: str, *, body: Any = None, **_: Any) -> Any:
        self.begun.append(asyncio.get_running_loop().time())
        if self.hangs and self.hangs.pop(0):
            await asyncio.sleep(3600)
        if method != "GET":
            self.found = {"metadata": {"name": "operator", "resourceVersion": str(len(self.begun))}, **body}
        return self.found


def lease(server: OneLease) -> Lease:
    clock = asyncio.get_running_loop().time
    return Lease(cast(Any, server), "nixops-system", "operator", "us", monotonic=clock)


@pytest.mark.parametrize("hanging", [[True], [False, True]], ids=["the look", "the renewal"])
def test_one_request_that_hangs_does_not_cost_the_lease(hanging: list[bool]) -> None:
    """It had the whole deadline: with it the Lease was gone, though the API server answered everybody else."""

    async def life() -> None:
        server, lost = OneLease(), asyncio.Event()
        held = lease(server)
        await held.acquire()
        server.hangs = hanging
        holding = asyncio.create_task(held.hold(lost.set))
        await asyncio.sleep(60)
        assert not lost.is_set()
        assert held.is_held
        holding.cancel()

    fake_time.run(life())


def test_an_api_server_that_never_answers_does() -> None:
    async def life() -> float:
        server, lost = OneLease(), asyncio.Event()
        held = lease(server)
        await held.acquire()
        server.hangs = [True] * 100
        holding = asyncio.create_task(held.hold(lost.set))
        await lost.wait()
        await holding
        return asyncio.get_running_loop().time()

    timing = Timing()
    assert timing.renew_deadline <= fake_time.run(life()) < timing.duration


def test_an_api_server_that_answers_is_asked_once_in_a_while() -> None:
    async def life() -> list[float]:
        server = OneLease()
        held = lease(server)
        await held.acquire()
        holding = asyncio.create_task(held.hold(lambda: None))
        await asyncio.sleep(9)
        holding.cancel()
        return server.begun

    assert fake_time.run(life()) == [0, 0, *[float(when) for when in (2, 2, 4, 4, 6, 6, 8, 8)]]
