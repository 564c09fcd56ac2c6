"""A machine as values: how to reach it, and what one look at it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True)
class HostTarget:
    """How to reach one machine. Connections are held per target: a changed field is another target."""

    address: str  # an IP address, already resolved and judged; names never reach the adapter
    port: int
    user: str
    client_keys: tuple[str, ...] = field(
        repr=False
    )  # private keys as `ssh_keys.PrivateKey.text`, offered in this order
    host_keys: tuple[str, ...]  # pinned public keys, `<type> <base64>`, sorted; never empty


@dataclass(frozen=True)
class HostOwner:
    """Whose a given host is: what /var/lib/nixops/owner on it says. Two objects on one host would undo each other's
    systems for ever."""

    cluster: str  # as settings.cluster_id; empty, as the others: the file is there, and cannot be read
    uid: str  # of the NixMachine
    name: str  # `<namespace>/<name>`, for people: another object may have it by now

    def is_same(self, other: HostOwner | None) -> bool:
        """Whether both are one object, whatever it is called."""
        return other is not None and (self.cluster, self.uid) == (other.cluster, other.uid)


class ActivationState(StrEnum):
    """Where an activation stands on the host; each change is one rename(2), so one of two racing parties loses."""

    PREPARED = "prepared"  # claimed; the unit has not been started, as far as is known
    SWITCHING = "switching"  # the unit runs switch-to-configuration
    SWITCHED = "switched"  # it ended well; the dead man's timer waits for confirmation
    CONFIRMED = "confirmed"  # a new connection confirmed it; profile and boot entry may still be old
    COMMITTED = "committed"  # profile and boot entry are the new system's
    REBOOTING = "rebooting"  # in mode `restart`: the profile and the next boot are the new system's; not confirmed yet
    ROLLING_BACK = "rollingback"
    ROLLED_BACK = "rolledback"
    FAILED = "failed"  # switch-to-configuration refused before changing anything; or it failed, and must not return


UNCONFIRMED = (
    ActivationState.PREPARED,
    ActivationState.SWITCHING,
    ActivationState.SWITCHED,
    ActivationState.ROLLING_BACK,
)
"""Nobody has said yet that the machine stays on its new system; a boot ends these, but the way back of a restart."""


class Mode(StrEnum):
    """What an activation does, as switch-to-configuration calls it."""

    SWITCH = "switch"  # `test`, and once it is confirmed `boot`
    TEST = "test"
    BOOT = "boot"
    RESTART = "restart"  # `boot`, and the machine is restarted into it


@dataclass(frozen=True)
class ActivationFacts:
    """One activation directory on the host."""

    id: str  # `<first 8 of the toplevel's hash>-<attempt>`
    attempt: int
    state: ActivationState
    toplevel: str
    previous: str  # the system to return to
    boot_id: str  # of the boot in which it began
    is_unit_active: bool  # nixops-activate-<id>.service or nixops-rollback-<id>.service runs
    is_timer_armed: bool  # one of nixops-deadman-<id>, nixops-confirm-<id> and nixops-hold-<id> waits
    exit_status: int | None  # of switch-to-configuration; None while it runs or if it was killed
    service_result: str  # systemd's $SERVICE_RESULT: success, exit-code, timeout, signal, …; empty while it runs
    mode: Mode = Mode.SWITCH
    returns: bool = True  # to the previous system, by itself, if it goes wrong or is not confirmed
    needs_restart: bool = False  # FAILED: a running system cannot switch to this one
    is_held: bool = False  # it was reached again after the switch, and waits for its health
    failed_before: tuple[str, ...] = ()  # units that were failed when the host was claimed; sorted
    previous_boots: bool = False  # it has the kernel, initrd, modules and parameters that were booted last

    def was_cut_by_boot(self, boot_id: str) -> bool:
        """Whether the boot that is now has ended it before anybody confirmed it. The way back of a restart leads
        through boots, and goes on."""
        is_way_back = self.mode is Mode.RESTART and self.state is ActivationState.ROLLING_BACK
        return self.state in UNCONFIRMED and self.boot_id != boot_id and not is_way_back


@dataclass(frozen=True)
class DryRun:
    """What switch-to-configuration says that it would do."""

    exit_status: int
    output: str  # at most 16 KiB, ANSI stripped


class BuildState(StrEnum):
    """Where a build on the machine stands; each change is one rename(2)."""

    BUILDING = "building"  # its unit runs; without a unit it was cut, by a reboot as a rule
    BUILT = "built"  # the system is valid there, and the root `next`
    FAILED = "failed"
    STOPPED = "stopped"  # by `stop_build`, or by a build of something else


@dataclass(frozen=True)
class BuildRequest:
    """What a machine is to build by itself, also if the operator dies the next moment."""

    drv_path: str
    toplevel: str  # what it makes, as the evaluation says
    timeout: timedelta
    silent: timedelta  # of one derivation without a line of log

    @property
    def id(self) -> str:
        """The hash of the derivation: whoever asks for the same build asks for this one."""
        return build_id(self.drv_path)


def build_id(drv_path: str) -> str:
    return drv_path.removeprefix("/nix/store/")[:32]


@dataclass(frozen=True)
class BuildLook:
    """One look at a build: how it stands, and the next part of its log."""

    state: BuildState
    is_unit_active: bool
    quiet: timedelta  # since the log last grew
    free_bytes: int  # of the file system of /nix/store
    service_result: str  # systemd's $SERVICE_RESULT; empty before the end
    output: str | None  # the store path that was made, if it ended well
    log: str  # from the offset that was asked for on; at most 512 KiB
    offset: int  # where the next part begins, in bytes
    has_more: bool  # the log went on there, when it was looked at


@dataclass(frozen=True)
class MachineKey:
    """One of spec.keys as it is to lie on the machine. Two of one path are never asked for at once."""

    path: str  # absolute, without `.` and `..`
    mode: int  # permission bits, as 0o600
    user: str
    group: str
    digest: str  # what the machine is to remember of the content: machine/keys.py
    restart_units: tuple[str, ...]
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class FoundFile:
    """What lies at a key's path."""

    mode: int  # as st_mode, with the kind of file
    user: str
    group: str
    sha256: str = field(repr=False)  # of the content, in hex; empty of what is no plain file, or too large for a key


