"""Machines in memory, for everything that uses ports.host. Their clocks move by hand: `machine.advance(seconds)`.

hosts = FakeHosts()
machine = hosts.add(FakeMachine("192.0.2.10"))
machine.outcomes[toplevel] = Switch(exit_status=2)          # how switch-to-configuration of it goes
host = await hosts.connect(machine.target())
hosts.effects.drop_reply.add("host.activate")
hosts.receive(socket, toplevel)                             # what `nix copy` through `nix_daemon` would do
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.effects import Effects, effect
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OutcomeUnknown, Retry
from nixops_operator.facts.health import Probe
from nixops_operator.facts.host import (
    ActivationFacts,
    ActivationRequest,
    ActivationState,
    BuildLook,
    BuildRequest,
    BuildState,
    DeliveredKey,
    DryRun,
    FoundFile,
    Generation,
    HostFacts,
    HostOwner,
    HostTarget,
    MachineKey,
    Mode,
)
from nixops_operator.ssh_keys import generate_ed25519, parse_private_key

BASE_SYSTEM = "/nix/store/00000000000000000000000000000000-nixos-system-base-25.11"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG5vdC1hLWtleS1idXQtdGhpcnR5LXR3by1ieXRlcyE"
CLIENT_KEY = parse_private_key(
    Ed25519PrivateKey.from_private_bytes(b"a client key for tests, 32 bytes").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "a key for tests",
).text
GUARD_MARGIN = 240.0  # s; as the agent's
DEADMAN_MARGIN = 60.0  # s; as the agent's
KEPT_ACTIVATIONS = 5

UNDER_WAY = (
    ActivationState.PREPARED,
    ActivationState.SWITCHING,
    ActivationState.SWITCHED,
    ActivationState.ROLLING_BACK,
)
CLAIMING = (*UNDER_WAY, ActivationState.CONFIRMED)


@dataclass(frozen=True)
class Switch:
    """How switch-to-configuration of one toplevel goes on this machine.

    `exit_status` None: a signal kills it. `seconds` inf: it hangs. `moves_link`: whether /run/current-system is its
    own in the end.
    """

    exit_status: int | None = 0
    seconds: float = 0
    moves_link: bool = True
    is_begun: bool = True  # it came as far as stopping units or activating
    stops_sshd: bool = False
    drops_network: bool = False
    boots_silent: bool = False  # booted, it has no network
    panics: bool = False  # its kernel does not come up, and resets the machine
    needs_restart: bool = False  # a running system cannot become this one
    hides_failed_script: bool = False  # only its output tells of one
    failed_units: tuple[str, ...] = ()
    dry_run: str = "would activate the configuration...\n"
    boot_loader_error: str | None = None  # what `switch-to-configuration boot` then says
    makes_accounts: tuple[str, ...] = ()  # users, with groups of the same names


@dataclass(frozen=True)
class Build:
    """How the build of one derivation goes on this machine. `seconds` inf: it hangs, and nothing moves."""

    seconds: float = 3
    log: str = ""
    service_result: str = "success"
    output: str | None = None  # None: what the evaluation said


@dataclass(frozen=True, order=True)
class File:
    """On a machine's disk, or below /run in its memory."""

    content: bytes
    mode: int = 0o600
    user: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class Remembered:
    """A line of /var/lib/nixops/keys."""

    key: MachineKey
    boot_id: str
    was_unowned: bool


@dataclass
class UnderBuild:
    """The build directory."""

    request: BuildRequest
    began_at: float
    ends_at: float | None
    state: BuildState = BuildState.BUILDING
    service_result: str = ""
    output: str | None = None


@dataclass
class Activation:
    """One activation directory."""

    request: ActivationRequest
    boot_id: str
    state: ActivationState = ActivationState.PREPARED
    unit_ends_at: float | None = None
    deadman_at: float | None = None
    rollback_ends_at: float | None = None
    exit_status: int | None = None
    service_result: str = ""
    was_touched: bool = False
    is_held: bool = False
    failed_before: tuple[str, ...] = ()
    log: str = ""


