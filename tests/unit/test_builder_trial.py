"""Where no builder worked at the start, one is tried again until it works, and the log says when, and why not."""

from __future__ import annotations

import asyncio
import logging

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.builder_trial import until_builders_work
from nixops_operator.errors import Retry
from unit.fake_time import run

FULL = "the operator's disk is full"
FORBIDDEN = "no namespaces on this node"


def trials(*failures: str, said: str = FULL) -> list[float]:
    """When it was tried, until it ended."""
    times: list[float] = []
    left = list(failures)

    async def probe() -> None:
        times.append(asyncio.get_running_loop().time())
        if left:
            raise Retry(Reason.BUILDING, left.pop(0))

    run(until_builders_work(probe, said))
    return times


def test_it_is_tried_ever_more_slowly_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert trials(*[FULL] * 6) == [30, 90, 210, 450, 930, 1530, 2130]
    assert [record.message for record in caplog.records] == [
        "builders work now: with build.on Auto the operator builds from here on"
    ]


def test_another_cause_is_told_and_the_same_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    trials(FULL, FORBIDDEN, FORBIDDEN, FULL)
    assert [record.message for record in caplog.records] == [
        f"still nothing is built here: {FORBIDDEN}",
        f"still nothing is built here: {FULL}",
    ]
