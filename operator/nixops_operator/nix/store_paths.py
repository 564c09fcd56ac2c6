"""How Nix derives a store path from content: Nix manual, "Store path specification" (protocols/store-path).

For content-addressed paths only. A path that does not follow from its content is a forgery.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection

STORE = "/nix/store"
SOURCE_NAME = "source"
"""The name under which Nix itself stores fetched trees; with it a tree has one path everywhere."""
STORE_PATH = re.compile(r"/nix/store/[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+._?=-]{1,211}")

# Nix' own base 32: no e, o, t, u.
_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
_DIGEST_BYTES = 20
_HASH_CHARACTERS = 32
_SHA256_BYTES = 32


def is_store_path(text: str) -> bool:
    """Whether `text` is a path directly in the store, as /nix/store/<32 characters>-<name>."""
    return STORE_PATH.fullmatch(text) is not None


def name_of(store_path: str) -> str:
    """The part after the hash."""
    return store_path[len(STORE) + 1 + _HASH_CHARACTERS + 1 :]


def text_path(name: str, content: bytes, references: Collection[str]) -> str:
    """Where `builtins.toFile` and derivations are stored: one file, addressed by its bytes and its references."""
    return _store_path(":".join(["text", *sorted(references)]), content, name)


def tree_path(name: str, nar: bytes, references: Collection[str] = ()) -> str:
    """Where a copied file or folder is stored: addressed by its NAR."""
    return tree_path_of(name, hashlib.sha256(nar).digest(), references)


def tree_path_of(name: str, digest: bytes, references: Collection[str] = ()) -> str:
    """As `tree_path`, by the SHA-256 of the NAR."""
    return _hashed_path(":".join(["source", *sorted(references)]), digest, name)


def output_path(output: str, masked: bytes, name: str) -> str:
    """Where an output of a derivation without input derivations goes. `masked`: the derivation's text with the paths
    of its outputs left empty."""
    return _store_path(f"output:{output}", masked, name if output == "out" else f"{name}-{output}")


def sri(digest: bytes) -> str:
    """A SHA-256 digest in the form `sha256-<base64>`."""
    return f"sha256-{base64.b64encode(digest).decode()}"


def digest_of(hash_text: str) -> bytes:
    """The digest in `sha256-<base64>`. Raises ValueError for anything else."""
    algorithm, _, encoded = hash_text.partition("-")
    digest = base64.b64decode(encoded, validate=True)
    if algorithm != "sha256" or len(digest) != _SHA256_BYTES:
        raise ValueError("no SHA-256 hash in the form sha256-…")
    return digest


def _store_path(kind: str, content: bytes, name: str) -> str:
    return _hashed_path(kind, hashlib.sha256(content).digest(), name)


def _hashed_path(kind: str, digest: bytes, name: str) -> str:
    fingerprint = f"{kind}:sha256:{digest.hex()}:{STORE}:{name}"
    return f"{STORE}/{_base32(_folded(hashlib.sha256(fingerprint.encode()).digest()))}-{name}"


def _folded(digest: bytes) -> bytes:
    folded = bytearray(_DIGEST_BYTES)
    for position, byte in enumerate(digest):
        folded[position % _DIGEST_BYTES] ^= byte
    return bytes(folded)


def _base32(digest: bytes) -> str:
    number = int.from_bytes(digest, "little")
    length = (len(digest) * 8 + 4) // 5
    return "".join(_ALPHABET[(number >> (5 * position)) & 31] for position in reversed(range(length)))
