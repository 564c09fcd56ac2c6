"""The operator's limits of calls against EC2's own, as published and as the lab's EC2 keeps them (buckets.py there)."""

from __future__ import annotations

import asyncio
from itertools import cycle

import pytest

from nixops_lab.ec2.buckets import Buckets
from nixops_operator.adapters.aws.quota import Quota
from nixops_operator.errors import TurnKept
from unit.fake_time import run

LATEST = 0.45
"""Seconds that a call may be under way longer than the one after it: threads, new connections, a crowded network."""
BY_FILTER = {"Filters": []}


@pytest.mark.parametrize(
    ("operations", "parameters"),
    [
        pytest.param(["RunInstances"], {}, id="launches"),
        pytest.param(["StartInstances"], {}, id="starts"),
        pytest.param(["TerminateInstances"], {}, id="ends"),
        pytest.param(["CreateTags", "DeleteTags"], {}, id="tags"),
        pytest.param(["AuthorizeSecurityGroupIngress", "CreateKeyPair"], {}, id="rules and key pairs"),
        pytest.param(["CreateVolume", "AllocateAddress", "StopInstances"], {}, id="changes"),
        pytest.param(["DescribeInstances", "DescribeVolumes"], BY_FILTER, id="looks by filter"),
        pytest.param(["DescribeInstances", "GetConsoleOutput"], {}, id="looks by id"),
    ],
)
def test_what_had_a_turn_is_taken_by_ec2_however_long_it_was_under_way(operations: list[str], parameters: object):
    """The worst order: the burst arrives late, and what follows it at once."""

    async def refused() -> int:
        loop = asyncio.get_running_loop()
        quota, ec2, refusals = Quota(loop.time), Buckets(), 0
        at_first = loop.time()

        async def call(operation: str) -> None:
            nonlocal refusals
            while True:
                try:
                    await quota.turn(operation)
                    break
                except TurnKept as kept:
                    assert kept.after is not None  # noqa: PT017 - each of many
                    await asyncio.sleep(kept.after.total_seconds())
            if loop.time() == at_first:
                await asyncio.sleep(LATEST)
            refusals += not ec2.has_token("us-west-2", operation, parameters, 1.0, loop.time())

        await asyncio.gather(*(call(operation) for operation, _ in zip(cycle(operations), range(200), strict=False)))
        return refusals

    assert run(refused(), 0.0) == 0
