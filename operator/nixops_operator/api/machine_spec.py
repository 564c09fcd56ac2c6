"""`spec` of a NixMachine: one machine, where it is and what runs on it.

Defaults live here and not in the CRD: a deployment merges settings before a machine's defaults count, and compares
the whole spec of its children with what it wants.
"""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from enum import StrEnum
from ipaddress import ip_address
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from nixops_operator.api.field_types import (
    IN_ORDER,
    MERGED_BY_NAME,
    NO_SECRET_IN_VALUES,
    SECRET_PATTERNS,
    SET,
    UNPRINTABLE,
    Duration,
    FreeText,
    Label,
    LongText,
    ObjectKey,
    ObjectName,
    SourcePath,
    SpecModel,
    TagValue,
    cel_rules,
    no_secret_in,
    without_secret,
)
from nixops_operator.api.health_check import HealthChecks


class DeletionPolicy(StrEnum):
    DELETE = "Delete"
    RETAIN = "Retain"


class DriftPolicy(StrEnum):
    ENFORCE = "Enforce"
    REPORT = "Report"


class ReplacePolicy(StrEnum):
    NEVER = "Never"
    WHEN_LOST = "WhenLost"
    WHEN_NEEDED = "WhenNeeded"


class StopPolicy(StrEnum):
    NEVER = "Never"
    WHEN_NEEDED = "WhenNeeded"


class PowerState(StrEnum):
    RUNNING = "Running"
    STOPPED = "Stopped"


class AddressKind(StrEnum):
    PUBLIC = "Public"
    PRIVATE = "Private"


class System(StrEnum):
    X86_64_LINUX = "x86_64-linux"
    AARCH64_LINUX = "aarch64-linux"


class SecretReference(SpecModel):
    """A Secret of the same namespace."""

    name: ObjectName
    """Name of the Secret."""


class PrivateKeyReference(SpecModel):
    """A private key in a Secret of the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: ObjectKey = "ssh-privatekey"
    """Key of the Secret's data, as in Secrets of type kubernetes.io/ssh-auth."""


class ConfigMapReference(SpecModel):
    """A ConfigMap of the same namespace."""

    name: ObjectName
    """Name of the ConfigMap."""


class ConfigMapKeyReference(SpecModel):
    """One key of a ConfigMap of the same namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: ObjectKey
    """Key of the ConfigMap's data."""


Region = Annotated[str, StringConstraints(max_length=32, pattern="^[a-z]+(-[a-z]+)+-[0-9]+$")]


class AssumeRole(SpecModel):
    """An IAM role to act as."""

    role_arn: Annotated[
        str, StringConstraints(max_length=256, pattern="^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]+$")
    ]
    """As arn:aws:iam::123456789012:role/nixops. Its trust policy must name whoever the credentials are of."""
    # STS API Reference, "AssumeRole".
    external_id: (
        Annotated[str, StringConstraints(min_length=2, max_length=256, pattern="^[A-Za-z0-9+=,.@:/_-]+$")] | None
    ) = None
    """What the role's trust policy asks for under sts:ExternalId. No password: who may read this object may read it."""


class AwsCredentials(SpecModel):
    """Where AWS credentials come from."""

    secret_ref: SecretReference | None = None
    """Secret with accessKeyId and secretAccessKey (and sessionToken), or credentials (an AWS shared credentials file),
    or ec2-keys (NixOps' file of that name). Absent: the operator's own identity, which the administrator must allow."""
    assume_role: AssumeRole | None = None
    """A role that those credentials take on for everything; renewed by itself."""
    # Not a FreeText: NixOps looked keys up by access key id, so this one text may be one.
    profile: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Which profile of the credentials file, or which alias or access key id of ec2-keys."""


class AwsSettings(SpecModel):
    """Which AWS account and region."""

    region: Region | None = None
    """AWS region, as us-west-2. Cannot be changed once something was made there."""
    credentials: AwsCredentials | None = None
    """Absent: the operator's own identity, which the administrator must allow."""


_HOST_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", *(f"ecdsa-sha2-nistp{size}" for size in (256, 384, 521)))
_ANOTHER_TYPE = "the key's first word and its base64 part are of different types; copy the whole line of the .pub file"


def _encoded_type(name: str) -> str:
    """How the base64 part of a key of that type begins: with the length of the type's name, and the name (RFC 4253,
    section 6.6), as far as they fill whole characters of base64."""
    named = len(name).to_bytes(4, "big") + name.encode()
    return base64.b64encode(named).decode()[: len(named) * 8 // 6]


def _of_one_type(key: str) -> str:
    name, encoded = key.split(" ")[:2]
    other = next((other for other in _HOST_KEY_TYPES if encoded.startswith(_encoded_type(other))), name)
    if other != name:
        raise ValueError(f"{_ANOTHER_TYPE} (it is called {name} and holds a key of type {other})")
    return key


def _of_one_type_in_cel() -> str:
    swapped = " || ".join(
        f"self.startsWith('{name} {_encoded_type(other)}')"
        for name in _HOST_KEY_TYPES
        for other in _HOST_KEY_TYPES
        if other != name
    )
    return f"!({swapped})"


HostKey = Annotated[
    str,
    StringConstraints(
        max_length=2048, pattern="^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]+={0,3}( .*)?$"
    ),
    AfterValidator(_of_one_type),
    Field(json_schema_extra=cel_rules((_of_one_type_in_cel(), _ANOTHER_TYPE))),
]


_ROOT_ALONE = (
    "only root can be used for now, without sudo: leave this out, and give root the client key on the machine "
    "(users.users.root.openssh.authorizedKeys.keys)"
)


def _root(name: str) -> str:
    if name != "root":
        raise ValueError(_ROOT_ALONE)
    return name


class SshSettings(SpecModel):
    """How the machine is reached over SSH."""

    # Told here, and not by the first login: by then an instance is launched.
    user: Annotated[
        str,
        StringConstraints(max_length=32),
        AfterValidator(_root),
        Field(json_schema_extra=cel_rules(("self == 'root'", _ROOT_ALONE))),
    ] = "root"
    """Login name: root, for now."""
    address: AddressKind | None = None
    """Which address of an EC2 instance to use. Absent: the public one if there is one, else the private one."""
    private_key_secret_ref: PrivateKeyReference | None = None
    """The client key. In a NixDeployment, a machine whose target.ec2.keyPair names one of keyPairs needs none."""
    host_keys: Annotated[tuple[HostKey, ...], Field(max_length=8, json_schema_extra=SET)] = ()
    """Public host keys, each as `ssh-ed25519 AAAA…`; a host that shows another key is not logged in to. EC2 instances
    get a host key from the operator and need none here."""

    @property
    def pinned_host_keys(self) -> tuple[str, ...]:
        """`<type> <base64>` without comments, sorted."""
        return tuple(sorted({" ".join(key.split(" ")[:2]) for key in self.host_keys}))


_ONE_WAY_TO_AN_IMAGE = "image needs either id, or owner and name"


class Ec2Image(SpecModel):
    """Which machine image the instance starts from; counts at launch only."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "has(self.id) ? !has(self.owner) && !has(self.name) : has(self.owner) && has(self.name)",
                _ONE_WAY_TO_AN_IMAGE,
            ),
            always=no_secret_in("name"),
        )
    )

    id: Annotated[str, StringConstraints(max_length=32, pattern="^ami-[0-9a-f]{8,17}$")] | None = None
    """Id of the image."""
    owner: Annotated[str, StringConstraints(max_length=32, pattern="^([0-9]{12}|[a-z-]+)$")] | None = None
    """Account that owns the image; goes with name."""
    name: Annotated[FreeText, StringConstraints(min_length=1, max_length=128)] | None = None
    """Name pattern, as nixos/25.11*; of those that match, the newest for the instance type's architecture counts."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.id is None) == (self.owner is None and self.name is None) or (self.owner is None) != (
            self.name is None
        ):
            raise ValueError(_ONE_WAY_TO_AN_IMAGE)
        return self


