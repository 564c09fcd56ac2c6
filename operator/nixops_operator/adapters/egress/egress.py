"""Every byte that the operator fetches over HTTP passes here.

A name is resolved once, by us; all that it shows is judged, and only what was judged is connected to: each socket is
made by `_judged_socket`, for one address, whatever library asks for it. No proxy, cookie or credential of the
environment is used. What an answer sends on to is judged as if somebody had named it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from nixops_operator.egress_policy import (
    EgressPolicy,
    ForbiddenError,
    Url,
    judge_address,
    judge_addresses,
    judge_port,
    parsed,
    redirected,
)

log = logging.getLogger(__name__)

REDIRECTS = 10
_CHUNK = 256 * 1024  # bytes
_CONNECT_SECONDS = 15.0
_RESOLVE_SECONDS = 10.0
_RESOLVER_THREADS = 128
"""Own ones, and as many as may hang at once: a tenant may name hosts whose name servers are silent. The system's
resolver asks such ones for minutes (resolv.conf(5): every server twice, 5 s each, for every entry of `search`), while
what waits for it goes on to the next name after _RESOLVE_SECONDS. Nobody else's threads, and nobody else's names."""
_KEPT_SECONDS = 30.0  # an idle connection
_CONNECTIONS = 32  # at once; to one host half of them
_WHO_ARE_YOU = 401
_GONE = (403, 404, 410)  # S3 answers 403 for what is not there (nixpkgs' cache did so for years)
_ONWARD = (301, 302, 303, 307, 308)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → addresses. May raise OSError."""


class EgressError(Exception):
    """Something was not fetched. The text is for people and holds neither credential nor query."""


class Forbidden(EgressError):
    """The policy refuses it: nothing was sent to where it would have come from."""


class NotThere(EgressError):
    """The server answered, and has it not (or not for us)."""


class NotAllowed(NotThere):
    """It has to be told who asks, and was not told, or something else."""


class Unreachable(EgressError):
    """For now: no name, no connection, too slow, a server's own failure, or it broke off. Another time it may come."""


class TooLarge(EgressError):
    """More bytes than its limit."""


@dataclass(frozen=True)
class Limits:
    """Of one fetch, redirects included."""

    size: int  # bytes of the body
    total: timedelta = timedelta(minutes=30)
    idle: timedelta = timedelta(seconds=30)  # without a byte


@dataclass(frozen=True)
class Credential:
    """For one host, as a netrc file has it."""

    login: str
    password: str

    def __repr__(self) -> str:
        return "Credential(***)"


_NOBODYS: Mapping[str, Credential] = {}


