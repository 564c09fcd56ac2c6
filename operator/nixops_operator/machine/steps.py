"""What a pass may do, as values. Each is one short effect, or the start of a job; `apply` carries them out and decides
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nixops_operator import retain
from nixops_operator.facts.host import ActivationRequest
from nixops_operator.machine.observed import LaunchIntent, LaunchParameters, SystemInput


@dataclass(frozen=True)
class RecordAccount:
    """Write down the account before anything is made in it: without this, deletion needs no credentials."""

    account_id: str


@dataclass(frozen=True)
class RecordLaunch:
    """Freeze the whole request in a Secret, then write the intent. Nothing is asked of EC2 yet."""

    first_attempt: int
    account_id: str
    parameters: LaunchParameters

    gate = "launch"


@dataclass(frozen=True)
class Launch:
    """RunInstances with what the intent froze, never with today's spec: EC2 ties a token to the parameters it came
    with."""

    intent: LaunchIntent

    gate = "launch"  # what EC2 refused is not frozen anew before its time, either


@dataclass(frozen=True)
class RecordInstance:
    """Write down the id of an instance that EC2 shows and the status does not (its reply was lost, or the status
    was)."""

    instance_id: str
    attempt: int


@dataclass(frozen=True)
class PinHostKey:
    """Pin the host key that the instance got with its user data, then remove the launch Secrets, which hold its private
    half.
    `is_pinned`: only the removal is left."""

    instance_id: str
    attempt: int
    is_pinned: bool = False


@dataclass(frozen=True)
class StartInstance:
    instance_id: str


@dataclass(frozen=True)
class SetSecurityGroups:
    instance_id: str
    group_ids: tuple[str, ...]


@dataclass(frozen=True)
class TerminateInstance:
    """Only after a fresh quorum read shows that the object is in deletion."""

    instance_id: str


@dataclass(frozen=True)
class RetainInstance:
    """Tag it as let go; it is not ours any more."""

    instance_id: str

    blocked_hold = retain.LOOK_AGAIN


@dataclass(frozen=True)
class Evaluate:
    job: str
    input: SystemInput


@dataclass(frozen=True)
class Build:
    job: str
    drv_path: str


@dataclass(frozen=True)
class Copy:
    job: str
    toplevel: str


@dataclass(frozen=True)
class RecordActivation:
    """Write the intent; the host is told afterwards, and by the same id after a crash."""

    request: ActivationRequest


@dataclass(frozen=True)
class Activate:
    """Root, claim, arm the dead man's timer, start the detached unit."""

    job: str
    copy_job: str
    request: ActivationRequest


@dataclass(frozen=True)
class Confirm:
    """Reach the host over a new connection and say so."""

    job: str
    activation_id: str


@dataclass(frozen=True)
class Commit:
    job: str
    activation_id: str


@dataclass(frozen=True)
class Adopt:
    """The desired system runs already: make it profile and boot entry."""

    job: str
    toplevel: str


@dataclass(frozen=True)
class RollBack:
    job: str
    activation_id: str


Step = (
    RecordAccount
    | RecordLaunch
    | Launch
    | RecordInstance
    | PinHostKey
    | StartInstance
    | SetSecurityGroups
    | TerminateInstance
    | RetainInstance
    | Evaluate
    | Build
    | Copy
    | RecordActivation
    | Activate
    | Confirm
    | Commit
    | Adopt
    | RollBack
)
Steps = Sequence[Step]