# EC2 API Reference, "Tag", gives 127 characters where other documents of AWS say 128; `aws:` is reserved in upper and
# lower case alike.
_TAG_KEYS = (
    "tag keys are 1 to 127 characters long, hold no control characters, and begin with neither nixops.dev: nor aws:"
)
_BAD_IN_A_TAG_KEY = f"^nixops[.]dev:|^[aA][wW][sS]:|[{UNPRINTABLE}]"


def _allowed_tag_keys(tags: dict[str, str]) -> dict[str, str]:
    if not all(1 <= len(key) <= 127 and not re.search(_BAD_IN_A_TAG_KEY, key) for key in tags):
        raise ValueError(_TAG_KEYS)
    return tags


Tags = Annotated[
    dict[str, TagValue],
    Field(max_length=40),  # of the 50 that EC2 allows; the operator adds up to seven of its own
    AfterValidator(_allowed_tag_keys),
    Field(
        json_schema_extra=cel_rules(
            (
                f"self.all(key, size(key) >= 1 && size(key) <= 127 && !key.matches(r'{_BAD_IN_A_TAG_KEY}'))",
                _TAG_KEYS,
            ),
            *NO_SECRET_IN_VALUES,
        ),
    ),
]


class Tenancy(StrEnum):
    """Whom the instance shares its hardware with."""

    DEFAULT = "Default"
    DEDICATED = "Dedicated"


class ShutdownBehavior(StrEnum):
    """What EC2 does with an instance that was shut down from inside."""

    STOP = "Stop"
    TERMINATE = "Terminate"


class CpuCredits(StrEnum):
    """What a burstable instance does without CPU credits."""

    STANDARD = "Standard"
    UNLIMITED = "Unlimited"


class MetadataTokens(StrEnum):
    """Whether the metadata service asks for session tokens (IMDSv2)."""

    REQUIRED = "Required"
    OPTIONAL = "Optional"


class InstanceMetadata(SpecModel):
    """What the instance can read about itself at 169.254.169.254."""

    tokens: MetadataTokens = MetadataTokens.REQUIRED
    """Required: for session tokens alone (IMDSv2)."""
    hop_limit: Annotated[int, Field(ge=1, le=64)] = 1
    """How many network hops an answer with a session token may travel; containers need 2."""
    tags: bool = False
    """Whether the instance's tags are there, too. Tag keys are then parts of paths: letters, digits and -_+=,.@: only.
    """
    endpoint: bool = True
    """Whether it is there at all. It is switched off once the declared system has run: until then the machine reads its
    host key there."""


# EC2 User Guide, "View tags for your EC2 instances using instance metadata".
_METADATA_TAG_KEYS = (
    "with metadata.tags, tag keys hold nothing but letters, digits and -_+=,.@: and are neither . nor .. nor _index"
)
_IN_METADATA = "^[0-9a-zA-Z_+=,.@:-]+$"
_NOT_IN_METADATA = (".", "..", "_index")
# EC2 User Guide, "Burstable performance instances": T2, T3, T3a and T4g.
_BURSTABLE = "^t[0-9]"
_CREDITS_NEED_A_BURSTABLE_TYPE = "credits are for burstable instance types alone: t2, t3, t3a, t4g"
_TAGS_FIT_INTO_METADATA = (
    "!has(self.metadata) || !has(self.metadata.tags) || !self.metadata.tags || !has(self.tags)"
    f" || self.tags.all(key, key.matches('{_IN_METADATA}') && !(key in {list(_NOT_IN_METADATA)}))"
)


# EC2 User Guide, "Run commands when you launch an EC2 instance with user data input": 16 KB, before encoding; the host
# key takes some 600 bytes. What NixOS' image does with which lines: nixpkgs, nixos/modules/virtualisation/ec2-data.nix
# (a `|` makes any line a part of the key) and amazon-init.nix (whatever is no comment is a configuration).
_OF_THE_HOST_KEY = "SSH_HOST_"


def _without_host_key(text: str) -> str:
    if _OF_THE_HOST_KEY in text:
        raise ValueError(f"user data with {_OF_THE_HOST_KEY} would give the machine another host key")
    return text


# IAM API Reference, "CreateInstanceProfile".
ProfileName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern="^[A-Za-z0-9_+=,.@-]+$"),
    AfterValidator(without_secret),
]

