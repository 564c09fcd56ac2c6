"""EC2 as values: what a look shows and what a call takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from nixops_operator.ec2.rules import Rule


class InstanceState(StrEnum):
    """EC2's own words (EC2 API Reference, "InstanceState"); anything else is UNKNOWN and leads to no action."""

    PENDING = "pending"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"
    STOPPING = "stopping"
    STOPPED = "stopped"
    UNKNOWN = "unknown"

    @property
    def is_live(self) -> bool:
        """Whether the instance still counts: everything but on its way out or gone."""
        return self not in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)


class InstanceAttribute(StrEnum):
    """What is changed one by one, by EC2's names (EC2 API Reference, "ModifyInstanceAttribute",
    "ModifyInstanceCreditSpecification"). DescribeInstances shows the first three; the others are asked for one by one.
    """

    SOURCE_DEST_CHECK = "sourceDestCheck"
    INSTANCE_TYPE = "instanceType"  # of a stopped instance
    EBS_OPTIMIZED = "ebsOptimized"  # of a stopped instance
    TERMINATION_PROTECTION = "disableApiTermination"
    STOP_PROTECTION = "disableApiStop"
    SHUTDOWN_BEHAVIOR = "instanceInitiatedShutdownBehavior"  # stop or terminate
    CREDITS = "creditSpecification"  # standard or unlimited


@dataclass(frozen=True)
class MetadataOptions:
    """Of the instance metadata service, as RunInstances and ModifyInstanceMetadataOptions take them."""

    tokens: str = "required"  # or optional
    hop_limit: int = 1
    tags: str = "disabled"  # or enabled
    endpoint: str = "enabled"  # or disabled


@dataclass(frozen=True)
class VolumeSettings:
    """What an EBS volume is to be, or is. None: left to EC2, or not to be changed."""

    size_gib: int | None = None
    type: str | None = None  # as gp3
    iops: int | None = None
    throughput_mib: int | None = None  # per second
    encrypted: bool | None = None  # for life
    snapshot_id: str | None = None  # that it was made of, for life


@dataclass(frozen=True)
class RootVolume:
    """The root volume that a launch asks for. `device`: as the image names it."""

    device: str
    settings: VolumeSettings


@dataclass(frozen=True)
class Volume:
    """One EBS volume as a sweep shows it. Its size is the new one as soon as a modification lets it be used."""

    id: str
    state: str  # EC2 API Reference, "Volume"
    zone: str
    settings: VolumeSettings
    tags: Mapping[str, str]
    instance_id: str = ""  # that it is attached to, or on its way to or from; empty: none
    device: str = ""  # there
    attachment: str = ""  # its state: attaching, attached, detaching, busy

    @property
    def is_there(self) -> bool:
        """Whether it is neither deleted nor on its way there."""
        return self.state not in ("deleting", "deleted")


VOLUME_CHANGING = ("modifying", "optimizing")
"""States of a modification in which EC2 takes no other one. Source: EBS User Guide, "Monitor the progress of EBS volume
modifications"."""


@dataclass(frozen=True)
class Instance:
    """One EC2 instance as a sweep shows it."""

    id: str
    state: InstanceState
    state_reason: str  # StateReason.Code, as `Client.UserInitiatedShutdown`; empty if none
    instance_type: str
    image_id: str
    zone: str
    subnet_id: str
    private_address: str | None
    public_address: str | None
    key_name: str | None
    security_group_ids: tuple[str, ...]  # sorted
    tags: Mapping[str, str]
    launch_time: datetime  # aware UTC; of the *last start*
    client_token: str
    state_reason_message: str = ""  # StateReason.Message: why, in EC2's own words; empty if none
    monitoring: bool = False  # detailed monitoring is on, or being switched on
    source_dest_check: bool = True
    metadata: MetadataOptions = MetadataOptions()
    metadata_pending: bool = False  # what `metadata` says is not in force yet
    public_ip: bool | None = None  # it has a public address of EC2's; None: one that is somebody's own instead
    ebs_optimized: bool = False
    tenancy: str = "default"
    placement_group: str = ""  # its name; empty if in none
    instance_profile: str = ""  # its name; empty if it has none
    root_volume_id: str = ""  # empty while none is attached
    # What no sweep shows; None: not looked at.
    termination_protection: bool | None = None
    stop_protection: bool | None = None
    shutdown_behavior: str | None = None
    credits: str | None = None


