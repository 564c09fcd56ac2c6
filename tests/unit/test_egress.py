"""The point that all fetches pass, with real servers on loopback: what is refused is never connected to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web

from nixops_operator.adapters.egress.egress import (
    REDIRECTS,
    Credential,
    Egress,
    EgressError,
    Forbidden,
    Limits,
    NotThere,
    TooLarge,
    Unreachable,
)
from nixops_operator.egress_policy import EgressPolicy

SMALL = Limits(size=1024**2, total=timedelta(seconds=20), idle=timedelta(seconds=20))
HERE = EgressPolicy(allowed=(ip_network("127.0.0.1/32"),), ports=frozenset(range(1, 65536)))


@dataclass
class Server:
    """Counts connections, and answers by path."""

    port: int = 0
    connections: int = 0
    requests: list[web.Request] = field(default_factory=list)

    def url(self, path: str = "/body", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Server]:
    server = Server()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        server.requests.append(request)  # type: ignore[arg-type]
        return await answer(request)  # type: ignore[arg-type]

    inner = web.Server(handle)

    class Counted(asyncio.Protocol):
        def __new__(cls) -> asyncio.Protocol:  # type: ignore[misc]
            server.connections += 1
            return inner()  # type: ignore[no-any-return]

    listening = await asyncio.get_running_loop().create_server(Counted, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await inner.shutdown(1)


@contextlib.asynccontextmanager
async def egress(policy: EgressPolicy = HERE, **names: Sequence[str]) -> AsyncIterator[Egress]:
    """`names`: host (dots as `_`) → what the name server says, one after the other, the last one for ever."""
    left = {name.replace("_", "."): list(answers) for name, answers in names.items()}

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host not in left:
            raise OSError("no such name")
        answers = left[host]
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    opened = Egress(policy, resolve)
    try:
        yield opened
    finally:
        await opened.close()


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=b"hello")


async def test_a_fetch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard: list[int] = []
    async with serving(hello) as server, egress(mirror_example=["127.0.0.1"]) as point:
        size = await point.save(
            server.url(host="mirror.example"), "hello-2.12", SMALL, tmp_path / "x", on_bytes=heard.append
        )
    assert (size, sum(heard), (tmp_path / "x").read_bytes()) == (5, 5, b"hello")
    assert server.requests[0].host == f"mirror.example:{server.port}"
    assert [record.__dict__["for"] for record in caplog.records if record.message == "fetched"] == ["hello-2.12"]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="an address"),
        pytest.param("localhost.example", id="a name that shows it"),
        pytest.param("[::ffff:127.0.0.1]", id="mapped"),
    ],
)
async def test_what_is_refused_is_not_connected_to(host: str, caplog: pytest.LogCaptureFixture) -> None:
    closed = EgressPolicy(ports=frozenset(range(1, 65536)))
    async with serving(hello) as server, egress(closed, localhost_example=["127.0.0.1"]) as point:
        with pytest.raises(Forbidden, match="loopback"):
            await point.read(server.url(host=host), "x", SMALL)
    assert server.connections == 0
    assert "fetch refused" in [record.message for record in caplog.records]


async def test_a_port_is_refused_before_anything_is_sent_but_to_the_administrator() -> None:
    policy = EgressPolicy(allowed=HERE.allowed)
    async with serving(hello) as server, egress(policy) as point:
        with pytest.raises(Forbidden, match="port"):
            await point.read(server.url(), "x", SMALL)
        assert server.connections == 0
        assert await point.read(server.url(), "x", SMALL, is_administrators=True) == b"hello"


async def test_the_address_that_was_judged_is_the_one_that_is_connected_to() -> None:
    """A name that shows something else a moment later: each answer is judged, and none is asked for twice."""
    closed = EgressPolicy(allowed=(ip_network("127.0.0.2/32"),), ports=HERE.ports)
    async with serving(hello) as server, egress(closed, rebinding_example=["127.0.0.2", "127.0.0.1"]) as point:
        url = server.url(host="rebinding.example")
        with pytest.raises(Unreachable):  # nobody listens at 127.0.0.2
            await point.read(url, "x", SMALL)
        with pytest.raises(Forbidden):
            await point.read(url, "x", SMALL)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("location", "error"),
    [
        pytest.param("http://169.254.169.254/latest/meta-data", Forbidden, id="the metadata"),
        pytest.param("http://127.0.0.3/", Forbidden, id="another loopback address"),
        pytest.param("http://inside.example/", Forbidden, id="a name that shows it"),
        pytest.param("file:///etc/passwd", Forbidden, id="a file"),
        pytest.param("/again", Forbidden, id="without end"),
        pytest.param("/gone", NotThere, id="to what is not there"),
    ],
)
async def test_what_an_answer_sends_on_to_is_judged(location: str, error: type[Exception]) -> None:
    async def onward(request: web.Request) -> web.Response:
        if request.path == "/gone":
            return web.Response(status=404)
        return web.Response(status=302, headers={"Location": location})

    async with serving(onward) as server, egress(inside_example=["10.0.0.1"]) as point:
        with pytest.raises(error):
            await point.read(server.url(), "x", SMALL)
    assert len(server.requests) <= REDIRECTS + 1


async def test_a_password_goes_to_its_host_alone_and_never_in_the_clear() -> None:
    async with serving(hello) as server, egress() as point:
        credentials = {"127.0.0.1": Credential("me", "hunter2")}
        await point.read(server.url(), "x", SMALL, credentials=credentials)
    assert "Authorization" not in server.requests[0].headers
    assert "hunter2" not in repr(credentials)


async def test_a_name_server_that_hangs_takes_nobody_else_s_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Semaphore(0)
    hanging = threading.Event()

    def getaddrinfo(*_args: object, **_named: object) -> list[object]:
        asked.release()
        hanging.wait()
        raise OSError

    with ThreadPoolExecutor(1) as everybodys, contextlib.ExitStack() as at_the_end:
        asyncio.get_running_loop().set_default_executor(everybodys)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        at_the_end.callback(hanging.set)
        point = Egress(HERE)
        hung = [asyncio.ensure_future(point.read(f"http://{n}.example.org/", "x", SMALL)) for n in range(20)]
        for _ in hung:
            await asyncio.to_thread(asked.acquire)
        hanging.set()
        assert all(isinstance(end, Unreachable) for end in await asyncio.gather(*hung, return_exceptions=True))
        await point.close()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_what_is_not_there(status: int) -> None:
    async def absent(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving(absent) as server, egress() as point:
        with pytest.raises(NotThere):
            await point.read(server.url(), "x", SMALL)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(b"HTTP/1.1 500 \x1b[31mred\r\n", "answers 500 Internal Server Error", id="escapes"),
        pytest.param(b"HTTP/1.1 404 " + b"x" * 5000 + b"\r\n", "answers 404 Not Found", id="at length"),
        pytest.param(b"HTTP/1.1 599 y\r\n", "answers 599", id="a number of its own"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", "the answer is no HTTP that could be read", id="another protocol"),
        pytest.param(b"", "the connection was closed without an answer", id="nothing"),
    ],
)
async def test_what_a_server_says_is_told_in_our_words(answer: bytes, words: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer + b"Content-Length: 0\r\n\r\n" if answer else b"")
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server, egress() as point:
        with pytest.raises(EgressError) as told:
            await point.read(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "x", SMALL)
    assert str(told.value).removeprefix("127.0.0.1").removeprefix(":").strip() == words


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_server_that_fails_may_answer_later(status: int) -> None:
    async def failing(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving(failing) as server, egress() as point:
        with pytest.raises(Unreachable):
            await point.read(server.url(), "x", SMALL)


@pytest.mark.parametrize("is_announced", [True, False])
async def test_no_more_is_taken_than_the_limit(is_announced: bool) -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if is_announced:
            response.content_length = 10 * 1024**2
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(160):
                await response.write(bytes(65536))
        return response

    async with serving(large) as server, egress() as point:
        with pytest.raises(TooLarge, match="more than 1 MiB"):
            await point.read(server.url(), "x", SMALL)


async def test_an_answer_that_breaks_off_is_none() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(broken) as server, egress() as point:
        with pytest.raises(Unreachable):
            await point.read(server.url(), "x", SMALL)


@pytest.mark.parametrize("what", ["total", "idle"])
async def test_a_server_that_says_nothing_is_left(what: str) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.Event().wait()
        return response

    limits = replace(SMALL, **{what: timedelta(seconds=0.2)})
    async with serving(silent) as server, egress() as point:
        with pytest.raises(Unreachable, match="slow"):
            await point.read(server.url(), "x", limits)


async def test_who_has_no_name_or_does_not_listen_may_be_there_later() -> None:
    async with egress() as point:
        with pytest.raises(Unreachable, match="name"):
            await point.read("http://nowhere.example/", "x", SMALL)
        with pytest.raises(Unreachable):
            await point.read("http://127.0.0.1:1/", "x", SMALL)


async def test_a_full_disk_is_no_fault_of_the_server(tmp_path: Path) -> None:
    async with serving(hello) as server, egress() as point:
        with pytest.raises(OSError, match="No space"):
            await point.save(server.url(), "x", SMALL, Path("/dev/full"))
