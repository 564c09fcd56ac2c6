"""From a private key to the public half that EC2 gets. Pure."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked


def generate_private_key() -> bytes:
    """A new Ed25519 key as OpenSSH text."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_key(private: bytes, where: str) -> str:
    """`<type> <base64>` of a private key in OpenSSH or PEM form. `where` says in messages which Secret it is from.

    Raises Blocked (`SecretNotFound`) where it is no key, has a passphrase, or is of a kind that EC2 does not take (EC2
    takes RSA and Ed25519).
    """
    try:
        key = _load(private)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        message = f"{where} holds no private key that can be read (a key with a passphrase cannot be used); replace it"
        raise Blocked(Reason.SECRET_NOT_FOUND, message) from None
    if not isinstance(key, Ed25519PrivateKey | RSAPrivateKey):
        raise Blocked(
            Reason.SECRET_NOT_FOUND, f"{where} holds a kind of key that EC2 does not take; use Ed25519 or RSA"
        )
    text = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return text.decode()


def _load(private: bytes) -> object:
    if b"OPENSSH PRIVATE KEY" in private:
        return serialization.load_ssh_private_key(private, password=None)
    return serialization.load_pem_private_key(private, password=None)