UserDataExtra = Annotated[
    str,
    StringConstraints(min_length=1, max_length=15 * 1024, pattern=r"^(#[ -{}~\t]*\n?)*$"),
    AfterValidator(without_secret),
    AfterValidator(_without_host_key),
    Field(json_schema_extra={"not": {"pattern": "|".join((*SECRET_PATTERNS, _OF_THE_HOST_KEY))}}),
]


_ONE_ADDRESS = "an elastic address is exactly one of allocate: true, id and address"


class ElasticIp(SpecModel):
    """A public IPv4 address that stays when the instance is stopped or replaced."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("[has(self.allocate) && self.allocate, has(self.id), has(self.address)].exists_one(x, x)", _ONE_ADDRESS)
        )
    )

    allocate: bool = False
    """The operator allocates one for this machine, and releases it when this leaves the spec or the machine goes."""
    id: Annotated[str, StringConstraints(max_length=32, pattern="^eipalloc-[0-9a-f]{8,17}$")] | None = None
    """Allocation id of one that exists; it is associated, and never released. One that somebody else uses is left to
    them."""
    address: Annotated[str, StringConstraints(max_length=15, pattern="^[0-9]{1,3}([.][0-9]{1,3}){3}$")] | None = None
    """The same by the address itself."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.allocate, self.id is not None, self.address is not None].count(True) != 1:
            raise ValueError(_ONE_ADDRESS)
        return self


SubnetId = Annotated[str, StringConstraints(max_length=32, pattern="^subnet-[0-9a-f]{8,17}$")]
_ONE_PLACE_OR_SEVERAL = "name subnetId or subnetIds, not both"


class VolumeType(StrEnum):
    """EC2's own words."""

    GP3 = "gp3"
    GP2 = "gp2"
    IO1 = "io1"
    IO2 = "io2"
    ST1 = "st1"
    SC1 = "sc1"
    STANDARD = "standard"


# EC2 API Reference, "CreateVolume": Size, Iops and Throughput by VolumeType; EBS User Guide, "Amazon EBS volume types":
# IOPS per GiB, and throughput per IOPS.
_SIZES = {
    "gp2": [1, 16384],
    "gp3": [1, 65536],
    "io1": [4, 16384],
    "io2": [4, 65536],
    "st1": [125, 16384],
    "sc1": [125, 16384],
    "standard": [1, 1024],
}
_IOPS = {"gp3": [3000, 80000], "io1": [100, 64000], "io2": [100, 256000]}
_IOPS_PER_GIB = {"gp3": 500, "io1": 50, "io2": 1000}
_IOPS_OF_ANY_GP3 = 3000
_IOPS_PER_THROUGHPUT = 4


def _ranges(by_type: dict[str, list[int]]) -> str:
    return ", ".join(f"{kind} {least} to {most}" for kind, (least, most) in by_type.items())


_SIZE_OF_TYPE = f"size, in GiB, goes with the type: {_ranges(_SIZES)}"
_IOPS_OF_TYPE = f"iops go with the type: {_ranges(_IOPS)}"
_FEWER_IOPS = (
    "at most 500 iops per GiB of gp3 (3000 at any size), 50 of io1, 1000 of io2: give fewer iops, or a larger size"
)
_LESS_THROUGHPUT = (
    "at most 1 MiB/s of throughput for 4 iops (gp3 has 3000 unless iops says more): give less throughput, or more iops"
)
_NOT_BOOTED_FROM = "nothing boots from st1 and sc1"
_NO_IOPS = "iops are given of gp3, io1 and io2 alone"
_NO_THROUGHPUT = "throughput is given of gp3 alone"
_MORE_IOPS = "io1 and io2 need iops"


def _in_range(field: str, by_type: dict[str, list[int]]) -> str:
    """In CEL; of another type, or without one, it is not judged."""
    least, most = ({kind: limits[place] for kind, limits in by_type.items()} for place in (0, 1))
    of_others = "" if by_type.keys() == set(VolumeType) else f" || !(self.type in {least})"
    return (
        f"!has(self.{field}) || !has(self.type){of_others}"
        f" || self.{field} >= {least}[self.type] && self.{field} <= {most}[self.type]"
    )


_RANGES = ((_in_range("size", _SIZES), _SIZE_OF_TYPE), (_in_range("iops", _IOPS), _IOPS_OF_TYPE))
_RATIOS = (
    (
        (
            f"!has(self.iops) || !has(self.size) || !has(self.type) || !(self.type in {_IOPS_PER_GIB})"
            f" || self.iops <= self.size * {_IOPS_PER_GIB}[self.type]"
            f" || self.type == 'gp3' && self.iops <= {_IOPS_OF_ANY_GP3}"
        ),
        _FEWER_IOPS,
    ),
    (
        (
            f"!has(self.throughput) || self.throughput * {_IOPS_PER_THROUGHPUT}"
            f" <= (has(self.iops) ? self.iops : {_IOPS_OF_ANY_GP3})"
        ),
        _LESS_THROUGHPUT,
    ),
)


def _judge_performance(kind: VolumeType | None, size: int | None, iops: int | None, throughput: int | None) -> None:
    if kind in (VolumeType.IO1, VolumeType.IO2) and iops is None:
        raise ValueError(_MORE_IOPS)
    if iops is not None and kind is not None and kind not in _IOPS:
        raise ValueError(_NO_IOPS)
    if throughput is not None and kind not in (None, VolumeType.GP3):
        raise ValueError(_NO_THROUGHPUT)
    if throughput is not None and throughput * _IOPS_PER_THROUGHPUT > (iops or _IOPS_OF_ANY_GP3):
        raise ValueError(_LESS_THROUGHPUT)
    if kind is not None and size is not None and not _SIZES[kind][0] <= size <= _SIZES[kind][1]:
        raise ValueError(_SIZE_OF_TYPE)
    if kind is None or iops is None:
        return
    if not _IOPS[kind][0] <= iops <= _IOPS[kind][1]:
        raise ValueError(_IOPS_OF_TYPE)
    is_as_any = kind is VolumeType.GP3 and iops <= _IOPS_OF_ANY_GP3
    if size is not None and iops > size * _IOPS_PER_GIB[kind] and not is_as_any:
        raise ValueError(_FEWER_IOPS)


