"""Fetches over TLS, each in a process of its own: Python reads the system's authorities once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from contract.authorities import Authority

FETCH = """
import asyncio, sys
from ipaddress import ip_network
from nixops_operator.adapters.egress.egress import Egress, EgressError, Limits
from nixops_operator.egress_policy import EgressPolicy

async def fetch():
    egress = Egress(EgressPolicy(allowed=(ip_network("127.0.0.1/32"),), ports=frozenset(range(1, 65536))))
    try:
        print((await egress.read(sys.argv[1], "a test", Limits(1024))).decode())
    except EgressError as error:
        print(type(error).__name__, error)
    finally:
        await egress.close()

asyncio.run(fetch())
"""


@contextlib.asynccontextmanager
async def serving(authority: Authority, folder: Path, address: str = "127.0.0.1") -> AsyncIterator[str]:
    """A server on loopback whose certificate names `address`; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=authority.server(folder, address))
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    finally:
        server.close()


async def fetched(url: str, **environment: str) -> str:
    """What a process says that fetches it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FETCH, url), stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    said, _ = await process.communicate()
    return said.decode().strip()


async def test_a_server_of_an_authority_that_the_administrator_names_is_fetched_from(tmp_path: Path) -> None:
    authority = Authority(has_identifiers=True)
    file = tmp_path / "authority.pem"
    file.write_bytes(authority.pem)
    async with serving(authority, tmp_path) as url:
        assert await fetched(url, SSL_CERT_FILE=str(file)) == "hello"


async def test_another_authoritys_server_is_not_believed(tmp_path: Path) -> None:
    async with serving(Authority(has_identifiers=True), tmp_path) as url:
        said = await fetched(url)
    assert said.startswith("Unreachable 127.0.0.1: its certificate is not trusted: unable to get local issuer")


async def test_a_certificate_of_another_host_is_not_believed(tmp_path: Path) -> None:
    authority = Authority(has_identifiers=True)
    file = tmp_path / "authority.pem"
    file.write_bytes(authority.pem)
    async with serving(authority, tmp_path, "192.0.2.1") as url:
        said = await fetched(url, SSL_CERT_FILE=str(file))
    assert said.startswith("Unreachable 127.0.0.1: its certificate is not trusted: IP address mismatch")
