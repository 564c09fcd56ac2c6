"""Clusters whose authority is older than the rules: it signs well, but its certificates have no key identifiers."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import kopf
import pytest
import yaml

from contract.authorities import Authority
from nixops_operator.adapters.kube import Connection
from nixops_operator.errors import Retry
from nixops_operator.watch import ApiServer, connected_to

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"major": "1"} '


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python is from 3.13 on: contexts are strict unless told otherwise."""
    make = ssl.create_default_context

    def strictly(*arguments: object, **named: object) -> ssl.SSLContext:
        context = make(*arguments, **named)  # type: ignore[arg-type]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strictly)


@asynccontextmanager
async def api_server(signed_by: Authority, trusted: Authority, folder: Path) -> AsyncIterator[Path]:
    """A server whose certificate the first one signed, and a kubeconfig of it that trusts the second."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=signed_by.server(folder, "127.0.0.1"))
    port = server.sockets[0].getsockname()[1]
    authority = base64.b64encode(trusted.pem).decode()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "x",
                "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": "x", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }
    file = folder / "config"
    file.write_text(yaml.safe_dump(content))
    try:
        yield file
    finally:
        server.close()


async def test_an_authority_without_key_identifiers_is_taken_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Authority(has_identifiers=False)

    with caplog.at_level(logging.WARNING):
        async with api_server(old, old, tmp_path) as kubeconfig:
            connection = await Connection.open(str(kubeconfig))
            answer = await connection.request("GET", "/version", "look")
            await connection.close()

    assert answer == {"major": "1"}
    assert not connection.is_strict
    (said,) = [record.getMessage() for record in caplog.records if "RFC 5280" in record.getMessage()]
    assert "checked without that" in said


async def test_a_new_authority_is_held_to_the_rules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = Authority(has_identifiers=True)

    async with api_server(new, new, tmp_path) as kubeconfig:
        connection = await Connection.open(str(kubeconfig))
        answer = await connection.request("GET", "/version", "look")
        await connection.close()

    assert answer == {"major": "1"}
    assert connection.is_strict
    assert not caplog.records


@pytest.mark.parametrize("has_identifiers", [True, False], ids=["new", "old"])
async def test_a_strange_authority_is_refused_as_ever(tmp_path: Path, *, has_identifiers: bool) -> None:
    ours, theirs = (Authority(has_identifiers=has_identifiers) for _ in range(2))

    async with api_server(theirs, ours, tmp_path) as kubeconfig:
        connection = await Connection.open(str(kubeconfig))
        assert connection.is_strict
        with pytest.raises(Retry, match="no connection"):
            await connection.request("GET", "/version", "look")
        await connection.close()


@pytest.mark.parametrize("is_strict", [True, False])
def test_kopf_connects_to_the_same_address_by_the_same_rules(*, is_strict: bool) -> None:
    found = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t", default_namespace="n")

    login = connected_to(ApiServer("https://10.96.0.1:443", is_strict=is_strict), found)

    assert (login.server, login.token, login.default_namespace) == ("https://10.96.0.1:443", "t", "n")
    assert bool(login.as_ssl_context().verify_flags & ssl.VERIFY_X509_STRICT) == is_strict
