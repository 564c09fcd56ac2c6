"""The two grounds that the contract of ports.host is judged on: machines in memory, and a real one under systemd."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import asyncssh

from contract import host_systems
from fakes.host import FakeHost, FakeHosts, FakeMachine, File
from nixops_lab import network
from nixops_lab.machines import OPEN, Machines, MachineSpec, root_filesystem
from nixops_operator.adapters.ssh.hosts import AsyncsshHosts
from nixops_operator.errors import Retry
from nixops_operator.facts.host import ActivationRequest, ActivationState, BuildRequest, HostFacts, HostTarget, Mode
from nixops_operator.ports.host import Host, Hosts

ADDRESS = "192.0.2.10"
SILENT_ADDRESS = "192.0.2.99"
NAME = "given-host"
LINKS = {"/run/current-system": "current_system", "/nix/var/nix/profiles/system": "profile_system"}
LIMIT = 60  # s; what a machine may take for anything here. Far above what it needs


class Bench(Protocol):
    """One machine that runs its base system, and a way to look at it that is not the port."""

    hosts: Hosts
    target: HostTarget
    base: str

    async def deliver(self, host: Host, name: str) -> str:
        """The toplevel of one of SYSTEMS, valid on the machine."""

    def store_path(self, name: str) -> str:
        """The same, wherever it is."""

    def to_build(self, name: str) -> BuildRequest:
        """A request to build one of TRIALS. Its derivation is not on the machine."""

    async def bring_derivation(self, host: Host, drv_path: str) -> None:
        """Through `nix_daemon`."""

    async def pause(self) -> None:
        """A moment, between two looks."""

    async def boot_entry(self) -> str:
        """The toplevel that the machine would boot."""

    async def kill_switch(self, activation_id: str) -> None:
        """SIGKILL to all of the activation's processes; systemd goes on."""

    async def kill_switch_and_finish(self, activation_id: str) -> None:
        """The same, and nothing records the end."""

    async def let_dead_man_wake(self, activation_id: str, timer: str = "deadman") -> None:
        """As if the time of the timer that was armed before the activation were over. `timer`: or of `confirm`."""

    async def delay_way_back(self) -> None:
        """What returns to another system waits from now on."""

    async def end_delay(self) -> None:
        """It waits no longer."""

    async def stop_sshd(self) -> None:
        """By hand."""

    async def take_shell(self) -> None:
        """From root, as for an account that nobody is to log in to."""

    async def reboot(self) -> None:
        """Without being asked by us."""

    async def file(self, path: str) -> File | None:
        """None: there is none."""

    async def point(self, link: str, toplevel: str) -> None:
        """/run/current-system, or the profile, by hand."""

    async def set_profile(self, toplevel: str) -> None:
        """By hand, as another generation."""

    async def write_file(self, path: str, file: File) -> None:
        """By hand."""

    async def remove_file(self, path: str) -> None:
        """By hand."""

    async def add_account(self, name: str) -> None:
        """A user, and a group of that name."""

    async def run_unit(self, name: str) -> None:
        """A service that runs for ever."""

    async def restarts(self, name: str) -> int:
        """How often that service was restarted."""

    async def switches(self) -> int:
        """How often switch-to-configuration was started on the machine."""


def request(
    toplevel: str,
    facts: HostFacts,
    attempt: int | None = None,
    timeout: float = 30,
    confirm_timeout: float = 30,
    mode: Mode = Mode.SWITCH,
    returns: bool = True,
) -> ActivationRequest:
    """From what runs to `toplevel`, with the next attempt's number. Times in s."""
    assert facts.current_system is not None
    number = facts.highest_attempt + 1 if attempt is None else attempt
    times = timedelta(seconds=timeout), timedelta(seconds=confirm_timeout)
    return ActivationRequest(toplevel, facts.current_system, number, *times, mode, returns)


def build_request(drv_path: str, toplevel: str, timeout: float = 600, silent: float = 600) -> BuildRequest:
    """Times in s."""
    return BuildRequest(drv_path, toplevel, timedelta(seconds=timeout), timedelta(seconds=silent))


