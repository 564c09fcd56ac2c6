"""Machines of the lab, as EC2 and the operator meet them. Needs root; the first run builds the root file system."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nixops_lab import network, paths
from nixops_lab.machines import OPEN, Completed, Disk, MachineError, Machines, MachineSpec, Rule, clean, root_filesystem
from nixops_lab.machines.cgroups import mounted
from nixops_lab.machines.wires import CLIENT_ADDRESS, wire_of

pytestmark = pytest.mark.lab

NAME = "i-0123456789abcdef0"
SSH = Rule("tcp", 22, 22, ("0.0.0.0/0",))
BOOT_SECONDS = 60
# Then ADDRESS/PORT: succeeds if that answers within a second.
DIAL = ("timeout", "1", "bash", "-c", '<"/dev/tcp/$0"')


@dataclass(frozen=True)
class Keys:
    """Two key pairs in files: the client's, and a host's for user data."""

    client: Path
    host: Path

    @property
    def user_data(self) -> str:
        private = self.host.read_text().strip().replace("\n", "|")
        return f"SSH_HOST_ED25519_KEY_PUB:{public(self.host)}\nSSH_HOST_ED25519_KEY:{private}\n"


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


@dataclass(frozen=True)
class Session:
    """`cat` at the other end of an SSH connection."""

    process: asyncio.subprocess.Process

    async def echo(self, line: bytes) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        return await self.process.stdout.readline()

    async def end(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass(frozen=True)
class Lab:
    """Machines, and a client in the lab's network that knows them by `known_hosts` only."""

    machines: Machines
    folder: Path
    namespace: str
    root: Path
    keys: Keys

    def spec(
        self, name: str = NAME, private_address: str = "172.31.5.4", public_address: str | None = None
    ) -> MachineSpec:
        keys = (public(self.keys.client),)
        return MachineSpec(name, private_address, public_address, "25.11", self.keys.user_data, keys)

    async def boot(self, spec: MachineSpec) -> None:
        """Created, open to all, and at the point where SSH answers."""
        await self.machines.create(spec)
        await self.machines.set_rules(spec.name, OPEN, OPEN)
        await self.machines.start(spec.name)
        await self.until_login(spec)

    async def until_login(self, spec: MachineSpec) -> None:
        async def is_in() -> bool:
            return (await self.ssh(spec.private_address, "true")).exit_status == 0

        await until(is_in)

    def ssh_argv(self, address: str, *command: str) -> list[str]:
        known = self.folder / f"known_hosts-{address}"
        known.write_text(f"{address} {public(self.keys.host)}\n")
        options = ["BatchMode=yes", "ConnectTimeout=1", f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes"]
        flags = [word for option in options for word in ("-o", option)]
        return [
            *network.entering(self.namespace),
            "ssh",
            "-i",
            str(self.keys.client),
            *flags,
            f"root@{address}",
            *command,
        ]

    async def ssh(self, address: str, *command: str) -> Completed:
        return await finished(self.ssh_argv(address, *command))

    async def session(self, address: str) -> "Session":
        """An SSH connection that is established and stays."""
        argv = self.ssh_argv(address, "cat")
        session = Session(await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert await session.echo(b"hello\n") == b"hello\n"
        return session

    async def output(self, name: str, *argv: str) -> str:
        """Of a command that succeeds in the machine, run from outside."""
        completed = await self.machines.run(name, argv)
        assert completed.exit_status == 0, completed
        return completed.stdout.decode().strip()

    async def until_console(self, text: str) -> None:
        async def says() -> bool:
            return text in plain(self.machines.console(NAME))

        await until(says)

    async def boot_id(self, name: str) -> str:
        return await self.output(name, "cat", "/proc/sys/kernel/random/boot_id")


def plain(console: Path) -> str:
    """Without the colours."""
    return console.read_text().replace("\x1b[0m", "").replace("\x1b[0;1;39m", "").replace(".service", "")


async def finished(argv: list[str]) -> Completed:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Completed(process.returncode, stdout, stderr)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(BOOT_SECONDS):
        while not await condition():  # noqa: ASYNC110 - it comes true in a machine, which sets no Event
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nixpkgs = tmp_path_factory.mktemp("nixpkgs") / "tree"
    subprocess.run([paths.SOURCES / "nixpkgs" / "assemble.sh", nixpkgs], check=True)
    return root_filesystem.build(nixpkgs)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("client", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name], check=True)
    return Keys(folder / "client", folder / "host")


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[str]:
    name = paths.LabPaths.of(tmp_path).namespace
    network.create(name)
    yield name
    clean(tmp_path)
    network.delete(name)


@pytest.fixture
async def lab(tmp_path: Path, namespace: str, root: Path, keys: Keys) -> AsyncIterator[Lab]:
    machines = Machines(tmp_path, namespace, root)
    await machines.start()
    yield Lab(machines, tmp_path, namespace, root, keys)
    await machines.stop()


def read(path: str) -> str:
    return Path(path).read_text()


def cgroups_of(pid: int | None) -> list[str]:
    """Its cgroup in each hierarchy, without those of a machine's units below."""
    lines = read(f"/proc/{pid}/cgroup").splitlines()
    return [line.split(":", 2)[2].removesuffix("/payload/init.scope").removesuffix("/init.scope") for line in lines]


def groups_of(namespace: str) -> list[str]:
    """The lab's own cgroup in each hierarchy."""
    return [str(each / namespace) for each in mounted() if (each / namespace).exists()]


def leftovers(namespace: str, folder: Path) -> dict[str, list[str]]:
    """What a lab's machines hold of this host; empty lists when nothing is left."""
    cgroups = [below for group in groups_of(namespace) for below, _, _ in os.walk(group)]
    links = subprocess.run(
        [*network.entering(namespace), "ip", "-o", "link"], capture_output=True, text=True, check=True
    )
    return {
        "processes": [pid for each in cgroups for pid in (Path(each) / "cgroup.procs").read_text().split()],
        "cgroups": cgroups,
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line],
        "wires": [line for line in links.stdout.splitlines() if "vm-" in line],
        "disks": [each.name for each in (folder / "machines").glob("*")],
        "loops": [
            each.parent.parent.name
            for each in Path("/sys/block").glob("loop*/loop/backing_file")
            if str(folder) in each.read_text()
        ],
    }


