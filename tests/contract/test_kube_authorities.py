"""Clusters whose authority is older than the rules: it signs well, but its certificates have no key identifiers."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import kopf
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nixops_operator.adapters.kube import Connection
from nixops_operator.errors import Retry
from nixops_operator.watch import ApiServer, connected_to

NOW = datetime.datetime.now(datetime.UTC)
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"major": "1"} '


class Authority:
    """One that signs with the extensions of RFC 5280, or without them, as kubeadm's of some years ago."""

    def __init__(self, *, has_identifiers: bool) -> None:
        self._has_identifiers = has_identifiers
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self._certificate = self._sign("authority", self._key, (constraints, True))
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, folder: Path, address: str) -> ssl.SSLContext:
        """Of a server at that address."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = self._sign("server", key, (names, False)).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = folder / "server.pem"
        file.write_bytes(private + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, extension: tuple[x509.ExtensionType, bool]
    ) -> x509.Certificate:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(hours=1))
            .not_valid_after(NOW + datetime.timedelta(hours=1))
            .add_extension(extension[0], critical=extension[1])
        )
        if self._has_identifiers:
            own, issuers = key.public_key(), self._key.public_key()
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers)
            builder = builder.add_extension(identifier, critical=False)
        if self._has_identifiers and key is self._key:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self._key, hashes.SHA256())


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