class RootVolume(SpecModel):
    """The disk that an instance boots from."""

    # st1, sc1: EBS User Guide, "Amazon EBS volume types".
    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("!has(self.type) || !(self.type in ['io1', 'io2']) || has(self.iops)", _MORE_IOPS),
            *_RATIOS,
            always=(
                ("!has(self.type) || !(self.type in ['st1', 'sc1'])", _NOT_BOOTED_FROM),
                *_RANGES,
                (f"!has(self.iops) || !has(self.type) || self.type in {list(_IOPS)}", _NO_IOPS),
                ("!has(self.throughput) || !has(self.type) || self.type == 'gp3'", _NO_THROUGHPUT),
            ),
        )
    )

    size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """GiB. Absent: as the image is. A larger one is carried out on the running instance, and its root file system
    (ext4, xfs, btrfs) grown into it; EC2 makes no volume smaller."""
    type: VolumeType | None = None
    """Absent: as the image says. A change is carried out on the running instance."""
    iops: Annotated[int, Field(ge=100, le=256000)] | None = None
    """I/O operations per second. Absent: as EC2 does with this type; what was declared before stays. A change is
    carried out on the running instance."""
    throughput: Annotated[int, Field(ge=125, le=2000)] | None = None
    """MiB per second, of gp3. Absent: as EC2 does; what was declared before stays. A change is carried out on the
    running instance."""
    encrypted: bool | None = None
    """With the account's default KMS key. Absent: as the account and the image say. A change counts at the next
    launch."""

    @model_validator(mode="after")
    def _values_go_together(self) -> Self:
        if self.type in (VolumeType.ST1, VolumeType.SC1):
            raise ValueError(_NOT_BOOTED_FROM)
        _judge_performance(self.type, self.size, self.iops, self.throughput)
        return self


_OF_NEW_VOLUMES = ("type", "iops", "throughput", "encrypted", "snapshotId")
_MADE_OR_GIVEN = "a volume has either size, and is made, or volumeId, and exists"
_GIVEN_AS_IT_IS = f"a volume with volumeId stays as it is: leave {', '.join(_OF_NEW_VOLUMES)} out"
_GIVEN_STAYS = "a volume with volumeId is never deleted: its deletionPolicy is Retain"


