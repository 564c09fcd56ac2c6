"""One cloud per identity and region: threads, clients, and where their requests go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from nixops_operator.adapters.aws.cloud import Boto3Cloud
from nixops_operator.ec2.credentials import AwsIdentity

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_sts.client import STSClient

CONNECTIONS = 16
"""Per client; as many as there are threads in the pool."""
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=30)
CALLS_PER_IDENTITY = 4
"""At once, of one identity in one region: three sweeps and an effect."""
CALLS_PER_REGION = 8
"""At once, of all identities: half of the threads, so that a region that does not answer leaves the rest to others."""
READ_ATTEMPTS = 3
WRITE_ATTEMPTS = 1
IDLE_LIFE = timedelta(hours=1)
"""Clients of an identity that nobody used for so long are dropped: Secrets rotate, and each costs about 1.5 MB."""


def model_loader() -> Loader:
    """Reads AWS' service models, and keeps what it read: half a second and 27 MB for EC2's."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


class Clients:
    """boto3's clients of one identity in one region, made at first use. Safe to use from several threads.

    Clients are thread-safe, Sessions are not (boto3 documentation, "Multithreading or multiprocessing with clients").
    Reads and writes have clients of their own: botocore repeats reads, never a write. It would repeat RunInstances
    after "no capacity", which EC2 answers with HTTP 500.
    """

    def __init__(
        self,
        identity: AwsIdentity,
        region: str,
        endpoint_url: str | None,
        loader: Loader,
        monotonic: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._region = region
        self._endpoint_url = endpoint_url
        self._loader = loader
        self._monotonic = monotonic
        self.used_at = monotonic()
        """Monotonic seconds of the last call."""
        self._lock = threading.Lock()
        self._session: botocore.session.Session | None = None
        self._made: dict[tuple[str, int], Any] = {}

    @property
    def region(self) -> str:
        return self._region

    def reader(self) -> EC2Client:
        return self._client("ec2", READ_ATTEMPTS)  # type: ignore[no-any-return]

    def writer(self) -> EC2Client:
        return self._client("ec2", WRITE_ATTEMPTS)  # type: ignore[no-any-return]

    def sts(self) -> STSClient:
        return self._client("sts", READ_ATTEMPTS)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drops the clients; whoever still calls gets new ones."""
        with self._lock:
            for client in self._made.values():
                client.close()
            self._made.clear()

    def _client(self, name: str, attempts: int) -> Any:
        with self._lock:
            self.used_at = self._monotonic()
            if (name, attempts) not in self._made:
                self._made[name, attempts] = self._make(name, attempts)
            return self._made[name, attempts]

    def _make(self, name: str, attempts: int) -> Any:
        if self._session is None:
            self._session = botocore.session.Session()
            # One loader for all: a Session of its own would read the models again.
            self._session.register_component("data_loader", self._loader)
        return self._session.create_client(
            name,
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            aws_access_key_id=self._identity.access_key_id,
            aws_secret_access_key=self._identity.secret_access_key,
            aws_session_token=self._identity.session_token,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=CONNECT_TIMEOUT.total_seconds(),
                read_timeout=READ_TIMEOUT.total_seconds(),
                max_pool_connections=CONNECTIONS,
                user_agent_extra=f"nixops-operator/{version('nixops-operator')}",
            ),
        )


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

    def cloud(self, identity: AwsIdentity, region: str) -> Boto3Cloud:
        self._drop_idle()
        key = (identity, region)
        if key not in self._clouds:
            clients = Clients(identity, region, self._endpoint_url, self._loader, self._monotonic)
            slots = (asyncio.Semaphore(CALLS_PER_IDENTITY), self._slots_of(region))
            self._clouds[key] = (Boto3Cloud(clients, self._pool, slots), clients)
        return self._clouds[key][0]

    def close(self) -> None:
        for _, clients in self._clouds.values():
            clients.close()
        self._clouds.clear()

    def _slots_of(self, region: str) -> asyncio.Semaphore:
        return self._slots_of_region.setdefault(region, asyncio.Semaphore(CALLS_PER_REGION))

    def _drop_idle(self) -> None:
        oldest = self._monotonic() - IDLE_LIFE.total_seconds()
        for key, (_, clients) in list(self._clouds.items()):
            if clients.used_at < oldest:
                del self._clouds[key]
                clients.close()
