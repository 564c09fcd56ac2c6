"""One cloud per identity and region: threads, clients, and where their requests go."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import timedelta

from botocore.loaders import Loader

from nixops_operator.adapters.aws.calls import Calls
from nixops_operator.adapters.aws.clients import Clients, model_loader
from nixops_operator.adapters.aws.cloud import Boto3Cloud
from nixops_operator.adapters.aws.quota import Quota
from nixops_operator.ec2.credentials import AwsIdentity

CALLS_PER_IDENTITY = 4
"""At once, of one identity in one region: three sweeps and an effect."""
CALLS_PER_REGION = 8
"""At once, of all identities: half of the threads, so that a region that does not answer leaves the rest to others."""
IDLE_LIFE = timedelta(hours=1)
"""Clients of an identity that nobody used for so long are dropped: Secrets rotate, and each costs about 1.5 MB."""


class Boto3Clouds:
    """ports.cloud.Clouds.

    `endpoint_url` None is AWS itself. `pool`: the threads in which all calls run and all replies are parsed, so that
    the loop only awaits; it stays the caller's. `close` drops the clients.
    """

    def __init__(
        self,
        endpoint_url: str | None,
        pool: Executor,
        *,
        loader: Loader | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint_url = endpoint_url
        self._pool = pool
        self._monotonic = monotonic
        self._loader = loader or model_loader()
        self._clouds: dict[tuple[AwsIdentity, str], tuple[Boto3Cloud, Clients]] = {}
        self._slots_of_region: dict[str, asyncio.Semaphore] = {}
        self._accounts: dict[AwsIdentity, str] = {}
        self._quotas: dict[tuple[AwsIdentity | str, str], Quota] = {}

    def cloud(self, identity: AwsIdentity, region: str) -> Boto3Cloud:
        self._drop_idle()
        key = (identity, region)
        if key not in self._clouds:
            clients = Clients(identity, region, self._endpoint_url, self._loader, self._monotonic)
            slots = (asyncio.Semaphore(CALLS_PER_IDENTITY), self._slots_of(region))
            calls = Calls(self._pool, region, slots, lambda: self._quota_of(identity, region))
            learn_account = functools.partial(self._accounts.__setitem__, identity)
            self._clouds[key] = (Boto3Cloud(clients, calls, learn_account), clients)
        return self._clouds[key][0]

    def close(self) -> None:
        for _, clients in self._clouds.values():
            clients.close()
        self._clouds.clear()

    def _slots_of(self, region: str) -> asyncio.Semaphore:
        return self._slots_of_region.setdefault(region, asyncio.Semaphore(CALLS_PER_REGION))

    def _quota_of(self, identity: AwsIdentity, region: str) -> Quota:
        """EC2 counts by account, whoever calls; until that is known, the identity stands for it."""
        whose = self._accounts.get(identity, identity)
        if (whose, region) not in self._quotas:
            self._quotas[whose, region] = Quota(self._monotonic)
        return self._quotas[whose, region]

    def _drop_idle(self) -> None:
        oldest = self._monotonic() - IDLE_LIFE.total_seconds()
        for key, (_, clients) in list(self._clouds.items()):
            if clients.used_at < oldest:
                del self._clouds[key]
                self._accounts.pop(key[0], None)
                self._quotas.pop(key, None)
                clients.close()