class FakeMachine:
    """One machine; all state is public: a test is root on it."""

    def __init__(self, address: str, system: str = BASE_SYSTEM) -> None:
        self.address = address
        self.port = 22
        self.host_keys = [HOST_KEY]
        self.staged_host_key: str | None = None
        self.can_watch = False  # it has inotify-tools, and says by itself what changes: where a test calls `tell`
        self.client_keys = {CLIENT_KEY}
        self.is_silent = False  # off, or a security group without a rule for us
        self.is_sshd_running = True
        self.has_shell = True  # the account's login shell runs commands
        self.forgets = False  # /var/lib lies in memory, or is put back at each boot
        self.login_attempts = 0
        self.now = 0.0
        self.boots = 1
        self.is_nixos = True
        self.version_id = "25.11"
        self.state_version: str | None = None
        self.architecture = "x86_64"
        self.free_bytes = 50 << 30
        self.current_system: str | None = system
        self.booted_system: str | None = system
        self.profile_system: str | None = system
        self.profile_generation: int | None = 1
        self.generations = {1: system}  # of the profile
        self.boot_entry: str | None = system
        self.next_boot: str | None = None  # what the boot loader starts once in its place
        self.boots_once = True  # it can do that
        self.boot_entry_unsure = False
        self.lists_left = False
        self.failed_units: tuple[str, ...] = ()
        self.unwell: dict[str, dict[Probe, str]] = {}  # toplevel → probes that fail while it runs, and their words
        self.others_unwell: dict[Probe, str] = {}  # while one runs that is not among them
        self.probed: list[tuple[float, str | None, Probe]] = []  # when, of which system
        self.valid_paths = {system}
        self.roots: dict[str, str] = {}
        self.outcomes: dict[str, Switch] = {}
        self.other_switches = Switch()  # how those go that are not among them
        self.builds: dict[str, Build] = {}  # .drv → how it goes
        self.other_builds = Build()  # how those go that are not among them
        self.under_build: UnderBuild | None = None
        self.built: list[str] = []  # .drvs whose builds were begun
        self.can_roll_back = True
        self.kernels: dict[str, str] = {}  # toplevel → its kernel, if it is another than the others'
        self.rollback_seconds = 1.0
        self.owner: HostOwner | None = None
        self.accounts = {"root"}  # users and groups alike
        self.files: dict[str, File] = {}  # path → file; of those that matter to keys
        self.keys: dict[str, Remembered] = {}  # path → what was delivered there
        self.running_units: set[str] = set()
        self.restarted: list[str] = []  # units, by `deliver_keys`
        self.mounted: dict[str, str] = {}  # device → where
        self.grown = 0  # how often the root file system was grown into its disk
        self.grown_volumes: list[str] = []  # those whose file systems were
        self.activations: dict[str, Activation] = {}
        self.active: str | None = None
        self.switches: list[str] = []  # toplevels whose switch-to-configuration was started, rollbacks too
        self.connections: list[FakeHost] = []

    @property
    def boot_id(self) -> str:
        return str(UUID(int=self.boots))

    def boots_alike(self, system: str | None) -> bool:
        """Whether it has the kernel that was booted."""
        booted, its = (self.kernels.get(str(one)) for one in (self.booted_system, system))
        return booted == its

    @property
    def building(self) -> str | None:
        now = self.under_build
        return now.request.drv_path if now is not None and now.ends_at is not None else None

    def outcome(self, toplevel: str) -> Switch:
        """How its switch-to-configuration goes."""
        return self.outcomes.get(toplevel, self.other_switches)

    def target(self) -> HostTarget:
        """How to reach it as it should be reached."""
        return HostTarget(self.address, self.port, "root", (CLIENT_KEY,), tuple(sorted(self.host_keys)))

    def advance(self, seconds: float) -> None:
        """Let time pass: units end, timers fire, each at its time."""
        until = self.now + seconds
        while due := self._next_event(until):
            at, fire = due
            self.now = max(self.now, at)
            fire()
        self.now = until

    def reboot(self) -> None:
        """Power-cycle: into the boot entry; units and timers are gone, directories stay."""
        self.boots += 1
        self.cut_connections()
        self.is_sshd_running = True
        self.current_system = self.booted_system = self._booted()
        self.lists_left = False
        self.failed_units = ()
        self.files = {path: file for path, file in self.files.items() if not path.startswith("/run/")}
        if self.under_build is not None:
            self.under_build.ends_at = None
        for activation in self.activations.values():
            activation.unit_ends_at = activation.deadman_at = activation.rollback_ends_at = None
            request = activation.request
            if self._waits_after_boot(activation) and request.returns and request.previous != request.toplevel:
                activation.deadman_at = self.now + request.confirm_timeout.total_seconds() + GUARD_MARGIN
        if self.forgets:
            self.activations, self.active, self.keys = {}, None, {}
            self.owner = self.state_version = self.under_build = None
        outcome = self.outcome(str(self.current_system))
        self.is_silent = self.is_silent or outcome.boots_silent or outcome.panics

    def _booted(self) -> str | None:
        once, self.next_boot = self.next_boot, None
        if once is not None and not self.outcome(once).panics:
            return once
        return self.boot_entry

    def tell(self) -> None:
        """Something has changed: whoever listens hears that."""
        for connection in self.connections:
            connection.news.set()

    def cut_connections(self) -> None:
        """As a firewall would; new ones may be made."""
        for connection in self.connections:
            connection.is_cut = True
            connection.news.set()
        self.connections.clear()

    def kill_unit(self, activation_id: str) -> None:
        """SIGKILL to switch-to-configuration; what systemd runs after it still runs."""
        self._unit_ended(self.activations[activation_id], exit_status=None, service_result="signal")

    def vanish_unit(self, activation_id: str) -> None:
        """SIGKILL to switch-to-configuration and to what would have recorded its end."""
        self.activations[activation_id].unit_ends_at = None

    def activation_facts(self) -> ActivationFacts | None:
        shown = self.active or max(self.activations, key=lambda each: int(each.rpartition("-")[2]), default=None)
        if shown is None:
            return None
        activation = self.activations[shown]
        return ActivationFacts(
            id=shown,
            attempt=activation.request.attempt,
            state=activation.state,
            toplevel=activation.request.toplevel,
            previous=activation.request.previous,
            boot_id=activation.boot_id,
            is_unit_active=activation.unit_ends_at is not None or activation.rollback_ends_at is not None,
            is_timer_armed=activation.deadman_at is not None,
            exit_status=activation.exit_status,
            service_result=activation.service_result,
            mode=activation.request.mode,
            returns=activation.request.returns,
            needs_restart=activation.state is ActivationState.FAILED and self._needs_restart(activation),
            is_held=activation.is_held,
            failed_before=tuple(sorted(activation.failed_before)),
            previous_boots=self.boots_alike(activation.request.previous),
        )

    def _needs_restart(self, activation: Activation) -> bool:
        return activation.exit_status == 100 or self.outcome(activation.request.toplevel).needs_restart

    def claim(self, request: ActivationRequest) -> bool:
        for system in (request.toplevel, request.previous):
            if system not in self.valid_paths:
                raise _refused(self, "claim", f"{system} has no bin/switch-to-configuration")
        if self.active not in (None, request.id) and not self._is_free(self.activations[self.active]):
            return False
        fresh = Activation(request, self.boot_id, failed_before=self.failed_units)
        held = self.activations.setdefault(request.id, fresh)
        is_claimable = held.state in CLAIMING and held.boot_id == self.boot_id
        if not is_claimable or held.request.toplevel != request.toplevel:
            return False
        self.active = request.id
        self.roots["previous"] = held.request.previous
        self._prune()
        return True

    def activate(self, activation_id: str) -> None:
        activation = self._known("activate", activation_id)
        if activation.state is not ActivationState.PREPARED:
            return
        if self.active != activation_id:
            raise _refused(self, "activate", f"activation {activation_id} does not hold the claim")
        if activation.boot_id != self.boot_id:
            raise _refused(self, "activate", f"the host has restarted since activation {activation_id} was claimed")
        request = activation.request
        if request.mode is Mode.BOOT:
            raise _refused(self, "activate", f"activation {activation_id} is for the next boot")
        timeout = request.timeout.total_seconds()
        if request.returns:
            activation.deadman_at = self.now + timeout + request.confirm_timeout.total_seconds() + DEADMAN_MARGIN
        outcome = self.outcome(request.toplevel)
        activation.state = ActivationState.SWITCHING
        activation.was_touched = True
        activation.unit_ends_at = self.now + min(outcome.seconds, timeout)
        self.switches.append(request.toplevel)
        self.advance(0)

    def hold(self, activation_id: str, budget: timedelta) -> bool:
        activation = self._known("hold", activation_id)
        is_switched = activation.state is ActivationState.SWITCHED and activation.boot_id == self.boot_id
        is_switched = is_switched or self._waits_after_boot(activation)
        if is_switched and not activation.is_held and activation.request.returns:
            activation.is_held = True
            activation.deadman_at = self.now + budget.total_seconds()
        return is_switched or activation.state in (ActivationState.CONFIRMED, ActivationState.COMMITTED)

    def probe(self, probe: Probe) -> str:
        self.probed.append((self.now, self.current_system, probe))
        return self.unwell.get(str(self.current_system), self.others_unwell).get(probe, "")

    def confirm(self, activation_id: str) -> bool:
        activation = self._known("confirm", activation_id)
        is_switched = activation.state is ActivationState.SWITCHED and activation.boot_id == self.boot_id
        if is_switched or self._waits_after_boot(activation):
            activation.state = ActivationState.CONFIRMED
        if activation.state not in (ActivationState.CONFIRMED, ActivationState.COMMITTED):
            return False
        activation.deadman_at = None
        return True

    def restart(self, activation_id: str) -> None:
        activation = self._known("restart", activation_id)
        request = activation.request
        if request.mode is not Mode.RESTART:
            raise _refused(self, "restart", f"activation {activation_id} is not to restart the machine")
        if activation.boot_id != self.boot_id:
            return
        if self.active != activation_id:
            raise _refused(self, "restart", f"activation {activation_id} does not hold the claim")
        if activation.state is ActivationState.PREPARED:
            self._install_to_restart(request)
            activation.state = ActivationState.REBOOTING
        if activation.state is not ActivationState.REBOOTING:
            raise _refused(self, "restart", f"activation {activation_id} was called off")
        self.reboot()

    def _waits_after_boot(self, activation: Activation) -> bool:
        is_rebooting = activation.state is ActivationState.REBOOTING and activation.boot_id != self.boot_id
        return is_rebooting and self.current_system == activation.request.toplevel

    def commit(self, activation_id: str) -> None:
        activation = self._known("commit", activation_id)
        if self.active not in (None, activation_id):
            raise _refused(self, "commit", f"activation {self.active} has superseded {activation_id}")
        if activation.state is ActivationState.COMMITTED:
            return
        mode = activation.request.mode
        is_for_boot = activation.state is ActivationState.PREPARED and mode is Mode.BOOT
        if activation.state is not ActivationState.CONFIRMED and not is_for_boot:
            raise _refused(self, "commit", f"activation {activation_id} is not confirmed")
        if mode is not Mode.TEST:
            self._install("commit", activation.request.toplevel)
        activation.state = ActivationState.COMMITTED
        if self.roots.get("next") == activation.request.toplevel:
            del self.roots["next"]
        self.active = None

    def adopt(self, toplevel: str) -> None:
        if toplevel != self.current_system:
            raise _refused(self, "adopt", f"{toplevel} is not the running system")
        if self.active is not None and not self._is_free(self.activations[self.active]):
            raise _refused(self, "adopt", f"activation {self.active} is under way")
        self._install("adopt", toplevel)

    def rollback(self, activation_id: str) -> None:
        self._return_from(self._known("rollback", activation_id), *CLAIMING, ActivationState.REBOOTING)
        self.advance(0)

    def own(self, owner: HostOwner, instead_of: HostOwner | None) -> bool:
        if self.owner is None or self.owner.is_same(owner) or self.owner.is_same(instead_of):
            self.owner = owner
        return self.owner.is_same(owner)

    def disown(self, owner: HostOwner) -> bool:
        if self.owner is not None and self.owner.is_same(owner):
            self.stop_build()
            self.owner = None
        return self.owner is None

    def set_profile(self, toplevel: str) -> None:
        """As another generation."""
        self.profile_system = toplevel
        self.profile_generation = max(self.generations, default=0) + 1
        self.generations[self.profile_generation] = toplevel

    def used_generations(self) -> set[int]:
        needed = (self.current_system, self.booted_system, self.roots.get("previous"))
        return {
            number
            for number, system in self.generations.items()
            if system in needed or number == self.profile_generation
        }

    def remove_generations(self, numbers: Sequence[int]) -> None:
        if self.active is not None and not self._is_free(self.activations[self.active]):
            raise _refused(self, "remove-generations", f"activation {self.active} is under way")
        gone = set(numbers) - self.used_generations()
        self.generations = {number: system for number, system in self.generations.items() if number not in gone}
        if gone:
            self._install("remove-generations", str(self.profile_system))

    def stage_host_key(self) -> str:
        if self.staged_host_key is None:
            self.staged_host_key = generate_ed25519().public
        return self.staged_host_key

    def install_host_key(self, public: str) -> bool:
        if self.staged_host_key == public:
            self.host_keys, self.staged_host_key = [public], None
        return public in self.host_keys

    def deliver_keys(self, keys: Sequence[MachineKey], gone: Sequence[str]) -> None:
        for key in keys:
            if key.path.startswith("/nix/"):
                what = f"{self.address}: keys: {key.path} lies in /nix, which everybody can read"
                raise Retry(Reason.DELIVERY_FAILED, what)
        restarts: set[str] = set()
        for key in keys:
            before, file = self.keys.get(key.path), self.files.get(key.path)
            if before is not None:
                has_changed = file.content != key.content if file is not None else before.key.digest != key.digest
                restarts |= set(key.restart_units) if has_changed else set()
            has_owner = {key.user, key.group} <= self.accounts
            user, group = (key.user, key.group) if has_owner else ("root", "root")
            self.files[key.path] = File(key.content, key.mode, user, group)
            self.keys[key.path] = Remembered(key, self.boot_id, was_unowned=not has_owner)
        self.restarted += sorted(restarts & self.running_units)
        for path in gone:
            if self.keys.pop(path, None) is not None:
                self.files.pop(path, None)

    def key_facts(self) -> tuple[DeliveredKey, ...]:
        return tuple(
            DeliveredKey(
                path=path,
                mode=known.key.mode,
                user=known.key.user,
                group=known.key.group,
                digest=known.key.digest,
                boot_id=known.boot_id,
                owes_restarts=False,
                was_unowned=known.was_unowned,
                has_owner={known.key.user, known.key.group} <= self.accounts,
                file=_found(self.files.get(path)),
            )
            for path, known in sorted(self.keys.items())
        )

    def root_next(self, toplevel: str) -> bool:
        if toplevel not in self.valid_paths:
            return False
        self.roots["next"] = toplevel
        return True

    def build(self, request: BuildRequest) -> BuildState | None:
        now = self.under_build
        if now is not None and now.ends_at is not None and now.request.drv_path == request.drv_path:
            return BuildState.BUILDING
        if self.root_next(request.toplevel):
            self.stop_build()
            return BuildState.BUILT
        if request.drv_path not in self.valid_paths:
            return None
        self.stop_build()
        outcome = self.builds.get(request.drv_path, self.other_builds)
        seconds = min(outcome.seconds, request.timeout.total_seconds())
        self.under_build = UnderBuild(request, self.now, self.now + seconds)
        self.roots["building"] = request.drv_path
        self.built.append(request.drv_path)
        return BuildState.BUILDING

    def stop_build(self) -> None:
        now = self.under_build
        if now is not None and now.state is BuildState.BUILDING:
            now.state, now.ends_at = BuildState.STOPPED, None
        self.roots.pop("building", None)

    def build_look(self, drv_path: str, offset: int) -> BuildLook | None:
        now = self.under_build
        if now is None or now.request.drv_path != drv_path:
            return None
        log = self.builds.get(drv_path, self.other_builds).log.encode()
        return BuildLook(
            state=now.state,
            is_unit_active=now.ends_at is not None,
            quiet=timedelta(seconds=self.now - now.began_at),
            free_bytes=self.free_bytes,
            service_result=now.service_result,
            output=now.output,
            log=log[offset:].decode(),
            offset=len(log),
            has_more=False,
        )

    def _build_ended(self, now: UnderBuild) -> None:
        outcome, request = self.builds.get(now.request.drv_path, self.other_builds), now.request
        now.ends_at = None
        is_late = outcome.seconds > request.timeout.total_seconds()
        now.service_result = "timeout" if is_late else outcome.service_result
        if now.service_result == "success":
            now.output = outcome.output or request.toplevel
            self.valid_paths.add(now.output)
            self.roots["next"] = now.output
        now.state = BuildState.BUILT if now.output == request.toplevel else BuildState.FAILED
        self.roots.pop("building", None)

    def _next_event(self, until: float) -> tuple[float, Callable[[], None]] | None:
        events: list[tuple[float, Callable[[], None]]] = []
        if (now := self.under_build) is not None and now.ends_at is not None:
            events.append((now.ends_at, lambda: self._build_ended(now)))
        for activation in self.activations.values():
            if activation.unit_ends_at is not None:
                events.append((activation.unit_ends_at, lambda each=activation: self._unit_runs_out(each)))
            if activation.rollback_ends_at is not None:
                events.append((activation.rollback_ends_at, lambda each=activation: self._rolled_back(each)))
            if activation.deadman_at is not None:
                events.append((activation.deadman_at, lambda each=activation: self._expire(each)))
        return min((event for event in events if event[0] <= until), key=lambda event: event[0], default=None)

    def _unit_runs_out(self, activation: Activation) -> None:
        outcome = self.outcome(activation.request.toplevel)
        is_late = outcome.seconds > activation.request.timeout.total_seconds() or math.isinf(outcome.seconds)
        if not is_late:
            self._take_effect(activation, outcome)
        if is_late:
            self._unit_ended(activation, None, "timeout")
        elif outcome.exit_status is None:
            self._unit_ended(activation, None, "signal")
        else:
            result = "success" if outcome.exit_status == 0 else "exit-code"
            self._unit_ended(activation, outcome.exit_status, result)

    def _take_effect(self, activation: Activation, outcome: Switch) -> None:
        if outcome.moves_link:
            self.current_system = activation.request.toplevel
        self.accounts |= set(outcome.makes_accounts)
        for path, known in self.keys.items():  # as the guest module's activation snippet
            if path in self.files and {known.key.user, known.key.group} <= self.accounts:
                self.files[path] = replace(self.files[path], user=known.key.user, group=known.key.group)
        if outcome.stops_sshd:
            self.is_sshd_running = False
            self.cut_connections()
        if outcome.drops_network:
            self.is_silent = True
        if outcome.hides_failed_script:
            activation.log += "Activation script snippet 'test' failed (1)\n"
        self.failed_units = outcome.failed_units

    def _unit_ended(self, activation: Activation, exit_status: int | None, service_result: str) -> None:
        activation.unit_ends_at = None
        activation.exit_status = exit_status
        activation.service_result = service_result
        if activation.state is not ActivationState.SWITCHING:
            return
        request = activation.request
        is_current = self.current_system == request.toplevel
        outcome = self.outcome(request.toplevel)
        if is_current and (exit_status == 0 or (exit_status == 4 and not outcome.hides_failed_script)):
            self.lists_left = False
            activation.state = ActivationState.SWITCHED
            if request.returns:
                activation.deadman_at = self.now + request.confirm_timeout.total_seconds()
        elif exit_status not in (None, 0, 4) and self.current_system == request.previous and not outcome.is_begun:
            activation.state = ActivationState.FAILED
            activation.deadman_at = None
            self.active = None
        else:
            self._return_from(activation, ActivationState.SWITCHING)

    def _expire(self, activation: Activation) -> None:
        activation.deadman_at = None
        states = (ActivationState.PREPARED, ActivationState.SWITCHING, ActivationState.SWITCHED)
        self._return_from(activation, *states, ActivationState.REBOOTING)

    def _return_from(self, activation: Activation, *states: ActivationState) -> None:
        if activation.state in states and not activation.request.returns:
            activation.state = ActivationState.FAILED
            self.active = None
            return
        if activation.state in states:
            activation.state = ActivationState.ROLLING_BACK
        if activation.state is ActivationState.ROLLING_BACK and activation.rollback_ends_at is None:
            activation.unit_ends_at = None
            activation.rollback_ends_at = self.now + self.rollback_seconds

    def _rolled_back(self, activation: Activation) -> None:
        activation.rollback_ends_at = None
        self.is_sshd_running = True
        if activation.request.mode is Mode.RESTART:
            self._restart_back(activation)
            return
        if activation.was_touched:
            self.switches.append(activation.request.previous)
            if not self.can_roll_back:
                return
            self.current_system = activation.request.previous
            self.failed_units = ()
            self.is_silent = False
        activation.state = ActivationState.ROLLED_BACK
        activation.deadman_at = None
        if self.active == activation.request.id:
            self.active = None

    def _restart_back(self, activation: Activation) -> None:
        activation.state = ActivationState.ROLLED_BACK
        self.active = None
        if self.profile_system == activation.request.toplevel:
            self.next_boot = None
            self._install("rollback", activation.request.previous)
        if self.current_system != activation.request.previous:
            self.is_silent = False
            self.reboot()

    def _is_free(self, activation: Activation) -> bool:
        is_way_back = activation.request.mode is Mode.RESTART and activation.state is ActivationState.ROLLING_BACK
        if activation.state in UNDER_WAY and activation.boot_id != self.boot_id and not is_way_back:
            activation.state = ActivationState.ROLLED_BACK
        return activation.state not in (*UNDER_WAY, ActivationState.REBOOTING)

    def _install(self, command: str, toplevel: str) -> None:
        self.boot_entry_unsure = True
        if self.profile_system != toplevel:
            self.set_profile(toplevel)
        error = self.outcome(toplevel).boot_loader_error
        if error is not None:
            raise Retry(Reason.BOOT_ENTRY_FAILED, f"{self.address}: {command}: {error}")
        self.boot_entry = toplevel
        self.boot_entry_unsure = False

    def _install_to_restart(self, request: ActivationRequest) -> None:
        if not request.returns or not self.boots_once or request.previous == request.toplevel:
            self._install("restart", request.toplevel)
            return
        if self.profile_system != request.toplevel:
            self.set_profile(request.toplevel)
        self.boot_entry, self.next_boot, self.boot_entry_unsure = request.previous, request.toplevel, True

    def _prune(self) -> None:
        by_attempt = sorted(self.activations, key=lambda each: int(each.rpartition("-")[2]))
        for old in by_attempt[:-KEPT_ACTIVATIONS]:
            if old != self.active:
                del self.activations[old]

    def _known(self, command: str, activation_id: str) -> Activation:
        if activation_id not in self.activations:
            raise _refused(self, command, f"no activation {activation_id} on this host")
        return self.activations[activation_id]


