"""B7, the price of the framework: what it costs to hear of an object, judge it and say so, where nothing can be done.

N objects on a real API server: at first ─► at rest ─► edited ─► started again     ours, bare kopf handlers
                                at first                                           the bare requests: the bound
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fleet, lag, table, yardstick
from benchmarks.cluster import Cluster, connected
from benchmarks.processes import Measured, busy, finished, of_children, settings_file, started
from component.api_server import ApiServer, compiled, establish_crds, running
from fakes.kube import FakeKube
from nixops_operator.facts.kube import Event, Key, Kind
from unit import fake_time

SERVERS = "ms CPU of API server and etcd for it"
REST = "% of a core at rest per 1,000"
FIRST_ROUND = "% of a core per 1,000 in the first round of looks"
AT_REST = "kB RSS an object, two minutes later"
RESYNC = int(os.environ.get("RESYNC", "60"))
CALM = 0.02  # of a core: below it for QUIET seconds, a process has done what it had to do
QUIET = 2.0
PATIENCE = 15.0
CONTROL_PLANE = ("kube-apiserver", "etcd")
EMPTY = "empty"  # a namespace without objects
STARTS = 3  # of each kind; the median counts, since the caches of the first are cold
IDLE = 10.0  # seconds for which a process without objects is looked at; the record of lags is part of what it costs


@dataclass(frozen=True)
class Program:
    """Who is measured, and where its objects lie. `environment`: by the namespace that it watches."""

    name: str
    module: str
    namespace: str
    environment: Callable[[str], dict[str, str]]


def programs(server: ApiServer, folder: Path) -> list[Program]:
    kubeconfig = {"KUBECONFIG": str(server.kubeconfig)}

    def ours(namespace: str) -> dict[str, str]:
        settings = {
            "resyncPeriod": f"{RESYNC}s",
            "server": {"address": "127.0.0.1", "port": 0},
            "watch": {"namespaces": [namespace]},
            "lease": {"enabled": False},  # on a machine that starves its API server a life would end with it
        }
        return kubeconfig | {"NIXOPS_CONFIG": settings_file(folder / f"settings-{namespace}.yaml", settings)}

    def peer(namespace: str) -> dict[str, str]:
        return kubeconfig | {"NAMESPACE": namespace, "RESYNC": str(RESYNC)}

    return [
        Program("ours", "benchmarks.operator_without_nix", "ours", ours),
        Program("bare kopf", "benchmarks.bare_kopf", "peer", peer),
    ]


async def until_calm(process: Measured) -> None:
    """Until it has hardly worked for a while; where it never rests, some seconds."""
    deadline = time.monotonic() + PATIENCE
    calm_since, before = time.monotonic(), process.cpu()
    while time.monotonic() - calm_since < QUIET and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        process.check()
        now = process.cpu()
        if now - before > CALM * 0.5:
            calm_since = time.monotonic()
        before = now


class Life:
    """One program's life. Both lives take turns, so that they meet the same machine; they rest at once."""

    def __init__(self, program: Program, cluster: Cluster, count: int, folder: Path) -> None:
        self._program = program
        self._cluster = cluster
        self._names = [f"m{number:05}" for number in range(count)]
        self._folder = folder
        self._stack = ExitStack()
        self._lags: list[float] = []
        self.rows: dict[str, float] = {}

    def _started(self, namespace: str) -> Measured:
        program = self._program
        return self._stack.enter_context(started(program.module, self._folder, program.environment(namespace)))

    def _stop(self, process: Measured) -> None:
        self._lags += [late for _, late in process.stop()]
        self._stack.close()

    async def _calm_and_started(self, namespace: str) -> Measured:
        process = self._started(namespace)
        while not process.is_up:
            await asyncio.sleep(0.5)
            process.check()
        await asyncio.sleep(3)
        await until_calm(process)
        return process

    async def _start(self, namespace: str) -> float:
        """CPU that a start takes in all, in seconds; that of the wait for its end not counted in."""
        began = time.monotonic()
        process = await self._calm_and_started(namespace)
        spent = process.cpu() - self._idle * (time.monotonic() - began)
        self._stop(process)
        return spent

    async def at_first(self) -> None:
        """The objects are there, and have never been judged."""
        process = await self._calm_and_started(EMPTY)
        cpu, self._empty_memory = process.cpu(), process.memory()
        await asyncio.sleep(IDLE)
        self._idle = (process.cpu() - cpu) / IDLE
        self.rows["MB RSS without an object"] = self._empty_memory / 1e6
        self.rows["% of a core without an object"] = self._idle * 100
        self._stop(process)
        empty_start = statistics.median([await self._start(EMPTY) for _ in range(STARTS)])
        await self._cluster.make(self._program.namespace, self._names)

        servers, began = of_children(*CONTROL_PLANE), time.monotonic()
        self._process = process = self._started(self._program.namespace)
        await self._until_judged(1)
        self.rows[SERVERS] = self._each(of_children(*CONTROL_PLANE) - servers) * 1000
        await until_calm(process)
        spent = process.cpu() - empty_start - self._idle * (time.monotonic() - began)
        self.rows["ms CPU an object at first"] = self._each(spent) * 1000
        self.rows["kB RSS an object"] = self._each(process.memory() - self._empty_memory) / 1000
        times = self._cluster.judged_at(self._program.namespace)
        self.rows["judged a second"] = len(self._names) / (max(times) - min(times))

    async def at_rest(self) -> None:
        """A whole round of looks, and another. Ours are passes in the first, and in one of ten that follow."""
        for row in (FIRST_ROUND, REST):
            began, cpu = time.monotonic(), self._process.cpu()
            await asyncio.sleep(RESYNC + 1)
            self._rest = (self._process.cpu() - cpu) / (time.monotonic() - began)
            self.rows[row] = self._each(self._rest - self._idle) * 100 * 1000
        self.rows[AT_REST] = self._each(self._process.memory() - self._empty_memory) / 1000

    async def edited(self) -> None:
        """Every object gets another module."""
        began, cpu = time.monotonic(), self._process.cpu()
        await self._cluster.edit(self._program.namespace, self._names, "{ services.nginx.enable = true; }")
        await self._until_judged(2)
        await until_calm(self._process)
        spent = self._process.cpu() - cpu - self._rest * (time.monotonic() - began)
        self.rows["ms CPU an edit"] = self._each(spent) * 1000
        self._stop(self._process)

    async def started_again(self) -> None:
        """Everything has been judged before. Starts without objects take turns with those that find them all."""
        writes = await self._cluster.writes()
        pairs = [(await self._start(EMPTY), await self._start(self._program.namespace)) for _ in range(STARTS)]
        empty, full = (statistics.median(starts) for starts in zip(*pairs, strict=True))
        self.rows["ms CPU an object to start again"] = self._each(full - empty) * 1000
        self.rows["writes at the start"] = (await self._cluster.writes() - writes) / STARTS
        self.rows["ms loop lag p99"] = lag.percentile(self._lags, 0.99) * 1000
        self.rows["ms loop lag at most"] = max(self._lags, default=0.0) * 1000

    def kill(self) -> None:
        self._stack.close()

    async def _until_judged(self, generation: int) -> None:
        namespace, count = self._program.namespace, len(self._names)
        await self._cluster.until_judged(namespace, count, generation, self._process.check)

    def _each(self, all_of_them: float) -> float:
        return all_of_them / len(self._names)