async def reached(bench: Bench) -> Host:
    """A new connection, as soon as the machine takes one."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                return await bench.hosts.connect(bench.target)
            except Retry:
                await bench.pause()


async def seen(bench: Bench, *states: ActivationState) -> HostFacts:
    """The first look that shows the activation in one of these states, over as many connections as it takes."""
    facts = None
    try:
        async with asyncio.timeout(LIMIT):
            while True:
                host = await reached(bench)
                try:
                    while facts is None or facts.activation is None or facts.activation.state not in states:
                        await bench.pause()
                        facts = await host.facts()
                except Retry:
                    continue
                else:
                    return facts
                finally:
                    await host.close()
    except TimeoutError:
        raise AssertionError(f"never {', '.join(states)}; last seen: {facts}") from None


class MemoryBench:
    def __init__(self) -> None:
        self.hosts = FakeHosts()
        self.machine = self.hosts.add(FakeMachine(ADDRESS))
        self.target = self.machine.target()
        self.base = str(self.machine.current_system)

    def store_path(self, name: str) -> str:
        number = list(host_systems.SYSTEMS).index(name) + 1
        return f"/nix/store/{number:08d}{'0' * 24}-nixos-system-{name.replace(' ', '-')}"

    async def deliver(self, host: Host, name: str) -> str:
        toplevel = self.store_path(name)
        self.machine.outcomes[toplevel] = host_systems.SYSTEMS[name].switch
        async with host.nix_daemon("contract-test-1:" + "A" * 43 + "=") as socket:
            self.hosts.receive(socket, toplevel)
        return toplevel

    def to_build(self, name: str) -> BuildRequest:
        number = list(host_systems.TRIALS).index(name) + 1
        path = f"/nix/store/{number:08d}{'1' * 24}-{name}"
        self.machine.builds[f"{path}.drv"] = host_systems.TRIALS[name].build
        return build_request(f"{path}.drv", path)

    async def bring_derivation(self, host: Host, drv_path: str) -> None:
        async with host.nix_daemon("contract-test-1:" + "A" * 43 + "=") as socket:
            self.hosts.receive(socket, drv_path)

    async def pause(self) -> None:
        self.machine.advance(0.5)

    async def boot_entry(self) -> str:
        return str(self.machine.boot_entry)

    async def kill_switch(self, activation_id: str) -> None:
        self.machine.kill_unit(activation_id)

    async def kill_switch_and_finish(self, activation_id: str) -> None:
        self.machine.vanish_unit(activation_id)

    async def let_dead_man_wake(self, activation_id: str, timer: str = "deadman") -> None:
        deadman_at = self.machine.activations[activation_id].deadman_at
        assert deadman_at is not None
        self.machine.advance(deadman_at - self.machine.now)

    async def delay_way_back(self) -> None:
        self.machine.rollback_seconds = 60.0

    async def end_delay(self) -> None:
        self.machine.advance(self.machine.rollback_seconds)

    async def stop_sshd(self) -> None:
        self.machine.is_sshd_running = False

    async def take_shell(self) -> None:
        self.machine.has_shell = False

    async def reboot(self) -> None:
        self.machine.reboot()

    async def file(self, path: str) -> File | None:
        return self.machine.files.get(path)

    async def point(self, link: str, toplevel: str) -> None:
        setattr(self.machine, LINKS[link], toplevel)
        self.machine.tell()

    async def set_profile(self, toplevel: str) -> None:
        self.machine.set_profile(toplevel)

    async def write_file(self, path: str, file: File) -> None:
        self.machine.files[path] = file
        self.machine.tell()

    async def remove_file(self, path: str) -> None:
        del self.machine.files[path]
        self.machine.tell()

    async def add_account(self, name: str) -> None:
        self.machine.accounts.add(name)

    async def run_unit(self, name: str) -> None:
        self.machine.running_units.add(name)

    async def restarts(self, name: str) -> int:
        return self.machine.restarted.count(name)

    async def switches(self) -> int:
        return len(self.machine.switches)


class MachineBench:
    def __init__(self, machines: Machines, hosts: AsyncsshHosts, target: HostTarget) -> None:
        self.machines = machines
        self.hosts = hosts
        self.target = target
        self.base = ""
        self.systems = host_systems.build()

    def store_path(self, name: str) -> str:
        return self.systems.toplevels[name]

    async def deliver(self, host: Host, name: str) -> str:
        toplevel = self.store_path(name)
        status, said = await self.copy(host, toplevel)
        assert status == 0, said
        return toplevel

    async def copy(self, host: Host, path: str, *options: str, public_key: str | None = None) -> tuple[int, str]:
        """`nix copy` of the closure of `path`: its exit status and messages."""
        async with host.nix_daemon(public_key or self.systems.public_key) as socket:
            process = await asyncio.create_subprocess_exec(
                *self.systems.copy_argv(path, socket, *options),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    def to_build(self, name: str) -> BuildRequest:
        return build_request(*self.systems.trial(name))

    async def bring_derivation(self, host: Host, drv_path: str) -> None:
        status, said = await self.copy(host, drv_path, "--derivation")
        assert status == 0, said

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        """Output of a command on the machine, from outside."""
        done = await self.machines.run(NAME, argv, stdin)
        assert done.exit_status == 0, f"{argv}: {done.stderr.decode()}{done.stdout.decode()}"
        return done.stdout.decode()

    async def pause(self) -> None:
        await asyncio.sleep(0.05)

    async def boot_entry(self) -> str:
        return (await self.run("cat", "/boot/nixos-entry")).strip()

    async def kill_switch(self, activation_id: str) -> None:
        await self.run("systemctl", "kill", "--signal=SIGKILL", f"nixops-activate-{activation_id}.service")

    async def kill_switch_and_finish(self, activation_id: str) -> None:
        agent = f"/var/lib/nixops/activation/{activation_id}/agent"
        await self.run("mv", agent, f"{agent}.away")
        await self.kill_switch(activation_id)
        unit = f"nixops-activate-{activation_id}.service"
        while (await self.run("systemctl", "show", "--property=ActiveState", "--value", unit)).strip() != "inactive":
            await self.pause()
        await self.run("mv", f"{agent}.away", agent)

    async def let_dead_man_wake(self, activation_id: str, timer: str = "deadman") -> None:
        unit = f"nixops-{timer}-{activation_id}"
        assert (await self.run("systemctl", "is-active", f"{unit}.timer")).strip() == "active"
        await self.run("systemctl", "start", "--no-block", f"{unit}.service")

    async def delay_way_back(self) -> None:
        """switch-to-configuration is refused, and tried again, while somebody else has its lock."""
        held = "/run/nixos/switch-to-configuration.lock"
        await self.run("mkdir", "-p", "/run/nixos")
        await self.run("systemd-run", "--unit=lock-holder", "flock", held, "sleep", "infinity")
        while (await self.run("sh", "-c", f"flock --nonblock {held} true && echo free || echo held")) != "held\n":
            await self.pause()

    async def end_delay(self) -> None:
        await self.run("systemctl", "stop", "lock-holder.service")

    async def stop_sshd(self) -> None:
        await self.run("systemctl", "stop", "sshd.service")

    async def take_shell(self) -> None:
        await self.set_shell("/usr/sbin/nologin")

    async def set_shell(self, shell: str) -> None:
        """Root's, by hand."""
        await self.run("sed", "-i", f"s|^\\(root:.*:\\)[^:]*$|\\1{shell}|", "/etc/passwd")

    async def reboot(self) -> None:
        await self.machines.reboot(NAME)

    async def file(self, path: str) -> File | None:
        # Every byte is to come through as it is.
        looked = 'if [ -f "$0" ]; then stat -c "%a %U %G" "$0" && base64 --wrap=0 "$0"; fi'
        found = (await self.run("sh", "-c", looked, path)).split("\n")
        if found == [""]:
            return None
        mode, user, group = found[0].split(" ")
        return File(base64.b64decode(found[1]), int(mode, 8), user, group)

    async def point(self, link: str, toplevel: str) -> None:
        await self.run("ln", "-sfn", toplevel, link)

    async def set_profile(self, toplevel: str) -> None:
        await self.run("nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", toplevel)

    async def write_file(self, path: str, file: File) -> None:
        written = f'cat >"$0" && chmod {file.mode:o} "$0" && chown {file.user}:{file.group} "$0"'
        await self.run("sh", "-c", written, path, stdin=file.content)

    async def remove_file(self, path: str) -> None:
        await self.run("rm", path)

    async def add_account(self, name: str) -> None:
        await self.run("useradd", "--system", "--user-group", name)

    async def run_unit(self, name: str) -> None:
        counted = f"echo >>/root/starts-of-{name}; exec sleep infinity"
        await self.run("systemd-run", f"--unit={name}", "sh", "-c", counted)
        await self._starts(name, at_least=1)

    async def restarts(self, name: str) -> int:
        """Restarts are queued when the call returns: waits until none is."""
        while (await self.run("systemctl", "list-jobs", "--no-legend", name)).strip():
            await self.pause()
        return await self._starts(name, at_least=1) - 1

    async def _starts(self, name: str, at_least: int) -> int:
        while True:
            found = len((await self.run("sh", "-c", f"cat /root/starts-of-{name} 2>/dev/null || true")).splitlines())
            if found >= at_least:
                return found
            await self.pause()

    async def switches(self) -> int:
        """Of the log: both ways of going to a system write one line as they begin."""
        lines = (await self.run("journalctl", "--identifier=nixos", "--output=cat", "--no-pager")).splitlines()
        return sum(line.startswith("switching to system configuration") for line in lines)


