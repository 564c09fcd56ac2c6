"""Threads for calls to EC2 are few; nobody may take them all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from nixops_operator.adapters.aws.calls import Calls
from nixops_operator.adapters.aws.quota import Quota

THREADS = 4


class Endpoint:
    """Answers nobody until it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.begun = threading.Semaphore(0)
        self.number = 0

    def call(self) -> str:
        self.number += 1
        self.begun.release()
        self.answers.wait()
        return "at last"


@asynccontextmanager
async def stuck(calls: Calls, endpoint: Endpoint, times: int) -> AsyncIterator[list[asyncio.Task[str]]]:
    """So many callers of an endpoint that does not answer; two of them hold threads."""
    callers = [asyncio.ensure_future(calls.read("DescribeInstances", endpoint.call)) for _ in range(times)]
    try:
        for _ in range(2):
            await asyncio.to_thread(endpoint.begun.acquire)
        yield callers
    finally:
        endpoint.answers.set()
        await asyncio.gather(*callers, return_exceptions=True)


def quota() -> Quota:
    """Enough for everybody."""
    return Quota(time.monotonic)


def quick() -> str:
    return "at once"


def run(work: Callable[[ThreadPoolExecutor], AsyncIterator[None] | object]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        asyncio.run(work(pool))  # type: ignore[arg-type]


def test_a_silent_endpoint_leaves_threads_to_others() -> None:
    async def work(pool: ThreadPoolExecutor) -> None:
        silent = Calls(pool, "us-west-2", (asyncio.Semaphore(2),), quota)
        healthy = Calls(pool, "eu-west-1", (asyncio.Semaphore(2),), quota)
        endpoint = Endpoint()

        async with stuck(silent, endpoint, times=20):
            for _ in range(10):
                assert await healthy.read("DescribeInstances", quick) == "at once"
            assert endpoint.number == 2

        assert endpoint.number == 20, "the others went when it answered"

    run(work)


def test_who_gives_up_frees_no_thread() -> None:
    """The call goes on in its thread; another must not take the place beside it."""

    async def work(pool: ThreadPoolExecutor) -> None:
        silent = Calls(pool, "us-west-2", (asyncio.Semaphore(2),), quota)
        healthy = Calls(pool, "eu-west-1", (asyncio.Semaphore(2),), quota)
        endpoint = Endpoint()

        async with stuck(silent, endpoint, times=8) as callers:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            later = asyncio.ensure_future(silent.read("DescribeInstances", endpoint.call))
            for _ in range(10):
                assert await healthy.read("DescribeInstances", quick) == "at once"
            assert endpoint.number == 2
            endpoint.answers.set()
            assert await later == "at last"

        assert endpoint.number == 3, "those who gave up before their turn are not called for"

    run(work)


def test_identities_share_the_slots_of_their_region() -> None:
    async def work(pool: ThreadPoolExecutor) -> None:
        region = asyncio.Semaphore(2)
        one, two = (Calls(pool, "us-west-2", (asyncio.Semaphore(2), region), quota) for _ in range(2))
        healthy = Calls(pool, "eu-west-1", (asyncio.Semaphore(2),), quota)
        endpoint = Endpoint()

        async with stuck(one, endpoint, times=2):
            other = asyncio.ensure_future(two.read("DescribeInstances", endpoint.call))
            for _ in range(10):
                assert await healthy.read("DescribeInstances", quick) == "at once"
            assert endpoint.number == 2
            endpoint.answers.set()
            assert await other == "at last"

    run(work)
