"""B7, the price of the framework: what it costs to hear of an object, judge it and say so, where nothing can be done.

N objects on a real API server: at first ─► at rest ─► edited ─► started again      ours, then bare kopf handlers
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import lag, table
from benchmarks.cluster import Cluster, connected
from benchmarks.processes import Measured, busy, settings_file, started
from component.api_server import ApiServer, compiled, establish_crds, running

RESYNC = int(os.environ.get("RESYNC", "60"))
CALM = 0.05  # of a core: below it for QUIET seconds, a process has done what it had to do
QUIET = 2.0
PATIENCE = 15.0


@dataclass
class Figures:
    """Of one program."""

    rows: dict[str, float] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """Who is measured, and where its objects lie."""

    name: str
    module: str
    namespace: str
    environment: dict[str, str]


def programs(server: ApiServer, folder: Path) -> list[Program]:
    ours = {
        "resyncPeriod": f"{RESYNC}s",
        "server": {"address": "127.0.0.1", "port": 0},
        "watch": {"namespaces": ["ours"]},
    }
    kubeconfig = {"KUBECONFIG": str(server.kubeconfig)}
    return [
        Program(
            "ours",
            "benchmarks.operator_without_nix",
            "ours",
            kubeconfig | {"NIXOPS_CONFIG": settings_file(folder / "settings.yaml", ours)},
        ),
        Program("bare kopf", "benchmarks.bare_kopf", "peer", kubeconfig | {"NAMESPACE": "peer", "RESYNC": str(RESYNC)}),
    ]


async def until_calm(process: Measured) -> None:
    """Until it has hardly worked for a while; where it never rests, some seconds."""
    deadline = time.monotonic() + PATIENCE
    calm_since, before = time.monotonic(), process.cpu()
    while QUIET > time.monotonic() - calm_since and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        process.check()
        now = process.cpu()
        if now - before > CALM * 0.5:
            calm_since = time.monotonic()
        before = now


async def measure(program: Program, cluster: Cluster, count: int, folder: Path) -> Figures:
    """One program's whole life."""
    figures, names = Figures(), [f"m{number:05}" for number in range(count)]
    rows = figures.rows
    with started(program.module, folder, program.environment) as process:
        await asyncio.sleep(3)
        await until_calm(process)
        empty_cpu, empty_memory = process.cpu(), process.memory()
        process.stop()

    await cluster.make(program.namespace, names)

    with started(program.module, folder, program.environment) as process:
        last = await cluster.until_judged(program.namespace, count, 1, process.check)
        await until_calm(process)
        rows["ms CPU an object at first"] = (process.cpu() - empty_cpu) / count * 1000
        rows["kB RSS an object"] = (process.memory() - empty_memory) / count / 1000
        rows["judged a second"] = count / (last - cluster.first_judged(program.namespace))

        began, cpu = time.monotonic(), process.cpu()
        await asyncio.sleep(RESYNC + 1)
        rest = (process.cpu() - cpu) / (time.monotonic() - began)
        rows["% of a core at rest per 1,000"] = rest * 100 / count * 1000

        began, cpu = time.monotonic(), process.cpu()
        await cluster.edit(program.namespace, names, "{ services.nginx.enable = true; }")
        await cluster.until_judged(program.namespace, count, 2, process.check)
        await until_calm(process)
        spent = process.cpu() - cpu - rest * (time.monotonic() - began)
        rows["ms CPU an edit"] = spent / count * 1000
        figures.lags += [late for _, late in process.stop()]

    writes = await cluster.writes()
    with started(program.module, folder, program.environment) as process:
        await asyncio.sleep(3)
        await until_calm(process)
        rows["ms CPU an object to start again"] = (process.cpu() - empty_cpu) / count * 1000
        rows["writes at the start"] = await cluster.writes() - writes
        figures.lags += [late for _, late in process.stop()]
    rows["ms loop lag p99"] = lag.percentile(figures.lags, 0.99) * 1000
    rows["ms loop lag at most"] = max(figures.lags, default=0.0) * 1000
    return figures


GOALS = {
    "ms CPU an object at first": table.AtMost(3),
    "kB RSS an object": table.AtMost(20),
    "judged a second": table.AtLeast(500),
    "% of a core at rest per 1,000": table.AtMost(1),
    "ms CPU an edit": table.AtMost(2),
    "ms CPU an object to start again": table.AtMost(1),
    "writes at the start": table.AtMost(0),
    "ms loop lag p99": table.AtMost(50),
    "ms loop lag at most": None,
}


async def on_a_real_api_server(count: int) -> None:
    """Ours and the peer, on one API server, one after the other."""
    with tempfile.TemporaryDirectory(prefix="nixops-bench-") as name, running(compiled(), Path(name)) as server:
        establish_crds(server)
        async with connected(server, ["nixops-system", "ours", "peer"]) as cluster:
            began, busy_before = time.monotonic(), busy()
            found = {
                program.name: (await measure(program, cluster, count, Path(name))).rows
                for program in programs(server, Path(name))
                if program.name in os.environ.get("ONLY", program.name)
            }
            cores = (busy() - busy_before) / (time.monotonic() - began)
    title = f"{count:,} objects on a real API server, resync {RESYNC} s"
    table.show(title, GOALS, found, f"{cores:.1f} of {os.cpu_count()} processors were busy")


def main() -> None:
    asyncio.run(on_a_real_api_server(int(os.environ.get("OBJECTS", "1000"))))


if __name__ == "__main__":
    main()