class DataVolume(SpecModel):
    """A disk beside the one that an instance boots from; it outlives instances."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            always=(
                *_RANGES,
                *_RATIOS,
                (f"!has(self.iops) || !has(self.type) || self.type in {list(_IOPS)}", _NO_IOPS),
                ("!has(self.throughput) || !has(self.type) || self.type == 'gp3'", _NO_THROUGHPUT),
                ("!has(self.type) || !(self.type in ['io1', 'io2']) || has(self.iops)", _MORE_IOPS),
                ("has(self.size) != has(self.volumeId)", _MADE_OR_GIVEN),
                (
                    f"!has(self.volumeId) || !({' || '.join(f'has(self.{field})' for field in _OF_NEW_VOLUMES)})",
                    _GIVEN_AS_IT_IS,
                ),
                ("!has(self.volumeId) || !has(self.deletionPolicy) || self.deletionPolicy != 'Delete'", _GIVEN_STAYS),
            ),
        )
    )

    name: Annotated[str, StringConstraints(max_length=32, pattern="^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    """It is known by this name for life; another name is another, empty volume."""
    device: Annotated[str, StringConstraints(max_length=8, pattern="^/dev/sd[f-p]$")]
    """Where it is attached. NixOS on EC2 makes a link of this name to the disk (services.udev.packages of
    amazon-image.nix), for fileSystems.<path>.device."""
    volume_id: Annotated[str, StringConstraints(max_length=32, pattern="^vol-[0-9a-f]+$")] | None = None
    """A volume that exists, in place of a new one: it is attached and detached, and stays otherwise as it is, whatever
    becomes of the entry and the machine. For life."""
    size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """GiB of a new one. A larger one is carried out while it is in use, its file system too; EC2 makes no volume
    smaller."""
    type: VolumeType | None = None
    """Absent: gp3 for a new one. A change is carried out while it is in use."""
    iops: Annotated[int, Field(ge=100, le=256000)] | None = None
    """As of the root volume."""
    throughput: Annotated[int, Field(ge=125, le=2000)] | None = None
    """As of the root volume."""
    encrypted: bool | None = None
    """With the account's default KMS key, for life. Absent: as the account says."""
    snapshot_id: Annotated[str, StringConstraints(max_length=32, pattern="^snap-[0-9a-f]+$")] | None = None
    """What is in a new volume, whose size must be the snapshot's or more. Absent: nothing. For life."""
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What becomes of it when it leaves the spec, or the machine is deleted. Retain: it stays, tagged as retained.
    Delete: it is deleted, with what is in it."""

    @model_validator(mode="after")
    def _values_go_together(self) -> Self:
        _judge_performance(self.type, self.size, self.iops, self.throughput)
        if (self.size is None) == (self.volume_id is None):
            raise ValueError(_MADE_OR_GIVEN)
        of_new = (self.type, self.iops, self.throughput, self.encrypted, self.snapshot_id)
        if self.volume_id is not None and any(value is not None for value in of_new):
            raise ValueError(_GIVEN_AS_IT_IS)
        if self.volume_id is not None and self.deletion_policy is DeletionPolicy.DELETE:
            raise ValueError(_GIVEN_STAYS)
        return self


_TWO_ON_ONE_DEVICE = "two volumes have the same device"
_TWO_OF_ONE_ID = "two volumes have the same volumeId"


def _on_devices_of_their_own(volumes: tuple[DataVolume, ...]) -> tuple[DataVolume, ...]:
    if len({volume.device for volume in volumes}) < len(volumes):
        raise ValueError(_TWO_ON_ONE_DEVICE)
    if len({volume.name for volume in volumes}) < len(volumes):
        raise ValueError("two volumes have the same name")
    given = [volume.volume_id for volume in volumes if volume.volume_id is not None]
    if len(set(given)) < len(given):
        raise ValueError(_TWO_OF_ONE_ID)
    return volumes


class Ec2Target(SpecModel):
    """An instance on Amazon EC2."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            always=(
                *no_secret_in("keyPair"),
                *no_secret_in("placementGroup"),
                *no_secret_in("instanceProfile"),
                (
                    f"!has(self.credits) || !has(self.instanceType) || self.instanceType.matches('{_BURSTABLE}')",
                    _CREDITS_NEED_A_BURSTABLE_TYPE,
                ),
                (_TAGS_FIT_INTO_METADATA, _METADATA_TAG_KEYS),
                ("!has(self.subnetId) || !has(self.subnetIds) || size(self.subnetIds) == 0", _ONE_PLACE_OR_SEVERAL),
            )
        )
    )

    instance_type: Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")]
    """EC2 instance type, as t3.small. A change stops the instance and starts it again, where disruption.stop allows it;
    the new type must be of the same architecture."""
    image: Ec2Image | None = None
    """Absent: the operator's default NixOS image. A change counts at the next launch."""
    key_pair: Annotated[FreeText, StringConstraints(min_length=1, max_length=255)] | None = None
    """One of the deployment's keyPairs, or the name of a key pair that exists in EC2. A change counts at the next
    launch."""
    security_groups: Annotated[tuple[Label, ...], Field(max_length=16, json_schema_extra=SET)] = ()
    """Names of the deployment's securityGroups, or ids sg-… of existing ones. Empty: the VPC's default group."""
    subnet_id: SubnetId | None = None
    """Absent: the default VPC's default subnet in its lowest zone. Cannot be changed while the instance exists."""
    subnet_ids: Annotated[tuple[SubnetId, ...], Field(max_length=8, json_schema_extra=IN_ORDER)] = ()
    """In place of subnetId: several of one VPC, tried in this order where EC2 has no room for the instance, or no
    address left. An instance in a subnet that leaves the list is told, or replaced where disruption.replace allows it;
    other changes count at the next launch."""
    monitoring: bool = False
    """Whether CloudWatch gets the instance's figures every minute instead of every five (detailed
    monitoring, which costs). A change is carried out on the running instance."""
    tags: Tags = Field(default_factory=dict)
    """Tags of the instance and its volumes, besides the operator's own."""
    source_dest_check: bool = True
    """Whether the instance gets only what is addressed to it, and sends only from its own address. A router or NAT
    instance needs false. A change is carried out on the running instance."""
    metadata: InstanceMetadata = InstanceMetadata()
    """What the instance can read about itself at 169.254.169.254. A change is carried out on the running instance."""
    instance_profile: ProfileName | None = None
    """Name of an IAM instance profile that exists; the operator's identity needs iam:PassRole for its role. Absent:
    none is given, and one that others give stays. A change is carried out on the running instance."""
    termination_protection: bool | None = None
    """Whether EC2 refuses to terminate the instance. With true, this object's deletion waits until it is false. Absent:
    as EC2 does (false), and protection that others set stays. A change is carried out on the running instance."""
    stop_protection: bool | None = None
    """Whether EC2 refuses to stop the instance, and to terminate it: see terminationProtection."""
    shutdown_behavior: ShutdownBehavior | None = None
    """What EC2 does when the machine is shut down from inside. Absent: as EC2 does (Stop), and what others set stays. A
    change is carried out on the running instance."""
    credits: CpuCredits | None = None
    """What an instance of a burstable type does without CPU credits: become slow, or cost more. Absent: as EC2 does
    with this type; what was declared before stays. A change is carried out on the running instance."""
    public_ip: bool | None = None
    """Whether the instance gets a public IPv4 address of EC2's when it is launched. Absent: as its subnet says. A
    change counts at the next launch."""
    elastic_ip: ElasticIp | None = None
    """An address that the machine keeps for good, in place of EC2's own. Absent: none is associated, and one that
    others associate stays. A change is carried out on the running instance."""
    ebs_optimized: bool | None = None
    """Whether it has throughput of its own to its volumes, where the instance type leaves that open. Absent: as EC2
    does with this type. A change stops the instance and starts it again, as of instanceType."""
    tenancy: Tenancy | None = None
    """Dedicated: on hardware that no other account uses, which costs. Absent: as its VPC says. A change replaces the
    instance by another one, where disruption.replace is WhenNeeded."""
    placement_group: Annotated[FreeText, StringConstraints(min_length=1, max_length=255)] | None = None
    """Name of a placement group that exists. Absent: none. A change stops the instance and starts it again, as of
    instanceType."""
    root_volume: RootVolume | None = None
    """The disk that it boots from. It goes with its instance."""
    volumes: Annotated[
        tuple[DataVolume, ...],
        Field(max_length=11, json_schema_extra=MERGED_BY_NAME),
        AfterValidator(_on_devices_of_their_own),
        Field(
            json_schema_extra=cel_rules(
                ("self.all(one, self.exists_one(other, other.device == one.device))", _TWO_ON_ONE_DEVICE),
                (
                    (
                        "self.all(one, !has(one.volumeId) || self.exists_one(other, has(other.volumeId)"
                        " && other.volumeId == one.volumeId))"
                    ),
                    _TWO_OF_ONE_ID,
                ),
            )
        ),
    ] = ()
    """Disks beside it, each made once and attached before the system is activated; they outlive the instance."""

    user_data_extra: UserDataExtra | None = None
    """Lines for programs on the machine, which read them in /etc/ec2-metadata/user-data; readable for everybody who may
    read this object. Each begins with #, since NixOS' image takes anything else for a configuration to switch to; they
    are printable ASCII without |, and without SSH_HOST_, by which it finds its host key. A change counts at the next
    launch."""

    @model_validator(mode="after")
    def _one_place_or_several(self) -> Self:
        if self.subnet_id is not None and self.subnet_ids:
            raise ValueError(_ONE_PLACE_OR_SEVERAL)
        return self

    @model_validator(mode="after")
    def _credits_of_a_burstable_type(self) -> Self:
        if self.credits is not None and not re.match(_BURSTABLE, self.instance_type):
            raise ValueError(_CREDITS_NEED_A_BURSTABLE_TYPE)
        return self

    @model_validator(mode="after")
    def _tag_keys_fit_into_metadata(self) -> Self:
        if self.metadata.tags and not all(
            re.fullmatch(_IN_METADATA, key) and key not in _NOT_IN_METADATA for key in self.tags
        ):
            raise ValueError(_METADATA_TAG_KEYS)
        return self

    power_state: PowerState = PowerState.RUNNING
    """Stopped: the instance is stopped and kept, with its volumes and private address; its public address goes. What
    changes in the configuration meanwhile is carried out when it runs again."""


