"""boto3's clients of one identity in one region."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from nixops_operator.ec2.credentials import AwsIdentity

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_sts.client import STSClient

CONNECTIONS = 16
"""Per client; as many as there are threads in the pool."""
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=30)
READ_ATTEMPTS = 3
WRITE_ATTEMPTS = 1


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
