"""How fast machines are made, in virtual time: our core and its quota against an EC2 with AWS' published buckets, all
in memory, on a clock that jumps. What the machine that measures does besides counts for nothing, nor what passes cost.

An instance runs from the next whole second after its boot on; a call to EC2 takes 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator
from typing import Any

from crash.bench import NO_LAG, Operator, Worlds
from crash.workloads import DEPLOYMENT, nixpkgs
from nixops_operator.adapters.aws.quota import Bucket, Limit, Quota, bucket_of
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from unit.fake_time import run

PUBLISHED = {
    "launches": Limit(5, 2),
    "starts": Limit(5, 2),
    "ends": Limit(100, 5),
    "tags": Limit(100, 10),
    "rules": Limit(50, 5),
    "changes": Limit(50, 5),
    "looks": Limit(100, 20),
}
"""EC2 Developer Guide, "Request throttling for the Amazon EC2 API"."""
CALL_SECONDS = 0.02
_OPERATIONS = {
    "ec2.authorize_rules": "AuthorizeSecurityGroupIngress",
    "ec2.describe_rules": "DescribeSecurityGroupRules",
}


class _Paced(Operator):
    """Each call takes its turn at our quota, then a token of EC2's."""

    workers = 11  # what one namespace gets of the sixteen that are set

    def __init__(self, worlds: Worlds) -> None:
        super().__init__(worlds)
        self.sent: list[tuple[float, str, bool]] = []  # when, which operation, whether EC2 took it
        self._quota = Quota(asyncio.get_running_loop().time)
        self._ec2: dict[str, Bucket] = {}

    @contextlib.asynccontextmanager
    async def _layer(self, effect: str) -> AsyncIterator[None]:
        if effect.startswith("ec2."):
            await self._call(_OPERATIONS.get(effect) or effect.removeprefix("ec2.").title().replace("_", ""))
        async with super()._layer(effect):
            yield

    async def _call(self, operation: str) -> None:
        await self._quota.turn(operation)
        await asyncio.sleep(CALL_SECONDS)
        now = asyncio.get_running_loop().time()
        found = bucket_of(operation)
        assert found is not None
        bucket = self._ec2.setdefault(found[0], Bucket(PUBLISHED[found[0]], now))
        is_taken = bucket.take(now) == 0
        self.sent.append((now, operation, is_taken))
        if not is_taken:
            self._quota.refused(operation)
            raise Retry(Reason.THROTTLED, f"{operation}: RequestLimitExceeded").as_refusal()


def to_the_last_address(machines: int) -> float:
    """Seconds from the first launch until each machine has its elastic address."""
    logging.disable(logging.CRITICAL)
    sent = run(_make(machines))
    logging.disable(logging.NOTSET)
    launched = [moment for moment, operation, _ in sent if operation == "RunInstances"]
    associated = [moment for moment, operation, is_taken in sent if operation == "AssociateAddress" and is_taken]
    assert len(associated) >= machines
    return max(associated) - min(launched)


async def _make(machines: int) -> list[tuple[float, str, bool]]:
    worlds = Worlds(nixpkgs())
    NO_LAG.apply(worlds.cloud)
    worlds.cloud.most_addresses = machines
    body: dict[str, Any] = copy.deepcopy(DEPLOYMENT)
    (one,) = body["spec"]["machines"][1:]
    one["target"]["ec2"]["elasticIp"] = {"allocate": True}
    body["spec"]["machines"] = [copy.deepcopy(one) | {"name": f"m{number}"} for number in range(machines)]
    worlds.kube.apply(body)
    turning = asyncio.create_task(worlds.turn())
    operator = _Paced(worlds)
    try:
        await operator.live()
    finally:
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)
    assert worlds.is_ready(), worlds.standing()
    return operator.sent
