"""What one NixMachine asks for, and what its status remembers of our own intents. Pure.

An object in deletion is read as Leaving: what was made must go whatever the spec says now, so only the little that the
way out needs is taken from it, and nothing there can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nixops_operator import names
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.api.parse import deletion_view, parse_machine
from nixops_operator.api.status import (
    ActivationStatus,
    ElasticIpStatus,
    FailedRevisionStatus,
    FullSubnetStatus,
    LaunchStatus,
    OriginStatus,
    ReplacementStatus,
    RestartsStatus,
    RevertsStatus,
    RootVolumeStatus,
    SilenceStatus,
    StopStatus,
    SystemStatus,
    VolumeStatus,
    read,
)
from nixops_operator.facts.kube import Body, Kind, controller_of
from nixops_operator.objects import LeavingObject, ReconciledObject, head, is_leaving, is_paused, leaving_head
from nixops_operator.requests import Requests, reboot_of, requests_of


class _Remembered(ReconciledObject):
    """What both forms take from the status."""

    @cached_property
    def launch(self) -> LaunchStatus | None:
        """The last launch that was, or is about to be, asked of EC2."""
        return read(LaunchStatus, self.status.get("launch"))

    @property
    def instance_id(self) -> str | None:
        """Of the instance that the launch gave, once it is written down."""
        return self.launch.instance_id if self.launch is not None else None

    @cached_property
    def activation(self) -> ActivationStatus | None:
        """What the host was, or is about to be, told to do."""
        return read(ActivationStatus, self.status.get("activation"))

    @cached_property
    def system(self) -> SystemStatus:
        """What is known of the machine's systems; all absent before the first look."""
        return read(SystemStatus, self.status.get("system")) or SystemStatus()

    @property
    def applied_fields(self) -> frozenset[str]:
        """Fields of spec.target.ec2 that the instance was given and that go back when they leave the spec."""
        return frozenset(self.status.get("appliedFields") or ())

    @cached_property
    def stop(self) -> StopStatus | None:
        """The stop for the sake of a change of the instance that is recorded now."""
        stop = read(StopStatus, self.status.get("stop"))
        return stop if stop is not None and stop.instance_id == self.instance_id else None

    @cached_property
    def replacement(self) -> ReplacementStatus | None:
        """The last replacement of an instance that lived, if it is not over."""
        return read(ReplacementStatus, self.status.get("replacement"))

    @property
    def is_replacing(self) -> bool:
        """Whether the instance that `launch` gives is to take over from one that is still there."""
        return self.replacement is not None and self.replacement.other is not None and not self.replacement.refused

    @cached_property
    def full_subnets(self) -> tuple[FullSubnetStatus, ...]:
        """Subnets in which EC2 had no room of late, the newest last."""
        found = (read(FullSubnetStatus, one) for one in self.status.get("fullSubnets") or ())
        return tuple(one for one in found if one is not None)

    @cached_property
    def elastic_ip(self) -> ElasticIpStatus | None:
        """The elastic address that was asked for, or associated."""
        return read(ElasticIpStatus, self.status.get("elasticIp"))

    @cached_property
    def root_volume(self) -> RootVolumeStatus | None:
        """As far as its file system was grown."""
        return read(RootVolumeStatus, self.status.get("rootVolume"))

    @cached_property
    def volumes(self) -> tuple[VolumeStatus, ...]:
        """Data volumes that EC2 was, or is about to be, asked for."""
        found = (read(VolumeStatus, one) for one in self.status.get("volumes") or ())
        return tuple(one for one in found if one is not None)

    def volume(self, name: str) -> VolumeStatus | None:
        return next((one for one in self.volumes if one.name == name), None)

    @cached_property
    def restarts(self) -> RestartsStatus | None:
        return read(RestartsStatus, self.status.get("restarts"))

    @cached_property
    def silence(self) -> SilenceStatus | None:
        return read(SilenceStatus, self.status.get("silence"))

    @cached_property
    def reverts(self) -> RevertsStatus | None:
        return read(RevertsStatus, self.status.get("reverts"))

    @cached_property
    def failed_revisions(self) -> tuple[FailedRevisionStatus, ...]:
        """Systems that went wrong, the newest last."""
        found = (read(FailedRevisionStatus, one) for one in self.status.get("failedRevisions") or ())
        return tuple(one for one in found if one is not None)

    @property
    def host_id(self) -> str:
        """Names one life of the machine: another instance has another disk, and nothing of the old one holds for it."""
        return self.instance_id or self.uid


