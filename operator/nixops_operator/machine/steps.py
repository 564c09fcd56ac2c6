"""What a pass over a machine may do, as values; `apply` carries them out. Each says what must have been written down
before it, and why it may be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from nixops_operator import retain
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import (
    FailedRevisionStatus,
    LaunchStatus,
    ReplacementStatus,
    RevertsStatus,
    RootVolumeStatus,
    SilenceStatus,
    StopStatus,
    VolumeStatus,
)
from nixops_operator.facts.cloud import VolumeSettings
from nixops_operator.facts.host import ActivationRequest, HostOwner
from nixops_operator.facts.nix import Evaluation, SystemInput, Tree
from nixops_operator.machine.declared import Declared
from nixops_operator.step import Identity, JobStep, Step

EC2 = "spec.target.ec2"


def volume_field(entry: str | None) -> str:
    """The spec's field of that data volume, or of the root volume."""
    return f"{EC2}.rootVolume" if entry is None else f"{EC2}.volumes[{entry}]"


# --- the instance -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordLaunch(Step):
    """Freeze the whole request in a Secret, then write the intent. Nothing is asked of EC2 yet."""

    first_attempt: int
    account_id: str
    declared: Declared
    restarts: int | None = None  # how often it was started of late, this time included; None: it is the first life
    replacement: ReplacementStatus | None = None  # set where it is launched in place of an instance that lives

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (LAUNCH,)  # what EC2 refused is not frozen anew before its time, either


@dataclass(frozen=True)
class RecordCall(Step):
    """Write down that the attempt is about to be asked for (again): from now on it may have made something."""

    attempt: int

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (LAUNCH,)


@dataclass(frozen=True)
class Launch(Step):
    """RunInstances with what the intent froze, never with today's spec: EC2 ties a token to the parameters it came
    with."""

    intent: LaunchStatus


LAUNCH: Identity = ("Launch",)


@dataclass(frozen=True)
class CloseLaunch(Step):
    """The attempt is proven to have made nothing that lives: the next launch may be another attempt."""

    attempt: int


@dataclass(frozen=True)
class RecordInstance(Step):
    """Write down the id of an instance that EC2 shows and the status does not (its reply was lost, or the status
    was)."""

    instance_id: str
    attempt: int


@dataclass(frozen=True)
class PinHostKey(Step):
    """Pin the host key that the instance got with its user data, then remove the launch Secrets, which hold its private
    half, of that attempt and of earlier ones. `is_pinned`: only the removal is left."""

    instance_id: str
    attempt: int
    is_pinned: bool = False


@dataclass(frozen=True)
class RecordRestart(Step):
    """Count a start before it is asked for; a crash in between counts one too many."""

    count: int

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (("StartInstance",),)


@dataclass(frozen=True)
class ForgetRestarts(Step):
    """It has run undisturbed for long enough."""


@dataclass(frozen=True)
class StartInstance(Step):
    instance_id: str


@dataclass(frozen=True)
class RecordStop(Step):
    """Write down for which change an instance is stopped, and what it was before, so that whoever finds it stopped
    goes on, or back."""

    stop: StopStatus

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (("ChangeStopped",), ("StartChanged",))  # a start is counted when it is asked for


@dataclass(frozen=True)
class ForgetStop(Step):
    """The instance runs as declared."""


@dataclass(frozen=True)
class StopInstance(Step):
    """Only after a fresh look that the instance runs and carries our tags."""

    instance_id: str


@dataclass(frozen=True)
class RecordSilence(Step):
    """Count a restart of an instance that does not answer before it is asked for; None: it has answered for long."""

    silence: SilenceStatus | None

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (("RebootInstance",), ("StopInstance",))  # a restart is counted when it is asked for


@dataclass(frozen=True)
class RebootInstance(Step):
    """Only after a fresh look that the instance carries our tags."""

    instance_id: str


@dataclass(frozen=True)
class ChangeStopped(Step):
    """Set an attribute of a stopped instance. What EC2 refuses for good is written down, and the way back taken."""

    instance_id: str
    field: str
    value: Any

    @property
    def of_field(self) -> str:
        return f"{EC2}.{self.field}"


@dataclass(frozen=True)
class StartChanged(Step):
    """Start an instance with new values. A refusal is written down like that of `ChangeStopped`; missing capacity only
    with the last of some tries."""

    instance_id: str
    is_last_try: bool


