"""EC2 is called no more often than it takes, each in its turn, and less where others use up what there is."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from nixops_operator.adapters.aws.quota import (
    KEPT_FOR,
    LAUNCHES,
    PENALTY,
    RECOVERY,
    WAITED_FOR,
    Bucket,
    Limit,
    Quota,
    bucket_of,
)
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from unit.fake_time import run

FIVE_AND_TWO = Limit(burst=5, rate=2)


def taken(bucket: Bucket, now: float, times: int) -> list[float]:
    return [bucket.take(now) for _ in range(times)]


def test_a_burst_goes_at_once_and_the_rest_in_turn():
    bucket = Bucket(FIVE_AND_TWO, 0.0)

    assert taken(bucket, 0.0, 8) == [0, 0, 0, 0, 0, 0.5, 1.0, 1.5]


def test_who_comes_when_told_finds_a_token_and_who_comes_later_waits_behind():
    bucket = Bucket(FIVE_AND_TWO, 0.0)
    taken(bucket, 0.0, 7)

    assert bucket.take(0.5) == 0.0, "the turn that was promised"
    assert bucket.take(0.5) == 1.0, "behind the one of second 1"
    assert [bucket.take(now) for now in (1.0, 1.5)] == [0.0, 0.0]


def test_a_turn_that_nobody_comes_for_goes_to_others():
    bucket = Bucket(FIVE_AND_TWO, 0.0)
    taken(bucket, 0.0, 9)

    assert taken(bucket, 3 + KEPT_FOR.total_seconds(), 6) == [0, 0, 0, 0, 0, 0.5]


def test_no_more_than_a_burst_is_saved_up():
    assert taken(Bucket(FIVE_AND_TWO, 0.0), 3600.0, 6)[-1] == 0.5


@pytest.mark.parametrize(
    ("since", "wait"),
    [
        pytest.param(timedelta(0), 1.0, id="at half the rate"),
        pytest.param(PENALTY - timedelta(seconds=1), 1.0, id="for a minute"),
        pytest.param(PENALTY + 2 * RECOVERY, 1 / 1.4, id="then more and more"),
        pytest.param(PENALTY + 5 * RECOVERY, 0.5, id="until all is as before"),
        pytest.param(timedelta(hours=1), 0.5, id="and no more"),
    ],
)
def test_what_others_used_up_is_left_to_them_for_a_while(since: timedelta, wait: float):
    bucket = Bucket(FIVE_AND_TWO, 0.0)
    bucket.refused(0.0)
    assert bucket.take(0.0) == 1.0, "emptied"
    now = since.total_seconds()
    one, other = taken(bucket, now, 10)[-2:]

    assert other - one == pytest.approx(wait)


@pytest.mark.parametrize(
    ("operation", "bucket"),
    [
        ("RunInstances", "launches"),
        ("StartInstances", "starts"),
        ("StopInstances", "changes"),
        ("TerminateInstances", "ends"),
        ("CreateTags", "tags"),
        ("AuthorizeSecurityGroupEgress", "rules"),
        ("DescribeInstances", "looks"),
        ("GetCallerIdentity", None),
    ],
)
def test_each_kind_of_call_has_its_bucket(operation: str, bucket: str | None):
    found = bucket_of(operation)

    assert (found[0] if found is not None else None) == bucket


def test_a_hundred_machines_are_launched_in_the_time_that_ec2_needs_for_them():
    async def launches() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        quota, begun = Quota(loop.time), loop.time()
        sent: list[float] = []
        refusals: list[Retry] = []

        async def launch() -> None:
            while True:
                try:
                    await quota.turn("RunInstances")
                except Retry as told:
                    assert told.after is not None  # noqa: PT017 - each of many
                    refusals.append(told)
                    await asyncio.sleep(told.after.total_seconds())
                else:
                    sent.append(loop.time() - begun)
                    return

        await asyncio.gather(*(launch() for _ in range(100)))
        windows = [later - earlier for earlier, later in zip(sent, sent[LAUNCHES.burst + 2 :], strict=False)]
        assert {(told.reason, told.is_refusal) for told in refusals} == {(Reason.THROTTLED, True)}
        assert min(told.after or WAITED_FOR for told in refusals) > WAITED_FOR
        return sent[-1], min(windows)

    took, window = run(launches(), 0.0)

    assert took == pytest.approx((100 - LAUNCHES.burst) / LAUNCHES.rate)
    assert window >= 1.0, "never more in a second than the burst and the rate"


def test_passes_that_wait_for_their_turn_leave_workers_to_others():
    """A namespace has eleven workers (workqueue.py), and what waits in one keeps addresses from being asked for."""

    async def most_waiting() -> int:
        quota, waiting, most = Quota(asyncio.get_running_loop().time), 0, 0

        async def launch() -> None:
            nonlocal waiting, most
            while True:
                waiting += 1
                most = max(most, waiting)
                try:
                    await quota.turn("RunInstances")
                except Retry as told:
                    waiting -= 1
                    await asyncio.sleep(told.after.total_seconds() if told.after is not None else 0)
                else:
                    waiting -= 1
                    return

        await asyncio.gather(*(launch() for _ in range(100)))
        return most

    assert run(most_waiting(), 0.0) <= 3


def test_one_kind_of_call_does_not_wait_for_another():
    async def looks() -> None:
        quota = Quota(asyncio.get_running_loop().time)
        for _ in range(LAUNCHES.burst):
            await quota.turn("RunInstances")
        async with asyncio.timeout(0):
            await quota.turn("TerminateInstances")

    run(looks(), 0.0)