_NO_ADDRESS = "is neither a host name nor an IP address; a port goes to target.host.port, a user to ssh.user"
_HOST_NAME = "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
# No top-level domain is a number (RFC 3696, 2). Resolvers read `10.1` as 10.0.0.1 (inet_aton(3)).
_NUMBER_AT_THE_END = "(^|[.])[0-9]+$"


def _host_address(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if not re.fullmatch(_HOST_NAME, text) or re.search(_NUMBER_AT_THE_END, text):
            raise ValueError(_NO_ADDRESS) from None
    return text


HostAddress = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253),
    AfterValidator(_host_address),
    Field(
        json_schema_extra=cel_rules(
            (f"isIP(self) || self.matches('{_HOST_NAME}') && !self.matches('{_NUMBER_AT_THE_END}')", _NO_ADDRESS)
        )
    ),
]


class HostTarget(SpecModel):
    """A machine that exists; it is reached over SSH, never created or destroyed."""

    address: HostAddress
    """Host name or IP address; it must lie in a network that the administrator allows."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """TCP port of sshd."""


_ONE_TARGET = "target needs exactly one of ec2 and host"


class Target(SpecModel):
    """Where the machine is."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.ec2) != has(self.host)", _ONE_TARGET),
            of_parts=[("!has(self.ec2) || !has(self.host)", _ONE_TARGET)],
        )
    )

    ec2: Ec2Target | None = None
    """An instance on Amazon EC2."""
    host: HostTarget | None = None
    """A machine that exists."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.ec2 is None) == (self.host is None):
            raise ValueError(_ONE_TARGET)
        return self


ArchiveUrl = Annotated[str, StringConstraints(max_length=2048, pattern="^https?://[!-~]+$")]
TreeHash = Annotated[str, StringConstraints(max_length=51, pattern="^sha256-[A-Za-z0-9+/]{43}=$")]


class Archive(SpecModel):
    """A tarball with one folder, as builtins.fetchTarball takes it (.tar.gz, .tar.xz, .tar.bz2, .tar)."""

    url: ArchiveUrl
    """Where the operator fetches it from, once; anybody who may read this object can read it: no passwords."""
    hash: TreeHash
    """What `nix-prefetch-url --unpack` and `nix hash path` call it, in the form sha256-…; a wrong one is told with the
    right one."""


_ONE_SOURCE = "a source is exactly one of configMapRef and archive"


class Source(SpecModel):
    """Where the configuration's files come from."""

    model_config = ConfigDict(json_schema_extra=cel_rules(("has(self.configMapRef) != has(self.archive)", _ONE_SOURCE)))

    config_map_ref: ConfigMapReference | None = None
    """A ConfigMap whose keys are file names. It has no folders: those come in an archive."""
    archive: Archive | None = None
    """A tarball: a repository at one revision, with all its folders."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.config_map_ref is None) == (self.archive is None):
            raise ValueError(_ONE_SOURCE)
        return self


_ONE_KIND_OF_MODULE = "a module is exactly one of path, inline and configMapKeyRef"


class Module(SpecModel):
    """One NixOS module."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("[has(self.path), has(self.inline), has(self.configMapKeyRef)].exists_one(x, x)", _ONE_KIND_OF_MODULE)
        )
    )

    path: SourcePath | None = None
    """A file inside the source."""
    inline: Annotated[LongText, StringConstraints(min_length=1, max_length=32768)] | None = None
    """The module's text. Readable for everybody who may read this object: no passwords; a text with a private key or an
    AWS access key id is refused."""
    config_map_key_ref: ConfigMapKeyReference | None = None
    """A module in a ConfigMap."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.path, self.inline, self.config_map_key_ref].count(None) != 2:
            raise ValueError(_ONE_KIND_OF_MODULE)
        return self


_ONE_NIXPKGS = "nixpkgs is either a path inside the source, or a url with the hash of the tree in it"


class Nixpkgs(SpecModel):
    """Which nixpkgs the configuration is evaluated with."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.path) != has(self.url) && has(self.url) == has(self.hash)", _ONE_NIXPKGS)
        )
    )

    path: SourcePath | None = None
    """A folder inside the source."""
    url: ArchiveUrl | None = None
    """A tarball, as of a revision of github.com/NixOS/nixpkgs. Fetched once by the operator, whoever names it."""
    hash: TreeHash | None = None
    """NAR hash of the tree in it."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.path is None) == (self.url is None) or (self.url is None) != (self.hash is None):
            raise ValueError(_ONE_NIXPKGS)
        return self


class BuildOn(StrEnum):
    """Where a system is built."""

    AUTO = "Auto"
    TARGET = "Target"
    OPERATOR = "Operator"


_ON_TWICE = "build.on is said twice: once quoted, and once as YAML reads it unquoted (true)"


class Build(SpecModel):
    """How the evaluated system is built."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(always=(("!has(self.on) || !has(self.__true__)", _ON_TWICE),))
    )

    on: BuildOn = BuildOn.AUTO
    """Target: the machine builds its system itself, with its own Nix, sandbox and binary caches. Operator: the operator
    builds and signs it, and copies it to the machine. Auto: as the operator's setting nix.build.on says."""
    # docs/decisions/0020: kubectl and Helm read YAML 1.1, where an unquoted `on` is the boolean true.
    on_unquoted: BuildOn | None = Field(None, alias="true")
    """The same as `on`: this is what kubectl makes of an `on` without quotes."""

    @property
    def place(self) -> BuildOn:
        """What was asked for, however it was written."""
        return self.on_unquoted or self.on

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if {"on", "on_unquoted"} <= self.model_fields_set:
            raise ValueError(_ON_TWICE)
        return self


class KeyReference(SpecModel):
    """One key of the data of a Secret of the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: ObjectKey
    """Key of the Secret's data."""


class KeyUpload(StrEnum):
    """When a key comes for the first time."""

    BEFORE_ACTIVATION = "BeforeActivation"
    AFTER_ACTIVATION = "AfterActivation"


