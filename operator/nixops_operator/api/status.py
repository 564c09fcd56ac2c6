"""`status` of both kinds. The operator is their only writer; fields that it writes before an effect (`launch`,
`activation`) are how it finds that effect again after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from nixops_operator.api.field_types import (
    MERGED_BY_NAME,
    SET,
    Line,
    Message,
    StatusModel,
    StorePath,
    Timestamp,
    Word,
)

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
    refused_generation: int | None = None
    """EC2 refused this attempt for good, asked for on behalf of this generation of the spec; the next one is another
    attempt."""
    instance_id: Word | None = None
    """The answer."""


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
    state_version: Word | None = None
    """system.stateVersion, recorded at the first activation."""
    activated_at: Timestamp | None = None
    """When the running system was confirmed."""


class ConfigurationStatus(StatusModel):
    """What the configuration's source was resolved to."""

    revision: Line | None = None
    """Short hash of all that the machine's evaluation depends on."""


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
    result: Word | None = None
    """How it ended; absent while it runs."""


class NixMachineStatus(StatusModel):
    """What the operator saw and did last."""

    observed_generation: int = OBSERVED_AT_FIRST
    """Generation of the spec that this status is about; -1 before the first look."""
    conditions: Conditions = ()
    """Ready, and what it rests on."""
    last_handled_reconcile_at: Line | None = None
    """The annotation nixops.dev/reconcile-requested-at that was handled last."""
    provider_id: Annotated[Line | None, Field(alias="providerID")] = None
    """As aws:///us-west-2a/i-…, for Kubernetes' cloud tools."""
    account_id: Word | None = None
    """AWS account; written before the first change there."""
    target: Word | None = None
    """Instance type, or host."""
    instance: InstanceStatus | None = None
    """The EC2 instance."""
    launch: LaunchStatus | None = None
    """The launch that made it, or is under way."""
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
    fingerprint: Line | None = None
    """SHA256:… of the public key, as ssh-keygen -l shows it."""


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
    conditions: Conditions = ()
    """Ready, and what it rests on."""
    last_handled_reconcile_at: Line | None = None
    """The annotation nixops.dev/reconcile-requested-at that was handled last."""
    account_id: Word | None = None
    """AWS account; written before the first change there."""
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


def machine_status(body: Mapping[str, Any]) -> NixMachineStatus:
    """A NixMachine's status, empty if it has none yet. Raises pydantic's ValidationError if someone else wrote it."""
    return NixMachineStatus.model_validate_json(_json(body))


def deployment_status(body: Mapping[str, Any]) -> NixDeploymentStatus:
    """A NixDeployment's status, as `machine_status`."""
    return NixDeploymentStatus.model_validate_json(_json(body))


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body.get("status", {}))
