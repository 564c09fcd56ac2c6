"""Machines on fakes: EC2, hosts, Nix and the API server in memory, and the operator's core on them.

    Fleet ── the worlds, and what happens in them by itself (instances boot, activations end)
    running() ── the core: cache, queue, looks, jobs, passes

Nothing here judges; tests/crash does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

from fakes.cloud import NIXOS_OWNER, FakeClouds
from fakes.host import CLIENT_KEY, HOST_KEY, UNDER_WAY, FakeHosts, FakeMachine
from fakes.kube import CLUSTER_ID, FakeKube, Secret, key_of
from fakes.nix import FakeNix
from nixops_operator import names
from nixops_operator.cache import Cache, resource_version
from nixops_operator.controllers import controllers
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.nix import Folder
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.machine.host_keys import public_key_of
from nixops_operator.memory import keep_for_good
from nixops_operator.reads import Reads
from nixops_operator.reconcile import Reconciler
from nixops_operator.settings import Settings
from nixops_operator.ssh_keys import parse_private_key
from nixops_operator.watch import Intake, resync, resync_for_ever
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import HostPolicy, Policy, World

GIVEN = IPv4Network("198.51.0.0/16")  # where given hosts may lie
BEGINNING = datetime(2026, 11, 22, 12, tzinfo=UTC)
BOOT = timedelta(seconds=5)


def now() -> datetime:
    """The running loop's time."""
    return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())


class NeverReadyError(Exception):
    """Which objects were not, and what they say."""


class Fleet:
    """See the module. Parts may be replaced before `running`."""

    def __init__(self, nixpkgs: Path, kube: FakeKube | None = None) -> None:
        (nixpkgs / "default.nix").write_text("{ }: { }\n")
        self.nixpkgs = nixpkgs
        self.kube = kube or FakeKube(now=now)
        self.clouds = FakeClouds(now=now)
        self.hosts = FakeHosts()
        self.nix = FakeNix(self.hosts.receive)
        self.ready: set[Key] = set()
        self.conditions_told: list[Callable[[Key, Body], None]] = []
        self.passes: dict[Key, float] = {}
        self._booted: set[str] = set()
        self._private_keys: dict[str, set[str]] = {}
        self.kube.watchers.append(self._hear)

    def add_secrets(self, namespace: str, access_key: str = "AKIDTEST") -> None:
        """`aws`, and `client` for given hosts."""
        aws = {"accessKeyId": access_key.encode(), "secretAccessKey": b"secret"}
        self.kube.secrets[namespace, "aws"] = Secret(aws)
        self.kube.secrets[namespace, "client"] = Secret({names.SSH_PRIVATE_KEY: CLIENT_KEY.encode()})

    def add_host(self, address: str) -> FakeMachine:
        return self.hosts.add(FakeMachine(address))

    async def until_ready(self, keys: Iterable[Key], limit: float = 600) -> None:
        """Raises NeverReadyError, by the loop's clock."""
        wanted = set(keys)
        try:
            async with asyncio.timeout(limit):
                while not self.ready >= wanted:  # noqa: ASYNC110 - a set tells nobody that it has grown
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise NeverReadyError(self._not_ready()) from error

    def _not_ready(self) -> str:
        """How many objects of each kind for which reason, with one of them and what it says."""
        found: dict[tuple[Kind, str], list[Body]] = {}
        for kind in Kind:
            for body in self.kube.bodies(kind):
                if key_of(body) not in self.ready:
                    found.setdefault((kind, ready_condition(body)["reason"]), []).append(body)
        return "\n".join(
            f"{len(bodies)} {kind.value} {reason}, as {key_of(bodies[0])}: {ready_condition(bodies[0])['message']}"
            for (kind, reason), bodies in found.items()
        )

    async def turn(self) -> None:
        """For ever: what happens by itself."""
        last = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1)
            moment = asyncio.get_running_loop().time()
            for cloud in self.clouds.worlds.values():
                self._boot(cloud)
            for machine in self.hosts.machines.values():
                if any(one.state in UNDER_WAY for one in machine.activations.values()):
                    machine.advance(moment - last)
            last = moment

    def _boot(self, cloud: Any) -> None:
        launches = {launch.instance_id: launch for launch in cloud.launches.values()}
        for instance in list(cloud.instances.values()):
            if instance.id in self._booted or instance.launch_time > now() - BOOT:
                continue
            self._booted.add(instance.id)
            cloud.set_state(instance.id, InstanceState.RUNNING)
            machine = self.add_host(cloud.instances[instance.id].public_address)
            machine.host_keys = [public_key_of(launches[instance.id].user_data)]
            machine.client_keys = self._private_of(cloud, instance.key_name)

    def _private_of(self, cloud: Any, key_name: str) -> set[str]:
        if key_name not in self._private_keys:
            public = cloud.key_pairs[key_name].public_key
            self._private_keys[key_name] = {
                secret.data[names.SSH_PRIVATE_KEY].decode()
                for secret in self.kube.secrets.values()
                if names.SSH_PRIVATE_KEY in secret.data
                and parse_private_key(secret.data[names.SSH_PRIVATE_KEY], "a benchmark's Secret").public == public
            }
        return self._private_keys[key_name]

    def _hear(self, what: str, body: Body) -> None:
        key = key_of(body)
        if what != "DELETED" and is_ready(body):
            self.ready.add(key)
        else:
            self.ready.discard(key)
        for told in self.conditions_told:
            told(key, body)

    @asynccontextmanager
    async def running(self, settings: Settings | None = None) -> AsyncIterator[World]:
        """The core, until the end of the block."""
        chosen = settings or Settings()
        outside = asyncio.all_tasks()
        cache = Cache()
        queue = WorkQueue[Key](lambda key: (key.kind, key.namespace), random.Random(1), workers=chosen.workers)
        intake = Intake(cache, queue)

        def hear(what: str, body: Body) -> None:
            intake.events += 1
            kind = next(kind for kind in Kind if kind.object_kind == body["kind"])
            if what == "DELETED":
                intake.gone(key_of(body), resource_version(body))
            else:
                intake.saw(kind, body)

        world = self._world(chosen, cache, queue)
        reconciler = Reconciler(world.kube, cache, queue, controllers(world), chosen.resync_period, now=now)
        self.passes = reconciler.running
        self.kube.watchers.append(hear)
        try:
            await resync(world.kube, cache, intake)
            keep_for_good()
            for _ in range(chosen.workers):
                _spawn(reconciler.work())
            _spawn(resync_for_ever(world.kube, cache, intake, chosen.resync_period, lambda: None))
            _spawn(self.turn())
            yield world
        finally:
            self.kube.watchers.remove(hear)
            inside = asyncio.all_tasks() - outside - {asyncio.current_task()}
            for task in inside:
                task.cancel()
            await asyncio.gather(*inside, return_exceptions=True)

    def _world(self, chosen: Settings, cache: Cache, queue: WorkQueue[Key]) -> World:
        limits = {
            "evaluate": chosen.nix.evaluation.concurrency,
            "build": chosen.nix.build.concurrency,
            "copy": chosen.nix.copies.concurrency,
        }
        return World(
            cluster_id=CLUSTER_ID,
            policy=Policy(
                default_image_owner=NIXOS_OWNER,
                default_image_name="nixos/25.11*",
                hosts=HostPolicy(allowed=(GIVEN,)),
                nixpkgs=Folder(self.nixpkgs),
                progress_deadline=chosen.progress_deadline,
            ),
            kube=cast(Any, self.kube),
            nix=cast(Any, self.nix),
            cache=cache,
            clouds=CloudInformers(
                cast(Any, self.clouds), chosen.ec2.sweep_period, chosen.ec2.network_period, queue.add
            ),
            hosts=HostInformers(cast(Any, self.hosts), chosen.hosts.facts_period, queue.add),
            jobs=Jobs(limits, queue.add),
            reads=Reads(cast(Any, self.kube), chosen.resync_period),
            wake=queue.add,
            now=now,
            digest_key=b"of a benchmark",
        )


