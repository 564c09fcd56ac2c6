"""Keeps room in the operator's Nix store: looks how much there is, and has garbage collected before there is none.

Runs from the moment on when all objects are known: of what no living machine needs the roots go, and whoever took half
a list for the whole would delete what runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta

from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Body, Kind
from nixops_operator.facts.nix import StoreSpace
from nixops_operator.metrics import Metrics
from nixops_operator.ports.nix import Nix
from nixops_operator.store_room import StoreLimits, bytes_to_collect, wanted_paths
from nixops_operator.world import World

log = logging.getLogger(__name__)

LOOK_EVERY = timedelta(seconds=10)
"""A fast disk takes some GB in that time; builds are watched more closely, see adapters/nix/disk.py."""
PAUSE = timedelta(minutes=2)
"""After a collection that did not bring enough: everything waits for each, and the next finds little more."""
GIB = 1024**3


async def make_room(
    nix: Nix,
    limits: StoreLimits,
    machines: Callable[[], Awaitable[Iterable[Body]]],
    sources: Iterable[str],
) -> None:
    """Before anything else is done with the store: an operator that cannot even try a box, because its disk is full,
    would never come to empty it. `machines`: all that there are; asked only if room is short. `sources`: see
    `wanted_paths`."""
    try:
        to_free = bytes_to_collect(await nix.space(), limits)
        if to_free == 0:
            return
        wanted = wanted_paths(await machines(), (), sources)
        freed = await nix.collect(lambda: wanted, to_free)
        log.info("the operator's store was short of room: collected %.1f GiB", freed / GIB)
    except Retry as error:
        log.warning("%s", error.message)


class StoreKeeper:
    """See the module."""

    def __init__(self, world: World, limits: StoreLimits, metrics: Metrics) -> None:
        self._world = world
        self._limits = limits
        self._metrics = metrics

    async def run(self) -> None:
        """For ever."""
        while True:
            pause = LOOK_EVERY
            try:
                if (to_free := bytes_to_collect(await self._look(), self._limits)) > 0:
                    pause = await self._collect(to_free)
            except Retry as error:
                log.warning("%s", error.message)
                pause = PAUSE
            await asyncio.sleep(pause.total_seconds())

    async def _look(self) -> StoreSpace:
        space = await self._world.nix.space()
        self._metrics.store_free.set(space.free)
        if bytes_to_collect(space, self._limits) == 0:
            self._metrics.store_short.set(0)
        if space.used is not None:
            self._metrics.store_used.set(space.used)
        return space

    async def _collect(self, to_free: int) -> timedelta:
        """How long to wait before the next look."""
        log.info("the operator's store is short of room: collecting %.1f GiB of garbage", to_free / GIB)
        freed = await self._world.nix.collect(self.wanted, to_free)
        self._metrics.store_collected.inc(freed)
        space = await self._look()
        if bytes_to_collect(space, self._limits) == 0:
            log.info("collected %.1f GiB, %.1f GiB are free", freed / GIB, space.free / GIB)
            return LOOK_EVERY
        self._metrics.store_short.set(1)
        log.warning(
            "the operator's disk is short: collected %.1f GiB, %.1f GiB are free, and what is left is needed by "
            "machines or jobs. Give the store's volume more room (in the chart: store.sizeLimit, or a larger "
            "store.existingClaim), or set nix.build.on to Target; builds wait or fail meanwhile",
            freed / GIB,
            space.free / GIB,
        )
        return PAUSE

    def wanted(self) -> frozenset[str]:
        """What stays. Results that nobody goes on with are forgotten with what they name."""
        world = self._world
        world.jobs.forget_unused()
        machines = (body for key in world.cache.known() if key.kind is Kind.MACHINE and (body := world.cache.get(key)))
        return wanted_paths(machines, world.jobs.results(), world.default_sources())
