"""The order in which the operator's parts start, and in which they stop; what ends it meanwhile.

    server ─► Lease ─► World ─► watch ─► first lists ─► workers     stopped in reverse: workers first, the Lease last

The start is a task beside the others: whatever must live and dies, or a signal, ends the process during it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from nixops_operator import composition, memory, watch
from nixops_operator.composition import Core, patiently
from nixops_operator.controllers import controllers
from nixops_operator.errors import OperatorError
from nixops_operator.exits import Ended, Exit
from nixops_operator.probes import Probes
from nixops_operator.reconcile import Reconciler
from nixops_operator.server import Server
from nixops_operator.store_keeping import StoreKeeper

log = logging.getLogger(__name__)

DRAIN = timedelta(seconds=60)  # for passes that run when the process is asked to stop


def take_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT ask the process to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


class Lifecycle:
    """One life of the operator. Used once."""

    def __init__(self, core: Core, stop: asyncio.Event) -> None:
        self._core = core
        self._stop = stop
        self._probes = Probes(core)
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        self._watch_stop = asyncio.Event()

    async def run(self) -> None:
        """From start to stop. Always ends by raising: Ended, when asked to stop or when something that must live has
        died."""
        async with contextlib.AsyncExitStack() as stack:
            self._spawn("stop", self._stop.wait())
            stack.push_async_callback(self._cancel, "stop")
            start = self._spawn("start", self._start(stack))
            try:
                await self._until_ended()
            finally:
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        core, chosen, probes = self._core, self._core.chosen, self._probes
        server = Server(chosen.server.address, chosen.server.port, probes.healthy, probes.ready, probes.metrics)
        await server.start()
        stack.push_async_callback(server.stop)
        self._spawn("lag", probes.measure_lag())
        stack.push_async_callback(self._cancel, "lag")
        if chosen.lease.enabled:
            await core.lease.acquire()
            stack.push_async_callback(self._release_lease)
            self._spawn("lease", core.lease.hold(lambda: None))
            stack.push_async_callback(self._cancel, "lease")
        stack.push_async_callback(self._stop_watching)
        world = await composition.world(core, stack)
        reconciler = Reconciler(core.kube, core.cache, core.queue, controllers(world), chosen.resync_period)
        self._spawn("watch", self._watch())
        await patiently(lambda: watch.resync(core.kube, core.cache, core.intake))
        memory.keep_for_good()
        probes.resynced()
        probes.passes = reconciler.running
        workers = [asyncio.create_task(reconciler.work(), name=f"worker {n}") for n in range(chosen.workers)]
        stack.push_async_callback(self._drain, workers)
        self._spawn(
            "resync",
            watch.resync_for_ever(core.kube, core.cache, core.intake, chosen.resync_period, probes.resynced),
        )
        self._spawn("memory", memory.give_back_for_ever())
        stack.push_async_callback(self._cancel, "memory")
        # Now that every object was read: see there.
        self._spawn("store", StoreKeeper(world, composition.store_limits(chosen.nix.store), core.metrics).run())
        stack.push_async_callback(self._cancel, "store")
        log.info("watching NixDeployments and NixMachines")

    async def _until_ended(self) -> None:
        while True:
            task = await self._ended.get()
            error = task.exception() if not task.cancelled() else None
            match task.get_name(), error:
                case "start", None:
                    pass
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
                    raise Ended(Exit.WATCH_DEAD, str(error)) from error
                case "start", OperatorError():
                    raise Ended(Exit.FAILED, str(error)) from error
                case name, _:
                    raise Ended(Exit.FAILED, f"{name} ended: {error!r}") from error

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended.put_nowait)
        self._tasks[name] = task
        return task

    async def _cancel(self, *spawned: str) -> None:
        tasks = [self._tasks[name] for name in spawned if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        ready = asyncio.Event()
        namespaces = self._core.chosen.watch.namespaces
        watching = asyncio.create_task(
            watch.watch_for_ever(self._core.intake, self._core.server, namespaces, self._watch_stop, ready), name="kopf"
        )
        became_ready = asyncio.create_task(ready.wait())
        await asyncio.wait([watching, became_ready], return_when=asyncio.FIRST_COMPLETED)
        became_ready.cancel()
        # At its end kopf cancels every task that was made after its start, passes included. So it must end last, and
        # not hear of signals first.
        take_signals(self._stop)
        await watching

    async def _stop_watching(self) -> None:
        await self._cancel("resync")
        self._watch_stop.set()
        if "watch" in self._tasks:
            await asyncio.gather(self._tasks["watch"], return_exceptions=True)

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        self._core.queue.close()
        _, late = await asyncio.wait(workers, timeout=DRAIN.total_seconds())
        for worker in late:
            worker.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _release_lease(self) -> None:
        try:
            await self._core.lease.release()
        except OperatorError as error:
            log.warning("the Lease could not be released: %s; the next operator waits until it runs out", error)
