"""One connection to the API server: where it is, who we are, how fast we may ask, what its refusals mean."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Callable, Container, Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yaml import YAMLError
from yarl import URL

from nixops_operator.adapters.kube.errors import Refusal, from_refusal
from nixops_operator.adapters.kube.rate import RateLimit
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OutcomeUnknown, Retry

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
TOKEN_LIFE = 60.0
"""Seconds for which a token of a kubeconfig is used without reading it again; in a cluster kubernetes.aio does the
same. A bound token is replaced after 80 % of its life: Kubernetes, "Service account token volume projection"."""
PARSE_IN_THREAD = 256 * 1024
"""Bytes of JSON from which on parsing leaves the loop: about 5 ms."""

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"


class Connection:
    """Requests with plain dicts. Close it at the end."""

    def __init__(self, configuration: Configuration, requests_per_second: int | None = None) -> None:
        """`requests_per_second`: None leaves it to the API server, see docs/decisions/0016."""
        configuration.retries = None  # repeats are decided above
        # aiohttp would read the environment, and ~/.netrc in a thread, for every request.
        configuration.client_session_kwargs = {"trust_env": False}
        configuration.proxy = configuration.proxy or _proxy_for(configuration.host)
        self.url = str(configuration.host)
        self.is_strict = not configuration.disable_strict_ssl_verification
        """Whether certificates must have all that RFC 5280 wants, see `_leniency`."""
        self._client = ApiClient(configuration)
        self._client.user_agent = f"nixops-operator/{version('nixops-operator')}"
        self._rate = RateLimit(requests_per_second, requests_per_second) if requests_per_second is not None else None

    @classmethod
    async def open(cls, kubeconfig: str | None = None, requests_per_second: int | None = None) -> Connection:
        """By the kubeconfig of that path, else of `KUBECONFIG`, else by the pod's service account."""
        path = kubeconfig or os.environ.get("KUBECONFIG")
        configuration = Configuration()
        if path is None:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await _load(path, configuration)
            configuration.refresh_api_key_hook = _TokenOfKubeconfig(path)  # type: ignore[assignment]
        configuration.disable_strict_ssl_verification = await _leniency(configuration)
        return cls(configuration, requests_per_second)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        accepted: Container[int] = (),
        says_content: bool = True,
    ) -> dict[str, Any] | None:
        """The reply's object; None for a refusal whose status is `accepted`. Raises classes of errors.py."""
        is_write = method != "GET"
        if self._rate is not None:
            await self._rate.wait()
        status, content, headers = await self._send(method, path, what, query, body, content_type)
        if not 200 <= status < 300:
            if status in accepted:
                return None
            refusal = Refusal.of(status, content, headers)
            raise from_refusal(refusal, what, is_write=is_write, says_content=says_content)
        try:
            if len(content) > PARSE_IN_THREAD:
                return await asyncio.to_thread(_parsed, content)
            return _parsed(content)
        except ValueError:
            raise _no_reply(what, "unreadable reply", is_write=is_write) from None

    async def _send(
        self, method: str, path: str, what: str, query: Mapping[str, str] | None, body: object, content_type: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        # Put together here: the client's own way copies and converts each part, and aiohttp would parse the address,
        # for each of thousands of requests that differ in little.
        headers = {**self._client.default_headers, "Accept": JSON, "Content-Type": content_type}
        token = await self._client.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token is not None:
            headers["Authorization"] = token
        url = URL(self._client.configuration.host + path + (f"?{urlencode(query)}" if query else ""), encoded=True)
        try:
            response = await self._client.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=REQUEST_TIMEOUT
            )
            return response.status, await response.read(), response.headers
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            text = f"{what}: no connection to the API server ({type(error).__name__})"
            raise Retry(Reason.PROGRESSING_WITH_RETRY, text) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _no_reply(what, type(error).__name__, is_write=method != "GET") from error


async def _leniency(configuration: Configuration) -> bool:
    """Whether the API server's certificate, which its authority has signed all right, fails only for extensions that
    RFC 5280 wants. Authorities of older clusters have no key identifiers, and Python refuses those from 3.13 on
    (ssl.VERIFY_X509_STRICT; kubernetes-client/python#2394). Says so in the log; signatures, names and dates are checked
    all the same."""
    if not ssl.create_default_context().verify_flags & ssl.VERIFY_X509_STRICT:
        return False
    trouble = await _certificate_trouble(configuration, is_strict=True)
    if trouble is None or await _certificate_trouble(configuration, is_strict=False) is not None:
        return False
    log.warning(
        "the cluster's certificates lack what RFC 5280 wants (%s): they are checked without that, as by Python 3.12",
        trouble,
    )
    return True


async def _certificate_trouble(configuration: Configuration, *, is_strict: bool) -> str | None:
    """Why the certificate of the API server is refused; None if it is not, or if nobody answers."""
    trust = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not is_strict:
        trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        return None
    proxy = configuration.proxy or _proxy_for(configuration.host)
    name = configuration.tls_server_name
    try:
        async with (
            aiohttp.ClientSession(timeout=REQUEST_TIMEOUT, trust_env=False) as session,
            # Anybody may ask this; whatever the answer, the certificate was judged before it.
            session.get(f"{configuration.host}/version", ssl=trust, proxy=proxy, server_hostname=name),
        ):
            return None
    except aiohttp.ClientConnectorCertificateError as error:
        return str(getattr(error.certificate_error, "verify_message", error.certificate_error))
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None  # the first request of the operator's own says so


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this address (`HTTPS_PROXY`, `NO_PROXY`)."""
    there = urlsplit(url)
    return None if proxy_bypass(there.hostname or "") else getproxies().get(there.scheme)


async def _load(path: str, into: Configuration) -> None:
    await load_kube_config(config_file=path, client_configuration=into, persist_config=False)  # type: ignore[no-untyped-call]


class _TokenOfKubeconfig:
    """Reads the token of a kubeconfig again: whoever renews it writes the file anew."""

    def __init__(self, path: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._read_at = monotonic()

    async def __call__(self, configuration: Configuration) -> None:
        if self._monotonic() - self._read_at < TOKEN_LIFE:
            return
        self._read_at = self._monotonic()
        newest = Configuration()
        try:
            await _load(self._path, newest)
        except (OSError, ConfigException, YAMLError):
            return  # met while it was being written; the old token still counts, and a 401 says when it does not
        configuration.api_key = newest.api_key


def _no_reply(what: str, why: str, *, is_write: bool) -> Retry:
    kind = OutcomeUnknown if is_write else Retry
    return kind(Reason.PROGRESSING_WITH_RETRY, f"{what}: no usable reply from the API server ({why})")


def _parsed(content: bytes) -> dict[str, Any]:
    answer = json.loads(content)
    if not isinstance(answer, dict):
        raise ValueError("not an object")  # noqa: TRY004 - unreadable, as broken JSON is
    return answer


def path_of(*parts: str) -> str:
    """`/a/b` of parts, each quoted."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)
