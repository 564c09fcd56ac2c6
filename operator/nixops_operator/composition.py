"""The composition root: settings become adapters, each port gets its layers, and what passes may use becomes the World.

    wire() ──► Core (there from the first moment) ──► world() ──► World (once the Lease is held)

Nothing here runs by itself: lifecycle.py starts and stops what is wired here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import netrc
import random
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

from nixops_operator import layers, names
from nixops_operator.adapters.aws.clouds import Boto3Clouds
from nixops_operator.adapters.egress.egress import Credential, Egress
from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.adapters.kube.lease import Lease
from nixops_operator.adapters.nix.boxes.box import EvaluationLimits
from nixops_operator.adapters.nix.boxes.choice import chosen_box
from nixops_operator.adapters.nix.boxes.folders import LockedFolder, remove_leftovers
from nixops_operator.adapters.nix.fetched_trees import SourceLimits
from nixops_operator.adapters.nix.probe import SandboxUnsafe
from nixops_operator.adapters.nix.sandboxed_nix import BuildLimits, SandboxedNix, VolumeLimits
from nixops_operator.adapters.nix.signing import generate_signing_key
from nixops_operator.adapters.nix.substitution import Substituter
from nixops_operator.adapters.nix.unpacking import TreeLimits
from nixops_operator.adapters.ssh.hosts import AsyncsshHosts
from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.builder_trial import until_builders_work
from nixops_operator.cache import Cache
from nixops_operator.ec2.credentials import Lent
from nixops_operator.effects import Layer, Layered
from nixops_operator.egress_policy import EgressPolicy
from nixops_operator.errors import OperatorError, Retry
from nixops_operator.exits import Ended, Exit
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.nix import Archive, Folder, Tree
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.job_names import BUILD, COPY, EVALUATE, FETCH
from nixops_operator.jobs import Jobs
from nixops_operator.metrics import Metrics
from nixops_operator.ports.cloud import Clouds
from nixops_operator.ports.host import Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from nixops_operator.reads import Reads
from nixops_operator.settings import Build, Nixpkgs, Settings, Store
from nixops_operator.store_keeping import make_room
from nixops_operator.store_room import StoreLimits, stored_at
from nixops_operator.watch import ApiServer, Intake
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import Policy, World

log = logging.getLogger(__name__)

EC2_THREADS = 16  # boto3 blocks a thread per call; more would only wait for EC2's own limits
ASK_AGAIN = 2.0  # seconds; while the API server does not answer

T = TypeVar("T")


@dataclass(frozen=True)
class Core:
    """What is there from the first moment on. Probes and metrics read it, so no part of it appears later."""

    chosen: Settings
    lease: Lease
    layers: tuple[Layer, ...]
    metrics: Metrics
    cache: Cache
    queue: WorkQueue[Key]
    intake: Intake
    server: ApiServer
    jobs: Jobs[Key]
    kube: Kube

    @property
    def is_leading(self) -> bool:
        """Whether no other operator can be acting."""
        return _is_leading(self.chosen, self.lease)


def _is_leading(chosen: Settings, lease: Lease) -> bool:
    return not chosen.lease.enabled or lease.is_held


def wire(chosen: Settings, connection: Connection, lease: Lease, inner: Sequence[Layer] = ()) -> Core:
    """`inner`: layers that go inside the fence and the audit. Needs a running event loop; asks nothing of anybody."""
    metrics = Metrics()
    around = (layers.fence(lambda: _is_leading(chosen, lease)), layers.audit(metrics), *inner)
    cache = Cache()
    queue: WorkQueue[Key] = WorkQueue(_lane, random.Random(), workers=chosen.workers, meter=metrics)  # noqa: S311
    return Core(
        chosen=chosen,
        lease=lease,
        layers=around,
        metrics=metrics,
        cache=cache,
        queue=queue,
        intake=Intake(cache, queue),
        server=ApiServer(connection.url, connection.is_strict),
        jobs=Jobs(_job_limits(chosen), queue.add, {COPY: chosen.nix.copies.stall}),
        kube=cast(Kube, Layered(KubernetesApi(connection, namespaces=chosen.watch.namespaces), Kube, around)),
    )


def _lane(key: Key) -> tuple[str, str]:
    """Kinds and namespaces take turns: nobody's thousand objects hold up somebody else's edit."""
    return key.kind, key.namespace


def _job_limits(chosen: Settings) -> Mapping[str, int]:
    """Kind of job → how many at once."""
    return {
        FETCH: chosen.nix.sources.concurrency,
        EVALUATE: chosen.nix.evaluation.concurrency,
        BUILD: chosen.nix.build.concurrency,
        COPY: chosen.nix.copies.concurrency,
    }


async def world(core: Core, stack: contextlib.AsyncExitStack) -> World:
    """All that passes may use. What is opened for it is closed by the stack. Raises Ended if this node lets no
    evaluation be confined, Blocked if the operator's own Secret cannot be had."""
    nix = await nix_port(core, stack)
    clouds = _cloud_informers(core, stack)
    hosts = _host_informers(core, stack)
    stack.push_async_callback(core.jobs.close)
    cluster_id = core.chosen.cluster_id
    return World(
        cluster_id=await patiently(core.kube.cluster_id) if cluster_id is None else cluster_id,
        policy=policy(core.chosen),
        kube=core.kube,
        nix=nix,
        cache=core.cache,
        clouds=clouds,
        hosts=hosts,
        jobs=core.jobs,
        reads=Reads(core.kube, core.chosen.resync_period),
        wake=core.queue.add,
        now=lambda: datetime.now(UTC),
        digest_key=await _own_secret(core, names.DIGEST_KEY_SECRET, _new_digest_key),
    )


