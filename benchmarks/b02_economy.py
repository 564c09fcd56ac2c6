"""B2, the economy of creation: machines with an elastic address each, a key pair and two groups, made against a strict
EC2 with AWS' published buckets.

    our core, the real adapter ─► strict EC2 (buckets as published, 5 s from launch to running) ◄─ a loop on boto3

API server, hosts and Nix are in memory. Counted is every HTTP attempt that EC2 gets. The optimum is what the buckets
allow from the first launch on: the calls that nobody can do without, each bucket full then, and one boot at the end.
The same is measured once more in virtual time (pace.py), in which a busy machine is as good as an idle one.
Terraform is not run: its provider comes from a registry. `MACHINES=50` says how many.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from botocore.config import Config

from benchmarks import pace, table
from benchmarks.fleet import Fleet, deployment
from fakes.host import UNDER_WAY, FakeMachine
from fakes.kube import Secret
from nixops_lab.ec2.moto import MotoServer
from nixops_lab.ec2.testing import ACCESS_KEY, SECRET_KEY, LoopThread, RunningLayer
from nixops_operator import names
from nixops_operator.adapters.aws import Boto3Clouds
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.machine.host_keys import public_key_of
from nixops_operator.ssh_keys import generate_ed25519

BOOT_SECONDS = 5.0
SETTLE_SECONDS = 40.0  # after a change, EC2 is looked at more often for half a minute
REST_SECONDS = 60.0
LIMIT_SECONDS = 600.0
SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
PAGES_AT_REST = 60 / 10 + 4 * 60 / 30  # instances every 10 s; groups, their rules, key pairs, addresses every 30 s
GOALS: dict[str, table.Goal | None] = {
    "calls a machine": table.AtMost(5),
    "of them changes": None,
    "% of calls refused": table.AtMost(1),
    "s to the last address": None,
    "of them since the first launch": None,
    "of the optimum": table.AtMost(1.05),
    "of the optimum, in virtual time": table.AtMost(1.05),
    "s to the last machine ready": None,
    "calls a minute at rest": table.AtMost(PAGES_AT_REST),
}


class Economy(Fleet):
    """The worlds, but for EC2, which is behind HTTP: its machines are hosts in memory."""

    def __init__(self, nixpkgs: Path, layer: RunningLayer, clouds: Boto3Clouds) -> None:
        super().__init__(nixpkgs)
        self.clouds = clouds  # type: ignore[assignment]  # the real adapter in its place
        self._layer = layer
        self._disks: dict[str, FakeMachine] = {}
        aws = {"accessKeyId": ACCESS_KEY.encode(), "secretAccessKey": SECRET_KEY.encode()}
        self.kube.secrets["default", "aws"] = Secret(aws)

    async def turn(self) -> None:
        last = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(0.2)
            moment = asyncio.get_running_loop().time()
            for name, address in list(self._layer.machines.public_addresses.items()):
                if address is not None and self._layer.machines.state(name) == "on":
                    self._reach(name, address)
            for machine in self.hosts.machines.values():
                if any(one.state in UNDER_WAY for one in machine.activations.values()):
                    machine.advance(moment - last)
            last = moment

    def _reach(self, name: str, address: str) -> None:
        machine = self._disks.get(name)
        if machine is None:
            machine = self._disks[name] = self.add_host(address)
            machine.host_keys = [public_key_of(self._layer.machines.specs[name].user_data)]
            machine.client_keys = {
                secret.data[names.SSH_PRIVATE_KEY].decode()
                for secret in self.kube.secrets.values()
                if names.SSH_PRIVATE_KEY in secret.data
            }
        elif machine.address != address:
            del self.hosts.machines[machine.address]
            machine.cut_connections()
            machine.address = address
            self.hosts.add(machine)


def main() -> None:
    machines = int(os.environ.get("MACHINES", "50"))
    loop, moto = LoopThread(), MotoServer()
    loop.run(moto.start())
    found: dict[str, dict[str, float]] = {}
    try:
        for name, program in (("ours", _ours), ("boto3 loop", _bare)):
            with TemporaryDirectory(prefix="b02-") as folder:
                layer = RunningLayer(loop, moto, Path(folder), seed=2)
                try:
                    layer.turn(**{"buckets.factor": 1, "quota.addresses": "unlimited", "pending_seconds": BOOT_SECONDS})
                    found[name] = program(layer, machines, Path(folder))
                finally:
                    layer.stop()
    finally:
        loop.run(moto.stop())
        loop.close()
    below = f"{machines} machines; load {os.getloadavg()[0]:.1f}; optimum {optimum(machines):.1f} s; Terraform: not run"
    table.show("B2, the economy of creation", GOALS, found, below)


def optimum(machines: int) -> float:
    """Seconds, by the published buckets: RunInstances 5 and 2 a second; what makes or changes a thing 50 and 5."""
    changes = 2 * machines + 3  # AllocateAddress and AssociateAddress; the key pair and two groups
    return max((machines - 5) / 2, (changes - 50) / 5, 0) + BOOT_SECONDS


def _ours(layer: RunningLayer, machines: int, folder: Path) -> dict[str, float]:
    figures = asyncio.run(_create(layer, machines, folder))
    virtual = pace.to_the_last_address(machines) / optimum(machines)
    return figures | {"of the optimum, in virtual time": virtual}


async def _create(layer: RunningLayer, machines: int, folder: Path) -> dict[str, float]:
    with ThreadPoolExecutor(16) as pool:  # as the operator has
        clouds = Boto3Clouds(layer.url, pool)
        fleet = Economy(folder, layer, clouds)
        async with fleet.running():
            begun = time.time()
            body = deployment("default", "shop", machines)
            for machine in body["spec"]["machines"]:
                machine["target"]["ec2"]["elasticIp"] = {"allocate": True}
            fleet.kube.apply(body)
            keys = [Key(Kind.MACHINE, "default", f"shop-m{number}") for number in range(machines)]
            await fleet.until_ready([SHOP, *keys], LIMIT_SECONDS)
            ready_after = time.time() - begun
            made = layer.log()
            await asyncio.sleep(SETTLE_SECONDS)
            before = len(_calls(layer.log()))
            await asyncio.sleep(REST_SECONDS)
            rested = len(_calls(layer.log())) - before
        clouds.close()
    figures = _figures(made, machines, begun)
    return figures | {"s to the last machine ready": ready_after, "calls a minute at rest": rested * 60 / REST_SECONDS}


def _bare(layer: RunningLayer, machines: int, _: Path) -> dict[str, float]:
    """What a person writes: one thing after the other, boto3's own repeats, a waiter for all."""
    retries = Config(retries={"mode": "standard", "total_max_attempts": 10})
    ec2: Any = boto3.client(
        "ec2",
        region_name="us-west-2",
        endpoint_url=layer.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=retries,
    )
    begun = time.time()
    ec2.import_key_pair(KeyName="main", PublicKeyMaterial=generate_ed25519().public.encode())
    group = ec2.create_security_group(GroupName="ssh", Description="SSH")["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    named = [{"Name": "name", "Values": ["nixos/25.11*-x86_64-linux"]}]
    images = ec2.describe_images(Owners=["427812963091"], Filters=named)["Images"]
    image = max(images, key=lambda one: str(one["CreationDate"]))["ImageId"]
    for number in range(machines):
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": f"m{number}"}]}]
        instance = ec2.run_instances(
            ImageId=image,
            InstanceType="t3.small",
            KeyName="main",
            SecurityGroupIds=[group],
            TagSpecifications=tags,
            MinCount=1,
            MaxCount=1,
        )["Instances"][0]["InstanceId"]
        ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 5, "MaxAttempts": 60})
        address = ec2.allocate_address(Domain="vpc")["AllocationId"]
        ec2.associate_address(AllocationId=address, InstanceId=instance)
    ec2.close()
    return _figures(layer.log(), machines, begun)


def _calls(log: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for one in log if one["operation"] != "GetCallerIdentity"]


def _figures(log: Iterable[Mapping[str, Any]], machines: int, begun: float) -> dict[str, float]:
    calls = _calls(log)
    is_change = [not one["operation"].startswith(("Describe", "Get")) for one in calls]
    refused = sum(one["result"] == "RequestLimitExceeded" for one in calls)
    associated = [one for one in calls if one["operation"] == "AssociateAddress" and one["result"] == "ok"]
    assert len(associated) >= machines, f"{len(associated)} addresses of {machines} machines"
    first = min(_seconds(one["time"]) for one in calls if one["operation"] == "RunInstances") - begun
    last = max(_seconds(one["time"]) for one in associated) - begun
    return {
        "calls a machine": len(calls) / machines,
        "of them changes": sum(is_change) / machines,
        "% of calls refused": 100 * refused / len(calls),
        "s to the last address": last,
        "of them since the first launch": last - first,
        "of the optimum": (last - first) / optimum(machines),
    }


def _seconds(told: str) -> float:
    return datetime.fromisoformat(told).timestamp()


if __name__ == "__main__":
    main()