# No part of a path is `.` or `..`, and nothing in it means something to a shell.
_PATH = "^(/[.]?[A-Za-z0-9_@+=:,-][A-Za-z0-9._@+=:,-]*)+$"
KeyPath = Annotated[str, StringConstraints(max_length=255, pattern=_PATH)]
KeyFolder = Annotated[str, StringConstraints(max_length=180, pattern=_PATH)]
# As NixOS' user and group names (nixpkgs, nixos/modules/config/users-groups.nix), from a letter on: no numbers.
AccountName = Annotated[str, StringConstraints(max_length=31, pattern="^[A-Za-z_][A-Za-z0-9_.-]*$")]
_UNIT = r"^[A-Za-z0-9][A-Za-z0-9:_.@\\-]*[.](service|socket|target|timer|path)$"
UnitName = Annotated[str, StringConstraints(max_length=128, pattern=_UNIT)]
_ONE_PLACE = "a key lies either at path, or in directory under its name"
_READABLE_STORE = "keys lie outside of /nix, where everybody can read everything"


class MachineKey(SpecModel):
    """A file on the machine that holds a secret."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            always=(
                ("!has(self.path) || !has(self.directory)", _ONE_PLACE),
                ("!has(self.path) || !(self.path + '/').startsWith('/nix/')", _READABLE_STORE),
                ("!has(self.directory) || !(self.directory + '/').startsWith('/nix/')", _READABLE_STORE),
            )
        )
    )

    name: Annotated[str, StringConstraints(max_length=64, pattern="^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?$")]
    """Name of the file, and of the unit NAME-key.service, which is active while the file exists."""
    secret_ref: KeyReference
    """Where its content comes from; a change there is on the machine within a minute or so."""
    path: KeyPath | None = None
    """The whole path, in place of directory and name."""
    directory: KeyFolder | None = None
    """Folder of the file; it is made, 0750 and of the group keys, if it is missing. Absent: /run/keys, which is in
    memory: after each boot the operator delivers anew. What lies on a disk stays there."""
    user: AccountName = "root"
    """Owner of the file. It may be one that the configuration makes."""
    group: AccountName = "root"
    """Group of the file, in the same way."""
    permissions: Annotated[str, StringConstraints(max_length=4, pattern="^0?[0-7]{3}$")] = "0600"
    """Mode of the file, in octal digits."""
    upload: KeyUpload = KeyUpload.BEFORE_ACTIVATION
    """BeforeActivation: no system is activated before the key is there. AfterActivation: it comes for the first time
    once the declared system runs."""
    restart_units: Annotated[tuple[UnitName, ...], Field(max_length=8, json_schema_extra=SET)] = ()
    """Units that are restarted, if they run, when the content has changed; no others are."""

    @property
    def place(self) -> str:
        """Its path, however it was written."""
        return self.path or f"{self.directory or '/run/keys'}/{self.name}"

    @property
    def mode(self) -> int:
        """Its permission bits."""
        return int(self.permissions, 8)

    @model_validator(mode="after")
    def _one_place_outside_of_the_store(self) -> Self:
        if self.path is not None and self.directory is not None:
            raise ValueError(_ONE_PLACE)
        if f"{self.place}/".startswith("/nix/"):
            raise ValueError(_READABLE_STORE)
        return self


_PATHS_NEED_A_SOURCE = "nixpkgs.path and modules[].path are paths inside the source; name a source"
_NOTHING_INSIDE = "(!has(self.nixpkgs) || !has(self.nixpkgs.path)) && self.modules.all(module, !has(module.path))"
_NO_FOLDERS = "a ConfigMap has no folders: paths inside source.configMapRef are names of its keys, without /"


def _is_key_in_cel(path: str) -> str:
    return f"{path}.lastIndexOf('/') == ({path}.startsWith('./') ? 1 : -1)"


_PATHS_ARE_KEYS = (
    "!has(self.source) || !has(self.source.configMapRef)"
    f" || (!has(self.nixpkgs) || !has(self.nixpkgs.path) || {_is_key_in_cel('self.nixpkgs.path')})"
    f" && self.modules.all(module, !has(module.path) || {_is_key_in_cel('module.path')})"
)
ArgumentText = Annotated[LongText, StringConstraints(max_length=1024)]
_ARGUMENT_NAMES = "names of arguments are Nix identifiers: letters, digits, _, ' and -, not beginning with a digit"


def _nix_identifiers(arguments: dict[str, str]) -> dict[str, str]:
    for name in arguments:
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_'-]*", name):
            raise ValueError(_ARGUMENT_NAMES)
    return arguments


class Configuration(SpecModel):
    """What runs on the machine."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                f"has(self.source) || {_NOTHING_INSIDE}",
                _PATHS_NEED_A_SOURCE,
            ),
            (_PATHS_ARE_KEYS, _NO_FOLDERS),
            of_parts=[(f"!has(self.modules) || {_PATHS_ARE_KEYS}", _NO_FOLDERS)],
        )
    )

    source: Source | None = None
    """Where files come from; modules given inline need none."""
    modules: Annotated[tuple[Module, ...], Field(min_length=1, max_length=32, json_schema_extra=IN_ORDER)]
    """NixOS modules, in order."""
    nixpkgs: Nixpkgs | None = None
    """Absent: the operator's own nixpkgs."""
    system: System | None = None
    """Absent: as the instance type's architecture says; x86_64-linux for a given host."""
    arguments: Annotated[
        dict[str, ArgumentText],
        Field(max_length=64),
        AfterValidator(_nix_identifiers),
        Field(
            json_schema_extra=cel_rules(
                ('self.all(name, name.matches("^[a-zA-Z_][a-zA-Z0-9_\'-]*$"))', _ARGUMENT_NAMES)
            ),
        ),
    ] = Field(default_factory=dict)
    """Given to the modules as function arguments. A text with a private key or an AWS access key id is refused."""
    build: Build = Build()
    """Where and how it is built; no part of what it is."""

    @model_validator(mode="after")
    def _paths_have_a_source(self) -> Self:
        is_inside = self.nixpkgs is not None and self.nixpkgs.path is not None
        if self.source is None and (is_inside or any(module.path for module in self.modules)):
            raise ValueError(_PATHS_NEED_A_SOURCE)
        return self

    @model_validator(mode="after")
    def _paths_exist_in_the_source(self) -> Self:
        if self.source is not None and self.source.config_map_ref is not None:
            paths = [self.nixpkgs.path] if self.nixpkgs and self.nixpkgs.path is not None else []
            paths += [module.path for module in self.modules if module.path is not None]
            if any("/" in path for path in paths):
                raise ValueError(_NO_FOLDERS)
        return self


