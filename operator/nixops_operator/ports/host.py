"""A machine, as SSH and its own init system show it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from nixops_operator.effects import effect, look, port
from nixops_operator.facts.health import Probe
from nixops_operator.facts.host import (
    ActivationFacts,
    ActivationRequest,
    ActivationState,
    BuildLook,
    BuildRequest,
    BuildState,
    DryRun,
    HostFacts,
    HostOwner,
    HostTarget,
    MachineKey,
)

__all__ = [
    "ActivationFacts",
    "ActivationRequest",
    "ActivationState",
    "BuildLook",
    "BuildRequest",
    "BuildState",
    "DryRun",
    "Host",
    "HostFacts",
    "HostOwner",
    "HostTarget",
    "Hosts",
    "MachineKey",
]


@port
class Host(Protocol):
    """One held SSH connection to one machine. Answers are bounded (1 MiB, 30 s unless said otherwise).

    Raises, all: Retry (`ConnectTimeout`, `ConnectionRefused`) when the connection is cut or a command does not answer
    in time; Blocked (`AuthenticationFailed`) when the account's shell does not run commands, or the account is not
    uid 0; Blocked (`ActivationFailed`) only where said.
    """

    @property
    def target(self) -> HostTarget: ...

    @property
    def is_open(self) -> bool:
        """Whether the connection is still up, as far as its keep-alives have shown."""

    @look
    async def facts(self) -> HostFacts:
        """One look. Changes nothing but, at first contact, /var/lib/nixops/machine (the state version, written
        once)."""

    @look
    def changes(self) -> AsyncIterator[None]:
        """One item once the host watches what `facts` tells of, and then one whenever something of that may have
        changed: links, profile, keys, the state of an activation, units that fail. What happened is for `facts` to
        say. Ends with the connection; at once, without an item, on a host that cannot watch (it has no inotify-tools);
        and where the host ends it. Raises nothing."""

    @effect("host.copy")
    def nix_daemon(self, trusted_public_key: str) -> AbstractAsyncContextManager[Path]:
        """A Unix socket (in a private folder, mode 0600) of which each connection is joined to an own `nix-daemon
        --stdio` on the host.

        The daemon trusts `trusted_public_key` (`<name>:<base64>`) besides the host's own keys, and checks signatures.
        What goes through it is the effect. Repeating: safe, a path is registered when it is complete. A Retry that
        leaves the context comes out with the daemon's last words added, and what of /nix/store is used up: of a daemon
        that dies, its client sees nothing but the end of the stream.
        """

    @effect("host.own")
    async def own(self, owner: HostOwner, instead_of: HostOwner | None = None) -> bool:
        """Write down on a given host whose it is, where nobody else has.

        True if it is this owner's now (also when it was before; then its name is brought up to date); False if it is
        another's. `instead_of`: an owner that is known to have gone, and may be replaced. Of several who ask at once
        one gets True. Repeating: safe. Must not be called with HostOwner's empty words.
        """

    @effect("host.disown")
    async def disown(self, owner: HostOwner) -> bool:
        """Take this owner's name off the host, and end what it builds for him. True if it is nobody's now, False if
        another's. Repeating: safe."""

    @effect("host.stage_host_key")
    async def stage_host_key(self) -> str:
        """Have the machine make a host key beside the one that it shows, and return its public half, `<type> <base64>`;
        the private one never leaves the machine. Repeating: safe, the same key until it is installed."""

    @effect("host.install_host_key")
    async def install_host_key(self, public: str) -> bool:
        """Have the machine show the staged key from now on. To be called once both keys are pinned: the old one is gone
        then. Connections that are open stay.

        True if sshd shows it to whoever comes next, a moment later at most; False if this key is neither staged nor
        installed (nothing is changed). Repeating: safe.
        """

    @effect("host.root_next")
    async def root_next(self, toplevel: str) -> bool:
        """Protect a copied system from the host's garbage collector.

        True if its whole closure is valid on the host, and is now the root `next`; False if paths are missing (nothing
        is changed). Repeating: safe.
        """

    @effect("host.build")
    async def build(self, request: BuildRequest) -> BuildState | None:
        """Have the host build a system, with its own Nix, sandbox and binary caches, in a detached unit.

        BUILT: it is valid there already, and now the root `next`; nothing was started. BUILDING: its unit runs, since
        now or since before. None: the derivation is not there (see Nix.copy_derivations); nothing is changed.
        Repeating: safe; a build that was cut or has failed begins again, and goes on with what the store has. A build
        of anything else is ended first.
        """

    @look
    async def build_look(self, drv_path: str, offset: int) -> BuildLook | None:
        """How that build stands, and its log (`--log-format internal-json`) from byte `offset` on. None if there never
        was such a build, or another one has taken its place."""

    @effect("host.stop_build")
    async def stop_build(self) -> None:
        """End whatever the host builds for us. What is in its store stays. Repeating: safe."""

    @effect("host.deliver_keys")
    async def deliver_keys(self, keys: Sequence[MachineKey], gone: Sequence[str]) -> None:
        """Put files with secrets on the machine, and take those at the paths `gone` off again. Limit 2 min.

        Nothing is replaced before everything has arrived; then each file is replaced by one rename, whole, with its
        mode, and with its owner where user and group exist. A folder that is missing is made, 0750 and of the group
        `keys`. The machine remembers each path before anything lies there, and afterwards the digest (`facts`). Where
        the content of a file that it knew has become another one, units in `restart_units` that run are restarted. Of
        `gone` those go that it remembers; others are nobody's of ours. Repeating: safe; restarts that a cut call owed
        are made up for. Raises Retry (`DeliveryFailed`) where a file cannot be written, or lies in /nix.
        """

    @look
    async def disk_users(self, volume_id: str, device: str) -> str:
        """Where the EBS volume is mounted, or how it is used otherwise, in a few words; empty if nothing uses it, or
        the machine has no such disk. `device`: as EC2 attaches it, for machines whose disks carry no volume ids."""

    @effect("host.grow_root")
    async def grow_root(self) -> None:
        """Grow the partition of the root file system to the end of its disk, and the file system into it. Limit 5 min.

        ext2 to ext4, xfs and btrfs, mounted. Where the root file system lies on no disk, nothing is done. Repeating:
        safe. Raises Retry (`ProgressingWithRetry`) with the tool's words.
        """

    @effect("host.grow_volume")
    async def grow_volume(self, volume_id: str, device: str) -> None:
        """The same of an EBS volume: its partitions, and those of its file systems that are of these kinds. `device`:
        as of disk_users. Raises Retry, too, where the machine has no such disk, and Retry (`Pending`) while one of
        them is not mounted.
        """

    @effect("host.claim")
    async def claim(self, request: ActivationRequest) -> bool:
        """Claim the host for one activation.

        Makes /var/lib/nixops/activation/<id> and the link `active`, each of which can be made once; state `prepared`.
        Roots `previous`. True if this request now holds the claim (also when it did before); False if another id holds
        it: look at `facts`.
        """

    @effect("host.activate")
    async def activate(self, request: ActivationRequest) -> None:
        """Arm the dead man's timer, unless the request does not return, then start the detached unit. Needs the claim;
        state `switching`. Not of mode `boot`: what is committed is activated by the boot.

        Repeating: safe; a running or ended unit of this id is never started again.
        """

    @effect("host.hold")
    async def hold(self, activation_id: str, budget: timedelta) -> bool:
        """Tell the host that it was reached again, and that it is still to be seen whether it is well: from now on the
        dead man waits for the budget, at most ten minutes. To be called on a connection made after `switched`.

        True if the activation is held, or confirmed already; False if the dead man was faster. Repeating: safe; only
        the first call moves the timer.
        """

    @look
    async def probe(self, probe: Probe, limit: timedelta) -> str:
        """One health check, made on the host itself. Empty if it passes, else why it does not, in a few words: never
        of what the checked thing said. A command is expected to change nothing."""

    @effect("host.confirm")
    async def confirm(self, activation_id: str) -> bool:
        """Tell the host that it was reached again. To be called on a connection made after `switched`.

        True if the state is now `confirmed`, or further (of mode `restart` at once `committed`); False if the dead man
        was faster. Repeating: safe.
        """

    @effect("host.commit")
    async def commit(self, activation_id: str) -> None:
        """Make the confirmed system the profile and the boot entry, drop roots `next` and link `active`. Limit 5 min.
        In mode `test` only the latter; in mode `boot` of a claimed system, that need not run.

        Repeating: safe. Raises Retry (`BootEntryFailed`) with the last useful line of the output if profile or boot
        loader refuse; (`ActivationFailed`) where another activation has superseded it.
        """

    @effect("host.commit")
    async def adopt(self, toplevel: str) -> None:
        """Commit a system that runs already without an activation of ours (profile drift). As `commit`."""

    @effect("host.remove_generations")
    async def remove_generations(self, numbers: Sequence[int]) -> None:
        """Remove these generations of the system profile, which protects them from the garbage collector, and their
        boot entries. Those that are in use by now stay. Limit 5 min. Repeating: safe. Raises as `commit`; then they are
        gone, and the boot entries are written anew by the next `commit` or `adopt`."""

    @effect("host.restart")
    async def restart(self, activation_id: str) -> None:
        """Of a claim of mode `restart`: make its system the profile and the boot entry, and restart the machine; state
        `rebooting`. In a machine that boots a system of ours for the first time a timer waits for `confirm`, else it
        restarts into the previous one. Limit 5 min. Repeating: safe; a machine that has restarted since the claim is
        not restarted again. Raises as `commit`."""

    @effect("host.rollback")
    async def rollback(self, activation_id: str) -> None:
        """Ask the host to return to the previous system now. Returns when it has begun; `facts` shows the end."""

    @look
    async def dry_activate(self, toplevel: str) -> DryRun:
        """What activating this system would do. Changes nothing. Limit 2 min. Raises Retry (`ActivationFailed`) if the
        system is not there."""

    @look
    async def activation_log(self, activation_id: str) -> str:
        """Tail of the activation's output, at most 16 KiB, ANSI stripped."""

    @look
    async def close(self) -> None:
        """End the connection. Nothing on the host ends with it. Limit 5 s: then it is cut."""


@port
class Hosts(Protocol):
    """Makes connections."""

    @look
    async def resolve(self, address: str) -> tuple[str, ...]:
        """A host name's or address' IP addresses, each once: IPv4 first, then by number; without those that this
        computer has no route to, unless there are no others. Never empty. Raises Retry (`ConnectTimeout`) if it does
        not resolve. The system's resolver sets the time limit."""

    @effect("host.connect")
    async def connect(self, target: HostTarget) -> Host:
        """A new TCP connection and handshake; the host must show a pinned key before anything of ours is sent.

        Limits: connect 10 s, login 20 s. Raises Retry (`ConnectTimeout`, `ConnectionRefused`), Blocked
        (`AuthenticationFailed`, `HostKeyMismatch` with the fingerprints of both keys, `SecretNotFound` if the client
        key cannot be read as a private key).
        """
