"""EC2 and real machines together: what the API says of an instance is what its network shows. Needs root."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nixops_lab import network, paths
from nixops_lab.ec2 import Ec2Layer, MotoServer
from nixops_lab.ec2.testing import ACCESS_KEY, SECRET_KEY, client_of
from nixops_lab.machines import Machines, clean, root_filesystem

pytest_plugins = ["nixops_lab.ec2.fixtures"]
pytestmark = pytest.mark.lab

PATIENCE_SECONDS = 60
SSH = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - it comes true in a machine, which sets no Event
            await asyncio.sleep(0.02)


class Account:
    """One instance of the newest image with its key pair and group, and SSH to it from the lab's network."""

    def __init__(self, machines: Machines, namespace: str, folder: Path, ec2: Any, layer: Ec2Layer) -> None:
        self.machines = machines
        self.turn = layer.turn
        self._namespace = namespace
        self._folder = folder
        self._ec2 = ec2
        for name in ("client", "host"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name]
            subprocess.run(key, check=True)

    async def call(self, operation: str, **params: Any) -> Any:
        return await asyncio.to_thread(getattr(self._ec2, operation), **params)

    async def launch(self, state: str = "running") -> str:
        """An instance in the new group `web`, which admits nobody, once it is in that state."""
        host_key = (self._folder / "host").read_text().strip().replace("\n", "|")
        public = (self._folder / "host.pub").read_text().strip()
        await self.call("import_key_pair", KeyName="web", PublicKeyMaterial=(self._folder / "client.pub").read_bytes())
        self.group = (await self.call("create_security_group", GroupName="web", Description="web"))["GroupId"]
        named = [{"Name": "name", "Values": ["nixos/25.11*-x86_64-linux"]}]
        images = (await self.call("describe_images", Owners=["427812963091"], Filters=named))["Images"]
        reply = await self.call(
            "run_instances",
            ImageId=max(images, key=lambda image: image["CreationDate"])["ImageId"],
            InstanceType="t3.small",
            KeyName="web",
            SecurityGroupIds=[self.group],
            UserData=f"SSH_HOST_ED25519_KEY_PUB:{public}\nSSH_HOST_ED25519_KEY:{host_key}\n",
            MinCount=1,
            MaxCount=1,
        )
        self.id = reply["Instances"][0]["InstanceId"]
        await self.until_state(state)
        return str(self.id)

    async def described(self) -> Any:
        return (await self.call("describe_instances", InstanceIds=[self.id]))["Reservations"][0]["Instances"][0]

    async def until_state(self, state: str) -> None:
        async def is_so() -> bool:
            return bool((await self.described())["State"]["Name"] == state)

        await until(is_so)

    async def ssh(self, command: str) -> str | None:
        """What the command prints, over a new connection to the public address; None if there is no way in."""
        address = (await self.described())["PublicIpAddress"]
        known = self._folder / "known_hosts"
        known.write_text(f"{address} {(self._folder / 'host.pub').read_text()}")
        options = [
            "BatchMode=yes",
            "ConnectTimeout=1",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={known}",
            f"IdentityFile={self._folder / 'client'}",
        ]
        process = await asyncio.create_subprocess_exec(
            *network.entering(self._namespace),
            "ssh",
            *(word for option in options for word in ("-o", option)),
            f"root@{address}",
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        printed, _ = await process.communicate()
        return printed.decode().strip() if process.returncode == 0 else None

    async def until_login(self) -> None:
        async def is_in() -> bool:
            return await self.ssh("true") is not None

        await until(is_in)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nixpkgs = tmp_path_factory.mktemp("nixpkgs") / "tree"
    subprocess.run([paths.SOURCES / "nixpkgs" / "assemble.sh", nixpkgs], check=True)
    return root_filesystem.build(nixpkgs)


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[str]:
    name = paths.LabPaths.of(tmp_path).namespace
    network.create(name)
    yield name
    clean(tmp_path)
    network.delete(name)


@pytest.fixture
async def account(tmp_path: Path, namespace: str, root: Path, moto_server: MotoServer) -> AsyncIterator[Account]:
    machines = Machines(tmp_path, namespace, root)
    await machines.start()
    layer = Ec2Layer(machines, {ACCESS_KEY: (SECRET_KEY, "test")}, tmp_path / "ec2.log", moto=moto_server)
    port = await layer.start("127.0.0.1", 0)
    client = client_of(f"http://127.0.0.1:{port}")
    yield Account(machines, namespace, tmp_path, client, layer)
    client.close()
    await layer.stop()
    await machines.stop()


async def test_an_instance_admits_ssh_exactly_while_a_rule_of_its_group_does(account: Account) -> None:
    await account.launch()
    assert await account.ssh("true") is None
    await account.call("authorize_security_group_ingress", GroupId=account.group, IpPermissions=SSH)
    await account.until_login()
    await account.call("revoke_security_group_ingress", GroupId=account.group, IpPermissions=SSH)
    assert await account.ssh("true") is None


async def test_a_stopped_and_started_instance_keeps_its_disk_and_answers_at_a_new_address(account: Account) -> None:
    await account.launch()
    await account.call("authorize_security_group_ingress", GroupId=account.group, IpPermissions=SSH)
    await account.until_login()
    before = (await account.described())["PublicIpAddress"]
    booted = await account.ssh("touch /root/kept; cat /proc/sys/kernel/random/boot_id")
    await account.call("stop_instances", InstanceIds=[account.id])
    await account.until_state("stopped")
    assert account.machines.state(account.id) == "off"
    await account.call("start_instances", InstanceIds=[account.id])
    await account.until_state("running")
    await account.until_login()
    assert (await account.described())["PublicIpAddress"] != before
    assert await account.ssh("cat /proc/sys/kernel/random/boot_id") not in {None, booted}
    assert await account.ssh("ls /root/kept") == "/root/kept"


async def test_a_machine_that_powers_itself_off_is_a_stopped_instance(account: Account) -> None:
    await account.launch()
    await account.call("authorize_security_group_ingress", GroupId=account.group, IpPermissions=SSH)
    await account.until_login()
    await account.ssh("systemctl poweroff")
    await account.until_state("stopped")
    assert (await account.described())["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


async def test_a_machine_that_goes_off_while_it_boots_is_a_stopped_instance_that_can_be_started(
    account: Account,
) -> None:
    await account.turn({"boot.poweroff": 0})
    await account.launch("stopped")
    assert (await account.described())["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert account.machines.state(account.id) == "off"
    await account.turn({"boot.poweroff": "off"})
    await account.call("start_instances", InstanceIds=[account.id])
    await account.until_state("running")
    assert account.machines.state(account.id) == "on"


async def test_a_launch_that_dies_leaves_no_machine(account: Account) -> None:
    await account.turn({"launch.dies": "Server.InternalError:0"})
    await account.launch("terminated")
    assert account.machines.names() == []


async def test_a_terminated_instance_leaves_no_machine(account: Account) -> None:
    await account.launch()
    await account.call("terminate_instances", InstanceIds=[account.id])
    await account.until_state("terminated")
    assert account.machines.names() == []