NOTHING: dict[str, list[str]] = {"processes": [], "cgroups": [], "mounts": [], "wires": [], "disks": [], "loops": []}


def stop_init(leader: int | None) -> None:
    """Init takes no signal any more, and its machine no request."""
    assert leader is not None
    os.kill(leader, signal.SIGSTOP)


class TestFirstBoot:
    async def test_admits_root_and_proves_itself_with_the_host_key_of_its_user_data(self, lab: Lab) -> None:
        await lab.boot(lab.spec(public_address="198.51.100.7"))
        completed = await lab.ssh("198.51.100.7", "hostname; echo $SSH_CONNECTION")
        hostname, connection = completed.stdout.decode().splitlines()
        assert hostname == "ip-172-31-5-4"
        assert connection.split()[0] == CLIENT_ADDRESS
        assert connection.split()[2:] == ["172.31.5.4", "22"]

    async def test_makes_a_host_key_where_user_data_has_none(self, lab: Lab) -> None:
        await lab.machines.create(replace(lab.spec(), user_data="#!/bin/sh\n"))
        await lab.machines.set_rules(NAME, OPEN, OPEN)
        await lab.machines.start(NAME)
        scan = [*network.entering(lab.namespace), "ssh-keyscan", "-t", "ed25519", "172.31.5.4"]
        offered: list[bytes] = []

        async def answers() -> bool:
            offered[:] = (await finished(scan)).stdout.splitlines()
            return bool(offered)

        await until(answers)
        assert offered[0].startswith(b"172.31.5.4 ssh-ed25519 ")
        assert public(lab.keys.host).split()[1].encode() not in offered[0]

    async def test_shows_its_host_key_on_the_console(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        await lab.until_console("-----END SSH HOST KEY KEYS-----")
        assert public(lab.keys.host) in lab.machines.console(NAME).read_text()

    @pytest.mark.parametrize("release", ["25.05", "25.11"])
    async def test_runs_the_activated_system_of_its_image(self, lab: Lab, release: str) -> None:
        await lab.boot(replace(lab.spec(), release=release))
        links = ["/run/current-system", "/run/booted-system", "/nix/var/nix/profiles/system"]
        systems = (await lab.output(NAME, "readlink", "-f", *links)).splitlines()
        assert len(set(systems)) == 1
        assert systems[0].endswith(f"-nixos-system-unnamed-{release}.lab")
        assert f'VERSION_ID="{release}"' in await lab.output(NAME, "cat", "/etc/os-release")
        assert await lab.output(NAME, "readlink", "/nix/var/nix/profiles/system") == "system-1-link"
        await lab.output(NAME, "test", "-e", "/etc/NIXOS")
        await lab.output(NAME, "nix-store", "--verify-path", systems[0])
        assert await lab.output(NAME, "systemctl", "is-system-running", "--wait") == "running"

    async def test_refuses_a_release_without_an_image(self, lab: Lab) -> None:
        with pytest.raises(MachineError, match=r"no image of release '19\.03'; there are: 25\.05, 25\.11"):
            await lab.machines.create(replace(lab.spec(), release="19.03"))
        await lab.boot(lab.spec())

    async def test_gives_the_given_host_a_system_of_its_own(self, lab: Lab) -> None:
        spec = lab.spec("given-host", "192.0.2.10")
        await lab.boot(spec)
        completed = await lab.ssh("192.0.2.10", "hostname; readlink -f /run/current-system")
        hostname, system = completed.stdout.decode().splitlines()
        assert hostname == "given-host"
        assert system.endswith("-nixos-system-given-host-25.11.lab")


VOLUME = "vol-0123456789abcdef0"
BY_ID = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"
GIB = 1 << 30


class TestVolumes:
    async def test_a_volume_keeps_what_is_in_it_over_boots_and_machines(self, lab: Lab) -> None:
        other = lab.spec("i-0aaaaaaaaaaaaaaa0", "172.31.5.5")
        await lab.boot(lab.spec())
        await lab.machines.attach_disk(NAME, Disk(VOLUME, "/dev/sdf", 1))
        names = await lab.output(NAME, "readlink", "-f", BY_ID, "/dev/sdf", "/dev/nvme1n1")
        assert len(set(names.splitlines())) == 1
        await lab.output(NAME, "sh", "-ec", f"mkfs.xfs -q {BY_ID}; mount /dev/sdf /mnt; echo mine >/mnt/note")

        await lab.machines.resize_disk(VOLUME, 2)
        assert await lab.output(NAME, "blockdev", "--getsize64", "/dev/sdf") == str(2 * GIB)
        await lab.output(NAME, "xfs_growfs", "/mnt")
        size = await lab.output(NAME, "df", "--output=size", "--block-size=1", "/mnt")
        assert int(size.split()[-1]) > 1.5 * GIB

        assert not await lab.machines.detach_disk(NAME, VOLUME)
        await lab.machines.stop(NAME)
        await lab.machines.start(NAME)
        await lab.until_login(lab.spec())
        assert await lab.output(NAME, "sh", "-ec", f"mount {BY_ID} /mnt; cat /mnt/note; umount /mnt") == "mine"
        assert await lab.machines.detach_disk(NAME, VOLUME)
        await lab.output(NAME, "sh", "-ec", f"test ! -e {BY_ID}; test ! -e /dev/sdf; test ! -e /dev/nvme1n1")

        await lab.boot(other)
        await lab.machines.attach_disk(other.name, Disk(VOLUME, "/dev/sdg", 2))
        assert await lab.output(other.name, "sh", "-ec", "mount /dev/sdg /mnt; cat /mnt/note") == "mine"
        await lab.machines.destroy(other.name)
        await lab.machines.remove_disk(VOLUME)
        await lab.machines.stop()
        assert leftovers(lab.namespace, lab.folder) == NOTHING


class TestPower:
    async def test_every_boot_has_an_id_of_its_own_and_the_same_disk(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        seen = [await lab.boot_id(NAME)]
        identity = await lab.output(NAME, "cat", "/etc/machine-id")
        stored = await lab.output(NAME, "sh", "-c", "echo mine >/root/note; nix-store --add /root/note")

        async def stop_and_start() -> None:
            await lab.machines.stop(NAME)
            assert lab.machines.state(NAME) == "off"
            await lab.machines.start(NAME)

        async def from_inside() -> None:
            before = lab.machines.leader(NAME)
            await lab.machines.run(NAME, ["systemctl", "reboot"])

            async def has_another_leader() -> bool:
                return lab.machines.leader(NAME) not in (None, before)

            await until(has_another_leader)

        again: list[Callable[[], Awaitable[None]]] = [lambda: lab.machines.reboot(NAME), stop_and_start, from_inside]
        for boot in again:
            await boot()
            await lab.until_login(lab.spec())
            assert lab.machines.state(NAME) == "on"
            seen.append(await lab.boot_id(NAME))
            assert await lab.output(NAME, "cat", "/root/note") == "mine"
            assert await lab.output(NAME, "cat", "/etc/machine-id") == identity
            await lab.output(NAME, "nix-store", "--verify-path", stored)
        assert len(set(seen)) == 4

    async def test_stop_and_reboot_let_units_finish_and_kill_does_not(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        cuts: list[tuple[Callable[[], Awaitable[None]], bool]] = [
            (lambda: lab.machines.stop(NAME), True),
            (lambda: lab.machines.reboot(NAME), True),
            (lambda: lab.machines.kill(NAME), False),
        ]
        for cut, is_clean in cuts:
            unit = ["--unit=last-words", "--property=ExecStop=touch /root/last-words", "--", "sleep", "infinity"]
            await lab.output(NAME, "rm", "-f", "/root/last-words")
            await lab.output(NAME, "systemd-run", "--quiet", *unit)
            await cut()
            await lab.machines.start(NAME)
            await lab.until_login(lab.spec())
            assert (await lab.machines.run(NAME, ["test", "-e", "/root/last-words"])).exit_status == (
                0 if is_clean else 1
            )

    async def test_a_hung_machine_is_cut_after_the_grace(self, lab: Lab) -> None:
        hasty = Machines(lab.folder, lab.namespace, lab.root, grace=1.0)
        await hasty.start()
        hung = replace(lab, machines=hasty)
        await hung.boot(lab.spec())
        before = await hung.boot_id(NAME)
        stop_init(hasty.leader(NAME))
        await hasty.reboot(NAME)
        await hung.until_login(lab.spec())
        assert await hung.boot_id(NAME) != before
        stop_init(hasty.leader(NAME))
        await hasty.stop(NAME)
        assert hasty.state(NAME) == "off"
        await hasty.stop()

    async def test_power_alone_is_no_life(self, lab: Lab) -> None:
        machines = Machines(lab.folder, lab.namespace, lab.root, waking=0.0)
        await machines.start()
        watched = replace(lab, machines=machines)
        assert await machines.standing(NAME) == "absent"
        await watched.boot(lab.spec())
        assert await machines.standing(NAME) == "on"
        stop_init(machines.leader(NAME))
        assert (machines.state(NAME), await machines.standing(NAME)) == ("on", "dead")
        assert (said := machines.last_line(NAME)) != ""
        assert "[0" not in said
        await machines.kill(NAME)
        assert await machines.standing(NAME) == "off"

        await machines.start(NAME)
        await watched.until_login(lab.spec())
        await watched.output(NAME, "sh", "-c", "echo /nix/store/none >/boot/nixos-entry")
        await machines.reboot(NAME)
        await watched.until_console("boot: no system at '/nix/store/none'")
        assert (machines.state(NAME), await machines.standing(NAME)) == ("on", "dead")
        assert machines.last_line(NAME).startswith("boot: no system at '/nix/store/none'")
        await machines.stop()

    async def test_one_that_does_not_answer_yet_is_booting(self, lab: Lab) -> None:
        await lab.machines.create(lab.spec())
        await lab.machines.start(NAME)
        stop_init(lab.machines.leader(NAME))
        assert await lab.machines.standing(NAME) == "booting"

    async def test_only_a_poweroff_that_nobody_outside_asked_for_is_told(self, lab: Lab) -> None:
        told: list[tuple[str, str]] = []
        heard = asyncio.Event()

        async def hear(name: str) -> None:
            told.append((name, lab.machines.state(name)))
            heard.set()

        lab.machines.on_poweroff = hear
        await lab.boot(lab.spec())
        await lab.machines.reboot(NAME)
        await lab.machines.stop(NAME)
        await lab.machines.start(NAME)
        await lab.until_login(lab.spec())
        assert told == []
        await lab.machines.run(NAME, ["systemctl", "poweroff"])
        await asyncio.wait_for(heard.wait(), BOOT_SECONDS)
        assert told == [(NAME, "off")]
        await lab.machines.start(NAME)
        await lab.machines.destroy(NAME)
        assert told == [(NAME, "off")]

    async def test_the_listener_may_act_on_the_machine(self, lab: Lab) -> None:
        gone = asyncio.Event()

        async def remove(name: str) -> None:
            await lab.machines.destroy(name)
            gone.set()

        lab.machines.on_poweroff = remove
        await lab.boot(lab.spec())
        await lab.machines.kill(NAME)
        await asyncio.wait_for(gone.wait(), BOOT_SECONDS)
        assert lab.machines.state(NAME) == "absent"

    async def test_boots_the_system_that_the_boot_entry_names(self, lab: Lab, root: Path) -> None:
        await lab.boot(lab.spec())
        other = (await lab.output(NAME, "sh", "-c", "echo /nix/store/*-nixos-system-given-host-25.05.lab")).strip()
        await lab.output(NAME, "sh", "-c", f"echo {other} >/boot/nixos-entry")
        await lab.machines.reboot(NAME)
        await lab.until_login(lab.spec())
        assert (
            await lab.output(NAME, "readlink", "-f", "/run/current-system", "/run/booted-system") == f"{other}\n{other}"
        )

    async def test_without_a_system_to_boot_it_is_on_and_silent(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        await lab.output(NAME, "sh", "-c", "echo /nix/store/none >/boot/nixos-entry")
        await lab.machines.reboot(NAME)
        await lab.until_console("boot: no system at '/nix/store/none'")
        assert lab.machines.state(NAME) == "on"
        assert (await lab.ssh("172.31.5.4", "true")).exit_status == 255
        await lab.machines.stop(NAME)
        assert lab.machines.state(NAME) == "off"


class TestDoor:
    async def test_without_a_rule_a_connection_times_out_and_with_one_it_opens(self, lab: Lab) -> None:
        spec = lab.spec(public_address="198.51.100.7")
        await lab.boot(spec)
        await lab.machines.set_rules(NAME, (), OPEN)
        for address in ("172.31.5.4", "198.51.100.7"):
            refused = await lab.ssh(address, "true")
            assert refused.exit_status == 255
            assert b"timed out" in refused.stderr
        await lab.machines.set_rules(NAME, (SSH,), ())
        for address in ("172.31.5.4", "198.51.100.7"):
            assert (await lab.ssh(address, "true")).exit_status == 0

    async def test_a_revoked_rule_stops_new_connections_and_leaves_established_ones(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        await lab.machines.set_rules(NAME, (SSH,), ())
        session = await lab.session("172.31.5.4")
        await lab.machines.set_rules(NAME, (), ())
        assert b"timed out" in (await lab.ssh("172.31.5.4", "true")).stderr
        assert await session.echo(b"after\n") == b"after\n"
        await session.end()

    async def test_a_new_machine_admits_nobody_and_may_speak_to_all(self, lab: Lab) -> None:
        await lab.boot(lab.spec("given-host", "192.0.2.10"))
        await lab.machines.create(lab.spec())
        await lab.machines.start(NAME)
        await lab.until_console("Finished apply-ec2-data")
        assert b"timed out" in (await lab.ssh("172.31.5.4", "true")).stderr
        await lab.output(NAME, *DIAL, "192.0.2.10/22")

    async def test_rules_see_a_peer_as_the_internet_does_when_it_dials_a_public_address(self, lab: Lab) -> None:
        there = "i-0aaaaaaaaaaaaaaa0"
        await lab.boot(lab.spec(public_address="198.51.100.7"))
        await lab.boot(lab.spec(there, "172.31.5.5", "198.51.100.8"))

        async def answers(address: str) -> bool:
            return (await lab.machines.run(NAME, [*DIAL, f"{address}/22"])).exit_status == 0

        await lab.machines.set_rules(there, (Rule("tcp", 22, 22, ("172.31.5.4/32",)),), ())
        assert (await answers("172.31.5.5"), await answers("198.51.100.8")) == (True, False)
        await lab.machines.set_rules(there, (Rule("tcp", 22, 22, ("198.51.100.7/32",)),), ())
        assert (await answers("172.31.5.5"), await answers("198.51.100.8")) == (False, True)
        await lab.machines.set_rules(NAME, (), ())
        assert (await answers("172.31.5.5"), await answers("198.51.100.8")) == (False, False)

    async def test_a_public_address_moves_at_once(self, lab: Lab) -> None:
        there = "i-0aaaaaaaaaaaaaaa0"
        await lab.boot(lab.spec(public_address="198.51.100.7"))
        await lab.boot(lab.spec(there, "172.31.5.5"))
        assert (await lab.ssh("198.51.100.7", "hostname")).stdout == b"ip-172-31-5-4\n"
        await lab.machines.set_public_address(there, "198.51.100.7")
        assert (await lab.ssh("198.51.100.7", "hostname")).stdout == b"ip-172-31-5-5\n"
        assert lab.machines.public_address(NAME) is None
        await lab.machines.set_public_address(there, None)
        assert b"timed out" in (await lab.ssh("198.51.100.7", "true")).stderr

    async def test_a_connection_ends_with_the_public_address_it_was_made_to(self, lab: Lab) -> None:
        await lab.boot(lab.spec(public_address="198.51.100.7"))
        sessions = {address: await lab.session(address) for address in ("198.51.100.7", "172.31.5.4")}
        await lab.machines.set_public_address(NAME, "198.51.100.8")
        assert await sessions["172.31.5.4"].echo(b"still here\n") == b"still here\n"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sessions["198.51.100.7"].echo(b"still here\n"), 1)
        assert (await lab.ssh("198.51.100.8", "true")).exit_status == 0
        for session in sessions.values():
            await session.end()

    async def test_a_stopped_machine_is_silent_and_keeps_its_rules(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        await lab.machines.set_rules(NAME, (SSH,), ())
        await lab.machines.stop(NAME)
        assert b"timed out" in (await lab.ssh("172.31.5.4", "true")).stderr
        await lab.machines.start(NAME)
        await lab.until_login(lab.spec())


class TestSeveral:
    async def test_machines_made_at_the_same_time_do_not_disturb_each_other(self, lab: Lab) -> None:
        specs = [lab.spec(f"i-{number:017x}", f"172.31.5.{number}", f"198.51.100.{number}") for number in range(1, 7)]
        async with asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(lab.boot(spec))
        for spec in specs:
            assert spec.public_address is not None
            name = (await lab.ssh(spec.public_address, "hostname")).stdout.decode()
            assert name == f"ip-{spec.private_address.replace('.', '-')}\n"

    async def test_addresses_given_at_the_same_time_are_all_kept(self, lab: Lab) -> None:
        wanted = {f"i-{number:017x}": f"198.51.100.{number}" for number in range(1, 7)}
        for number, name in enumerate(wanted):
            await lab.machines.create(lab.spec(name, f"172.31.5.{number}"))
        await asyncio.gather(*(lab.machines.set_public_address(name, address) for name, address in wanted.items()))
        assert {name: lab.machines.public_address(name) for name in lab.machines.names()} == wanted

    async def test_two_machines_have_units_and_stores_of_their_own(self, lab: Lab) -> None:
        there = "i-0aaaaaaaaaaaaaaa0"
        await lab.boot(lab.spec())
        await lab.boot(lab.spec(there, "172.31.5.5"))
        sleeping = ["--", "sleep", "infinity"]
        await lab.output(there, "systemd-run", "--quiet", "--unit=both", *sleeping)
        await lab.output(NAME, "systemd-run", "--quiet", "--unit=both", *sleeping)
        await lab.output(NAME, "systemctl", "stop", "both.service")
        assert await lab.output(there, "systemctl", "is-active", "both.service") == "active"
        stored = await lab.output(NAME, "sh", "-c", "echo mine >/root/note; nix-store --add /root/note")
        assert (await lab.machines.run(there, ["test", "-e", stored])).exit_status == 1
        assert await lab.output(NAME, "cat", "/etc/machine-id") != await lab.output(there, "cat", "/etc/machine-id")
        await lab.machines.kill(NAME)
        assert await lab.output(there, "systemctl", "is-active", "both.service") == "active"
        assert lab.machines.names() == sorted([NAME, there])

    async def test_a_machine_has_a_cgroup_of_its_own_in_every_hierarchy(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        own = f"/{lab.namespace}/{NAME}"
        hierarchies_here = [
            line for line in read("/proc/self/mounts").splitlines() if line.split()[2].startswith("cgroup")
        ]
        assert cgroups_of(lab.machines.leader(NAME)).count(own) == len(hierarchies_here)


class TestEnd:
    async def test_destroy_leaves_nothing_but_the_lab(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        held = leftovers(lab.namespace, lab.folder)
        assert held["processes"]
        assert held["cgroups"]
        assert [line for line in held["wires"] if wire_of(NAME) in line]
        await lab.machines.destroy(NAME)
        assert lab.machines.state(NAME) == "absent"
        assert leftovers(lab.namespace, lab.folder) == NOTHING | {"cgroups": groups_of(lab.namespace)}
        await lab.machines.destroy(NAME)

    async def test_stop_of_all_leaves_nothing(self, lab: Lab) -> None:
        await lab.boot(lab.spec())
        await lab.machines.create(lab.spec("i-0aaaaaaaaaaaaaaa0", "172.31.5.5"))
        await lab.machines.stop()
        assert leftovers(lab.namespace, lab.folder) == NOTHING

    async def test_a_name_in_use_is_refused_and_an_unknown_one_named(self, lab: Lab) -> None:
        await lab.machines.create(lab.spec())
        with pytest.raises(MachineError, match=f"there is a machine {NAME} already"):
            await lab.machines.create(lab.spec())
        with pytest.raises(MachineError, match=f"there is no machine i-none; there are: {NAME}"):
            await lab.machines.start("i-none")
        with pytest.raises(MachineError, match=f"{NAME} is off"):
            await lab.machines.run(NAME, ["true"])

    @pytest.mark.parametrize("cleaner", ["clean", "next start"])
    def test_what_a_crashed_lab_left_is_found_and_cleared(
        self, tmp_path: Path, namespace: str, root: Path, keys: Keys, cleaner: str
    ) -> None:
        program = f"""
import asyncio
from pathlib import Path
from nixops_lab.machines import Disk, Machines, MachineSpec
async def main():
    machines = Machines({str(tmp_path)!r}, {namespace!r}, Path({str(root)!r}))
    await machines.start()
    await machines.create(MachineSpec({NAME!r}, "172.31.5.4", None, "25.11", "", ()))
    await machines.start({NAME!r})
    await machines.attach_disk({NAME!r}, Disk("vol-0", "/dev/sdf", 1))
    print((await machines.run({NAME!r}, ["sh", "-ec", "mkfs.ext4 -q /dev/sdf; mount /dev/sdf /mnt"])).exit_status)
    print("on", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(paths.SOURCES), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        ) as owner:
            assert owner.stdout is not None
            assert [owner.stdout.readline(), owner.stdout.readline()] == ["0\n", "on\n"]
            owner.send_signal(signal.SIGKILL)
        left = leftovers(namespace, tmp_path)
        assert left["processes"]
        assert left["loops"]
        if cleaner == "clean":
            clean(tmp_path)
            clean(tmp_path)
        else:
            asyncio.run(Machines(tmp_path, namespace, root).start())
        left = leftovers(namespace, tmp_path)
        assert left | {"wires": []} == NOTHING
