"""boto3's clients of one identity in one region."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, Credentials, DeferredRefreshableCredentials
from botocore.exceptions import NoCredentialsError
from botocore.loaders import Loader

from nixops_operator.ec2.credentials import AwsIdentity

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_sts.client import STSClient

CONNECTIONS = 16
"""Per client; as many as there are threads in the pool."""
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=30)
ROLE_SESSION = "nixops-operator"
"""Under which name CloudTrail tells what was done as a role."""
READ_ATTEMPTS = 3
WRITE_ATTEMPTS = 1


def model_loader() -> Loader:
    """Reads AWS' service models, and keeps what it read: half a second and 27 MB for EC2's."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


class _Given:
    """botocore's credential provider where there is nothing to look for."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def load_credentials(self) -> Credentials:
        return self._credentials


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
            self._session = self._of_identity()
        return self._of_session(self._session, name, attempts)

    def _of_identity(self) -> botocore.session.Session:
        """A session whose credentials are the identity's; those of a role are renewed by botocore before they end."""
        identity = self._identity
        session = self._new_session()
        if not identity.is_own:
            session.set_credentials(identity.access_key_id, identity.secret_access_key, identity.session_token)
        if identity.role is None:
            return session
        source = session.get_credentials()
        if source is None:
            raise NoCredentialsError
        extra = {"RoleSessionName": ROLE_SESSION}
        if identity.role.external_id is not None:
            extra["ExternalId"] = identity.role.external_id
        fetcher = AssumeRoleCredentialFetcher(self._sts_of, source, identity.role.arn, extra)
        acting = self._new_session()
        renewed = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        acting.register_component("credential_provider", _Given(renewed))
        return acting

    def _new_session(self) -> botocore.session.Session:
        session = botocore.session.Session()
        # One loader for all: a Session of its own would read the models again.
        session.register_component("data_loader", self._loader)
        return session

    def _sts_of(self, name: str, **keys: Any) -> Any:
        """Called by botocore with the credentials that are to take on the role."""
        return self._of_session(self._new_session(), name, READ_ATTEMPTS, **keys)

    def _of_session(self, session: botocore.session.Session, name: str, attempts: int, **keys: Any) -> Any:
        return session.create_client(
            name,
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=CONNECT_TIMEOUT.total_seconds(),
                read_timeout=READ_TIMEOUT.total_seconds(),
                max_pool_connections=CONNECTIONS,
                user_agent_extra=f"nixops-operator/{version('nixops-operator')}",
            ),
            **keys,
        )