_tasks: set[asyncio.Task[Any]] = set()


def _spawn(work: Any) -> None:
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def is_ready(body: Body) -> bool:
    """Ready, of its newest generation."""
    generation = body["metadata"]["generation"]
    status: Mapping[str, Any] = body.get("status") or {}
    if status.get("observedGeneration") != generation:
        return False
    return bool(ready_condition(body)["status"] == "True")


def ready_condition(body: Body) -> Mapping[str, Any]:
    found = (body.get("status") or {}).get("conditions") or ()
    unknown = {"type": "Ready", "status": "Unknown", "reason": "", "message": ""}
    return next((one for one in found if one["type"] == "Ready"), unknown)


def given(namespace: str, name: str, address: str, module: str = "{ }") -> dict[str, Any]:
    """A machine that exists already."""
    return {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "target": {"host": {"address": address}},
            "ssh": {"privateKeySecretRef": {"name": "client"}, "hostKeys": [HOST_KEY]},
            "configuration": {"modules": [{"inline": module}]},
        },
    }


def deployment(namespace: str, name: str, machines: int, replicas: int | None = None) -> dict[str, Any]:
    """A key pair, a group that admits SSH, and machines in EC2."""
    entries = [
        {
            "name": f"m{number}",
            **({} if replicas is None else {"replicas": replicas}),
            "target": {"ec2": {"instanceType": "t3.small", "keyPair": "main", "securityGroups": ["ssh"]}},
            "configuration": {"modules": [{"inline": "{ services.httpd.enable = true; }"}]},
        }
        for number in range(machines)
    ]
    return {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixDeployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}},
            "keyPairs": [{"name": "main"}],
            "securityGroups": [
                {
                    "name": "ssh",
                    "description": "SSH",
                    "ingress": [{"fromPort": 22, "toPort": 22, "cidrs": ["0.0.0.0/0"]}],
                }
            ],
            "machines": entries,
        },
    }
