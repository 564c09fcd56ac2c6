"""Host keys of EC2 machines: made before the launch, given to the instance in its user data, pinned by instance id.
Pure, but for making a key.

User data of only `SSH_HOST_…` lines is what NixOS' images read their host key from (nixpkgs
`nixos/modules/virtualisation/ec2-data.nix`), before sshd starts; so the very first connection is checked, never trusted
blindly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.kube import Secret

PRIVATE_LINE = "SSH_HOST_ED25519_KEY:"
PUBLIC_LINE = "SSH_HOST_ED25519_KEY_PUB:"
LAUNCHES_LEFT = "launchesLeft"
CLIENT_KEY = "clientKey"


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
    """The machine's host-keys Secret. `instance_id` None: there is none yet, or it cannot be read and is made anew."""

    instance_id: str | None = None
    keys: tuple[str, ...] = ()  # sorted
    launches_left: bool = False  # frozen launch requests, which hold the private host key, may still lie about
    client_key: str | None = field(default=None, repr=False)  # the private key that the instance was launched with


def pins(secret: Secret | None, uid: str) -> Pins:
    """What the Secret says, if it is this machine's.

    Raises Retry while one of an earlier machine of this name is going, Blocked (`AdoptionConflict`) for one that is
    nobody's or somebody else's: it is neither believed nor written.
    """
    if secret is None:
        return Pins()
    if uid not in secret.owner_uids:
        if secret.owner_uids:
            message = f"Secret {secret.name} is that of an earlier machine of this name; waiting for it to go"
            raise Retry(Reason.ADOPTION_CONFLICT, message)
        message = (
            f"Secret {secret.name} is not the operator's, and the machine's host keys go there; rename or delete it"
        )
        raise Blocked(Reason.ADOPTION_CONFLICT, message)
    try:
        instance_id = secret.data["instanceId"].decode()
        keys = tuple(sorted(str(key) for key in json.loads(secret.data["pinned"])))
    except (KeyError, ValueError, TypeError):
        return Pins()
    client_key = secret.data.get(CLIENT_KEY, b"").decode(errors="replace") or None
    return Pins(instance_id, keys, bool(secret.data.get(LAUNCHES_LEFT)), client_key) if keys else Pins()


def pins_secret(instance_id: str, pinned: tuple[str, ...], client_key: str | None) -> dict[str, bytes]:
    """The Secret's data for these pins, as long as the launch requests are not removed."""
    data = {
        "instanceId": instance_id.encode(),
        "pinned": json.dumps(sorted(pinned)).encode(),
        LAUNCHES_LEFT: b"true",
    }
    return data if client_key is None else data | {CLIENT_KEY: client_key.encode()}
