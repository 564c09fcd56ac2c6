"""What a pass over a machine wants and sees, as values. `observe` fills them in; `plan` and `status` are functions of
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from nixops_operator import names
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import Image, Instance, InstanceState, Subnet
from nixops_operator.facts.host import HostFacts
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.nix import Module
from nixops_operator.jobs import JobState
from nixops_operator.machine.host_keys import Pins


@dataclass(frozen=True)
class LaunchIntent:
    """`status.launch`: what was, or is about to be, asked of EC2."""

    attempt: int
    token: str
    parameters_hash: str
    account_id: str
    region: str
    requested_at: datetime
    instance_id: str | None
    refused_generation: int | None  # EC2 refused the request for good, asked for on behalf of this generation


@dataclass(frozen=True)
class ActivationIntent:
    """`status.activation`: what the host was, or is about to be, told to do."""

    id: str
    toplevel: str
    attempt: int
    started_at: datetime
    result: str | None


@dataclass(frozen=True)
class Desired:
    """One NixMachine as it is declared, with what its status remembers of our own intents."""

    key: Key
    uid: str
    generation: int
    is_deleting: bool
    deleted_at: datetime | None
    is_paused: bool
    spec: NixMachineSpec
    machine: str  # its name in its deployment; the configuration's `name`
    deployment: str  # the deployment's name; its own if it has none
    deployment_uid: str | None  # of the NixDeployment that controls it
    reconcile_request: str | None  # one that no pass has answered yet
    status: Body = field(repr=False)

    @property
    def launch(self) -> LaunchIntent | None:
        launch = self.status.get("launch")
        if not launch:
            return None
        return LaunchIntent(
            attempt=launch["attempt"],
            token=launch["token"],
            parameters_hash=launch["parametersHash"],
            account_id=launch["accountId"],
            region=launch["region"],
            requested_at=datetime.fromisoformat(launch["requestedAt"]),
            instance_id=launch.get("instanceId"),
            refused_generation=launch.get("refusedGeneration"),
        )

    @property
    def host_id(self) -> str:
        """Names one life of the machine: another instance has another disk, and nothing of the old one holds for it."""
        launch = self.launch
        return launch.instance_id if launch is not None and launch.instance_id is not None else self.uid

    @property
    def activation(self) -> ActivationIntent | None:
        activation = self.status.get("activation")
        if not activation:
            return None
        return ActivationIntent(
            activation["id"],
            activation["toplevel"],
            activation["attempt"],
            datetime.fromisoformat(activation["startedAt"]),
            activation.get("result"),
        )

    @property
    def system(self) -> Mapping[str, Any]:
        """`status.system`, empty before the first look."""
        system: Mapping[str, Any] = self.status.get("system") or {}
        return system

    @property
    def account_id(self) -> str | None:
        """The account in which something of ours may exist; None: nothing was ever made."""
        return self.status.get("accountId")


def desired_machine(body: Body, spec: NixMachineSpec) -> Desired:
    """A NixMachine's body and parsed spec as what a pass wants."""
    metadata = body["metadata"]
    status = body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    owner = next(
        (o for o in metadata.get("ownerReferences", ()) if o.get("controller") and o["kind"] == "NixDeployment"), None
    )
    request = annotations.get(names.RECONCILE_ANNOTATION) or annotations.get(names.FLUX_RECONCILE_ANNOTATION)
    deleted = metadata.get("deletionTimestamp")
    return Desired(
        key=Key(Kind.MACHINE, metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata["generation"],
        is_deleting=deleted is not None,
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        is_paused=spec.suspend or annotations.get(names.PAUSED_ANNOTATION) == "true",
        spec=spec,
        machine=names.machine_name(body),
        deployment=owner["name"] if owner else metadata["name"],
        deployment_uid=owner["uid"] if owner else None,
        reconcile_request=request if request != status.get("lastHandledReconcileAt") else None,
        status=status,
    )


@dataclass(frozen=True)
class LaunchParameters:
    """All that a launch needs, resolved to ids. Resolved once per attempt and frozen with it."""

    image: Image
    subnet: Subnet
    instance_type: str
    key_name: str | None
    security_group_ids: tuple[str, ...]
    user_tags: Mapping[str, str]


@dataclass(frozen=True)
class ObservedCloud:
    """EC2, as far as it concerns one machine. `error`: nothing is known (not: nothing is there)."""

    error: OperatorError | None = None
    account_id: str = ""
    instances: tuple[Instance, ...] = ()  # all that carry our uid, every state, newest attempt first
    missing_for: timedelta | None = (
        None  # the recorded instance is in no sweep since; None: it is shown, or none is recorded
    )
    parameters: LaunchParameters | None = None  # None: not needed, or `dependency_error` says why not
    dependency_error: OperatorError | None = None
    security_group_ids: tuple[str, ...] | None = None  # that the instance should have; None: unknown, or the default
    pins: Pins = field(default_factory=Pins)
    image_name: str | None = None

    @property
    def live(self) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.state.is_live)

    def instance(self, instance_id: str | None) -> Instance | None:
        return next((instance for instance in self.instances if instance.id == instance_id), None)

    @property
    def highest_attempt(self) -> int:
        """The highest launch attempt among tags seen in any state; it survives a lost status."""
        return max((int(i.tags.get(names.ATTEMPT_TAG, "0") or "0") for i in self.instances), default=0)


@dataclass(frozen=True)
class SystemInput:
    """What a machine's evaluation depends on; hashed into the job's name."""

    name: str
    deployment: str
    uuid: str
    system: str
    is_ec2: bool
    files: Mapping[str, bytes] | None
    nixpkgs_path: str | None  # inside the files; None: the operator's own
    modules: tuple[Module, ...]
    state_version: str
    arguments: Mapping[str, str]


@dataclass(frozen=True)
class ObservedSystem:
    """The configuration, as far as it is resolved. Exactly one of `error`, `waits_for` and `input` is set."""

    error: OperatorError | None = None
    waits_for: str | None = None  # what must be known first, for people
    input: SystemInput | None = None
    evaluate_job: str = ""


@dataclass(frozen=True)
class ObservedHost:
    """The machine over SSH. `error`: why there are no facts; `address` None: not known yet."""

    address: str | None = None
    error: OperatorError | None = None
    facts: HostFacts | None = None
    host_keys: tuple[str, ...] = ()
    telling_line: str = ""  # of the output of an activation that ended badly


@dataclass(frozen=True)
class Observed:
    """Everything that one pass sees."""

    cloud: ObservedCloud | None  # None: the target is a given host
    host: ObservedHost
    system: ObservedSystem
    jobs: Mapping[str, JobState]  # the jobs that this machine has asked for
    working_since: datetime | None = None  # when the present work began, as the status says
    deadline_passed: bool = False  # an earlier pass gave up waiting for this generation


def state_of(instance: Instance | None) -> InstanceState | None:
    return instance.state if instance is not None else None
