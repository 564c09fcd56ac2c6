"""Resource ids: how new ones are made, and which code EC2 has for a wrong one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from nixops_lab.ec2.errors import Ec2Error

Item = TypeVar("Item")


@dataclass(frozen=True)
class Kind:
    """One kind of resource: prefix of its ids, its codes, the name that tags and messages give it."""

    prefix: str
    resource_type: str
    malformed: str
    not_found: str
    noun: str


INSTANCE = Kind("i", "instance", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound", "instance ID")
GROUP = Kind("sg", "security-group", "InvalidGroupId.Malformed", "InvalidGroup.NotFound", "security group")
RULE = Kind(
    "sgr",
    "security-group-rule",
    "InvalidSecurityGroupRuleId.Malformed",
    "InvalidSecurityGroupRuleId.NotFound",
    "security group rule ID",
)
KEY_PAIR = Kind("key", "key-pair", "InvalidKeyPairId.Malformed", "InvalidKeyPair.NotFound", "key pair ID")
INTERFACE = Kind(
    "eni",
    "network-interface",
    "InvalidNetworkInterfaceId.Malformed",
    "InvalidNetworkInterfaceID.NotFound",
    "networkInterface ID",
)
VOLUME = Kind("vol", "volume", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound", "volume")
SNAPSHOT = Kind("snap", "snapshot", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound", "snapshot")
ADDRESS = Kind(
    "eipalloc", "elastic-ip", "InvalidAllocationID.Malformed", "InvalidAllocationID.NotFound", "allocation ID"
)
IMAGE = Kind("ami", "image", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound", "image id")
SUBNET = Kind("subnet", "subnet", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound", "subnet ID")
VPC = Kind("vpc", "vpc", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound", "vpc ID")

TAGGABLE = (INSTANCE, GROUP, RULE, KEY_PAIR, INTERFACE, VOLUME, SNAPSHOT, ADDRESS)

# Old ids have 8 digits, all newer ones 17: EC2 User Guide, "Resource IDs".
_DIGITS = re.compile(r"[0-9a-f]{8}([0-9a-f]{9})?")


def well_formed(kind: Kind, value: str) -> str:
    """`value`; raises the kind's `.Malformed`."""
    prefix, _, digits = value.partition("-")
    if prefix != kind.prefix or not _DIGITS.fullmatch(digits):
        raise Ec2Error(kind.malformed, f'Invalid id: "{value}" (expecting "{kind.prefix}-...")')
    return value


def absent(kind: Kind, *values: str) -> Ec2Error:
    """The kind's `.NotFound` for these ids."""
    if kind is IMAGE:
        return Ec2Error(kind.not_found, f"The image id '[{', '.join(values)}]' does not exist")
    if len(values) == 1:
        return Ec2Error(kind.not_found, f"The {kind.noun} '{values[0]}' does not exist")
    return Ec2Error(kind.not_found, f"The {kind.noun}s '{', '.join(values)}' do not exist")


def pick(kind: Kind, values: Iterable[str], present: Mapping[str, Item]) -> list[Item]:
    """The items of these ids, in their order; one malformed or unknown id refuses the whole call."""
    wanted = [well_formed(kind, value) for value in values]
    gone = [value for value in wanted if value not in present]
    if gone:
        raise absent(kind, *gone)
    return [present[value] for value in wanted]


class Ids:
    """New ids, the same sequence for the same seed."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def new(self, prefix: str) -> str:
        """`<prefix>-` and 17 hexadecimal digits."""
        return f"{prefix}-{self._random.getrandbits(68):017x}"
