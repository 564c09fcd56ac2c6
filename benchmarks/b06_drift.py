"""B6, drift on a machine: how long after somebody has changed it by hand the operator knows.

    a change ─► the machine tells (inotify, the journal) ─► a look over the held connection ─► facts that differ

Systems, profiles, keys and units that fail, in turn, at random moments, on a machine of the lab under systemd; the
connection, the agent and the look are the operator's own. Beside it the same machine asked every five seconds, as one
that cannot watch itself is. Seconds count from before the command that makes the change, so that they hold its own
time, too. `CHANGES` and `PEER_CHANGES` say how many.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from benchmarks.table import AtMost, show
from contract.host_benches import MachineBench, on_machine, reached
from fakes.host import File
from nixops_operator.facts.host import HostFacts, HostTarget, MachineKey
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.informers.hosts import HostInformer, HostInformers
from nixops_operator.ports.host import Host, Hosts

CHANGES = int(os.environ.get("CHANGES", "100"))
PEER_CHANGES = int(os.environ.get("PEER_CHANGES", "40"))
PERIOD = timedelta(seconds=5)
PATIENCE = 60.0  # seconds
CURRENT, PROFILE = "/run/current-system", "/nix/var/nix/profiles/system"
KEY = MachineKey("/run/keys/token", 0o600, "root", "root", "0" * 64, (), b"content")
MACHINE = Key(Kind.MACHINE, "bench", "machine")
GOALS = {"ms p50": None, "ms p99": AtMost(1000), "ms at most": None}


@dataclass(frozen=True)
class Change:
    """What somebody does by hand, and how facts show that."""

    make: Callable[[], Awaitable[object]]
    is_seen: Callable[[HostFacts], bool]
    is_told: bool = True  # that a unit is well again is found by looks alone, which are more frequent until then


class NeverTelling:
    """A host that cannot watch itself."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def changes(self) -> AsyncIterator[None]:
        for nothing in ():
            yield nothing


class AskedOnly:
    """Hosts like that."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    async def resolve(self, address: str) -> tuple[str, ...]:
        return await self._hosts.resolve(address)

    async def connect(self, target: HostTarget) -> Any:
        return NeverTelling(await self._hosts.connect(target))


def changes(bench: MachineBench, other: str) -> Iterator[Change]:
    """There and back again, for ever."""
    number = 0
    while True:
        number += 1
        unit = f"unlucky-{number}"
        for system in (other, bench.base):
            yield Change(
                lambda system=system: bench.point(CURRENT, system),  # type: ignore[misc]
                lambda facts, system=system: facts.current_system == system,  # type: ignore[misc]
            )
        for system in (other, bench.base):
            yield Change(
                lambda system=system: bench.point(PROFILE, system),  # type: ignore[misc]
                lambda facts, system=system: facts.profile_system == system,  # type: ignore[misc]
            )
        yield Change(lambda: bench.remove_file(KEY.path), lambda facts: facts.keys[0].file is None)
        yield Change(
            lambda: bench.write_file(KEY.path, File(KEY.content)), lambda facts: facts.keys[0].file is not None
        )
        yield Change(
            lambda unit=unit: bench.run("systemd-run", f"--unit={unit}", "false"),  # type: ignore[misc]
            lambda facts, unit=unit: f"{unit}.service" in facts.failed_units,  # type: ignore[misc]
        )
        yield Change(
            lambda: bench.run("systemctl", "reset-failed"), lambda facts: not facts.failed_units, is_told=False
        )


async def measured(bench: MachineBench, hosts: Hosts, other: str, count: int) -> dict[str, float]:
    """Figures of one way of hearing of changes."""
    woken = asyncio.Event()
    informers = HostInformers(hosts, PERIOD, lambda _: woken.set())
    informer = informers.watch(MACHINE, bench.target)
    seconds: list[float] = []
    try:
        await _until(informer, woken, lambda facts: bool(facts.keys))
        await asyncio.sleep(10)  # until all watches are there
        for change in changes(bench, other):
            await asyncio.sleep(random.uniform(0.5, 5.5))
            began = time.monotonic()
            made = asyncio.ensure_future(change.make())
            await _until(informer, woken, change.is_seen)
            took = time.monotonic() - began
            await made
            if change.is_told:
                seconds.append(took)
            if len(seconds) == count:
                break
    finally:
        await informers.close()
    seconds.sort()
    found = {"p50": statistics.median(seconds), "p99": seconds[round(count * 0.99) - 1], "at most": seconds[-1]}
    return {f"ms {name}": 1000 * figure for name, figure in found.items()}


async def _until(informer: HostInformer, woken: asyncio.Event, is_seen: Callable[[HostFacts], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while informer.answer.facts is None or not is_seen(informer.answer.facts):
            woken.clear()
            await woken.wait()


async def _measure() -> None:
    async with on_machine() as bench:
        host = await reached(bench)
        other = await bench.deliver(host, "good")
        await host.deliver_keys([KEY], ())
        await host.close()
        ours = await measured(bench, bench.hosts, other, CHANGES)
        asked = await measured(bench, AskedOnly(bench.hosts), other, PEER_CHANGES)  # type: ignore[arg-type]
    load = f"{CHANGES} changes, {PEER_CHANGES} where it is asked; load {os.getloadavg()[0]:.1f}"
    show("B6, drift on a machine", GOALS, {"told": ours, "asked every 5 s": asked}, load)


def main() -> None:
    asyncio.run(_measure())