@dataclass(frozen=True)
class LaunchRequest:
    """Everything that RunInstances is asked for, but the token; frozen before the first call and the same in each.

    `security_group_ids` empty: EC2 takes the VPC's default group. `tags` go to the instance and to its volumes. None:
    left to EC2.
    """

    image_id: str
    instance_type: str
    subnet_id: str
    user_data: str
    key_name: str | None = None
    security_group_ids: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    monitoring: bool = False
    metadata: MetadataOptions = MetadataOptions()
    public_ip: bool | None = None
    ebs_optimized: bool | None = None
    tenancy: str | None = None
    placement_group: str | None = None
    instance_profile: str | None = None
    termination_protection: bool | None = None
    stop_protection: bool | None = None
    shutdown_behavior: str | None = None
    credits: str | None = None
    root_volume: RootVolume | None = None

    def as_json(self) -> str:
        """One text for equal requests: sorted keys, no blanks. Group ids keep their order, which EC2 sees too."""
        known = {
            **self.__dict__,
            "security_group_ids": list(self.security_group_ids),
            "tags": dict(self.tags),
            "metadata": asdict(self.metadata),
            "root_volume": asdict(self.root_volume) if self.root_volume is not None else None,
        }
        return json.dumps(known, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> LaunchRequest:
        """The request that `as_json` wrote, by this release or another: unknown keys are left out, and what a later
        release added has its default. Raises ValueError for a text that is no such request."""
        try:
            found = json.loads(text)
            return cls(
                image_id=found["image_id"],
                instance_type=found["instance_type"],
                subnet_id=found["subnet_id"],
                user_data=found["user_data"],
                key_name=found["key_name"],
                security_group_ids=tuple(found["security_group_ids"]),
                tags=dict(found["tags"]),
                monitoring=bool(found.get("monitoring", False)),
                metadata=MetadataOptions(**_known(MetadataOptions, found.get("metadata", {}))),
                root_volume=_root_volume(found.get("root_volume")),
                **{name: found[name] for name in _LATER if name in found},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # The text holds a private host key: neither it nor a parser's excerpt of it goes on.
            raise ValueError(f"not a frozen launch request ({type(error).__name__})") from None


_LATER = (
    "public_ip",
    "ebs_optimized",
    "tenancy",
    "placement_group",
    "instance_profile",
    "termination_protection",
    "stop_protection",
    "shutdown_behavior",
    "credits",
)
"""Fields that the requests of some earlier release lack; each is a scalar."""


def _root_volume(found: Mapping[str, Any] | None) -> RootVolume | None:
    if found is None:
        return None
    return RootVolume(found["device"], VolumeSettings(**_known(VolumeSettings, found["settings"])))


def _known(kind: type[MetadataOptions | VolumeSettings], found: Mapping[str, object]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in found.items() if name in names}


@dataclass(frozen=True)
class ObservedRule:
    """One rule of a security group: its id (`sgr-…`), canonical form, and description (empty = none)."""

    id: str
    rule: Rule
    description: str


@dataclass(frozen=True)
class SecurityGroup:
    """One security group with all its rules, sorted by id."""

    id: str
    name: str
    description: str
    vpc_id: str
    tags: Mapping[str, str]
    rules: tuple[ObservedRule, ...]


@dataclass(frozen=True)
class KeyPair:
    """One EC2 key pair. `public_key` is `<type> <base64>` without a comment."""

    id: str
    name: str
    public_key: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Address:
    """One elastic address. Associated with an interface that is no instance's it has an `association_id` alone."""

    id: str  # eipalloc-…
    public_address: str
    tags: Mapping[str, str]
    association_id: str | None = None
    instance_id: str | None = None


@dataclass(frozen=True)
class Subnet:
    """Where an instance is to live."""

    id: str
    vpc_id: str
    zone: str
    has_ipv4: bool = True  # else its instances have IPv6 addresses alone


@dataclass(frozen=True)
class Image:
    """A machine image; `name` as `nixos/25.11.20261101.abcdef-x86_64-linux`."""

    id: str
    name: str
    root_device: str = "/dev/xvda"
