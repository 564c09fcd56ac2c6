"""`status` of both kinds. The operator is their only writer; fields that it writes before an effect (`launch`,
`activation`) are how it finds that effect again after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from nixops_operator.api.field_types import (
    IN_ORDER,
    MERGED_BY_NAME,
    SET,
    Line,
    Message,
    StatusModel,
    StorePath,
    Timestamp,
    Word,
)


def _json(text: str) -> str:
    json.loads(text)
    return text


def _json_object(text: str) -> str:
    if not isinstance(json.loads(text), dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - pydantic takes this one for a refusal
    return text


Json = Annotated[Line, AfterValidator(_json)]
JsonObject = Annotated[Line, AfterValidator(_json_object)]
"""What somebody has damaged by hand is unreadable like the rest, see `read`."""

_BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class ConditionStatus(StatusModel):
    """One condition."""

    type: Word
    """Which question this answers."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    observed_generation: int = -1
    """Generation of the spec that the answer is about."""
    last_transition_time: Timestamp
    """When `status` changed last."""
    reason: Word
    """Stable word for programs."""
    message: Message
    """For people: what, where, what next."""


Conditions = Annotated[tuple[ConditionStatus, ...], Field(max_length=24, json_schema_extra=_BY_TYPE)]

HELD_SECRETS = 4
"""Secrets that one object holds at once: the one that it names, and those that it named until a moment ago."""
HeldSecrets = Annotated[tuple[Line, ...], Field(max_length=HELD_SECRETS, json_schema_extra=SET)]

OBSERVED_AT_FIRST = -1
"""`observedGeneration` of an object that was never looked at. With no status at all, tools that wait (kstatus) would
take a new object for finished."""


class InstanceStatus(StatusModel):
    """The EC2 instance as last seen."""

    id: Word
    """EC2's id."""
    type: Word | None = None
    """Instance type."""
    state: Word | None = None
    """EC2's word for its state."""
    zone: Word | None = None
    """Availability zone."""
    image_id: Word | None = None
    """Image it was launched from."""
    subnet_id: Word | None = None
    """Subnet it lives in."""
    launch_time: Timestamp | None = None
    """When it was started last."""


class LaunchStatus(StatusModel):
    """One RunInstances call, written before it is sent; repeated unchanged until its outcome is known."""

    attempt: int
    """Number of the launch, from 1."""
    token: Word
    """Its ClientToken."""
    parameters_hash: Word
    """sha256 of the frozen request."""
    account_id: Word
    """AWS account it goes to."""
    region: Word
    """Region it goes to."""
    subnet_id: Word
    """Subnet it goes to."""
    requested_at: Timestamp
    """When this was written."""
    called_at: Timestamp | None = None
    """When EC2 was last asked, as far as it was noted; absent: at requestedAt."""
    declared_hash: Word | None = None
    """sha256 of what the spec asked for, user data left out; while EC2 refuses, another hash means another attempt."""
    refused_generation: int | None = None
    """Proven to have made nothing, asked for on behalf of this generation of the spec: every call was refused, or EC2
    showed nothing for long enough."""
    doubted_at: Timestamp | None = None
    """A call was refused after one whose outcome is unknown: no further call until EC2 would show what that one
    made."""
    refused_reason: Word | None = None
    """Why EC2 refused it last, as a stable word for programs."""
    refused_message: Line | None = None
    """The same in EC2's words."""
    instance_id: Word | None = None
    """The answer."""

    @property
    def last_call(self) -> datetime:
        """When the last call left that may have made an instance."""
        return self.called_at or self.requested_at


class FullSubnetStatus(StatusModel):
    """A subnet in which EC2 had no room for the instance."""

    subnet_id: Word
    """The subnet."""
    zone: Word
    """Its availability zone."""
    instance_type: Word
    """What was asked for there."""
    at: Timestamp
    """When EC2 said so; for three minutes the others of spec.target.ec2.subnetIds are tried before it."""


class FormerStatus(StatusModel):
    """What an attribute was."""

    field: Word
    """Of spec.target.ec2."""
    value: Json
    """As JSON."""


class StopStatus(StatusModel):
    """An instance that is stopped and started again for the sake of a change; written before it is stopped."""

    instance_id: Word
    """The instance."""
    wanted: JsonObject
    """The new values, by field, as JSON."""
    former: Annotated[tuple[FormerStatus, ...], Field(max_length=8, json_schema_extra=IN_ORDER)] = ()
    """What is changed, as it was: the way back."""
    starts: int = 0
    """How often a start with the new values was asked for."""
    refused: Line | None = None
    """Why EC2 does not start it with the new values; set, it gets the former ones again."""
    reason: Word | None = None
    """The same as a stable word for programs."""