GOALS: dict[str, table.Goal | None] = {
    "ms CPU an object at first": table.AtMost(3),
    SERVERS: None,
    "kB RSS an object": table.AtMost(20),
    AT_REST: table.AtMost(20),
    "MB RSS without an object": None,
    "judged a second": table.AtLeast(500),
    REST: table.AtMost(1),
    FIRST_ROUND: None,
    "% of a core without an object": None,
    "ms CPU an edit": table.AtMost(2),
    "ms CPU an object to start again": table.AtMost(1),
    "writes at the start": table.AtMost(0),
    "ms loop lag p99": table.AtMost(50),
    "ms loop lag at most": None,
}


async def bare_requests(server: ApiServer, cluster: Cluster, count: int) -> dict[str, float]:
    """What no operator can go below that asks for the same of the same API server, on the same processors."""
    await cluster.make("bare", [f"m{number:05}" for number in range(count)])
    servers = of_children(*CONTROL_PLANE)
    environment = {"KUBECONFIG": str(server.kubeconfig), "NAMESPACE": "bare"}
    spent = await asyncio.to_thread(finished, "benchmarks.bare_requests", environment)
    return {
        "ms CPU an object at first": spent["cpu"] / count * 1000,
        SERVERS: (of_children(*CONTROL_PLANE) - servers) / count * 1000,
        "judged a second": count / spent["wall"],
    }