@dataclass(frozen=True)
class GoBack(Step):
    """Make the former instance the machine's again, and write down why, and what is to be terminated instead."""

    instance_id: str
    instead_of: str | None  # None: EC2 launched none
    message: str
    reason: Reason


@dataclass(frozen=True)
class RecordReplacement(Step):
    """Write down how a replacement stands; None: it is over."""

    replacement: ReplacementStatus | None


@dataclass(frozen=True)
class TerminateOther(Step):
    """Only after a fresh quorum read shows that it was replaced, or did not take over, and a fresh look that it carries
    our tags."""

    instance_id: str

    @property
    def subject(self) -> Identity:
        return (self.instance_id,)


@dataclass(frozen=True)
class SetAttribute(Step):
    """Make one attribute of the live instance as declared (attributes.py)."""

    instance_id: str
    field: str
    value: Any

    @property
    def subject(self) -> Identity:
        return (self.instance_id, self.field)

    @property
    def of_field(self) -> str:
        return f"{EC2}.{self.field}"


@dataclass(frozen=True)
class RecordTagKeys(Step):
    """Write down which tags are ours before they are set, so that those that leave the spec can be taken off."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class RecordFields(Step):
    """Write down which fields the instance was given before they are set, so that they can go back when they leave the
    spec."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class RemoveTags(Step):
    """From the instance and what belongs to it."""

    resource_ids: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class TagVolume(Step):
    volume_id: str
    tags: tuple[tuple[str, str], ...]

    @property
    def of_field(self) -> str:
        return f"{EC2}.tags"

    @property
    def subject(self) -> Identity:
        return (self.volume_id,)


@dataclass(frozen=True)
class ModifyVolume(Step):
    """What it is about shows whether it has to be repeated. `entry`: of the spec's volumes; None: the root volume."""

    volume_id: str
    changes: VolumeSettings
    entry: str | None = None

    @property
    def of_field(self) -> str:
        return volume_field(self.entry)

    @property
    def subject(self) -> Identity:
        return (self.volume_id,)


@dataclass(frozen=True)
class VolumeStep(Step):
    """Of one volume; volumes.py carries it out."""


@dataclass(frozen=True)
class RecordVolume(VolumeStep):
    """Write down what a volume is asked for as, before EC2 is asked, or which one it is. Without an id it stands for
    the call that follows."""

    volume: VolumeStatus

    @property
    def subject(self) -> Identity:
        return (self.volume.name,)

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (("CreateVolume", self.volume.name),)


@dataclass(frozen=True)
class CreateVolume(VolumeStep):
    """CreateVolume with what was written down, never with today's spec: EC2 ties a token to the parameters it came
    with."""

    volume: VolumeStatus

    @property
    def of_field(self) -> str:
        return volume_field(self.volume.name)

    @property
    def subject(self) -> Identity:
        return (self.volume.name,)


@dataclass(frozen=True)
class ForgetVolume(VolumeStep):
    """It is gone, or not ours any more."""

    name: str


@dataclass(frozen=True)
class AttachVolume(VolumeStep):
    volume_id: str
    instance_id: str
    device: str
    entry: str

    @property
    def of_field(self) -> str:
        return volume_field(self.entry)

    @property
    def subject(self) -> Identity:
        return (self.volume_id,)


@dataclass(frozen=True)
class DetachVolume(JobStep):
    """Only when nothing on the machine uses it."""

    volume_id: str
    instance_id: str
    device: str


@dataclass(frozen=True)
class DeleteVolume(VolumeStep):
    """Only after a fresh look that the object and its policy still say so, and that the volume carries our tags."""

    volume_id: str
    name: str

    @property
    def subject(self) -> Identity:
        return (self.volume_id,)


@dataclass(frozen=True)
class RetainVolume(VolumeStep):
    """Tag it as let go; it is not ours any more."""

    volume_id: str

    blocked_hold: ClassVar[timedelta | None] = retain.LOOK_AGAIN

    @property
    def subject(self) -> Identity:
        return (self.volume_id,)


@dataclass(frozen=True)
class GrowRoot(JobStep):
    """Grow the root file system into its disk."""


@dataclass(frozen=True)
class GrowVolume(JobStep):
    """Grow the file system of a data volume into it."""

    volume_id: str
    device: str