class ReplacementStatus(StatusModel):
    """Another instance in place of one that lives, under way or given up."""

    wanted: JsonObject
    """What only another instance can have, by field, as JSON."""
    attempt: int
    """Number of the highest launch that was recorded for it."""
    other: LaunchStatus | None = None
    """The launch of the other instance: of the former one, until the new one takes over; with `refused`, of the new
    one, until it is gone."""
    host_keys: Annotated[tuple[Line, ...], Field(max_length=8, json_schema_extra=SET)] = ()
    """Pinned public host keys of the former one."""
    refused: Line | None = None
    """Why the former one stays."""
    reason: Word | None = None
    """The same as a stable word for programs."""
    at: Timestamp | None = None
    """When it was begun, or given up."""


class RootVolumeStatus(StatusModel):
    """The root volume of the instance, where the spec says how large it is."""

    volume_id: Word
    """EC2's id."""
    grown_gib: int
    """Size of the volume when the root file system was grown into it."""


class VolumeStatus(StatusModel):
    """One of spec.target.ec2.volumes; written before EC2 is asked for it, kept until it is let go of."""

    name: Word
    """Its name in the spec."""
    attempt: int = 1
    """Number of the creation, from 1."""
    token: Word | None = None
    """ClientToken of the creation."""
    zone: Word = ""
    """Where it is made."""
    settings: JsonObject = "{}"
    """What it is made as: JSON."""
    deletion_policy: Word = "Retain"
    """What becomes of it when it leaves the spec, or the machine is deleted."""
    called_at: Timestamp | None = None
    """When EC2 was asked for it last, as far as it was noted."""
    volume_id: Word | None = None
    """EC2's id, once it is known."""
    is_given: bool = False
    """Whether it is the spec's volumeId: not made here, and never changed, tagged or deleted."""
    grown_gib: int | None = None
    """Size of the volume when its file system was grown into it, or when it was made empty."""


class RestartsStatus(StatusModel):
    """Lives of the instance that ended soon: starts and launches since it last ran undisturbed for ten minutes."""

    count: int = 0
    """How many."""
    last_at: Timestamp
    """When the last one was asked for."""
    generation: int = 0
    """Of the spec that it was asked for; an edit begins anew."""


class SilenceStatus(StatusModel):
    """Restarts of an instance that did not answer."""

    instance_id: Word
    """The instance."""
    count: int
    """How many."""
    last_at: Timestamp
    """When the last one was asked for."""
    generation: int
    """Of the spec that it was asked for; an edit begins anew."""


class RevertsStatus(StatusModel):
    """Systems of others that were put back of late."""

    count: int = 0
    """How many, since then."""
    since: Timestamp
    """When the first of them was."""


class ElasticIpStatus(StatusModel):
    """The elastic address; written before EC2 is asked for one, and before a given one is associated."""

    called_at: Timestamp
    """When EC2 was asked for it, or when a given one was written down."""
    allocation_id: Word | None = None
    """EC2's id; absent while nobody knows whether EC2 gave one."""
    given: bool = False
    """Whether the spec named it: then it is never released."""


class AddressesStatus(StatusModel):
    """Where the machine is reached."""

    public: Line | None = None
    """Public address of the instance."""
    private: Line | None = None
    """Private address of the instance."""
    ssh: Line | None = None
    """The address that SSH goes to."""


class SystemStatus(StatusModel):
    """NixOS systems of the machine, as store paths."""

    desired: StorePath | None = None
    """What should run."""
    current: StorePath | None = None
    """What runs."""
    booted: StorePath | None = None
    """What was booted."""
    previous: StorePath | None = None
    """What ran before the last activation."""
    revision: Word | None = None
    """First eight characters of the running system's store hash."""
    generation: int | None = None
    """Number in the system profile."""
    nixpkgs: Word | None = None
    """NAR hash of the operator's default nixpkgs that this machine was last evaluated with. Another default is taken
    with the next change of the spec, or when the machine is asked to reconcile."""
    state_version: Word | None = None
    """system.stateVersion, recorded at the first activation."""
    activated_at: Timestamp | None = None
    """When the running system was confirmed."""


class ConfigurationStatus(StatusModel):
    """What the configuration's source was resolved to."""

    revision: Line | None = None
    """Short hash of all that the machine's evaluation depends on."""
    build_on: Word | None = None
    """Where its system is built: Target or Operator."""


