"""What a pass over a machine sees, as values. `observe` fills them in; checks and `status` are functions of them.

An error in a part says that nothing is known of it, never that nothing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nixops_operator import names
from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import Instance, InstanceState, KeyPair, Volume
from nixops_operator.facts.health import CheckResult
from nixops_operator.facts.host import HostFacts, HostOwner
from nixops_operator.facts.nix import Evaluation, SystemInput
from nixops_operator.in_use import SeenSecret
from nixops_operator.jobs import Done, JobState, Running
from nixops_operator.machine.addresses import ObservedAddresses
from nixops_operator.machine.declared import Declared
from nixops_operator.machine.host_keys import Pins
from nixops_operator.machine.keys import ObservedKeys


@dataclass(frozen=True)
class ObservedCloud:
    """EC2, as far as it concerns one machine."""

    error: OperatorError | None = None
    account_id: str = ""
    instances: tuple[Instance, ...] = ()  # that carry our uid, every state, the youngest first
    untagged: Instance | None = None  # the recorded instance, found by its id alone: it does not carry our tags
    looked_at: datetime | None = None  # when the oldest of the looks that must show the launched instance began
    missing_for: timedelta | None = None  # complete looks in a row have missed it that long; None: it is shown
    other: Instance | None = None  # while one replaces another, and after a way back: the other one of the two
    is_other_gone: bool = True
    declared: Declared = field(default_factory=Declared)
    declared_error: OperatorError | None = None  # why `declared` is not whole; nothing is launched meanwhile
    next_declared: Declared | None = None  # what another one in place of a live one is launched with, if due
    next_error: OperatorError | None = None  # why that is not known
    goes_first: str = ""  # for whom that waits (one_by_one.py)
    root_volume: Volume | None = None  # of the live instance; None: not looked at
    volumes: tuple[Volume, ...] = ()  # data volumes that carry our tags, sorted by id; none that was let go of
    given_volumes: tuple[Volume, ...] = ()  # that the spec names by id; none that is another machine's
    volumes_of_others: frozenset[str] = frozenset()  # ids of such that do not carry our tags, or were let go of
    volumes_taken: Mapping[str, str] = field(default_factory=dict)  # id of a given one → whose it is (claims.py)
    volume_changes: Mapping[str, str] = field(default_factory=dict)  # id → its last modification's state, if one is due
    volumes_error: OperatorError | None = None  # why they are not known
    volumes_looked_at: datetime | None = None  # when the newest complete look at them began
    volumes_missing_for: Mapping[str, timedelta | None] = field(default_factory=dict)  # as missing_for, by entry
    pins: Pins = field(default_factory=Pins)
    pins_error: OperatorError | None = None
    image_name: str | None = None  # of the instance, or of the one to be launched
    addresses: ObservedAddresses = field(default_factory=ObservedAddresses)
    users_key_pair: KeyPair | None = None  # a key pair that is not ours, if the live instance was launched with one
    admits_ssh: bool | None = None  # whether a rule of its groups admits SSH; None: not all of them are known
    others_admit_ssh: bool | None = None  # the same of the declared ones; None: it is in these, or they are not known

    @property
    def live(self) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.state.is_live)

    @property
    def ids_of_live(self) -> str:
        return ids(self.live)

    def instance(self, instance_id: str | None) -> Instance | None:
        return next((instance for instance in self.instances if instance.id == instance_id), None)

    def volume(self, volume_id: str | None) -> Volume | None:
        return next((one for one in (*self.volumes, *self.given_volumes) if one.id == volume_id), None)

    def volumes_of(self, entry: str) -> tuple[Volume, ...]:
        return tuple(volume for volume in self.volumes if volume.tags.get(names.ENTRY_TAG) == entry)

    def dead_of(self, token: str) -> Instance | None:
        """The instance that this launch gave, if it is on its way out or gone. Another attempt's proves nothing."""
        return next((one for one in self.instances if one.client_token == token and not one.state.is_live), None)

    @property
    def highest_attempt(self) -> int:
        """The highest launch attempt among tags seen in any state; it survives a lost status."""
        return max((names.attempt_of(instance.tags) for instance in self.instances), default=0)


def ids(instances: tuple[Instance, ...] | list[Instance]) -> str:
    """For messages."""
    return ", ".join(sorted(instance.id for instance in instances))


@dataclass(frozen=True)
class ObservedSystem:
    """The configuration, as far as it is resolved. At most one of `error`, `waits_for` and `input` is set.

    `is_outdated`: what the evaluation was told is not so any more. `awaited`: what the fact that it needs waits for, in
    words; `is_unseen`: only for somebody to look there, for the first time since this process began.
    """

    error: OperatorError | None = None
    waits_for: str | None = None  # what must be known first, for people
    input: SystemInput | None = None
    evaluate_job: str = ""
    is_outdated: bool = False
    awaited: str = ""
    is_unseen: bool = False
    build_on: BuildOn = BuildOn.OPERATOR  # Target or Operator
    default_nixpkgs: str | None = None  # NAR hash of the operator's nixpkgs, if `input` uses that
    confirmed: str | None = None
    """With `error`: the system that was confirmed for this very generation. It goes on being enforced."""


@dataclass(frozen=True)
class ObservedHost:
    """The machine over SSH. `error`: why there are no facts; `address` None: not known yet."""

    address: str | None = None
    error: OperatorError | None = None
    facts: HostFacts | None = None
    host_keys: tuple[str, ...] = ()
    health: tuple[CheckResult, ...] = ()  # of what it runs now; none while it is between two systems
    telling_line: str = ""  # of the output of an activation that ended badly
    ours: HostOwner | None = None  # how a given host names this machine as its owner; None: it is an instance
    owner_has_gone: bool = False  # the machine that the host names as its owner exists no more


@dataclass(frozen=True)
class Observed:
    """Everything that one pass sees."""

    cloud: ObservedCloud | None  # None: the target is a given host
    host: ObservedHost
    system: ObservedSystem
    jobs: Mapping[str, JobState]  # the jobs that this machine has asked for
    secret: SeenSecret | None = None  # with the credentials that its things in EC2 were made with
    keys: ObservedKeys = field(default_factory=ObservedKeys)

    @property
    def evaluating(self) -> JobState | None:
        """How the evaluation stands; None: what is known of it does not hold, or there was none."""
        job = self.jobs.get(self.system.evaluate_job)
        return None if self.system.is_outdated and not isinstance(job, Running) else job

    @property
    def evaluation(self) -> Evaluation | None:
        """The configuration's, once it is known."""
        job = self.evaluating
        return job.result if isinstance(job, Done) and isinstance(job.result, Evaluation) else None

    @property
    def toplevel(self) -> str | None:
        """The desired system, once it is known."""
        evaluation = self.evaluation
        return evaluation.toplevel if evaluation is not None else self.system.confirmed


@dataclass(frozen=True)
class ObservedLeaving:
    """What is left of a machine in deletion. `cloud` None: nothing was ever made in EC2."""

    cloud: ObservedCloud | None = None
    host_names_us: bool = False  # the given host, which answers, names this machine as its owner
    disowning: JobState | None = None


def running_instance(cloud: ObservedCloud | None, instance_id: str | None) -> Instance | None:
    """The recorded instance, if it runs."""
    instance = cloud.instance(instance_id) if cloud is not None else None
    return instance if instance is not None and instance.state is InstanceState.RUNNING else None