@dataclass(frozen=True)
class RecordGrown(VolumeStep):
    """Write down that the root file system was grown."""

    root_volume: RootVolumeStatus


@dataclass(frozen=True)
class TerminateInstance(Step):
    """Only after a fresh quorum read shows that the object is in deletion and is not to be retained, and a fresh look
    that the instance carries our tags."""

    instance_id: str

    @property
    def subject(self) -> Identity:
        return (self.instance_id,)


@dataclass(frozen=True)
class RetainInstance(Step):
    """Tag it as let go, with its root volume; they are not ours any more."""

    instance_id: str
    root_volume_id: str = ""  # empty: EC2 shows none

    blocked_hold: ClassVar[timedelta | None] = retain.LOOK_AGAIN

    @property
    def subject(self) -> Identity:
        return (self.instance_id,)


# --- the host -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnHost(JobStep):
    """Write on a given host whose it is; two machines on one host would undo each other's systems for ever."""

    owner: HostOwner
    instead_of: HostOwner | None = None


@dataclass(frozen=True)
class DisownHost(JobStep):
    """Take that off again. Best effort: a host that does not answer is let go of all the same."""


# --- the system ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetch(JobStep):
    """Bring a tree into the operator's store."""

    tree: Tree

    is_harmless: ClassVar[bool] = True


@dataclass(frozen=True)
class Evaluate(JobStep):
    """`is_outdated`: what is known of it does not hold any more."""

    input: SystemInput
    is_outdated: bool = False

    is_harmless: ClassVar[bool] = True


@dataclass(frozen=True)
class Build(JobStep):
    drv_path: str

    is_harmless: ClassVar[bool] = True


@dataclass(frozen=True)
class Copy(JobStep):
    toplevel: str


@dataclass(frozen=True)
class CopyDerivations(JobStep):
    """Bring the machine what it is to build."""

    evaluation: Evaluation


@dataclass(frozen=True)
class Realise(JobStep):
    """Have the machine build its system, and follow it to its end. `copy_job`: what brought the derivations."""

    copy_job: str
    evaluation: Evaluation


@dataclass(frozen=True)
class StopBuild(JobStep):
    """End what the machine builds: it is of no use any more."""

    is_harmless: ClassVar[bool] = True  # of a suspended machine, too, nothing changes


@dataclass(frozen=True)
class DryActivate(JobStep):
    """Ask what activating it would do."""

    toplevel: str


@dataclass(frozen=True)
class RecordActivation(Step):
    """Write the intent; the host is told afterwards, and by the same id after a crash."""

    request: ActivationRequest
    boot_id: str  # of the boot for which it is written
    reverts: RevertsStatus | None = None  # set where it puts back what somebody else has switched
    reboot_request: str | None = None  # the annotation that it answers
    is_repeat: bool = False  # of one that went back because nobody was there to confirm it


@dataclass(frozen=True)
class RecordRevisions(Step):
    """Write down which systems went wrong. `result`: of the activation that says so of one of them."""

    failed: tuple[FailedRevisionStatus, ...]
    result: str | None = None

    is_harmless: ClassVar[bool] = True

    @property
    def subject(self) -> Identity:
        return tuple(one.toplevel for one in self.failed)


@dataclass(frozen=True)
class Activate(JobStep):
    """Root, claim, arm the dead man's timer, start the detached unit; or, for the next boot, commit. `brought_by`: the
    job that put the system into the machine's store; empty if another life of the operator did."""

    brought_by: str
    request: ActivationRequest


@dataclass(frozen=True)
class Hold(JobStep):
    """Reach the host over a new connection, and have it wait for its health."""

    activation_id: str
    budget: timedelta


@dataclass(frozen=True)
class Confirm(JobStep):
    """Reach the host over a new connection and say so."""

    activation_id: str


@dataclass(frozen=True)
class Commit(JobStep):
    activation_id: str


@dataclass(frozen=True)
class Adopt(JobStep):
    """The desired system runs already: make it profile and boot entry."""

    toplevel: str


@dataclass(frozen=True)
class Restart(JobStep):
    """Have the host restart into what was made its boot entry."""

    activation_id: str


@dataclass(frozen=True)
class RollBack(JobStep):
    activation_id: str