class ActivationStatus(StatusModel):
    """One activation, written before it is started."""

    id: Word
    """Its directory and unit on the machine carry this id."""
    unit: Line
    """Its systemd unit."""
    toplevel: StorePath
    """The system."""
    attempt: int
    """Number of the activation, from 1."""
    started_at: Timestamp
    """When this was written."""
    boot_id: Word | None = None
    """The machine's boot then (/proc/sys/kernel/random/boot_id)."""
    result: Word | None = None
    """How it ended; absent while it runs. Forgotten: the machine was restarted and knows nothing of it."""
    awaited: bool = False
    """Whether the operator was there for its end: it could not reach the machine, or asked it for the confirmation."""
    unreached: Line | None = None
    """What kept the operator from reaching the machine meanwhile, at last."""
    restarts: bool = False
    """Whether it restarts the machine."""
    repeated: bool = False
    """Whether it repeats one of the same system that went back because nobody was there to confirm it."""


MOST_FAILED_REVISIONS = 5


class FailedRevisionStatus(StatusModel):
    """A system that was activated and went wrong."""

    toplevel: StorePath
    """The system."""
    reason: Word
    """As in conditions."""
    message: Line
    """How it went wrong."""
    exit_status: int | None = None
    """Of switch-to-configuration; absent if it did not end by itself."""


class KeyStatus(StatusModel):
    """One of spec.keys, as it was delivered."""

    name: Word
    """Its name in the spec."""
    digest: Word
    """Another one for another content. It is keyed by the operator: nobody else can try contents against it."""
    delivered_boot: Word
    """Boot id of the machine in which it was delivered last."""


class OriginStatus(StatusModel):
    """The NixDeployment that a machine belongs to, or belonged to."""

    deployment: Line
    """Its name."""
    uid: Word
    """Its uid, which its security groups and key pairs are tagged with."""
    machine: Word
    """The machine's name in it."""


class NixMachineStatus(StatusModel):
    """What the operator saw and did last."""

    observed_generation: int = OBSERVED_AT_FIRST
    """Generation of the spec that this status is about; -1 before the first look."""
    reached_generation: int | None = None
    """Newest generation of the spec that was ready once; what differs from it since then is drift."""
    conditions: Conditions = ()
    """Ready, and what it rests on."""
    last_handled_reconcile_at: Line | None = None
    """The annotation nixops.dev/reconcile-requested-at (or Flux' of the same meaning) that was handled last."""
    handled_requests: Annotated[tuple[Line, ...], Field(max_length=2, json_schema_extra=SET)] = ()
    """All such annotations that stood there then."""
    last_handled_reboot_at: Line | None = None
    """The annotation nixops.dev/reboot-requested-at that was handled last."""
    provider_id: Annotated[Line | None, Field(alias="providerID")] = None
    """As aws:///us-west-2a/i-…, for Kubernetes' cloud tools."""
    account_id: Word | None = None
    """AWS account; written before the first change there, taken off when nothing of this is left in it."""
    held_secrets: HeldSecrets = ()
    """Secrets with AWS credentials that carry the finalizer nixops.dev/in-use because this object needs them."""
    target: Word | None = None
    """Instance type, or host."""
    instance: InstanceStatus | None = None
    """The EC2 instance."""
    launch: LaunchStatus | None = None
    """The launch that made it, or is under way."""
    full_subnets: Annotated[tuple[FullSubnetStatus, ...], Field(max_length=8, json_schema_extra=IN_ORDER)] = ()
    """Subnets in which EC2 had no room of late, the newest last."""
    stop: StopStatus | None = None
    """A stop for the sake of a change, under way or refused; absent when there is none."""
    replacement: ReplacementStatus | None = None
    """A replacement of an instance that lives; absent when there is none."""
    root_volume: RootVolumeStatus | None = None
    """The root volume, where the spec says how large it is."""
    volumes: Annotated[tuple[VolumeStatus, ...], Field(max_length=52, json_schema_extra=MERGED_BY_NAME)] = ()
    """Data volumes that were asked for, and that were not let go of."""
    restarts: RestartsStatus | None = None
    """Starts and launches of late; absent when there were none."""
    silence: SilenceStatus | None = None
    """Restarts of the instance because it did not answer; absent when there were none within an hour."""
    reverts: RevertsStatus | None = None
    """Systems of others that were put back within an hour; absent when there were none."""
    applied_tag_keys: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=128)], ...], Field(max_length=96, json_schema_extra=SET)
    ] = ()
    """Keys of spec.target.ec2.tags that the instance was given; the others on it are not ours to remove."""
    applied_fields: Annotated[tuple[Word, ...], Field(max_length=16, json_schema_extra=SET)] = ()
    """Fields of spec.target.ec2 that the instance was given and that go back to what EC2 does when they leave the spec;
    what others set there is not ours to undo."""
    origin: OriginStatus | None = None
    """The deployment that made this machine; kept when it is orphaned, because names and groups go by it."""
    elastic_ip: ElasticIpStatus | None = None
    """The elastic address that was allocated or associated; absent when there is none."""
    addresses: AddressesStatus | None = None
    """Where the machine is reached."""
    host_keys: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=2048)], ...], Field(max_length=8, json_schema_extra=SET)
    ] = ()
    """Pinned public host keys, as `ssh-ed25519 AAAA…`, sorted."""
    system: SystemStatus | None = None
    """What runs and what should."""
    configuration: ConfigurationStatus | None = None
    """What the configuration's source was resolved to."""
    activation: ActivationStatus | None = None
    """The last activation."""
    failed_revisions: Annotated[
        tuple[FailedRevisionStatus, ...], Field(max_length=MOST_FAILED_REVISIONS, json_schema_extra=IN_ORDER)
    ] = ()
    """Systems that went wrong, the newest last. They are not tried again until the machine is asked to reconcile
    (annotation nixops.dev/reconcile-requested-at)."""
    keys: Annotated[tuple[KeyStatus, ...], Field(max_length=64, json_schema_extra=MERGED_BY_NAME)] = ()
    """What was delivered of spec.keys."""


