"""The composition root: settings, adapters, Lease, watch. The exit code tells why the process ended.

0 asked to stop · 10 the CRDs are not served · 11 the Lease was lost · 12 the watch is dead · 13 a pass does not end ·
14 unsafe or invalid settings ·
1 anything else
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import pydantic

from nixops_operator import logs, names, settings, watch
from nixops_operator.adapters.aws.clouds import Boto3Clouds
from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.adapters.kube.lease import Lease
from nixops_operator.adapters.nix.evaluator import EvaluationLimits
from nixops_operator.adapters.nix.probe import SandboxUnsafe
from nixops_operator.adapters.nix.sandboxed_nix import BuildLimits, SandboxedNix
from nixops_operator.adapters.nix.signing import generate_signing_key
from nixops_operator.adapters.ssh.hosts import AsyncsshHosts
from nixops_operator.api.group import GROUP, VERSION
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.controllers import controllers
from nixops_operator.effects import Layer, Layered
from nixops_operator.errors import OperatorError, Retry
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.informers.hosts import HostInformers
from nixops_operator.jobs import Jobs
from nixops_operator.metrics import Metrics
from nixops_operator.ports.cloud import Clouds
from nixops_operator.ports.host import Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix
from nixops_operator.reconcile import Reconciler
from nixops_operator.server import Server
from nixops_operator.settings import Settings
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import Policy, World

log = logging.getLogger("nixops_operator")

EC2_THREADS = 16  # boto3 blocks a thread per call; more would only wait for EC2's own limits
DRAIN = timedelta(seconds=60)  # for passes that run when the process is asked to stop
PASS_IS_OLD = timedelta(seconds=60)  # unhealthy
PASS_IS_STUCK = timedelta(seconds=120)  # exit 13
LAG_IS_BAD = timedelta(seconds=5)


class Exit(IntEnum):
    STOPPED = 0
    FAILED = 1
    CRDS_MISSING = 10
    LEASE_LOST = 11
    WATCH_DEAD = 12
    PASS_STUCK = 13
    UNSAFE = 14


class Ended(Exception):
    """The process is to end with this code."""

    def __init__(self, code: Exit, why: str) -> None:
        super().__init__(why)
        self.code = code


def main() -> None:
    """Entry point `nixops-operator`."""
    try:
        chosen = settings.load()
    except (pydantic.ValidationError, OSError, ValueError) as error:
        print(f"nixops-operator: settings: {error}", file=sys.stderr)
        sys.exit(Exit.UNSAFE)
    logs.set_up(chosen.log.level)
    try:
        asyncio.run(run(chosen))
    except Ended as ended:
        (log.info if ended.code is Exit.STOPPED else log.error)("ending: %s", ended)
        sys.exit(ended.code)


async def run(chosen: Settings, layers: Sequence[Layer] = ()) -> None:
    """The operator's whole life. Always ends by raising Ended. `layers` go inside the fence, audit and metrics."""
    stop = asyncio.Event()
    _take_signals(stop)
    async with contextlib.AsyncExitStack() as stack:
        connection = await Connection.open()
        stack.push_async_callback(connection.close)
        await _crds_served(connection)
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lease = Lease(connection, chosen.lease.namespace, chosen.lease.name, identity)
        operator = Operator(chosen, connection, lease, layers)
        await stack.enter_async_context(operator.running(stop))
        await operator.until_ended(stop)


def _take_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _crds_served(connection: Connection) -> None:
    try:
        found = await connection.request("GET", f"/apis/{GROUP}/{VERSION}", "look for the CRDs", accepted=(404,))
    except OperatorError as error:
        raise Ended(Exit.FAILED, f"the API server does not answer: {error}") from error
    served = {resource["name"] for resource in (found or {}).get("resources", ())}
    missing = [kind.value for kind in Kind if kind.value not in served]
    if missing:
        raise Ended(
            Exit.CRDS_MISSING, f"the cluster does not serve {', '.join(missing)}.{GROUP}: apply the CRDs (crds/)"
        )


