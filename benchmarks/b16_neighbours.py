"""B16, a hostile neighbour: how long an edit of a well-behaved machine waits for its status, beside tenants who do what
they should not.

    a life: 50 machines ── alone ─► beside a neighbour        for each neighbour, nobody, and all of them; three times

EC2, hosts, Nix and the API server are in memory; what the operator does with their answers is real. Seconds are those
of a processor of its own (cpu_clock.py): what other programs do on the machine meanwhile counts for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import os
import random
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import cpu_clock, fleet, lag, table
from benchmarks.processes import busy
from fakes.cloud import FakeCloud
from fakes.effects import Effects
from fakes.host import FakeHost, FakeHosts
from fakes.kube import FakeKube, Secret
from fakes.nix import FakeNix
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.host import ActivationState, HostTarget
from nixops_operator.facts.kube import Body, Event, Key, Kind
from nixops_operator.facts.nix import Evaluation, EvaluationRequest
from nixops_operator.nix.evaluation_errors import Names, evaluation_message

GOOD, BAD = "good", "bad"  # namespaces
MACHINES = int(os.environ.get("MACHINES", "50"))
SECONDS = float(os.environ.get("SECONDS", "20"))  # of edits, alone and beside a neighbour, in each life
ROUNDS = int(os.environ.get("ROUNDS", "3"))  # lives with each neighbour, in turns
EDITS = 15.0  # a second
ANSWERS_AFTER = 0.02  # seconds; an API server that is well
FIVE_MINUTES = 300.0
FLOOD = 400.0  # edits a second: as many as eight workers can answer in 20 ms each
REPLICAS = 256  # the most that a deployment may have

Neighbour = Callable[[fleet.Fleet], Awaitable[None]]
"""Does its harm until it is cancelled."""


class Slow(Effects):
    """Of an API server that takes its time for each call."""

    async def begin(self, effect: str, arguments: Mapping[str, Any]) -> None:
        await asyncio.sleep(ANSWERS_AFTER)
        await super().begin(effect, arguments)


class SlowKube(FakeKube):
    """Of thousands of Events that nobody reads here, none is kept."""

    def __init__(self) -> None:
        super().__init__(now=fleet.now, effects=Slow())

    async def post_event(self, event: Event) -> None:
        await self.effects.begin("kube.post_event", {"event": event})


class HostileNix(FakeNix):
    """Modules that hold `BLANKS` or `SLEEP` do what they say; the message of an error is read as the evaluator's is."""

    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        texts = [module.text or "" for module in request.modules]
        if any("SLEEP" in text for text in texts):
            await asyncio.sleep(FIVE_MINUTES)
        if any("BLANKS" in text for text in texts):
            raise Blocked(Reason.EVALUATION_FAILED, evaluation_message([BLANKS], Names({})))
        return await super().evaluate(request)


BLANKS = "@nix " + json.dumps(
    {
        "action": "msg",
        "level": 0,
        "msg": "error: x" + " " * 120_000 + "y",
        "raw_msg": "x" + " " * 120_000 + "y",
        "trace": [],
    }
)


class MuteHost(FakeHost):
    """Answers everything but `log`."""

    async def activation_log(self, activation_id: str) -> str:
        await asyncio.sleep(3600)
        return await super().activation_log(activation_id)


class HostileHosts(FakeHosts):
    """`mute`: addresses of hosts that hang on `log`."""

    def __init__(self) -> None:
        super().__init__()
        self.mute: set[str] = set()

    async def connect(self, target: HostTarget) -> FakeHost:
        host = await super().connect(target)
        if target.address not in self.mute:
            return host
        mute = MuteHost(host.machine, host.target, host.effects)
        host.machine.connections[-1] = mute
        return mute


