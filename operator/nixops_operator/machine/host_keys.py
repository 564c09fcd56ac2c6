"""Keys of EC2 machines: the host key, made before the launch, given to the instance in its user data and pinned by
instance id; and the client key that the instance was launched with. Pure.

User data of only `SSH_HOST_…` lines is what NixOS' images read their host key from (nixpkgs
`nixos/modules/virtualisation/ec2-data.nix`), before sshd starts; so the very first connection is checked, never trusted
blindly. It is replaced right after that (host_key_rotation.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import LaunchRequest
from nixops_operator.facts.kube import Secret

PRIVATE_LINE = "SSH_HOST_ED25519_KEY:"
PUBLIC_LINE = "SSH_HOST_ED25519_KEY_PUB:"
LAUNCHES_LEFT = "launchesLeft"
IS_KNOWN = "isKnown"
STAGED = "staged"
CLIENT_KEY = "clientKey"
REQUEST = "request"


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
    is_known: bool = False  # the key was in user data, where others may read it: it is replaced (host_key_rotation.py)
    staged: str | None = None  # the one that takes its place; pinned, too


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
        staged = secret.data.get(STAGED, b"").decode() or None
    except (KeyError, ValueError, TypeError):
        return Pins()
    if not keys:
        return Pins()
    launches_left, is_known = (bool(secret.data.get(mark)) for mark in (LAUNCHES_LEFT, IS_KNOWN))
    return Pins(instance_id, keys, launches_left, _client_key(secret), is_known, staged)


def _client_key(secret: Secret) -> str | None:
    return secret.data.get(CLIENT_KEY, b"").decode(errors="replace") or None


@dataclass(frozen=True)
class Launched:
    """What an instance was launched with. `client_key` None: nobody knew a usable one then."""

    host_keys: tuple[str, ...]
    client_key: str | None = field(default=None, repr=False)


def launch_secret(request: str, client_key: str | None) -> dict[str, bytes]:
    """The data of a Secret that freezes a launch, with the client key that goes with the key pair in it: the Secret
    that the spec names may hold another one before the instance is there."""
    data = {REQUEST: request.encode()}
    return data if client_key is None else data | {CLIENT_KEY: client_key.encode()}


def launched(secret: Secret | None, uid: str) -> Launched | None:
    """What a frozen launch says; None if it is gone, not this machine's, or cannot be read."""
    if secret is None or uid not in secret.owner_uids:
        return None
    try:
        request = LaunchRequest.from_json(secret.data[REQUEST].decode())
        return Launched((public_key_of(request.user_data),), _client_key(secret))
    except (KeyError, ValueError, StopIteration):
        return None


def restored(secret: Secret | None, instance_id: str, told: tuple[str, ...]) -> Launched:
    """The same of an instance whose frozen launch is gone: its host keys as the status tells them, and the client key
    if the damaged pins still hold it for this instance."""
    is_its = secret is not None and secret.data.get("instanceId", instance_id.encode()) == instance_id.encode()
    return Launched(told, _client_key(secret) if secret is not None and is_its else None)


def are_of_another(secret: Secret | None, instance_id: str) -> bool:
    """Whether the pins are those of another instance."""
    return secret is not None and secret.data.get("instanceId", instance_id.encode()) != instance_id.encode()


def pins_secret(instance_id: str, pinned: tuple[str, ...], client_key: str | None) -> dict[str, bytes]:
    """The Secret's data for these pins, as long as the launch requests are not removed, and the key is not replaced."""
    data = {
        "instanceId": instance_id.encode(),
        "pinned": _listed(pinned),
        LAUNCHES_LEFT: b"true",
        IS_KNOWN: b"true",
        STAGED: b"",
    }
    return data if client_key is None else data | {CLIENT_KEY: client_key.encode()}


def with_staged(pinned: tuple[str, ...], staged: str) -> dict[str, bytes]:
    """What changes in it before the machine may show the staged key."""
    return {"pinned": _listed({*pinned, staged}), STAGED: staged.encode()}


def replaced_by(staged: str) -> dict[str, bytes]:
    """What changes in it once the machine has shown the staged key."""
    return {"pinned": _listed({staged}), STAGED: b"", IS_KNOWN: b""}


def _listed(keys: Collection[str]) -> bytes:
    return json.dumps(sorted(keys)).encode()