@asynccontextmanager
async def in_memory() -> AsyncIterator[MemoryBench]:
    yield MemoryBench()


@asynccontextmanager
async def on_machine(
    authorized: Sequence[asyncssh.SSHKey] = (), suite: str | None = None
) -> AsyncIterator[MachineBench]:
    """Needs root. `suite`: the Debian release, and so the Nix, of the machine; else this computer's own. The first use
    on a computer builds the root file system of machines, which takes minutes."""
    root = await asyncio.to_thread(root_filesystem.build, host_systems.assembled(), suite)
    folder = Path(tempfile.mkdtemp(prefix="nixops-contract-"))
    namespace = f"nixops-contract-{secrets.token_hex(3)}"
    network.create(namespace)
    client_key, host_key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    machines = Machines(folder, namespace, root)
    try:
        await machines.start()
        await machines.create(_spec(host_key, [client_key, *authorized]))
        await machines.set_rules(NAME, OPEN, OPEN)
        await machines.start(NAME)
        target = HostTarget(ADDRESS, 22, "root", (_private(client_key),), (_public(host_key),))
        bench = MachineBench(machines, AsyncsshHosts(), target)
        with inside(namespace):
            host = await reached(bench)
            bench.base = str((await host.facts()).current_system)
            await host.close()
            yield bench
    finally:
        await machines.destroy(NAME)  # at once: nobody looks at how it goes off
        await machines.stop()
        network.delete(namespace)
        await asyncio.to_thread(shutil.rmtree, folder)


BENCHES = {"memory": in_memory, "machine": on_machine}


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile are of that network namespace (setns(2)); Python has no os.setns before
    3.12."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(network.NAMESPACES / namespace, os.O_RDONLY)
    try:
        enter(there)
        yield
    finally:
        enter(before)
        os.close(before)
        os.close(there)


def is_in_memory(host: Host) -> bool:
    return isinstance(host, FakeHost)


def _spec(host_key: asyncssh.SSHKey, authorized: Sequence[asyncssh.SSHKey]) -> MachineSpec:
    private = _private(host_key).strip().replace("\n", "|")
    return MachineSpec(
        name=NAME,
        private_address=ADDRESS,
        public_address=None,
        release=host_systems.RELEASE,
        user_data=f"SSH_HOST_ED25519_KEY_PUB:{_public(host_key)}\nSSH_HOST_ED25519_KEY:{private}\n",
        authorized_keys=tuple(_public(key) for key in authorized),
    )


def _private(key: asyncssh.SSHKey) -> str:
    return key.export_private_key("openssh").decode()


def _public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])
