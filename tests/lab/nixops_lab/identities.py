"""Who is who in a lab: AWS access keys, the client's SSH key, the given host's host key. Made once per lab folder."""

import json
import secrets
import string
import subprocess
from dataclasses import asdict, dataclass

from nixops_lab.paths import LabPaths

# The alphabet of IAM's unique ids (IAM User Guide, "IAM identifiers": AKIA = access key, then base 32).
ACCESS_KEY_LETTERS = string.ascii_uppercase + "234567"
SECRET_LETTERS = string.ascii_letters + string.digits + "/+"


@dataclass(frozen=True)
class AccessKey:
    """20 characters and 40 characters, as AWS gives them."""

    id: str
    secret: str


@dataclass(frozen=True)
class Identities:
    """`person` owns the account and breaks things by hand; `operator` is what tests put into Secrets.

    SSH keys are single OpenSSH lines without a comment; their private halves lie beside `LabPaths.client_key` and
    `host_key`.
    """

    person: AccessKey
    operator: AccessKey
    client_public_key: str
    host_public_key: str
    host_private_key: str


def load(paths: LabPaths) -> Identities:
    """Reads what an earlier `up` made, and makes what is missing."""
    paths.identities.mkdir(parents=True, exist_ok=True, mode=0o700)
    stored = paths.identities / "access-keys.json"
    if not stored.exists():
        fresh = stored.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({"person": asdict(_access_key()), "operator": asdict(_access_key())}))
        fresh.replace(stored)
    keys = json.loads(stored.read_text())
    for path in (paths.client_key, paths.host_key):
        if not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
    return Identities(
        person=AccessKey(**keys["person"]),
        operator=AccessKey(**keys["operator"]),
        client_public_key=paths.client_key.with_suffix(".pub").read_text().strip(),
        host_public_key=paths.host_key.with_suffix(".pub").read_text().strip(),
        host_private_key=paths.host_key.read_text(),
    )


def host_key_user_data(identities: Identities) -> str:
    """The given host's key as NixOS' EC2 images read it: nixpkgs nixos/modules/virtualisation/ec2-data.nix."""
    private = identities.host_private_key.strip().replace("\n", "|")
    return f"SSH_HOST_ED25519_KEY_PUB:{identities.host_public_key}\nSSH_HOST_ED25519_KEY:{private}\n"


def _access_key() -> AccessKey:
    return AccessKey(
        id="AKIA" + "".join(secrets.choice(ACCESS_KEY_LETTERS) for _ in range(16)),
        secret="".join(secrets.choice(SECRET_LETTERS) for _ in range(40)),
    )
