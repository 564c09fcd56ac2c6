"""What /healthz, /readyz and /metrics say, from the first moment of the process on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest

from nixops_operator import composition
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.adapters.kube.lease import Lease
from nixops_operator.exits import Ended, Exit
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.probes import PASS_IS_OLD, PASS_IS_STUCK, Probes
from nixops_operator.settings import Settings
from unit import fake_time

T = TypeVar("T")
WEB = Key(Kind.MACHINE, "shop", "web")


class Silent:
    """An API server that nobody has asked yet."""

    url = "https://api.example"
    is_strict = True


class Started:
    """The operator as it is wired, before anything of it has started. `is_leading`: whether it holds the Lease."""

    def __init__(self, is_leading: bool = False) -> None:
        connection = cast(Connection, Silent())
        lease = Lease(connection, "nixops-system", "nixops-operator", "me", monotonic=lambda: 0)
        lease.renewed_at = 0 if is_leading else None
        self.core = composition.wire(Settings(), connection, lease)
        self.probes = Probes(self.core)


def run(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return fake_time.run(ask())


def sample(text: bytes, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
    assert found is not None, f"no {name}"
    return float(found[1])


def test_before_the_lease_is_held_every_question_has_an_answer() -> None:
    async def ask() -> tuple[str | None, str | None, bytes]:
        probes = Started().probes
        await asyncio.sleep(86_400)
        return probes.healthy(), probes.ready(), probes.metrics()

    healthy, ready, metrics = run(ask)

    assert (healthy, ready) == (None, "the Lease is not held")
    assert sample(metrics, "nixops_leader") == 0
    assert sample(metrics, 'nixops_jobs_running{job="build"}') == 0
    assert sample(metrics, 'nixops_objects{kind="NixMachine"}') == 0


def test_ready_means_that_everything_was_listed_once() -> None:
    async def ask() -> tuple[str | None, str | None]:
        probes = Started(is_leading=True).probes
        before = probes.ready()
        probes.resynced()
        return before, probes.ready()

    assert run(ask) == ("the first lists are not complete", None)


@pytest.mark.parametrize(
    ("age", "healthy"),
    [pytest.param(180, None, id="three periods"), pytest.param(181, "no resync for 181 s", id="a moment more")],
)
def test_unhealthy_without_resyncs(age: float, healthy: str | None) -> None:
    async def ask() -> str | None:
        probes = Started().probes
        probes.resynced()
        await asyncio.sleep(age)
        return probes.healthy()

    assert run(ask) == healthy


@pytest.mark.parametrize(
    ("age", "healthy"),
    [
        pytest.param(PASS_IS_OLD.total_seconds(), None, id="a minute"),
        pytest.param(61, "a pass has been running for 61 s", id="a moment more"),
    ],
)
def test_unhealthy_while_a_pass_is_old(age: float, healthy: str | None) -> None:
    async def ask() -> str | None:
        probes = Started().probes
        probes.passes = {WEB: asyncio.get_running_loop().time()}
        await asyncio.sleep(age)
        return probes.healthy()

    assert run(ask) == healthy


def test_a_pass_that_does_not_end_ends_the_process() -> None:
    async def ask() -> tuple[Exit, float]:
        probes, loop = Started().probes, asyncio.get_running_loop()
        probes.passes = {WEB: loop.time()}
        with pytest.raises(Ended) as ended:
            await probes.measure_lag()
        return ended.value.code, loop.time()

    code, at = run(ask)

    assert code is Exit.PASS_STUCK
    assert PASS_IS_STUCK.total_seconds() < at < PASS_IS_STUCK.total_seconds() + 1


def test_how_late_the_loop_is_can_be_read_as_shares() -> None:
    async def ask() -> tuple[bytes, str | None]:
        started = Started()
        measuring = asyncio.create_task(started.probes.measure_lag())
        await asyncio.sleep(9.99)
        fake_time.pass_time(asyncio.get_running_loop(), 6)  # something holds the loop for 6 s
        await asyncio.sleep(0.01)
        healthy, metrics = started.probes.healthy(), started.probes.metrics()
        measuring.cancel()
        return metrics, healthy

    metrics, healthy = run(ask)

    count = sample(metrics, "nixops_loop_lag_seconds_count")
    assert sample(metrics, 'nixops_loop_lag_seconds_bucket{le="0.05"}') == count - 1
    assert sample(metrics, 'nixops_loop_lag_seconds_bucket{le="5.0"}') == count - 1
    assert healthy == "the event loop is 6.0 s late"


def test_a_pass_is_measured_by_kind() -> None:
    async def ask() -> bytes:
        started = Started()
        queue = started.core.queue
        queue.add(WEB)
        key = await queue.get()
        queue.backoff(key)
        queue.done(key)
        return started.probes.metrics()

    metrics = run(ask)

    assert sample(metrics, 'nixops_reconcile_seconds_count{kind="NixMachine"}') == 1
    assert sample(metrics, 'nixops_queue_seconds_count{kind="NixMachine"}') == 1
    assert sample(metrics, 'nixops_reconcile_retries_total{kind="NixMachine"}') == 1
