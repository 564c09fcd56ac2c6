"""The operator's core on worlds in memory: cut down at any effect, started again on the same worlds.

Worlds ── FakeKube, FakeClouds, FakeHosts, FakeNix, and what happens in them by itself (boots, garbage collection)
Operator ── one life of the core: cache, queue, looks, jobs, controllers; its memory ends with it
Cut ── where a life ends: the n-th call of an effect × before | reply lost | not recorded
Lags ── how late EC2 shows what it made

No kinder than the real worlds: ids are random, answers shuffled, new things shown late and to filters by tag later
still, garbage collected late; and in the namespace next door somebody names our objects as his own (`tenant_b`).
What must never be is judged by invariants.py at every call and every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

from crash.invariants import CANARY, Broken, Judge, pinned_keys
from fakes.cloud import NIXOS_OWNER, FakeCloud, FakeClouds
from fakes.host import FakeHosts, FakeMachine
from fakes.kube import CLUSTER_ID, FakeKube, Secret, key_of
from fakes.nix import FakeNix
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache, resource_version
from nixops_operator.controllers import controllers
from nixops_operator.effects import Layered
from nixops_operator.errors import OutcomeUnknown
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.nix import Folder
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.machine.host_keys import public_key_of
from nixops_operator.metrics import Metrics
from nixops_operator.ports.cloud import Clouds
from nixops_operator.ports.host import Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from nixops_operator.reads import Reads
from nixops_operator.reconcile import Reconciler
from nixops_operator.ssh_keys import parse_private_key
from nixops_operator.store_keeping import StoreKeeper
from nixops_operator.store_room import StoreLimits
from nixops_operator.watch import Intake, resync
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import Policy, World

RESYNC = timedelta(seconds=30)
QUIET = 2 * RESYNC.total_seconds()  # nothing but looks for so long: everything has come to rest
STILL = 660.0  # so long, in whatever state: the longest wait in the core is ten minutes
PATIENCE = 90 * 60.0  # seconds of the worlds' time for one life
BOOT_SECONDS = 5.0
OURS, THEIRS = "default", "b"  # namespaces of two tenants
BEGINNING = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Crash(BaseException):
    """The process is gone. No `except Exception` may catch it."""


def clock() -> datetime:
    """The worlds' time: the running loop's."""
    return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())


@dataclass(frozen=True)
class Cut:
    """The `number`-th call of `effect` (from 1) in a life: `before` it the process dies; `reply lost`: it is carried
    out, and the caller learns nothing; `not recorded`: it is carried out, and the process dies."""

    effect: str
    number: int
    how: str  # before | reply lost | not recorded

    def __str__(self) -> str:
        return f"{self.effect} {self.number}, {self.how}"


HOWS = ("before", "reply lost", "not recorded")


@dataclass(frozen=True)
class Lags:
    """Seconds until EC2 shows what it made: by id, and to filters by tag and client token. Each thing has its own lag,
    between nothing and these. (EC2 Developer Guide, "Eventual consistency in the Amazon EC2 API": up to five minutes.)
    """

    ids: int
    tags: int

    def __str__(self) -> str:
        return f"{self.ids}-{self.tags}"

    def apply(self, cloud: FakeCloud) -> None:
        cloud.lag_of_ids = _LagByName(self.ids, "id")
        cloud.lag_of_tags = _LagByName(self.tags, "tag")


@dataclass(frozen=True)
class _LagByName:
    """The longest lag for every second thing, a part of it for the others."""

    most: int
    salt: str

    def __call__(self, name: str) -> timedelta:
        # A key pair's name ends with the hash of a generated key.
        is_random = not name.startswith(("i-", "sg-", "eipalloc-"))
        name = name.rpartition("-")[0] if is_random else name
        return timedelta(seconds=self.most * (1, 0.5, 1, 0.1)[zlib.crc32(f"{self.salt} {name}".encode()) % 4])


NO_LAG, SHORT_LAG, MINUTE_LAG, LONGEST_LAG = Lags(0, 0), Lags(4, 8), Lags(15, 60), Lags(60, 300)
LAGS = (NO_LAG, SHORT_LAG, MINUTE_LAG, LONGEST_LAG)


def _boots(instance: Instance) -> tuple[InstanceState, str]:
    return InstanceState.RUNNING, ""


@dataclass
class Worlds:
    """Everything outside the process. Outlives every Operator."""

    nixpkgs: Path
    kube: FakeKube = field(init=False)
    clouds: FakeClouds = field(init=False)
    hosts: FakeHosts = field(default_factory=FakeHosts)
    nix: FakeNix = field(init=False)
    judge: Judge = field(init=False)
    machines: dict[str, FakeMachine] = field(default_factory=dict)  # instance id → its disk, whatever its address
    started_at: dict[str, datetime] = field(default_factory=dict)  # instance id → of the life that its machine is in
    becomes: Callable[[Instance], tuple[InstanceState, str]] = _boots  # of a pending instance: next state, and why
    when_gone: dict[Key, Callable[[], object]] = field(default_factory=dict)  # what a user does at once, then
    stays_silent: bool = False  # what boots from now on does not answer
    collects: bool = False  # garbage in the operator's store, all the time
    at_rest: list[Callable[[Worlds], object]] = field(default_factory=list)  # what a user does later, one at each rest

    def __post_init__(self) -> None:
        self.kube = FakeKube(now=clock)
        self.clouds = FakeClouds(now=clock)
        SHORT_LAG.apply(self.cloud)
        self.nix = FakeNix(self.hosts.receive)
        self.judge = Judge(self.kube, self.cloud, self.hosts, CLUSTER_ID)
        self.kube.watchers.append(self._react)
        for namespace in (OURS, THEIRS):
            self.kube.secrets[namespace, "aws"] = _secret(accessKeyId=b"AKIDTEST", secretAccessKey=CANARY.encode())
        self._set_tokens(1)

    @property
    def cloud(self) -> FakeCloud:
        return self.clouds.world()

    def rotate_tokens(self) -> None:
        """Other contents in the Secret that keys of machines come from."""
        self._set_tokens(2)

    def _set_tokens(self, turn: int) -> None:
        contents = {name: f"{CANARY} {name} {turn}".encode() for name in ("token", "late", "more")}
        self.kube.secrets[OURS, "tokens"] = Secret(contents)

    def tenant_b(self, uid: str) -> None:
        """The tenant next door says that machines of his are those of our deployment of that uid: one that stays,
        whatever the garbage collector wants, and one that does not."""
        for name, finalizers in (("shop-web", ["b.example/hold"]), ("shop-db", [])):
            key = Key(Kind.MACHINE, THEIRS, name)
            if self.kube.body(key) is not None:
                continue
            owner = {
                "apiVersion": "nixops.dev/v1alpha1",
                "kind": "NixDeployment",
                "name": "shop",
                "uid": uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
            metadata = {"namespace": THEIRS, "name": name, "ownerReferences": [owner], "finalizers": finalizers}
            spec = {"target": {"host": {"address": "192.0.2.1"}}}
            self.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": spec})

    def _react(self, what: str, body: Body) -> None:
        if what == "DELETED" and (act := self.when_gone.pop(key_of(body), None)) is not None:
            asyncio.get_running_loop().call_soon(act)

    async def turn(self) -> None:
        """What happens by itself: instances boot and end, hosts' timers fire, garbage is collected."""
        last = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            self._boot()
            for machine in self.hosts.machines.values():
                machine.advance(now - last)
            self.kube.collect_garbage()
            self.judge.look()
            last = now

    def _boot(self) -> None:
        due = clock() - timedelta(seconds=BOOT_SECONDS)
        for instance in list(self.cloud.instances.values()):
            if instance.state is InstanceState.PENDING and instance.launch_time <= due:
                self.cloud.set_state(instance.id, *self.becomes(instance))
            elif instance.state is InstanceState.SHUTTING_DOWN:
                self.cloud.set_state(instance.id, InstanceState.TERMINATED)
            elif instance.state is InstanceState.STOPPING:
                self.cloud.set_state(instance.id, InstanceState.STOPPED, instance.state_reason)
        for instance in self.cloud.instances.values():
            address = instance.public_address
            if instance.state is InstanceState.RUNNING and address and address not in self.hosts.machines:
                if (before := self.machines.get(instance.id)) is not None:
                    del self.hosts.machines[before.address]
                    before.address, before.is_silent = address, self.stays_silent
                    if self.started_at[instance.id] == instance.launch_time:
                        before.cut_connections()  # it has another address, and runs on
                    else:
                        before.reboot()
                    self.started_at[instance.id] = instance.launch_time
                    self.hosts.add(before)
                    continue
                machine = self.machines[instance.id] = self.hosts.add(FakeMachine(address))
                self.started_at[instance.id] = instance.launch_time
                machine.host_keys = [self._first_host_key(instance.id)]
                machine.client_keys = self._private_keys(instance.key_name)
                machine.is_silent = self.stays_silent
        while self.cloud.rebooted:
            again = self.machines[self.cloud.rebooted.pop()]
            again.is_silent = self.stays_silent
            again.reboot()
        running = {one.public_address for one in self.cloud.instances.values()}
        for machine in self.hosts.machines.values():
            if machine.address not in running and not machine.is_silent:
                machine.is_silent = True
                machine.cut_connections()

    def _first_host_key(self, instance_id: str) -> str:
        launch = next(one for one in self.cloud.launches.values() if one.instance_id == instance_id)
        return public_key_of(launch.request.user_data)

    def _private_keys(self, key_name: str | None) -> set[str]:
        if key_name is None:
            return set()
        public = self.judge.public_keys[key_name]
        found = [
            secret.data[names.SSH_PRIVATE_KEY]
            for secret in self.kube.secrets.values()
            if names.SSH_PRIVATE_KEY in secret.data
        ]
        return {private.decode() for private in found if parse_private_key(private, "a test's Secret").public == public}

    # --- what came of it ------------------------------------------------------------------------------------------

    def standing(self) -> str:
        """What our objects say, for people."""
        found = []
        for body in self.bodies():
            told = next((c for c in (body["status"].get("conditions") or ()) if c["type"] == "Ready"), None)
            found.append(f"{key_of(body)}: {told and (told['status'], told['reason'], told['message'])}")
        return "\n".join(found)

    def is_ready(self) -> bool:
        """Whether every object says that it is ready, of its newest generation."""
        bodies = self.bodies()
        return bool(bodies) and all(_ready(body) for body in bodies)

    def is_empty(self) -> bool:
        return not self.bodies()

    def bodies(self, *kinds: Kind) -> list[Body]:
        """Our own tenant's objects."""
        return [
            body for kind in kinds or Kind for body in self.kube.shown(kind) if body["metadata"]["namespace"] == OURS
        ]

    def end_state(self) -> dict[str, Any]:
        """Everything that lasts, with EC2's ids, addresses and attempts left out."""
        cloud = self.cloud
        of_group = {one.id: one.tags.get(names.ENTRY_TAG, "default") for one in cloud.security_groups.values()}
        of_machine = {body["metadata"]["uid"]: body["metadata"]["name"] for body in self.bodies(Kind.MACHINE)}
        holders = {one.id: one.tags.get(names.UID_TAG, "") for one in cloud.instances.values()}
        return {
            "objects": {
                str(key_of(body)): {
                    "spec": body["spec"],
                    "labels": body["metadata"].get("labels"),
                    "conditions": sorted((c["type"], c["status"], c["reason"]) for c in body["status"]["conditions"]),
                    "desired": (body["status"].get("system") or {}).get("desired"),
                    "current": (body["status"].get("system") or {}).get("current"),
                    "result": (body["status"].get("activation") or {}).get("result"),
                }
                for body in self.bodies()
            },
            "secrets": sorted(name for namespace, name in self.kube.secrets if namespace == OURS),
            "groups": sorted(
                (of_group[one.id], one.description, sorted(str(rule.rule) for rule in one.rules))
                for one in cloud.security_groups.values()
            ),
            "addresses": sorted(
                (
                    of_machine.get(one.tags.get(names.UID_TAG, ""), "nobody's"),
                    one.id in self.judge.by_hand,
                    names.is_retained(one.tags),
                    of_machine.get(holders.get(one.instance_id or "", ""), "nobody's"),
                )
                for one in cloud.addresses.values()
            ),
            "key pairs": sorted(one.tags[names.ENTRY_TAG] for one in cloud.key_pairs.values()),
            "instances": sorted(
                (
                    of_machine.get(one.tags[names.UID_TAG], "gone"),
                    one.state.value,
                    one.instance_type,
                    one.subnet_id,
                    sorted(of_group.get(group, "gone") for group in one.security_group_ids),
                    (one.monitoring, one.source_dest_check, one.metadata, one.instance_profile),
                    (one.tenancy, one.placement_group),
                    sorted(cloud.attributes[one.id].items()),
                    sorted(key for key in one.tags if not key.startswith("nixops.dev:")),
                )
                for one in cloud.instances.values()
            ),
            "volumes": sorted(
                (
                    str(one.settings),
                    one.tags.get(names.ENTRY_TAG, ""),
                    (one.state, one.device, names.RETAINED_TAG in one.tags),
                    sorted(key for key in one.tags if not key.startswith("nixops.dev:")),
                )
                for one in cloud.volumes.values()
            ),
            "hosts": sorted(
                (
                    machine.current_system or "",
                    machine.profile_system or "",
                    machine.boot_entry or "",
                    tuple(machine.switches),
                    tuple(machine.built),  # never twice
                    tuple(sorted(machine.roots)),
                    tuple(sorted(machine.files.items())),
                    tuple(sorted(machine.keys)),
                )
                for machine in self.hosts.machines.values()
            ),
            "host keys": sorted(
                (
                    set(machine.host_keys) == pinned_keys(self.kube, instance_id),
                    machine.host_keys == [self._first_host_key(instance_id)],
                )
                for instance_id, machine in self.machines.items()
                if cloud.instances[instance_id].state.is_live
            ),
            "retained": sum(
                names.RETAINED_TAG in one.tags
                for things in (cloud.instances, cloud.security_groups, cloud.key_pairs, cloud.addresses, cloud.volumes)
                for one in things.values()  # type: ignore[attr-defined]  # all have tags
            ),
            "secrets of nobody": sorted(
                name
                for (namespace, name), secret in self.kube.secrets.items()
                if secret.owner is None and namespace == OURS
            ),
            "terminations asked for": self.judge.has_terminated,
        }