def policy(chosen: Settings) -> Policy:
    """What the administrator decided, of what passes need to know."""
    return Policy(
        lent=tuple(Lent(one.namespace, one.roles) for one in chosen.aws.lend),
        default_image_owner=chosen.ec2.default_image.owner,
        default_image_name=chosen.ec2.default_image.name,
        hosts=HostPolicy(chosen.hosts.allowed_cidrs, chosen.hosts.denied_cidrs, chosen.hosts.allowed_ports),
        nixpkgs=_default_nixpkgs(chosen.nix.nixpkgs),
        progress_deadline=chosen.progress_deadline,
        build_on=chosen.nix.build.on,
        build_timeout=chosen.nix.build.timeout,
        build_silent=chosen.nix.build.silent,
        namespaces=chosen.watch.namespaces,
    )


def _default_nixpkgs(given: Nixpkgs | None) -> Tree | None:
    if given is None:
        return None
    if given.path is not None:
        return Folder(given.path)
    assert given.url is not None and given.hash is not None  # noqa: S101, PT018 - shown by the settings
    return Archive(given.url, given.hash, is_administrators=True)


def egress_policy(chosen: Settings, api_server: Iterable[str]) -> EgressPolicy:
    """`api_server`: its addresses."""
    own = tuple(ip_network(address) for address in api_server)
    return EgressPolicy(
        allowed=chosen.nix.egress.allowed_cidrs,
        denied=(*chosen.hosts.denied_cidrs, *own),
        ports=frozenset(chosen.nix.egress.allowed_ports),
    )


def _cloud_informers(core: Core, stack: contextlib.AsyncExitStack) -> CloudInformers:
    ec2 = core.chosen.ec2
    pool = concurrent.futures.ThreadPoolExecutor(EC2_THREADS, thread_name_prefix="ec2")
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    adapter = Boto3Clouds(core.chosen.aws.endpoint_url, pool)
    stack.callback(adapter.close)
    clouds = cast(Clouds, Layered(adapter, Clouds, core.layers))
    informers = CloudInformers(clouds, ec2.sweep_period, ec2.network_period, core.queue.add)
    stack.push_async_callback(informers.close)
    return informers


def _host_informers(core: Core, stack: contextlib.AsyncExitStack) -> HostInformers:
    hosts = cast(Hosts, Layered(AsyncsshHosts(), Hosts, core.layers))
    informers = HostInformers(hosts, core.chosen.hosts.facts_period, core.queue.add)
    stack.push_async_callback(informers.close)
    return informers


async def nix_port(core: Core, stack: contextlib.AsyncExitStack) -> Nix:
    """Nix in its box, which was attacked and held. Raises Ended (`UNSAFE`) if it did not."""
    chosen = core.chosen.nix
    scratch = await _scratch_folder(stack)
    box = await chosen_box(chosen.box, scratch)
    egress = Egress(egress_policy(core.chosen, await _addresses_of(urlsplit(core.server.url).hostname or "")))
    stack.push_async_callback(egress.close)
    sources = chosen.sources
    nix = SandboxedNix(
        scratch=scratch,
        egress=egress,
        substituters=[Substituter(each.url, each.public_keys) for each in chosen.substituters],
        credentials=credentials_of(chosen.netrc_file),
        source_limits=SourceLimits(sources.compressed, TreeLimits(sources.files, sources.unpacked)),
        signing_key=await _signing_key(core),
        box=box.kind,
        evaluations=chosen.evaluation.concurrency,
        evaluation_limits=EvaluationLimits(
            memory=chosen.evaluation.memory,
            timeout=chosen.evaluation.timeout,
            cpu=chosen.evaluation.timeout,
            disk=chosen.evaluation.disk,
        ),
        build_limits=build_limits(chosen.build),
        volume_limits=VolumeLimits(chosen.store.max_size, chosen.scratch.max_size),
    )
    port = cast(Nix, Layered(nix, Nix, core.layers))
    default = stored_at(_default_nixpkgs(chosen.nixpkgs))
    await make_room(port, store_limits(chosen.store), lambda: _machines(core), default)
    try:
        await nix.probe()
        await _try_builders(nix, chosen.build.on, stack)
    except SandboxUnsafe as error:
        why = f"no safe evaluation, or no build, on this node: {error.message}. {box.remedy}"
        raise Ended(Exit.UNSAFE, why) from error
    return port