def _found(file: File | None) -> FoundFile | None:
    if file is None:
        return None
    return FoundFile(stat.S_IFREG | file.mode, file.user, file.group, hashlib.sha256(file.content).hexdigest())


def _refused(machine: FakeMachine, command: str, why: str) -> Retry:
    return Retry(Reason.ACTIVATION_FAILED, f"{machine.address}: {command}: {why}")


@dataclass(eq=False)
class FakeHost:
    """ports.host.Host: one connection to a FakeMachine."""

    machine: FakeMachine
    target: HostTarget
    effects: Effects
    is_cut: bool = field(default=False)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        return not self.is_cut and not self.machine.is_silent

    @effect("facts")
    async def facts(self) -> HostFacts:
        machine = self._reached()
        if machine.is_nixos and machine.state_version is None:
            machine.state_version = machine.version_id
        return HostFacts(
            boot_id=machine.boot_id,
            current_system=machine.current_system,
            booted_system=machine.booted_system,
            profile_system=machine.profile_system,
            profile_generation=machine.profile_generation,
            boot_entry_unsure=machine.boot_entry_unsure,
            lists_left=machine.lists_left,
            is_nixos=machine.is_nixos,
            version_id=machine.version_id,
            state_version=machine.state_version,
            machine=machine.architecture,
            failed_units=tuple(sorted(machine.failed_units)),
            free_bytes=machine.free_bytes,
            activation=machine.activation_facts(),
            highest_attempt=max((each.request.attempt for each in machine.activations.values()), default=0),
            owner=machine.owner,
            building=machine.building,
            keys=machine.key_facts(),
            generations=tuple(
                Generation(number, is_used=number in machine.used_generations())
                for number in sorted(machine.generations)
            ),
            restart_for=() if machine.boots_alike(machine.current_system) else ("kernel",),
        )

    async def changes(self) -> AsyncIterator[None]:
        await self.effects.begin("changes", {})
        while self.machine.can_watch and not self.is_cut:
            yield
            await self.news.wait()
            self.news.clear()

    @asynccontextmanager
    async def nix_daemon(self, trusted_public_key: str) -> AsyncIterator[Path]:
        await self.effects.begin("host.copy", {"trusted_public_key": trusted_public_key})
        yield _socket_of(self._reached())
        self.effects.end("host.copy")

    @effect("host.own")
    async def own(self, owner: HostOwner, instead_of: HostOwner | None = None) -> bool:
        return self._reached().own(owner, instead_of)

    @effect("host.disown")
    async def disown(self, owner: HostOwner) -> bool:
        return self._reached().disown(owner)

    @effect("host.stage_host_key")
    async def stage_host_key(self) -> str:
        return self._reached().stage_host_key()

    @effect("host.install_host_key")
    async def install_host_key(self, public: str) -> bool:
        return self._reached().install_host_key(public)

    @effect("disk_users")
    async def disk_users(self, volume_id: str, device: str) -> str:
        return self._reached().mounted.get(device, "")

    @effect("host.grow_root")
    async def grow_root(self) -> None:
        self._reached().grown += 1

    @effect("host.grow_volume")
    async def grow_volume(self, volume_id: str, device: str) -> None:
        self._reached().grown_volumes.append(volume_id)

    @effect("host.root_next")
    async def root_next(self, toplevel: str) -> bool:
        return self._reached().root_next(toplevel)

    @effect("host.build")
    async def build(self, request: BuildRequest) -> BuildState | None:
        return self._reached().build(request)

    @effect("build_look")
    async def build_look(self, drv_path: str, offset: int) -> BuildLook | None:
        return self._reached().build_look(drv_path, offset)

    @effect("host.stop_build")
    async def stop_build(self) -> None:
        self._reached().stop_build()

    @effect("host.deliver_keys")
    async def deliver_keys(self, keys: Sequence[MachineKey], gone: Sequence[str]) -> None:
        self._reached().deliver_keys(keys, gone)

    @effect("host.claim")
    async def claim(self, request: ActivationRequest) -> bool:
        return self._reached().claim(request)

    @effect("host.activate")
    async def activate(self, request: ActivationRequest) -> None:
        self._reached().activate(request.id)

    @effect("host.hold")
    async def hold(self, activation_id: str, budget: timedelta) -> bool:
        return self._reached().hold(activation_id, budget)

    @effect("probe")
    async def probe(self, probe: Probe, limit: timedelta) -> str:
        return self._reached().probe(probe)

    @effect("host.confirm")
    async def confirm(self, activation_id: str) -> bool:
        return self._reached().confirm(activation_id)

    @effect("host.commit")
    async def commit(self, activation_id: str) -> None:
        self._reached().commit(activation_id)

    @effect("host.commit")
    async def adopt(self, toplevel: str) -> None:
        self._reached().adopt(toplevel)

    @effect("host.remove_generations")
    async def remove_generations(self, numbers: Sequence[int]) -> None:
        self._reached().remove_generations(numbers)

    @effect("host.restart")
    async def restart(self, activation_id: str) -> None:
        self._reached().restart(activation_id)

    @effect("host.rollback")
    async def rollback(self, activation_id: str) -> None:
        self._reached().rollback(activation_id)

    @effect("dry_activate")
    async def dry_activate(self, toplevel: str) -> DryRun:
        machine = self._reached()
        if toplevel not in machine.valid_paths:
            raise _refused(machine, "dry-activate", f"{toplevel} has no bin/switch-to-configuration")
        return DryRun(0, machine.outcome(toplevel).dry_run)

    @effect("activation_log")
    async def activation_log(self, activation_id: str) -> str:
        machine = self._reached()
        if activation_id not in machine.activations:
            raise _refused(machine, "log", f"no activation {activation_id} on this host")
        return machine.activations[activation_id].log

    @effect("close")
    async def close(self) -> None:
        self.is_cut = True
        if self in self.machine.connections:
            self.machine.connections.remove(self)

    def _reached(self) -> FakeMachine:
        if self.machine.is_silent:
            raise OutcomeUnknown(Reason.CONNECT_TIMEOUT, f"{self.target.address} did not answer in time")
        if self.is_cut:
            raise Retry(Reason.CONNECT_TIMEOUT, f"the connection to {self.target.address} was cut")
        if not self.machine.has_shell:
            what = f"the account {self.target.user} on {self.target.address} has no shell that runs commands"
            raise Blocked(Reason.AUTHENTICATION_FAILED, what)
        return self.machine


