"""The signing key of the operator's store. It is never in a file, an argument or the environment."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator

from nixops_operator.adapters.nix.programs import NixFailedError, output_of, trusted_environment
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry

_SEED_BYTES = 32
_SECRET_KEY_BYTES = 64


async def generate_signing_key(name: str) -> str:
    """A new ed25519 signing key, `<name>:<base64>`, made by Nix. It is secret. Raises Retry if Nix cannot make one."""
    try:
        key = await output_of(("nix", "key", "generate-secret", "--key-name", name), trusted_environment(None))
    except NixFailedError as error:
        raise Retry(Reason.PROGRESSING_WITH_RETRY, f"Nix could not make a signing key: {error}") from error
    public_half(key)
    return key


def public_half(signing_key: str) -> str:
    """The public key that belongs to a signing key: `<name>:<base64>`, as for trusted-public-keys.

    A signing key holds libsodium's 64 bytes, seed and public key. Raises Blocked (`SecretNotFound`) if it is none.
    """
    name, separator, encoded = signing_key.strip().partition(":")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        secret = b""
    if not name or not separator or len(secret) != _SECRET_KEY_BYTES:
        raise Blocked(Reason.SECRET_NOT_FOUND, "the operator's signing key is not a Nix signing key `<name>:<base64>`")
    return f"{name}:{base64.b64encode(secret[_SEED_BYTES:]).decode()}"


@contextlib.contextmanager
def in_memory(name: str, content: bytes) -> Iterator[int]:
    """A file descriptor to read `content` from, of a file without a place in any file system; closed on leaving."""
    descriptor = os.memfd_create(name)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