async def _machines(core: Core) -> list[Body]:
    async def listed() -> list[Body]:
        return [body async for page in core.kube.list(Kind.MACHINE) for body in page.bodies]

    return await patiently(listed)


async def _scratch_folder(stack: contextlib.AsyncExitStack) -> Path:
    """For evaluations and builds. What an operator that crashed left of its own may be a whole build: it goes now."""
    parent, prefix = Path(tempfile.gettempdir()), "nixops-operator-"
    await asyncio.to_thread(remove_leftovers, parent, prefix)
    folder = LockedFolder.new(parent, prefix)
    stack.callback(folder.remove)
    return folder.path


async def _try_builders(nix: SandboxedNix, place: BuildOn, stack: contextlib.AsyncExitStack) -> None:
    """Where builders do not work now, they are tried again until the stack ends. Raises SandboxUnsafe if they cannot
    be confined, and the administrator wants every system built here."""
    try:
        await nix.probe_builder()
    except OperatorError as error:
        if place is BuildOn.OPERATOR and isinstance(error, SandboxUnsafe):
            raise
        log.info("nothing is built here for now, with build.on Auto machines do it themselves: %s", error.message)
        again = asyncio.create_task(until_builders_work(nix.probe_builder, error.message), name="builders")
        stack.push_async_callback(_end, again)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def credentials_of(file: Path | None) -> Callable[[], Mapping[str, Credential]]:
    """Gives host → what it is told, as the file says now: passwords are rotated while the operator runs. What it said
    last serves where it cannot be read then. Raises Ended if it cannot be read at first."""
    if file is None:
        return dict
    try:
        known = _credentials(file)
    except (OSError, UnicodeError, netrc.NetrcParseError) as error:
        # Its text may hold a line of the file.
        raise Ended(Exit.FAILED, f"nix.netrcFile: {file} cannot be read ({type(error).__name__})") from error

    def now() -> Mapping[str, Credential]:
        nonlocal known
        try:
            known = _credentials(file)
        except (OSError, UnicodeError, netrc.NetrcParseError) as error:
            log.warning("nix.netrcFile: %s cannot be read (%s); what it said before serves", file, type(error).__name__)
        return known

    return now


def _credentials(file: Path) -> dict[str, Credential]:
    """Without the entry `default`, which is nobody's: any host could be asked for."""
    hosts = netrc.netrc(file).hosts
    return {host: Credential(entry[0], entry[2]) for host, entry in hosts.items() if host != "default"}


async def _addresses_of(host: str) -> set[str]:
    """What the name shows now. None at all is no reason not to start: it is the policy's last entry, not its only
    one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        log.warning("the API server's name %s shows no address; fetches are not kept from it by address", host)
        return set()
    return {str(each[4][0]).partition("%")[0] for each in found}


def store_limits(chosen: Store) -> StoreLimits:
    """When the store is collected, as the administrator set it."""
    return StoreLimits(chosen.min_free, max(chosen.min_free, chosen.max_free), chosen.max_size)


def build_limits(chosen: Build) -> BuildLimits:
    """Of one build, as the administrator set them."""
    return BuildLimits(
        max_jobs=chosen.max_jobs,
        memory=chosen.memory,
        processes=chosen.processes,
        disk=chosen.free_disk,
        timeout=chosen.timeout,
        silent=chosen.silent,
    )


async def _signing_key(core: Core) -> str:
    """The key that hosts trust."""
    return (await _own_secret(core, names.SIGNING_KEY_SECRET, _new_signing_key)).decode()


async def _new_signing_key() -> bytes:
    return (await generate_signing_key("nixops-operator-1")).encode()


async def _new_digest_key() -> bytes:
    return secrets.token_hex(32).encode()


async def _own_secret(core: Core, name: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
    """What the operator keeps for itself in its own namespace, made at the very first start."""
    namespace = core.chosen.lease.namespace
    while True:
        found = await patiently(lambda: core.kube.read_secret(namespace, name))
        if found is not None:
            return found.data["key"]
        data = {"key": await make()}
        await patiently(
            lambda data=data: core.kube.create_secret(  # type: ignore[misc]
                namespace, name, data, owner=None, type_="Opaque", immutable=False
            )
        )


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the API server answers: it may be starting, too."""
    while True:
        try:
            return await ask()
        except Retry as error:
            log.warning("%s; trying again", error)
            await asyncio.sleep(ASK_AGAIN)