class ActivationMode(StrEnum):
    """What becomes of a built system."""

    SWITCH = "Switch"
    BOOT = "Boot"
    TEST = "Test"
    DRY_ACTIVATE = "DryActivate"


class RollbackPolicy(StrEnum):
    """What a machine does whose new system goes wrong."""

    AUTOMATIC = "Automatic"
    NEVER = "Never"


class Activation(SpecModel):
    """How a built system is made the running one."""

    mode: ActivationMode = ActivationMode.SWITCH
    """Switch: it runs, and is what the machine boots. Test: it runs until the machine is restarted. Boot: it is what
    the machine boots next; nothing changes before. DryActivate: nothing is changed; what would be is told."""
    rollback: RollbackPolicy = RollbackPolicy.AUTOMATIC
    """Automatic: a machine whose new system goes wrong, or cannot be reached, returns to its previous one by itself.
    Never: it stays as it is, out of reach if need be; a restart boots the previous system unless the new one was
    confirmed."""
    timeout: Duration = timedelta(minutes=30)
    """How long switch-to-configuration may take; then the machine returns to its previous system."""
    confirm_timeout: Duration = timedelta(seconds=60)
    """How long a switched machine waits to be reached again over a new connection; then it returns to its previous
    system by itself."""
    keep_generations: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many generations of the system profile stay on the machine, the newest ones. Older ones go with their boot
    entries once the declared system runs and is the profile; never those that run, were booted, or ran before the last
    activation. Nothing is collected from the store by this."""
    drift_policy: DriftPolicy = DriftPolicy.ENFORCE
    """What happens when another system runs than the desired one: Enforce puts it back, Report says so."""


class RebootPolicy(StrEnum):
    """Whether the operator restarts machines."""

    NEVER = "Never"
    WHEN_NEEDED = "WhenNeeded"


class Disruption(SpecModel):
    """What the operator may do to a running machine."""

    reboot: RebootPolicy = RebootPolicy.NEVER
    """WhenNeeded: a machine is restarted where only that makes the declared system whole: another kernel, initrd,
    modules or kernel parameters, a system that a running one cannot switch to, activation.mode Boot. And an instance
    that EC2 calls running is rebooted when it has not answered for ten minutes, three times at most."""
    replace: ReplacePolicy = ReplacePolicy.NEVER
    """WhenLost: an instance that is gone for good is replaced by a new one. WhenNeeded: so is one that runs, for the
    sake of what EC2 fixes at launch, as its tenancy; what is on its root volume is lost then. The former instance
    serves until the new one answers and has its system, and stays if EC2 refuses the new one."""
    stop: StopPolicy = StopPolicy.NEVER
    """WhenNeeded: the instance is stopped and started again for what EC2 changes on a stopped instance only, as its
    type. Its public address changes by that. Never: such a change is told, and made when the instance is stopped."""


class MachineSettings(SpecModel):
    """What a machine of a deployment can have of its own, all optional."""

    suspend: bool = False
    """Look and report, change nothing."""
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    """What happens to the EC2 resources when this object is deleted."""
    drift_policy: DriftPolicy = DriftPolicy.ENFORCE
    """What happens when EC2 resources differ from the spec: Enforce puts them back, Report says so."""
    ssh: SshSettings = Field(default=SshSettings())
    """How the machine is reached over SSH."""
    aws: AwsSettings = Field(default=AwsSettings())
    """Which AWS account and region."""
    keys: Annotated[tuple[MachineKey, ...], Field(max_length=64, json_schema_extra=MERGED_BY_NAME)] = ()
    """Files with secrets, from Secrets of this namespace: kept as they are there, again after each boot, removed when
    they leave this list and the system without them runs."""
    activation: Activation = Field(default=Activation())
    """How a built system is made the running one."""
    disruption: Disruption = Field(default=Disruption())
    """What the operator may do to a running machine."""
    health_checks: HealthChecks = ()
    """What has to hold on the machine before a new system is confirmed, else it returns to its previous one; and ever
    after, as the condition Healthy, without which it is not Ready. With them a unit that failed by the activation
    counts, too."""


_EC2_NEEDS_A_REGION = "target.ec2 needs aws.region"
_CLIENT_KEY = (
    "ssh.privateKeySecretRef is missing: name the Secret with the client key (kubectl create secret generic NAME"
    " --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey=FILE)"
)
_HOST_KEYS = (
    "target.host needs ssh.hostKeys: give the content of /etc/ssh/ssh_host_ed25519_key.pub, read on the host itself"
)


class NixMachineSpec(MachineSettings):
    """One NixOS machine: where it is and what runs on it."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("!has(self.target.ec2) || has(self.aws) && has(self.aws.region)", _EC2_NEEDS_A_REGION),
            ("has(self.ssh) && has(self.ssh.privateKeySecretRef)", _CLIENT_KEY),
            (
                "!has(self.target.host) || has(self.ssh) && has(self.ssh.hostKeys) && size(self.ssh.hostKeys) > 0",
                _HOST_KEYS,
            ),
        )
    )

    target: Target
    """Where the machine is."""
    configuration: Configuration
    """What runs on the machine."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.target.ec2 and self.aws.region is None:
            raise ValueError(_EC2_NEEDS_A_REGION)
        if self.ssh.private_key_secret_ref is None:
            raise ValueError(_CLIENT_KEY)
        if self.target.host and not self.ssh.host_keys:
            raise ValueError(_HOST_KEYS)
        return self

    @property
    def client_key(self) -> PrivateKeyReference:
        """Where the SSH client key lies; every valid spec names it."""
        assert self.ssh.private_key_secret_ref is not None  # noqa: S101 - shown by _complete
        return self.ssh.private_key_secret_ref