async def on_a_real_api_server(count: int) -> None:
    """Ours, the peer and the bound, on one API server."""
    with tempfile.TemporaryDirectory(prefix="nixops-bench-") as name, running(compiled(), Path(name)) as server:
        establish_crds(server)
        namespaces = ["nixops-system", "ours", "peer", "bare", EMPTY]
        async with connected(server, namespaces) as cluster, yardstick.held_beside() as held:
            began, busy_before = time.monotonic(), busy()
            lives = {
                program.name: Life(program, cluster, count, Path(name)) for program in programs(server, Path(name))
            }
            try:
                for life in lives.values():
                    await life.at_first()
                bound = await bare_requests(server, cluster, count)
                await asyncio.gather(*(life.at_rest() for life in lives.values()))
                for life in lives.values():
                    await life.edited()
                for life in lives.values():
                    await life.started_again()
            finally:
                for life in lives.values():
                    life.kill()
            cores = (busy() - busy_before) / (time.monotonic() - began)
    title = f"{count:,} objects on a real API server, resync {RESYNC} s"
    rows = {name: life.rows for name, life in lives.items()} | {"bare requests": bound}
    below = (
        f"{cores:.1f} of {os.cpu_count()} processors were busy; a piece of work took {held.factor():.1f} times the CPU"
    )
    table.show(title, GOALS, rows, f"{below} that it took at best")


IN_MEMORY = {
    "evaluations a configuration": table.AtMost(1),
    REST: None,
    "writes at rest": table.AtMost(0),
    "ms CPU a machine until Ready": None,
    "status writes a machine until Ready": None,
}


async def fleet_in_memory(machines: int, folder: Path) -> dict[str, float]:
    """Machines in EC2, ten to a deployment, on fakes whose work is counted with ours. Time is the loop's: it jumps."""
    there = fleet.Fleet(folder, QuietKube())
    there.add_secrets("default")
    keys = []
    for number in range(machines // 10):
        body = there.kube.apply(fleet.deployment("default", f"d{number}", 10))
        keys.append(Key(Kind.DEPLOYMENT, "default", body["metadata"]["name"]))
    cpu = time.process_time()
    async with there.running():
        await there.until_ready(keys, limit=3600)
        effects = Counter(call.effect for call in there.kube.effects.calls)
        until_ready = time.process_time() - cpu
        await asyncio.sleep(RESYNC)
        there.kube.effects.calls.clear()
        cpu = time.process_time()
        await asyncio.sleep(RESYNC)
        rest = (time.process_time() - cpu) / RESYNC
        writes = sum(call.effect.startswith("kube.") for call in there.kube.effects.calls)
    return {
        "evaluations a configuration": len(there.nix.effects.of("nix.evaluate")) / machines,
        REST: rest * 100 / machines * 1000,
        "writes at rest": writes,
        "ms CPU a machine until Ready": until_ready / machines * 1000,
        "status writes a machine until Ready": effects["kube.patch_status"] / machines,
    }


class QuietKube(FakeKube):
    """Of thousands of Events that nobody reads here, none is kept."""

    def __init__(self) -> None:
        super().__init__(now=fleet.now)

    async def post_event(self, event: Event) -> None:
        await self.effects.begin("kube.post_event", {"event": event})


def in_memory(machines: int) -> None:
    """Prints its table."""
    fake_time.ROUNDS_AT_ONE_TIME = 100 * fake_time.ROUNDS_AT_ONE_TIME * machines  # all of them at one instant
    with tempfile.TemporaryDirectory(prefix="nixops-bench-") as folder:
        rows = fake_time.run(fleet_in_memory(machines, Path(folder)))
    title = f"{machines:,} machines in {machines // 10:,} deployments, on fakes, whose CPU is counted with ours"
    table.show(title, IN_MEMORY, {"ours": rows}, "")


def main() -> None:
    """`OBJECTS`, `FLEET`: how many; 0 leaves a part out."""
    if objects := int(os.environ.get("OBJECTS", "1000")):
        asyncio.run(on_a_real_api_server(objects))
    if machines := int(os.environ.get("FLEET", "500")):
        in_memory(machines)


if __name__ == "__main__":
    main()