class FakeHosts:
    """ports.host.Hosts: a network of FakeMachines. Unknown addresses are silent."""

    def __init__(self) -> None:
        self.effects = Effects()
        self.machines: dict[str, FakeMachine] = {}
        self.names: dict[str, tuple[str, ...]] = {}

    def add(self, machine: FakeMachine) -> FakeMachine:
        self.machines[machine.address] = machine
        return machine

    def receive(self, daemon_socket: Path, store_path: str) -> None:
        """Its closure is valid on the machine behind a socket of `nix_daemon`."""
        machine = next((each for each in self.machines.values() if _socket_of(each) == daemon_socket), None)
        if machine is None:  # it has another address by now
            raise Retry(Reason.CONNECT_TIMEOUT, "the connection is gone")
        machine.valid_paths.add(store_path)

    @effect("resolve")
    async def resolve(self, address: str) -> tuple[str, ...]:
        if address in self.names:
            return self.names[address]
        if address.replace(".", "").isdigit() or ":" in address:
            return (address,)
        raise Retry(Reason.CONNECT_TIMEOUT, f"the name {address} does not resolve to an address")

    @effect("host.connect")
    async def connect(self, target: HostTarget) -> FakeHost:
        if target.user != "root":
            raise Blocked(Reason.INVALID_SPEC, f"ssh.user: only root can be used for now, not {target.user}")
        where = f"the SSH client key for {target.address}"
        offered = {parse_private_key(text.encode(), where).public for text in target.client_keys}
        machine = self.machines.get(target.address)
        if machine is None or machine.is_silent:
            raise Retry(Reason.CONNECT_TIMEOUT, f"{target.address} did not answer SSH in time")
        if not machine.is_sshd_running or target.port != machine.port:
            raise Retry(Reason.CONNECTION_REFUSED, f"{target.address} refused the connection")
        if not set(machine.host_keys) & set(target.host_keys):
            raise Blocked(
                Reason.HOST_KEY_MISMATCH,
                f"{target.address} shows the host key {machine.host_keys[0]}; pinned: {', '.join(target.host_keys)}",
            )
        machine.login_attempts += 1
        if offered.isdisjoint(parse_private_key(text.encode(), where).public for text in machine.client_keys):
            raise Blocked(Reason.AUTHENTICATION_FAILED, f"{target.address} refused the client key for {target.user}")
        host = FakeHost(machine, replace(target), self.effects)
        machine.connections.append(host)
        return host


def _socket_of(machine: FakeMachine) -> Path:
    return Path(f"/fake/{machine.address}/nix-daemon")