@dataclass(frozen=True)
class DeliveredKey:
    """A key that the machine remembers to have been given, and what lies at its path now."""

    path: str
    mode: int  # as asked for, and so below
    user: str
    group: str
    digest: str  # empty: it was about to be delivered for the first time
    boot_id: str  # of the boot in which it was delivered
    owes_restarts: bool  # its content was replaced, and the units that use it may not have been restarted yet
    was_unowned: bool  # its user or group did not exist when it was delivered
    has_owner: bool  # they exist now
    file: FoundFile | None  # None: nothing lies there


@dataclass(frozen=True, order=True)
class Generation:
    """Of the system profile: system-<number>-link."""

    number: int
    is_used: bool  # the profile's own, or what runs, was booted, or ran before the last activation


@dataclass(frozen=True)
class HostFacts:
    """One look at a machine, one round trip. Store paths are full (`/nix/store/…`); None where a link does not
    exist."""

    boot_id: str
    current_system: str | None  # /run/current-system
    booted_system: str | None  # /run/booted-system
    profile_system: str | None  # /nix/var/nix/profiles/system, resolved
    profile_generation: int | None  # the N of system-N-link
    boot_entry_unsure: bool  # a commit began and did not end
    lists_left: bool  # switch-to-configuration's lists of units are not empty: a cut one waits to be completed
    is_nixos: bool  # /etc/NIXOS exists, or /etc/os-release says so
    version_id: str  # VERSION_ID of /etc/os-release, of NixOS the release alone, as `25.11`; empty if it has none
    state_version: str | None  # recorded in /var/lib/nixops/machine at first contact
    machine: str  # uname -m, as `x86_64`
    failed_units: tuple[str, ...]  # sorted
    free_bytes: int  # of the file system of /nix/store
    activation: ActivationFacts | None  # the one that `active` names, else the newest; None if there never was one
    highest_attempt: int  # over all activation directories, 0 if none
    owner: HostOwner | None = None  # None: nobody's
    forgets: bool = False  # /var/lib/nixops lies in memory: what is known of activations goes with this boot
    restart_for: tuple[str, ...] = ()  # what of the running system only a restart brings: kernel, initrd, …
    building: str | None = None  # the derivation that a unit of ours builds there now
    keys: tuple[DeliveredKey, ...] = ()  # by path
    generations: tuple[Generation, ...] = ()  # by number


@dataclass(frozen=True)
class ActivationRequest:
    """What the host is to do by itself, also if the operator dies the next moment."""

    toplevel: str
    previous: str
    attempt: int
    timeout: timedelta  # for switch-to-configuration
    confirm_timeout: timedelta  # for the confirmation after it
    mode: Mode = Mode.SWITCH
    returns: bool = True  # to the previous system, by itself, if it goes wrong or is not confirmed

    @property
    def id(self) -> str:
        """`<first 8 characters of the store hash>-<attempt>`."""
        return f"{self.toplevel.removeprefix('/nix/store/')[:8]}-{self.attempt}"
