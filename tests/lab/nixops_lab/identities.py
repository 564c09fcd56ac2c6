"""Who is who in a lab: AWS access keys, the client's SSH key, the given host's host key. Made once per lab folder."""

import json
import secrets
import string
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from nixops_lab.paths import LabPaths

# The alphabet of IAM's unique ids (IAM User Guide, "IAM identifiers": AKIA = access key, then base 32).
ACCESS_KEY_LETTERS = string.ascii_uppercase + "234567"
NAMES = ("person", "operator", "neighbour")
SECRET_LETTERS = string.ascii_letters + string.digits + "/+"


@dataclass(frozen=True)
class AccessKey:
    """20 characters and 40 characters, as AWS gives them."""

    id: str
    secret: str


@dataclass(frozen=True)
class Identities:
    """`person` owns the account and breaks things by hand; `operator` is what tests put into Secrets.

    `neighbour` is for the Secrets of a second tenant, in the same account.

    SSH keys are single OpenSSH lines without a comment; their private halves lie beside `LabPaths.client_key` and
    `host_key`.
    """

    person: AccessKey
    operator: AccessKey
    neighbour: AccessKey
    client_public_key: str
    host_public_key: str
    host_private_key: str


def load(paths: LabPaths) -> Identities:
    """Reads what an earlier `up` made, and makes what is missing."""
    paths.identities.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = _access_keys(paths.identities / "access-keys.json")
    for path in (paths.client_key, paths.host_key):
        if not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
    return Identities(
        person=keys["person"],
        operator=keys["operator"],
        neighbour=keys["neighbour"],
        client_public_key=paths.client_key.with_suffix(".pub").read_text().strip(),
        host_public_key=paths.host_key.with_suffix(".pub").read_text().strip(),
        host_private_key=paths.host_key.read_text(),
    )


def host_key_user_data(identities: Identities) -> str:
    """The given host's key as NixOS' EC2 images read it: nixpkgs nixos/modules/virtualisation/ec2-data.nix."""
    private = identities.host_private_key.strip().replace("\n", "|")
    return f"SSH_HOST_ED25519_KEY_PUB:{identities.host_public_key}\nSSH_HOST_ED25519_KEY:{private}\n"


def _access_keys(stored: Path) -> dict[str, AccessKey]:
    """Name → key; those that an earlier lab did not have yet are made and stored."""
    known = json.loads(stored.read_text()) if stored.exists() else {}
    keys = {name: AccessKey(**known[name]) if name in known else _access_key() for name in NAMES}
    if set(keys) != set(known):
        fresh = stored.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({name: asdict(key) for name, key in keys.items()}))
        fresh.replace(stored)
    return keys


def _access_key() -> AccessKey:
    return AccessKey(
        id="AKIA" + "".join(secrets.choice(ACCESS_KEY_LETTERS) for _ in range(16)),
        secret="".join(secrets.choice(SECRET_LETTERS) for _ in range(40)),
    )
