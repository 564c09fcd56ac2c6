"""The words of this package: what a machine is, what may pass its door, what a command in it said."""

from dataclasses import dataclass
from typing import Literal

PowerState = Literal["absent", "off", "on"]
Standing = Literal["absent", "off", "booting", "on", "dead"]
"""What a look finds: `on` answers, `booting` does not yet, `dead` has power and has not answered for too long."""


class MachineError(Exception):
    """A machine could not be made, booted or reached from outside; the text says which and what it said last."""


@dataclass(frozen=True)
class MachineSpec:
    """One machine. `name` is an instance id or `given-host`; addresses are IPv4 text without a prefix length.

    `release` is `VERSION_ID` of the image's os-release. `user_data` is raw text: lines `SSH_HOST_ED25519_KEY_PUB:…` and
    `SSH_HOST_ED25519_KEY:…` (line breaks as `|`) give the host key, as on NixOS' EC2 images
    (nixpkgs nixos/modules/virtualisation/ec2-data.nix). `authorized_keys` are OpenSSH lines for root.
    """

    name: str
    private_address: str
    public_address: str | None
    release: str
    user_data: str
    authorized_keys: tuple[str, ...]


@dataclass(frozen=True)
class Disk:
    """A volume that a machine has. `device`: as EC2 attaches it, /dev/sdf."""

    volume_id: str
    device: str
    gib: int


@dataclass(frozen=True)
class Rule:
    """What may pass, as EC2's IpPermission: `-1` is any protocol; for ICMP the ports are type and code, -1 any."""

    protocol: str
    from_port: int | None
    to_port: int | None
    cidrs: tuple[str, ...]


@dataclass(frozen=True)
class Completed:
    """`exit_status` is negative for a signal, as in `subprocess`."""

    exit_status: int
    stdout: bytes
    stderr: bytes


OPEN = (Rule("-1", None, None, ("0.0.0.0/0", "::/0")),)
"""Everything passes."""
