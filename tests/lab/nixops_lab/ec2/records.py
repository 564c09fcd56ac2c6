"""What exists in a region: immutable records, replaced when something changes."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from nixops_lab.ec2.network import Subnet
from nixops_lab.ec2.rules import RuleKey

# Code and name of the instance states: EC2 API Reference, "InstanceState".
STATE_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


@dataclass(frozen=True)
class Image:
    """An AMI; `release` is the VERSION_ID of the system in it."""

    id: str
    name: str
    release: str
    architecture: str
    creation_date: str


@dataclass(frozen=True)
class InstanceType:
    """What an instance type is, as far as a launch depends on it; `architectures` as x86_64 and arm64."""

    name: str
    architectures: tuple[str, ...]
    vcpus: int


@dataclass(frozen=True)
class Instance:
    """One instance. Times are seconds since 1970; `user_data` is the decoded text."""

    id: str
    reservation_id: str
    launch_index: int
    client_token: str
    image: Image
    instance_type: InstanceType
    key_name: str | None
    authorized_key: str | None
    subnet: Subnet
    interface_id: str
    private_address: str
    volume_id: str
    user_data: str
    has_public_address: bool
    is_monitored: bool
    is_ebs_optimized: bool
    metadata_options: Mapping[str, object]
    tenancy: str
    placement_group: str
    shutdown_behavior: str
    is_protected: bool
    is_stop_protected: bool
    credits: str | None
    profile: "ProfileAssociation | None"
    created_at: float
    launch_time: float
    state: str = "pending"
    state_reason: tuple[str, str] | None = ("pending", "pending")
    transition_reason: str = ""
    public_address: str | None = None
    has_elastic_address: bool = False  # that one is
    terminated_at: float | None = None
    metadata_changed_at: float | None = None

    @property
    def is_live(self) -> bool:
        """Neither terminated nor on the way there."""
        return self.state not in {"shutting-down", "terminated"}


@dataclass(frozen=True)
class Interface:
    """The primary network interface of an instance; `terminated_at` is its instance's."""

    id: str
    instance_id: str
    attachment_id: str
    subnet: Subnet
    private_address: str
    group_ids: tuple[str, ...]
    created_at: float
    terminated_at: float | None = None
    checks_source_and_destination: bool = True

    @property
    def mac(self) -> str:
        """A locally administered address that follows from the private one."""
        return "0a:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(self.private_address).packed)


@dataclass(frozen=True)
class ElasticAddress:
    """A public address of the account's own."""

    id: str
    public_address: str
    created_at: float
    association_id: str | None = None
    instance_id: str | None = None


@dataclass(frozen=True)
class Modification:
    """A ModifyVolume: what of the volume it changes, from what, to what, as fields of Volume."""

    started_at: float
    before: Mapping[str, object]
    after: Mapping[str, object]


@dataclass(frozen=True)
class Volume:
    """A volume. One that is not attached has neither instance nor device; `moved_at`: when it was attached, or began to
    be detached (`is_attached` is then false, and the instance stays named until it is over). `is_held`: it is to be
    detached, and its machine uses it."""

    id: str
    instance_id: str
    device: str
    zone: str
    size_gib: int
    volume_type: str
    is_encrypted: bool
    is_deleted_on_termination: bool
    created_at: float
    iops: int | None = None
    throughput: int | None = None
    is_attached: bool = True
    moved_at: float = 0.0
    is_held: bool = False
    snapshot_id: str = ""
    modifications: tuple["Modification", ...] = ()  # the newest last


@dataclass(frozen=True)
class Snapshot:
    """What was in a volume."""

    id: str
    volume_id: str
    size_gib: int
    is_encrypted: bool
    created_at: float


@dataclass(frozen=True)
class Group:
    """A security group, without its rules."""

    id: str
    name: str
    description: str
    vpc_id: str
    created_at: float


@dataclass(frozen=True)
class GroupRule:
    """One rule of a group."""

    id: str
    group_id: str
    key: RuleKey
    description: str | None
    created_at: float


@dataclass(frozen=True)
class Profile:
    """An IAM instance profile."""

    name: str
    arn: str
    id: str


@dataclass(frozen=True)
class ProfileAssociation:
    """That an instance has an IAM instance profile."""

    id: str
    profile: Profile


@dataclass(frozen=True)
class PlacementGroup:
    """A placement group; it goes by its name."""

    id: str
    name: str
    strategy: str
    created_at: float


@dataclass(frozen=True)
class KeyPair:
    """A key pair; `public_key` is `type base64`, without a comment."""

    id: str
    name: str
    key_type: str
    public_key: str
    fingerprint: str
    created_at: float
