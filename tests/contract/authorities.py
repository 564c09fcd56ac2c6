"""Authorities of the tests' own, and certificates of theirs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)


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