class SilentCloud(FakeCloud):
    """Takes every request and answers none, as an endpoint does that a firewall drops."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.effects.begin = self._never  # type: ignore[method-assign]

    async def _never(self, *_: Any) -> None:
        await asyncio.sleep(3600)


# --- neighbours ---------------------------------------------------------------------------------------------------


async def blanks(there: fleet.Fleet) -> None:
    """A module whose evaluation fails with 120 kB of blanks, edited again and again."""
    there.add_host("198.51.9.1")
    for number in itertools.count():
        there.kube.apply(fleet.given(BAD, "blanks", "198.51.9.1", f"BLANKS {number}"))
        await asyncio.sleep(0.2)


async def silent_endpoint(there: fleet.Fleet) -> None:
    """Twenty machines in a region whose endpoint never answers."""
    there.clouds.accounts["AKIDSILENT"] = "999999999999"
    there.clouds.worlds["999999999999", "us-west-2"] = SilentCloud("999999999999", "us-west-2", fleet.now)
    there.add_secrets("bad-silent", "AKIDSILENT")
    there.kube.apply(fleet.deployment("bad-silent", "silent", 20))
    await asyncio.Event().wait()


async def partial_policy(there: fleet.Fleet) -> None:
    """Twenty machines whose identity may look at instances, and at nothing else."""
    there.clouds.accounts["AKIDPARTIAL"] = "888888888888"
    cloud = there.clouds.world("888888888888")
    for look in ("sweep_security_groups", "sweep_key_pairs", "find_image", "default_subnet"):
        cloud.effects.standing_error[look] = Blocked(Reason.ACCESS_DENIED, f"UnauthorizedOperation: {look}")
    there.add_secrets("bad-partial", "AKIDPARTIAL")
    there.kube.apply(fleet.deployment("bad-partial", "partial", 20))
    await asyncio.Event().wait()


async def many_replicas(there: fleet.Fleet) -> None:
    """As many machines as one deployment may have, in 1 kB of YAML, edited every few seconds."""
    for number in itertools.count():
        body = fleet.deployment(BAD, "many", 1, REPLICAS)
        body["spec"]["machines"][0]["configuration"]["modules"] = [{"inline": f"{{ a = {number}; }}"}]
        there.kube.apply(body)
        await asyncio.sleep(3)


async def great_key(there: fleet.Fleet) -> None:
    """An RSA key of 16,384 bits as client key, another one each time."""
    there.add_host("198.51.9.2")
    for number in itertools.count():
        name = f"great-{number}"
        there.kube.secrets[BAD, name] = Secret({names.SSH_PRIVATE_KEY: rsa_key(16_384, number)})
        body = fleet.given(BAD, "great", "198.51.9.2")
        body["spec"]["ssh"]["privateKeySecretRef"] = {"name": name}
        there.kube.apply(body)
        await asyncio.sleep(0.5)


async def mute_hosts(there: fleet.Fleet) -> None:
    """Eight hosts whose last activation failed, and that hang when they are asked why."""
    for number in range(8):
        address = f"198.51.8.{number + 1}"
        machine = there.add_host(address)
        assert isinstance(there.hosts, HostileHosts)
        there.hosts.mute.add(address)
        there.kube.apply(fleet.given(BAD, f"mute-{number}", address, f"{{ mute = {number}; }}"))
    while True:
        for number in range(8):
            machine = there.hosts.machines[f"198.51.8.{number + 1}"]
            for activation in machine.activations.values():
                activation.state = ActivationState.FAILED
        await asyncio.sleep(0.5)


async def long_evaluations(there: fleet.Fleet) -> None:
    """Thirty machines of one namespace whose evaluations take five minutes each."""
    for number in range(30):
        address = f"198.51.7.{number + 1}"
        there.add_host(address)
        there.kube.apply(fleet.given(BAD, f"long-{number}", address, f"SLEEP {number}"))
    await asyncio.Event().wait()


async def thousand_edits(there: fleet.Fleet) -> None:
    """A thousand objects of one namespace, edited in a loop, some hundred a second."""
    bodies = [fleet.given("bad-edits", f"e{number:04}", "192.0.2.1") for number in range(1000)]
    for number in itertools.count():
        for body in bodies:
            body["spec"]["configuration"]["modules"] = [{"inline": f"{{ a = {number}; }}"}]
            there.kube.apply(body)
            await asyncio.sleep(1 / FLOOD)


NEIGHBOURS: dict[str, Neighbour] = {
    "120 kB of blanks in an error": blanks,
    "a silent AWS endpoint": silent_endpoint,
    "a partial IAM policy": partial_policy,
    f"{REPLICAS} replicas in 1 kB": many_replicas,
    "RSA keys of 16,384 bits": great_key,
    "hosts that hang on log": mute_hosts,
    "evaluations of five minutes": long_evaluations,
    "a thousand objects edited": thousand_edits,
}


def rsa_key(bits: int, seed: int) -> bytes:
    """What looks like an RSA private key of that size, in OpenSSH's form; its numbers are odd, and not prime."""
    chance = random.Random(seed)

    def text(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    def number(value: int) -> bytes:
        return text(value.to_bytes(value.bit_length() // 8 + 1, "big"))

    p, q = (chance.getrandbits(bits // 2) | 1 | 3 << (bits // 2 - 2) for _ in range(2))
    n, e, d = p * q, 65_537, chance.getrandbits(bits - 2) | 1
    public = text(b"ssh-rsa") + number(e) + number(n)
    private = b"\0\0\0\1\0\0\0\1" + text(b"ssh-rsa")
    private += b"".join(number(value) for value in (n, e, d, p, p, q)) + text(b"")
    private += bytes(range(1, 1 + -len(private) % 8))
    whole = b"openssh-key-v1\0" + text(b"none") + text(b"none") + text(b"") + struct.pack(">I", 1)
    whole += text(public) + text(private)
    body = base64.encodebytes(whole)
    return b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + body + b"-----END OPENSSH PRIVATE KEY-----\n"


# --- measurement --------------------------------------------------------------------------------------------------


class Editor:
    """Edits the well-behaved machines in turn, and notes how long each waits for a status of its new generation."""

    def __init__(self, there: fleet.Fleet, machines: list[Key]) -> None:
        self._loop = asyncio.get_running_loop()
        self._there = there
        self._machines = itertools.cycle(machines)
        self._open: dict[tuple[Key, int], float] = {}
        self._count = itertools.count()
        self.waits: list[float] = []
        there.conditions_told.append(self._hear)

    async def edit_for(self, seconds: float) -> list[float]:
        """Seconds that each edit waited. One that is not answered at the end counts with the time until then."""
        self.waits, self._open = [], {}
        until = self._loop.time() + seconds
        while self._loop.time() < until:
            self._edit(next(self._machines))
            await asyncio.sleep(1 / EDITS)
        await asyncio.sleep(1)
        return self.waits + [self._loop.time() - begun for begun in self._open.values()]

    def _edit(self, key: Key) -> None:
        number = next(self._count)

        def change(body: dict[str, Any]) -> None:
            body["spec"]["configuration"]["modules"] = [{"inline": f"{{ edit = {number}; }}"}]

        before = self._loop.time()
        body = self._there.kube.edit(key, change)
        self._open[key, body["metadata"]["generation"]] = before

    def _hear(self, key: Key, body: Body) -> None:
        seen = (body.get("status") or {}).get("observedGeneration", 0)
        begun = self._open.pop((key, seen), None)
        if begun is not None:
            self.waits.append(self._loop.time() - begun)


def hostile_fleet(folder: Path) -> fleet.Fleet:
    """Worlds in which neighbours can do what they do."""
    there = fleet.Fleet(folder, SlowKube())
    there.hosts = HostileHosts()
    there.nix = HostileNix(there.hosts.receive)
    for namespace in (GOOD, BAD, "bad-edits"):
        there.add_secrets(namespace)
    return there


def well_behaved(there: fleet.Fleet) -> list[Key]:
    """The machines beside which the neighbours live."""
    keys = []
    for number in range(MACHINES):
        address = f"198.51.1.{number + 1}"
        there.add_host(address)
        there.kube.apply(fleet.given(GOOD, f"m{number:02}", address))
        keys.append(Key(Kind.MACHINE, GOOD, f"m{number:02}"))
    return keys


@asynccontextmanager
async def beside(there: fleet.Fleet, neighbours: list[Neighbour]) -> AsyncIterator[None]:
    """These neighbours, until the end of the block; then everything of theirs is gone."""
    tasks = [asyncio.create_task(neighbour(there)) for neighbour in neighbours]
    try:
        await asyncio.sleep(3)
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Found:
    """What was measured in all lives beside one neighbour, in seconds."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    oldest: float = 0.0  # of the passes that had not ended

    def figures(self) -> dict[str, float]:
        alone, beside = (lag.percentile(waits, 0.99) for waits in (self.alone, self.beside))
        return {
            "p50 alone, ms": lag.percentile(self.alone, 0.5) * 1000,
            "beside": lag.percentile(self.beside, 0.5) * 1000,
            "p99 alone": alone * 1000,
            "p99 beside": beside * 1000,
            JUDGED: (beside / alone - 1) * 100,
            "loop lag p99": lag.percentile(self.lags, 0.99) * 1000,
            "oldest pass, s": self.oldest,
        }


JUDGED = "change of p99, %"


async def live(neighbours: list[Neighbour], found: Found) -> None:
    """A life of the operator, alone and then beside these."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nixops-bench-"))
        there = hostile_fleet(Path(folder))
        keys = well_behaved(there)
        await stack.enter_async_context(there.running())
        await there.until_ready(keys)
        editor = Editor(there, keys)
        found.alone += await editor.edit_for(SECONDS)
        async with beside(there, neighbours), lag.recorded() as samples:
            found.beside += await editor.edit_for(SECONDS)
            now = asyncio.get_running_loop().time()
            found.oldest = max([found.oldest, *(now - begun for begun in there.passes.values())])
        found.lags += [late for _, late in samples]
    gc.collect()


async def compare() -> None:
    """Beside nobody, too: what changes there is noise."""
    began, busy_before = time.monotonic(), busy()
    only = os.environ.get("ONLY", "")
    chosen = {"nobody": []} | {name: [one] for name, one in NEIGHBOURS.items() if only in name}
    if not only:
        chosen["all of them"] = list(NEIGHBOURS.values())
    found = {name: Found() for name in chosen}
    for _ in range(ROUNDS):
        for name, neighbours in chosen.items():
            await live(neighbours, found[name])
    cores = (busy() - busy_before) / (time.monotonic() - began)
    title = f"From an edit to its status: {MACHINES} machines, {EDITS:g} edits a second"
    table.show_turned(
        title,
        {name: one.figures() for name, one in found.items()},
        JUDGED,
        table.AtMost(20),
        f"{cores:.1f} of {os.cpu_count()} processors were busy",
    )


def main() -> None:
    cpu_clock.run(compare())


if __name__ == "__main__":
    main()