class MachinesStatus(StatusModel):
    """How many machines are how far."""

    desired: int = 0
    """Wanted."""
    updated: int = 0
    """With the newest settings."""
    ready: int = 0
    """Ready."""
    unavailable: int = 0
    """Not reachable or not there."""
    summary: Word = ""
    """As 2/3: ready of desired."""


class KeyPairStatus(StatusModel):
    """One of spec.keyPairs."""

    name: Word
    """Its name in the spec."""
    key_name: Line
    """EC2's name of it."""


class CreationStatus(StatusModel):
    """Something asked of EC2 that EC2 has not shown yet; written before the call."""

    name: Line
    """Its name in EC2."""
    kind: Literal["SecurityGroup", "KeyPair"]
    """What it is."""
    called_at: Timestamp
    """When EC2 was last asked, as far as it was noted."""


class SecurityGroupStatus(StatusModel):
    """One of spec.securityGroups."""

    name: Word
    """Its name in the spec."""
    group_id: Word
    """EC2's id."""
    vpc_id: Word
    """VPC it belongs to."""


class RevisionStatus(StatusModel):
    """Which revision of the deployment the machines run."""

    current: Line | None = None
    """On all machines."""
    target: Line | None = None
    """On its way."""
    previous: Line | None = None
    """Before the current one."""


class NixDeploymentStatus(StatusModel):
    """What the operator saw and did last."""

    observed_generation: int = OBSERVED_AT_FIRST
    """Generation of the spec that this status is about; -1 before the first look."""
    reached_generation: int | None = None
    """Newest generation of the spec that was ready once; what differs from it since then is drift."""
    conditions: Conditions = ()
    """Ready, and what it rests on."""
    last_handled_reconcile_at: Line | None = None
    """The annotation nixops.dev/reconcile-requested-at (or Flux' of the same meaning) that was handled last."""
    handled_requests: Annotated[tuple[Line, ...], Field(max_length=2, json_schema_extra=SET)] = ()
    """All such annotations that stood there then."""
    account_id: Word | None = None
    """AWS account; written before the first change there, taken off when nothing of this is left in it."""
    held_secrets: HeldSecrets = ()
    """Secrets with AWS credentials that carry the finalizer nixops.dev/in-use because this object needs them."""
    machines: MachinesStatus | None = None
    """How many machines are how far."""
    key_pairs: Annotated[tuple[KeyPairStatus, ...], Field(max_length=16, json_schema_extra=MERGED_BY_NAME)] = ()
    """Key pairs of this deployment."""
    security_groups: Annotated[
        tuple[SecurityGroupStatus, ...], Field(max_length=32, json_schema_extra=MERGED_BY_NAME)
    ] = ()
    """Security groups of this deployment."""
    revision: RevisionStatus | None = None
    """Which revision of the deployment the machines run."""
    creations: Annotated[tuple[CreationStatus, ...], Field(max_length=64, json_schema_extra=MERGED_BY_NAME)] = ()
    """Security groups and key pairs that were asked for and are not shown yet."""


S = TypeVar("S", bound=StatusModel)


def read(model: type[S], fields: Mapping[str, Any] | None) -> S | None:
    """A part of a status as its model; None if it is absent, or written in a way that this release cannot read.

    The API server holds writers to the schema, so that this only happens after a release that is younger than this one,
    or to JSON in a text that somebody has edited.
    """
    if not fields:
        return None
    try:
        return model.model_validate_json(json.dumps(fields))
    except ValidationError:
        return None


def written(part: StatusModel) -> dict[str, Any]:
    """A part of a status as a merge patch: camelCase, with None for what is to be absent."""
    return part.model_dump(mode="json", by_alias=True)
