"""Host keys of EC2 machines: made before the launch, given to the instance in its user data, pinned by instance id.
Pure, but for making a key.

User data of only `SSH_HOST_…` lines is what NixOS' images read their host key from (nixpkgs
`nixos/modules/virtualisation/ec2-data.nix`), before sshd
starts; so the very first connection is checked, never trusted blindly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE_LINE = "SSH_HOST_ED25519_KEY:"
PUBLIC_LINE = "SSH_HOST_ED25519_KEY_PUB:"
LAUNCHES_LEFT = "launchesLeft"


def generate_key() -> tuple[str, str]:
    """A new Ed25519 key: private half (OpenSSH text), public half (`ssh-ed25519 <base64>`)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public.decode()


def user_data(private: str, public: str) -> str:
    """The two lines that NixOS' image reads; line ends of the private key become `|`."""
    return f"{PUBLIC_LINE}{public}\n{PRIVATE_LINE}{private.rstrip().replace(chr(10), '|')}|\n"


def public_key_of(text: str) -> str:
    """The public half out of user data that `user_data` made."""
    return next(line.removeprefix(PUBLIC_LINE) for line in text.splitlines() if line.startswith(PUBLIC_LINE))


@dataclass(frozen=True)
class Pins:
    """The machine's host-keys Secret. `instance_id` None: there is none yet. `launches_left`: frozen launch requests,
    which hold the
    private host key, may still lie about."""

    instance_id: str | None = None
    keys: tuple[str, ...] = ()  # sorted
    launches_left: bool = False


def pins(secret: Mapping[str, bytes] | None) -> Pins:
    """What the Secret's data says."""
    if secret is None or "instanceId" not in secret:
        return Pins()
    keys = tuple(sorted(json.loads(secret["pinned"])))
    return Pins(secret["instanceId"].decode(), keys, bool(secret.get(LAUNCHES_LEFT)))


def pins_secret(instance_id: str, pinned: tuple[str, ...]) -> dict[str, bytes]:
    """The Secret's data for these pins, as long as the launch requests are not removed."""
    return {
        "instanceId": instance_id.encode(),
        "pinned": json.dumps(sorted(pinned)).encode(),
        LAUNCHES_LEFT: b"true",
    }
