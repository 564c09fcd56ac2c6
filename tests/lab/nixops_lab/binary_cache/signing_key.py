"""The key of the lab's cache. It follows from a constant: nothing but the lab trusts it, and every lab may know it."""

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NAME = "lab-cache-1"
_SEED = hashlib.sha256(b"the signing key of the lab's binary cache").digest()
_PUBLIC = Ed25519PrivateKey.from_private_bytes(_SEED).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

PUBLIC_KEY = f"{NAME}:{base64.b64encode(_PUBLIC).decode()}"
"""As `trusted-public-keys` takes it."""
SECRET_KEY = f"{NAME}:{base64.b64encode(_SEED + _PUBLIC).decode()}"
"""As `nix store sign --key-file` takes it: libsodium's form, seed and public half."""