async def _collect(world: World) -> None:
    keeper = StoreKeeper(world, StoreLimits(1, 1), Metrics())
    while True:
        await world.nix.collect(keeper.wanted, 1)
        await asyncio.sleep(0.5)


def _secret(**data: bytes) -> Secret:
    return Secret(data)


def _ready(body: Body) -> bool:
    status, generation = body.get("status") or {}, body["metadata"]["generation"]
    conditions = {one["type"]: (one["status"], one["observedGeneration"]) for one in status.get("conditions") or ()}
    is_calm = not {"Reconciling", "Stalled"} & conditions.keys()
    return is_calm and status["observedGeneration"] == generation and conditions.get("Ready") == ("True", generation)


class Operator:
    """One life of the core. `trace` lists its effects in order. `interrupt` is called before each of them, with its
    name and number: what a user does at that very moment; it may return where the life ends. `tells`: every effect is
    printed. `workers`: passes at once.
    """

    tells = False
    workers = 4

    def __init__(
        self, worlds: Worlds, cut: Cut | None = None, interrupt: Callable[[str, int], Cut | None] | None = None
    ) -> None:
        self.worlds = worlds
        self.cut = cut
        self.interrupt = interrupt
        self.trace: list[str] = []
        self.acted_at = 0.0
        self._ended = asyncio.Event()
        self.is_dead = False

    @contextlib.asynccontextmanager
    async def _layer(self, effect: str) -> AsyncIterator[None]:
        if self.is_dead:
            raise Crash
        self.trace.append(effect)
        number = self.trace.count(effect)
        if self.tells:
            print(f"{asyncio.get_running_loop().time():8.1f}  {effect} {number}")
        if self.interrupt is not None:
            self.cut = self.interrupt(effect, number) or self.cut
        if not effect.startswith("nix.") and effect not in ("host.connect", "kube.post_event"):
            self.acted_at = asyncio.get_running_loop().time()
        how = self.cut.how if self.cut is not None and (self.cut.effect, self.cut.number) == (effect, number) else None
        if how == "before":
            self._die()
        yield
        if how is not None:
            if how == "reply lost":
                raise OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, f"{effect}: the reply was lost")
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        self._ended.set()
        raise Crash

    def _world(self, cache: Cache, queue: WorkQueue[Key]) -> World:
        worlds = self.worlds
        clouds = Layered(worlds.clouds, Clouds, (self._layer,))
        hosts = Layered(worlds.hosts, Hosts, (self._layer,))
        kube = cast(Any, Layered(worlds.kube, Kube, (self._layer,)))
        return World(
            cluster_id=CLUSTER_ID,
            policy=Policy(
                default_image_owner=NIXOS_OWNER,
                default_image_name="nixos/25.11*",
                hosts=HostPolicy(allowed=(IPv4Network("198.51.100.0/24"),)),
                nixpkgs=Folder(worlds.nixpkgs),
                progress_deadline=timedelta(minutes=30),
            ),
            kube=kube,
            nix=cast(Any, Layered(worlds.nix, Nix, (self._layer,))),
            cache=cache,
            clouds=CloudInformers(cast(Any, clouds), timedelta(seconds=10), timedelta(seconds=30), queue.add),
            hosts=HostInformers(cast(Any, hosts), timedelta(seconds=10), queue.add),
            jobs=Jobs({"evaluate": 1, "build": 2, "copy": 5}, queue.add),
            reads=Reads(kube, RESYNC),
            wake=queue.add,
            now=clock,
            digest_key=b"for tests",
        )

    async def live(self, script: asyncio.Task[None] | None = None) -> bool:
        """Until the worlds are at rest, and what the script does is done (True), or the cut is met (False)."""
        outside = asyncio.all_tasks()
        self.worlds.nix.lent.clear()  # by a process that is gone
        cache: Cache = Cache()
        queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        intake = Intake(cache, queue)

        def hear(what: str, body: Body) -> None:
            kind = next(kind for kind in Kind if kind.object_kind == body["kind"])
            if what == "DELETED":
                intake.gone(key_of(body), resource_version(body))
            else:
                intake.saw(kind, body)

        world = self._world(cache, queue)
        reconciler = Reconciler(world.kube, cache, queue, controllers(world), RESYNC, now=clock)
        self.worlds.kube.watchers.append(hear)
        try:
            await resync(world.kube, cache, intake)
            workers = [asyncio.create_task(reconciler.work()) for _ in range(self.workers)]
            if self.worlds.collects:
                workers.append(asyncio.create_task(_collect(world)))
            self.acted_at = asyncio.get_running_loop().time()
            return await self._rest(workers, script)
        finally:
            self.is_dead = True
            self.worlds.kube.watchers.remove(hear)
            for machine in self.worlds.hosts.machines.values():
                machine.cut_connections()
            while inside := asyncio.all_tasks() - outside:  # those that end may begin others
                await asyncio.sleep(0)  # none is cancelled before it has begun
                for task in inside:
                    task.cancel()
                await asyncio.gather(*inside, return_exceptions=True)

    async def _rest(self, workers: list[asyncio.Task[None]], script: asyncio.Task[None] | None) -> bool:
        loop, worlds = asyncio.get_running_loop(), self.worlds
        until = loop.time() + PATIENCE
        while loop.time() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._ended.wait()
            if self._ended.is_set():  # maybe at the very end of the second
                return False
            worlds.judge.holds()
            assert not any(worker.done() for worker in workers), "a worker ended"
            if script is not None and not script.done():
                continue
            if script is not None:
                script.result()
            calm = loop.time() - self.acted_at
            if calm > STILL or (calm > QUIET and (worlds.is_ready() or worlds.is_empty())):
                if not worlds.at_rest:
                    return True
                worlds.at_rest.pop(0)(worlds)
                self.acted_at = loop.time()
        raise Broken(f"no rest within {PATIENCE:.0f} s: {self.trace[-20:]}\n{self.worlds.standing()}")
