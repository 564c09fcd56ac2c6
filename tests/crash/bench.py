"""The operator's core on worlds in memory: cut down at any effect, started again on the same worlds.

Worlds ── FakeKube, FakeClouds, FakeHosts, FakeNix, and what happens in them by itself (boots, garbage collection)
Operator ── one life of the core: cache, queue, looks, jobs, controllers; its memory ends with it
Cut ── where a life ends: the n-th call of an effect × before | reply lost | not recorded
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

from fakes.cloud import DEFAULT_GROUP, NIXOS_OWNER, FakeCloud, FakeClouds
from fakes.effects import Effects
from fakes.host import UNDER_WAY, FakeHosts, FakeMachine
from fakes.kube import CLUSTER_ID, FakeKube, Secret, key_of
from fakes.nix import FakeNix
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache, resource_version
from nixops_operator.controllers import controllers
from nixops_operator.effects import Layered
from nixops_operator.errors import OutcomeUnknown
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.machine.host_keys import public_key_of
from nixops_operator.ports.cloud import Clouds
from nixops_operator.ports.host import Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from nixops_operator.reads import Reads
from nixops_operator.reconcile import Reconciler
from nixops_operator.ssh_keys import parse_private_key
from nixops_operator.watch import Intake, resync
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import Policy, World

RESYNC = timedelta(seconds=30)
QUIET = 2 * RESYNC.total_seconds()  # nothing but looks for so long: everything has come to rest
PATIENCE = 30 * 60.0  # seconds of the worlds' time for one life; the longest wait in the core is ten minutes
BOOT_SECONDS = 5.0
HIDDEN_SECONDS = 8.0
BEGINNING = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Crash(BaseException):
    """The process is gone. No `except Exception` may catch it."""


class Broken(AssertionError):
    """An invariant does not hold."""


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


class _Watched(Effects):
    """A log of calls that is judged as it grows."""

    def __init__(self, worlds: Worlds) -> None:
        super().__init__()
        self._worlds = worlds

    async def begin(self, effect: str, arguments: Mapping[str, Any]) -> None:
        self._worlds.judge_call(effect, arguments)
        await super().begin(effect, arguments)

    def end(self, effect: str) -> None:
        self._worlds.hide_what_is_new()
        super().end(effect)


@dataclass
class Worlds:
    """Everything outside the process. Outlives every Operator."""

    nixpkgs: Path
    kube: FakeKube = field(init=False)
    clouds: FakeClouds = field(init=False)
    hosts: FakeHosts = field(default_factory=FakeHosts)
    nix: FakeNix = field(init=False)
    requests: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # client token → first request
    broken: list[str] = field(default_factory=list)  # invariants that did not hold
    was_terminated: bool = False
    may_leave_untagged: bool = False  # EC2 refuses to tag, for ever
    shown_at: dict[str, datetime] = field(default_factory=dict)  # instance, group, key pair → since when EC2 shows it

    def __post_init__(self) -> None:
        self.kube = FakeKube(now=clock)
        self.kube.watchers.append(self._judge_event)
        self.clouds = FakeClouds(now=clock)
        self.nix = FakeNix(self.hosts.receive)
        self.cloud.effects = _Watched(self)
        self.kube.secrets["default", "aws"] = _secret(accessKeyId=b"AKIDTEST", secretAccessKey=b"secret")

    @property
    def cloud(self) -> FakeCloud:
        return self.clouds.world()

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
            self.judge()
            last = now

    def hide_what_is_new(self) -> None:
        """EC2 does not show at once what it made (EC2 Developer Guide, "Eventual consistency")."""
        made = {*self.cloud.instances, *self.cloud.key_pairs, *self.cloud.security_groups} - {DEFAULT_GROUP}
        for new in made - self.shown_at.keys():
            self.shown_at[new] = clock() + timedelta(seconds=HIDDEN_SECONDS)
            self.cloud.hidden.add(new)

    def _boot(self) -> None:
        self.cloud.hidden -= {new for new, moment in self.shown_at.items() if moment <= clock()}
        due = clock() - timedelta(seconds=BOOT_SECONDS)
        for instance in list(self.cloud.instances.values()):
            if instance.state is InstanceState.PENDING and instance.launch_time <= due:
                self.cloud.set_state(instance.id, InstanceState.RUNNING)
            elif instance.state is InstanceState.SHUTTING_DOWN:
                self.cloud.set_state(instance.id, InstanceState.TERMINATED)
        for instance in self.cloud.instances.values():
            address = instance.public_address
            if instance.state is InstanceState.RUNNING and address and address not in self.hosts.machines:
                machine = self.hosts.add(FakeMachine(address))
                launch = next(one for one in self.cloud.launches.values() if one.instance_id == instance.id)
                machine.host_keys = [public_key_of(launch.request.user_data)]
                machine.client_keys = self._private_keys(instance.key_name)
        running = {one.public_address for one in self.cloud.instances.values()}
        for machine in self.hosts.machines.values():
            if machine.address not in running and not machine.is_silent:
                machine.is_silent = True
                machine.cut_connections()

    def _private_keys(self, key_name: str | None) -> set[str]:
        if key_name is None:
            return set()
        public = self.cloud.key_pairs[key_name].public_key
        found = [
            secret.data[names.SSH_PRIVATE_KEY]
            for secret in self.kube.secrets.values()
            if names.SSH_PRIVATE_KEY in secret.data
        ]
        return {private.decode() for private in found if parse_private_key(private, "a test's Secret").public == public}

    # --- what must never be ---------------------------------------------------------------------------------------

    def judge_call(self, effect: str, arguments: Mapping[str, Any]) -> None:
        if effect == "ec2.run_instances":
            token, request = arguments["token"], arguments["request"]
            self._require(
                self.requests.setdefault(token, request) == request, f"token {token} was used with other parameters"
            )
            recorded = [(body.get("status") or {}).get("launch") or {} for body in self.kube.bodies(Kind.MACHINE)]
            self._require(
                token in {one.get("token") for one in recorded}, "a launch was sent before its intent was written"
            )
        elif effect == "ec2.terminate_instance":
            self.was_terminated = True
            uid = self.cloud.instances[arguments["instance_id"]].tags[names.UID_TAG]
            owner = next(body for body in self.kube.bodies(Kind.MACHINE) if body["metadata"]["uid"] == uid)
            self._require("deletionTimestamp" in owner["metadata"], "terminated, and its machine is to stay")

    def judge(self) -> None:
        """Everything that can be seen at any moment."""
        made = [*self.cloud.instances.values(), *self.cloud.key_pairs.values()]
        made += [one for one in self.cloud.security_groups.values() if one.name != "default"]
        for one in made:
            self._require({names.CLUSTER_TAG, names.UID_TAG} <= one.tags.keys(), f"{one.id} carries no tags of ours")
        live = Counter(one.tags[names.UID_TAG] for one in self.cloud.instances.values() if one.state.is_live)
        self._require(all(count <= 1 for count in live.values()), f"two live instances of one machine: {live}")
        for machine in self.hosts.machines.values():
            under_way = [one for one in machine.activations.values() if one.state in UNDER_WAY]
            self._require(len(under_way) <= 1, f"two activations at once on {machine.address}")

    def _judge_event(self, what: str, body: Body) -> None:
        if what != "DELETED":
            return
        uid = body["metadata"]["uid"]
        there = [one for one in self.cloud.instances.values() if one.state is not InstanceState.TERMINATED]
        things = [*there, *self.cloud.security_groups.values(), *self.cloud.key_pairs.values()]
        left = [one.id for one in things if one.tags.get(names.UID_TAG) == uid and names.RETAINED_TAG not in one.tags]
        self._require(not left or self.may_leave_untagged, f"{key_of(body)} was let go while {left} was left")

    def _require(self, holds: bool, otherwise: str) -> None:
        """Written down as well: the core survives any error of a call."""
        if not holds:
            self.broken.append(otherwise)
            raise Broken(otherwise)

    # --- what came of it ------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether every object says that it is ready, of its newest generation."""
        bodies = [*self.kube.bodies(Kind.DEPLOYMENT), *self.kube.bodies(Kind.MACHINE)]
        return bool(bodies) and all(_ready(body) for body in bodies)

    def is_empty(self) -> bool:
        return not self.kube.bodies(Kind.DEPLOYMENT) and not self.kube.bodies(Kind.MACHINE)

    def end_state(self) -> dict[str, Any]:
        """Everything that lasts, with EC2's ids, addresses and attempts left out."""
        cloud = self.cloud
        of_group = {one.id: one.tags.get(names.ENTRY_TAG, "default") for one in cloud.security_groups.values()}
        of_machine = {body["metadata"]["uid"]: body["metadata"]["name"] for body in self.kube.bodies(Kind.MACHINE)}
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
                for kind in Kind
                for body in self.kube.bodies(kind)
            },
            "secrets": sorted(name for _, name in self.kube.secrets),
            "groups": sorted(
                (of_group[one.id], one.description, sorted(str(rule.rule) for rule in one.rules))
                for one in cloud.security_groups.values()
            ),
            "key pairs": sorted(one.tags[names.ENTRY_TAG] for one in cloud.key_pairs.values()),
            "instances": sorted(
                (
                    of_machine.get(one.tags[names.UID_TAG], "gone"),
                    one.state.value,
                    one.instance_type,
                    sorted(of_group.get(group, "gone") for group in one.security_group_ids),
                )
                for one in cloud.instances.values()
            ),
            "hosts": sorted(
                (
                    machine.current_system or "",
                    machine.profile_system or "",
                    machine.boot_entry or "",
                    tuple(machine.switches),
                )
                for machine in self.hosts.machines.values()
            ),
            "retained": sum(
                names.RETAINED_TAG in one.tags
                for things in (cloud.instances, cloud.security_groups, cloud.key_pairs)
                for one in things.values()  # type: ignore[attr-defined]  # all have tags
            ),
            "secrets of nobody": sorted(
                name for (_, name), secret in self.kube.secrets.items() if secret.owner is None
            ),
            "terminations asked for": self.was_terminated,
        }