class Operator:
    """Everything that runs, wired together."""

    def __init__(self, chosen: Settings, connection: Connection, lease: Lease, layers: Sequence[Layer]) -> None:
        self._chosen = chosen
        self._lease = lease
        self.metrics = Metrics()
        self._layers = (self._fence, self._audit, *layers)
        self._cache = Cache()
        self._queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random())  # noqa: S311 - jitter
        self._intake = watch.Intake(self._cache, self._queue)
        self._kube = cast(Kube, self._layered(KubernetesApi(connection), "kube"))
        self._reconciler: Reconciler | None = None
        self._resynced_at: float | None = None
        self._lag = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        self._watch_stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Started in order, stopped in reverse: intake, passes, jobs, connections, Lease."""
        chosen = self._chosen
        async with contextlib.AsyncExitStack() as stack:
            server = Server(chosen.server.address, chosen.server.port, self._healthy, self._ready, self._tell_metrics)
            await server.start()
            stack.push_async_callback(server.stop)
            if chosen.lease.enabled:
                await self._acquire_lease(stop)
                stack.push_async_callback(self._release_lease)
                self._spawn(self._lease.hold(lambda: None), "lease")
            stack.push_async_callback(self._cancel, "lease", "watch")
            stack.push_async_callback(self._stop_watching)
            world = await self._world(stack)
            reconciler = Reconciler(self._kube, self._cache, self._queue, controllers(world), chosen.resync_period)
            self._reconciler = reconciler
            self._spawn(self._watch(stop), "watch")
            await self._first_lists()
            workers = [asyncio.create_task(reconciler.work(), name=f"worker {n}") for n in range(chosen.workers)]
            stack.push_async_callback(self._drain, workers)
            self._spawn(self._resync(), "resync")
            self._spawn(self._measure_lag(), "lag")
            log.info("watching NixDeployments and NixMachines")
            yield

    async def until_ended(self, stop: asyncio.Event) -> None:
        """Raises Ended when the process was asked to stop, or something that must live has died."""
        asked = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait([asked, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        for task in done:
            error = task.exception() if not task.cancelled() else None
            match task.get_name(), error:
                case "stop", _:
                    raise Ended(Exit.STOPPED, "asked to stop")
                case "watch", None:
                    # kopf takes the signals over while it starts; that it returned means that one came then.
                    raise Ended(Exit.STOPPED, "asked to stop")
                case "lease", None:
                    raise Ended(Exit.LEASE_LOST, "the Lease was lost; another operator may act now")
                case _, Ended():
                    raise error
                case _, watch.WatchDeadError():
                    raise Ended(Exit.WATCH_DEAD, str(error))
                case name, _:
                    raise Ended(Exit.FAILED, f"{name} ended: {error!r}") from error

    # --- wiring ---------------------------------------------------------------------------------------------------

    def _layered(self, port: Any, name: str, gives: dict[str, str] | None = None) -> Any:
        return Layered(port, name, self._layers, gives)

    async def _world(self, stack: contextlib.AsyncExitStack) -> World:
        chosen = self._chosen
        pool = concurrent.futures.ThreadPoolExecutor(EC2_THREADS, thread_name_prefix="ec2")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        boto3_clouds = Boto3Clouds(chosen.aws.endpoint_url, pool)
        stack.callback(boto3_clouds.close)
        clouds = cast(Clouds, self._layered(boto3_clouds, "ec2", gives={"cloud": "ec2"}))
        hosts = cast(Hosts, self._layered(AsyncsshHosts(), "host", gives={"connect": "host"}))
        nix = await self._nix(stack)
        limits = {
            "evaluate": chosen.nix.evaluation.concurrency,
            "build": chosen.nix.build_concurrency,
            "copy": chosen.nix.copy_concurrency,
        }
        jobs: Jobs[Key] = Jobs(limits, self._queue.add)
        stack.push_async_callback(jobs.close)
        cloud_informers = CloudInformers(clouds, chosen.ec2.sweep_period, chosen.ec2.network_period, self._queue.add)
        stack.push_async_callback(cloud_informers.close)
        host_informers = HostInformers(hosts, chosen.hosts.facts_period, self._queue.add)
        stack.push_async_callback(host_informers.close)
        self._jobs = jobs
        return World(
            cluster_id=chosen.cluster_id or await self._patiently(self._kube.cluster_id),
            policy=Policy(
                default_image_owner=chosen.ec2.default_image.owner,
                default_image_name=chosen.ec2.default_image.name,
                allowed_hosts=chosen.hosts.allowed_cidrs,
                denied_hosts=chosen.hosts.denied_cidrs,
                nixpkgs=chosen.nix.nixpkgs.path if chosen.nix.nixpkgs else None,
                progress_deadline=chosen.progress_deadline,
            ),
            kube=self._kube,
            nix=nix,
            cache=self._cache,
            clouds=cloud_informers,
            hosts=host_informers,
            jobs=jobs,
            wake=self._queue.add,
        )

    async def _nix(self, stack: contextlib.AsyncExitStack) -> Nix:
        chosen = self._chosen.nix
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="nixops-operator-"))
        nix = SandboxedNix(
            scratch=Path(scratch),
            signing_key=await self._signing_key(),
            evaluations=chosen.evaluation.concurrency,
            evaluation_limits=EvaluationLimits(
                chosen.evaluation.memory, chosen.evaluation.timeout, cpu=chosen.evaluation.timeout
            ),
            build_limits=BuildLimits(max_jobs=chosen.max_jobs),
        )
        try:
            await nix.probe()
        except SandboxUnsafe as error:
            raise Ended(Exit.UNSAFE, f"no safe evaluation on this node: {error.message}") from error
        return cast(Nix, self._layered(nix, "nix"))

    async def _signing_key(self) -> str:
        """The key that hosts trust, made at the very first start."""
        namespace, name = self._chosen.lease.namespace, names.SIGNING_KEY_SECRET
        while True:
            found = await self._patiently(lambda: self._kube.get_secret(namespace, name))
            if found is not None:
                return str(found["key"].decode())
            key = await generate_signing_key("nixops-operator-1")
            await self._kube.create_secret(
                namespace, name, {"key": key.encode()}, owner=None, type_="Opaque", immutable=False
            )

    # --- layers ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _fence(self, effect: str) -> AsyncIterator[None]:
        """Refuse to change anything once another operator may hold the Lease."""
        if self._chosen.lease.enabled and not self._lease.is_held:
            raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{effect} refused: the Lease may be another operator's")
        yield

    @contextlib.asynccontextmanager
    async def _audit(self, effect: str) -> AsyncIterator[None]:
        """One record and one measurement per effect."""
        began, result = time.monotonic(), "ok"
        try:
            yield
        except BaseException as error:
            result = type(error).__name__
            raise
        finally:
            seconds = time.monotonic() - began
            self.metrics.effects.labels(effect, result).inc()
            self.metrics.effect_seconds.labels(effect).observe(seconds)
            log.info("effect", extra={"effect": effect, "result": result, "seconds": round(seconds, 3)})

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _cancel(self, *spawned: str) -> None:
        tasks = [task for task in self._tasks if task.get_name() in spawned]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, stop: asyncio.Event) -> None:
        ready = asyncio.Event()
        watching = asyncio.create_task(watch.watch_for_ever(self._intake, self._watch_stop, ready), name="kopf")
        await asyncio.wait([watching, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
        # At its end kopf cancels every task that was made after its start, passes included. So it must end last, and
        # not hear of signals first.
        _take_signals(stop)
        await watching

    async def _stop_watching(self) -> None:
        await self._cancel("resync", "lag")
        self._watch_stop.set()
        watching = [task for task in self._tasks if task.get_name() == "watch"]
        await asyncio.gather(*watching, return_exceptions=True)

    async def _first_lists(self) -> None:
        await self._patiently(lambda: watch.resync(self._kube, self._cache, self._intake))
        self._resynced_at = asyncio.get_running_loop().time()

    async def _resync(self) -> None:
        def told() -> None:
            self._resynced_at = asyncio.get_running_loop().time()

        await watch.resync_for_ever(self._kube, self._cache, self._intake, self._chosen.resync_period, told)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 1
            await asyncio.sleep(1)
            self._lag = loop.time() - due
            if self._oldest_pass() > PASS_IS_STUCK.total_seconds():
                raise Ended(Exit.PASS_STUCK, "a pass has not ended for two minutes")

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        self._queue.close()
        _, late = await asyncio.wait(workers, timeout=DRAIN.total_seconds())
        for worker in late:
            worker.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _acquire_lease(self, stop: asyncio.Event) -> None:
        asked = asyncio.create_task(stop.wait())
        acquiring = asyncio.create_task(self._lease.acquire())
        done, pending = await asyncio.wait([asked, acquiring], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if asked in done:
            raise Ended(Exit.STOPPED, "asked to stop while another operator holds the Lease")
        acquiring.result()

    async def _release_lease(self) -> None:
        try:
            await self._lease.release()
        except OperatorError as error:
            log.warning("the Lease could not be released: %s; the next operator waits until it runs out", error)

    async def _patiently(self, ask: Any) -> Any:
        """Ask until the API server answers: it may be starting, too."""
        while True:
            try:
                return await ask()
            except Retry as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(2)

    # --- probes ---------------------------------------------------------------------------------------------------

    def _oldest_pass(self) -> float:
        running = self._reconciler.running.values() if self._reconciler else ()
        now = asyncio.get_running_loop().time()
        return max((now - began for began in running), default=0.0)

    def _resync_age(self) -> float:
        return asyncio.get_running_loop().time() - self._resynced_at if self._resynced_at is not None else 0.0

    def _healthy(self) -> str | None:
        if self._resync_age() > 3 * max(self._chosen.resync_period.total_seconds(), 20):
            return f"no resync for {self._resync_age():.0f} s"
        if self._oldest_pass() > PASS_IS_OLD.total_seconds():
            return f"a pass has been running for {self._oldest_pass():.0f} s"
        if self._lag > LAG_IS_BAD.total_seconds():
            return f"the event loop is {self._lag:.1f} s late"
        return None

    def _ready(self) -> str | None:
        if self._chosen.lease.enabled and not self._lease.is_held:
            return "the Lease is not held"
        return None if self._resynced_at is not None else "the first lists are not complete"

    def _tell_metrics(self) -> bytes:
        metrics = self.metrics
        metrics.queue_depth.set(len(self._queue))
        metrics.leader.set(int(not self._chosen.lease.enabled or self._lease.is_held))
        metrics.resync_age.set(self._resync_age())
        metrics.loop_lag.set(self._lag)
        for kind in Kind:
            metrics.objects.labels(kind.object_kind).set(sum(key.kind is kind for key in self._cache.known()))
        for job in ("evaluate", "build", "copy", "host"):
            metrics.jobs_running.labels(job).set(self._jobs.running().get(job, 0))
        return metrics.text()


if __name__ == "__main__":
    main()