class Egress:
    """See the module. Open it in the event loop that uses it; `close` when done."""

    def __init__(self, policy: EgressPolicy, resolve: Resolve | None = None) -> None:
        """`resolve`: the system's resolver if not given."""
        self._policy = policy
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")
        self._resolver = _Resolver(policy, resolve or self._system_resolve)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Ends all connections. It is not used afterwards."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _system_resolve(self, host: str, port: int) -> Sequence[str]:
        ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return tuple(dict.fromkeys(str(each[4][0]) for each in found))

    async def read(
        self,
        url: str,
        purpose: str,
        limits: Limits,
        *,
        credentials: Mapping[str, Credential] = _NOBODYS,
        is_administrators: bool = False,
    ) -> bytes:
        """The body, held in memory. As `save`."""
        body = bytearray()

        async def take(chunk: bytes) -> None:
            body.extend(chunk)

        await self._fetch(url, purpose, limits, credentials, take, is_administrators=is_administrators)
        return bytes(body)

    async def save(
        self,
        url: str,
        purpose: str,
        limits: Limits,
        path: Path,
        *,
        on_bytes: Callable[[int], None] = lambda _count: None,
        credentials: Mapping[str, Credential] = _NOBODYS,
        is_administrators: bool = False,
    ) -> int:
        """Fetch to a file; its size in bytes. `purpose`: for the log, the derivation or source that it is for.
        `credentials`: host → what that host is told, and no other. `is_administrators`: the administrator named this
        URL, and so its port. `on_bytes` hears of each piece.

        Raises Forbidden, NotThere, TooLarge, Unreachable; OSError if the file cannot be written.
        """
        with path.open("wb") as file:

            async def take(chunk: bytes) -> None:
                await asyncio.to_thread(file.write, chunk)
                on_bytes(len(chunk))

            return await self._fetch(url, purpose, limits, credentials, take, is_administrators=is_administrators)

    async def _fetch(
        self,
        url: str,
        purpose: str,
        limits: Limits,
        credentials: Mapping[str, Credential],
        take: Callable[[bytes], Awaitable[None]],
        *,
        is_administrators: bool,
    ) -> int:
        """Hands each piece of the body to `take`; its size."""
        host, size = "?", 0
        try:
            place = parsed(url)
            host = place.host
            if not is_administrators:
                judge_port(place, self._policy)
            async with (
                asyncio.timeout(limits.total.total_seconds()),
                self._answer(place, limits, credentials) as response,
            ):
                if (response.content_length or 0) > limits.size:
                    raise TooLarge(_too_large(host, limits))
                async for chunk in _pieces(response):
                    size += len(chunk)
                    if size > limits.size:
                        raise TooLarge(_too_large(host, limits))
                    await take(chunk)
        except TimeoutError as error:
            raise Unreachable(f"{host} is too slow, or does not answer") from error
        except (ForbiddenError, aiohttp.ClientError, _ConnectionFailed) as error:
            if (refusal := _refusal_in(error)) is not None:
                log.warning("fetch refused", extra={"for": purpose, "host": host, "why": str(refusal)})
                raise Forbidden(str(refusal)) from error
            raise Unreachable(f"{host}: {_words(error)}") from error
        log.info("fetched", extra={"for": purpose, "host": host, "bytes": size})
        return size

    @contextlib.asynccontextmanager
    async def _answer(
        self, place: Url, limits: Limits, credentials: Mapping[str, Credential]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The first answer that is none of a redirect, if it is a good one."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=limits.idle.total_seconds()
        )
        for _ in range(REDIRECTS + 1):
            if place.address is not None:
                judge_address(place.host, self._policy)
            headers = {"Accept-Encoding": "identity", "User-Agent": "nixops-operator"}
            # A password goes to the host that it was given for, and never in the clear.
            if (credential := credentials.get(place.host)) is not None and place.scheme == "https":
                word = base64.b64encode(f"{credential.login}:{credential.password}".encode()).decode()
                headers["Authorization"] = f"Basic {word}"
            async with self._opened().get(
                yarl.URL(str(place), encoded=True), headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status in _ONWARD:
                    onward = redirected(place, response.headers.get("Location", ""))
                    if onward.origin != place.origin:
                        judge_port(onward, self._policy)
                    place = onward
                    continue
                if response.status != 200:
                    raise _no_body(place.host, response.status)
                if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
                    raise Unreachable(f"{place.host} answers in an encoding that was not asked for")
                yield response
                return
        raise ForbiddenError(f"{place.host} sends on more than {REDIRECTS} times")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                socket_factory=self._judged_socket,
                use_dns_cache=False,
                limit=_CONNECTIONS,
                limit_per_host=_CONNECTIONS // 2,
                keepalive_timeout=_KEPT_SECONDS,
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
            )
        return self._session

    def _judged_socket(self, info: Any) -> socket.socket:
        """The socket for one address, which is the last that happens before it is connected to."""
        family, kind, protocol, _, address = info
        judge_address(address[0], self._policy)
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    def __init__(self, policy: EgressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002
    ) -> list[ResolveResult]:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            addresses = list(await self._resolve(host, port))
        judge_addresses(host, addresses, self._policy)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


class _ConnectionFailed(Exception):
    """Of the socket, as apart from an OSError of whoever takes the pieces."""


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_chunked(_CHUNK):
            yield chunk
    except TimeoutError:
        raise
    except OSError as error:
        raise _ConnectionFailed(str(error)) from error


def _no_body(host: str, status: int) -> EgressError:
    """What an answer means that has not what was asked for. What the server itself says beside the number may be
    anything, and is not told."""
    phrase = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
    kind = NotAllowed if status == _WHO_ARE_YOU else NotThere if status in _GONE else Unreachable
    return kind(f"{host} answers {status}{phrase}")


def _refusal_in(error: BaseException) -> ForbiddenError | None:
    """Our own refusal, where the library has wrapped it in its errors."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ForbiddenError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _words(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "there is no such name, or no answer from the name server"
        case aiohttp.ClientConnectorCertificateError(
            certificate_error=ssl.SSLCertVerificationError(verify_message=why)
        ):
            return f"its certificate is not trusted: {why}"
        case aiohttp.ClientConnectorSSLError():
            return "TLS failed"
        case aiohttp.ClientPayloadError():
            return "the answer broke off"
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed without an answer"
        case aiohttp.ClientResponseError():
            return "the answer is no HTTP that could be read"
        case OSError(strerror=str(text)) if text:
            return text
        case _ConnectionFailed():
            return "the connection broke off"
        case _:
            return type(error).__name__


def _too_large(host: str, limits: Limits) -> str:
    return f"{host} sends more than {limits.size // 1024**2} MiB"