def _secret(**data: bytes) -> Secret:
    return Secret(data)


def _ready(body: Body) -> bool:
    status, generation = body.get("status") or {}, body["metadata"]["generation"]
    conditions = {one["type"]: (one["status"], one["observedGeneration"]) for one in status.get("conditions") or ()}
    is_calm = not {"Reconciling", "Stalled"} & conditions.keys()
    return is_calm and status["observedGeneration"] == generation and conditions.get("Ready") == ("True", generation)


class Operator:
    """One life of the core. `trace` lists its effects in order."""

    def __init__(self, worlds: Worlds, cut: Cut | None = None) -> None:
        self.worlds = worlds
        self.cut = cut
        self.trace: list[str] = []
        self.acted_at = 0.0
        self._ended = asyncio.Event()
        self.is_dead = False

    @contextlib.asynccontextmanager
    async def _layer(self, effect: str) -> AsyncIterator[None]:
        if self.is_dead:
            raise Crash
        self.trace.append(effect)
        if not effect.startswith("nix.") and effect not in ("host.connect", "kube.post_event"):
            self.acted_at = asyncio.get_running_loop().time()
        cut = self.cut
        is_here = cut is not None and effect == cut.effect and self.trace.count(effect) == cut.number
        if is_here and cut is not None and cut.how == "before":
            self._die()
        yield
        if is_here and cut is not None:
            if cut.how == "reply lost":
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
                nixpkgs=worlds.nixpkgs,
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
        )

    async def live(self) -> bool:
        """Until the worlds are at rest (True) or the cut is met (False)."""
        outside = asyncio.all_tasks()
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
            workers = [asyncio.create_task(reconciler.work()) for _ in range(4)]
            self.acted_at = asyncio.get_running_loop().time()
            return await self._rest(workers)
        finally:
            self.is_dead = True
            self.worlds.kube.watchers.remove(hear)
            for machine in self.worlds.hosts.machines.values():
                machine.cut_connections()
            inside = asyncio.all_tasks() - outside
            for task in inside:
                task.cancel()
            await asyncio.gather(*inside, return_exceptions=True)

    async def _rest(self, workers: list[asyncio.Task[None]]) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while loop.time() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._ended.wait()
                return False
            if self.worlds.broken:
                raise Broken("; ".join(self.worlds.broken))
            assert not any(worker.done() for worker in workers), "a worker ended"
            if loop.time() - self.acted_at > QUIET and (self.worlds.is_ready() or self.worlds.is_empty()):
                return True
        raise Broken(f"no rest within {PATIENCE:.0f} s: {self.trace[-20:]}\n{self._standing()}")

    def _standing(self) -> str:
        found = []
        for kind in Kind:
            for body in self.worlds.kube.bodies(kind):
                told = next((c for c in (body["status"].get("conditions") or ()) if c["type"] == "Ready"), None)
                found.append(f"{key_of(body)}: {told and (told['status'], told['reason'], told['message'])}")
        return "\n".join(found)