@dataclass(frozen=True)
class Desired(_Remembered):
    """One NixMachine as it is declared."""

    is_paused: bool
    spec: NixMachineSpec
    machine: str  # its name in its deployment; the configuration's `name`
    deployment: str  # the deployment's name; its own if it has none
    deployment_uid: str | None  # of the NixDeployment that controls it, or did before it was orphaned
    requests: Requests  # to look now
    reboot_asked: str = ""  # by an annotation, whether or not that was answered

    @property
    def is_first_look(self) -> bool:
        """Whether the status tells of no look at the machine: the object is new, or was restored without its status."""
        return self.system.booted is None

    @property
    def reboot_requested(self) -> str | None:
        """A request to restart the machine that was not answered yet. One that stands there at the first look is as old
        as the object, and none."""
        is_answered = self.is_first_look or self.reboot_asked == self.status.get("lastHandledRebootAt")
        return None if is_answered else self.reboot_asked or None

    @property
    def uids(self) -> frozenset[str]:
        """Whose things in EC2 concern this machine."""
        return frozenset(filter(None, (self.uid, self.deployment_uid)))

    @property
    def uuid(self) -> str:
        """Of its deployment; its own if it has none."""
        return self.deployment_uid or self.uid

    @property
    def origin(self) -> OriginStatus | None:
        if self.deployment_uid is None:
            return None
        return OriginStatus(deployment=self.deployment, uid=self.deployment_uid, machine=self.machine)


@dataclass(frozen=True)
class Leaving(_Remembered, LeavingObject):
    """One NixMachine in deletion."""

    declares_address: bool = False  # its spec names elasticIp

    @property
    def uids(self) -> frozenset[str]:
        return frozenset({self.uid})


def read_machine(
    body: Body, *, has_owner: bool, spec_of: Callable[[Body], NixMachineSpec] = parse_machine
) -> Desired | Leaving:
    """A NixMachine's body as a pass takes it. `has_owner`: its controlling NixDeployment exists, in its own namespace
    and under the uid that it names; anybody may write an owner reference. `spec_of` may remember.

    Raises InvalidSpec for a living one that this release refuses.
    """
    if is_leaving(body):
        return Leaving(**leaving_head(body, Kind.MACHINE), declares_address=deletion_view(body).declares_address)
    known = head(body, Kind.MACHINE)
    spec = spec_of(body)
    origin = _origin(body, known["status"], has_owner)
    return Desired(
        **known,
        is_paused=is_paused(body, suspend=spec.suspend),
        spec=spec,
        machine=origin.machine if origin is not None else known["key"].name,
        deployment=origin.deployment if origin is not None else known["key"].name,
        deployment_uid=origin.uid if origin is not None else None,
        requests=requests_of(body["metadata"].get("annotations") or {}, known["status"]),
        reboot_asked=reboot_of(body["metadata"].get("annotations") or {}),
    )


def _origin(body: Body, status: Mapping[str, Any], has_owner: bool) -> OriginStatus | None:
    """The deployment that controls it; of an orphaned machine the one that did, so that its name, its configuration and
    its groups stay what they are."""
    owner = controller_of(body) if has_owner else None
    if owner is None:
        return read(OriginStatus, status.get("origin"))
    return OriginStatus(deployment=owner.name, uid=owner.uid, machine=names.machine_name(body))
