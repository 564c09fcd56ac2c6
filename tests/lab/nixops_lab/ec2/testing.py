"""What tests of the layer need: machines in memory, a running layer, boto3 clients.

The layer runs in a thread of its own, so that tests are plain boto3 calls.
"""

import asyncio
import functools
import json
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.config
from aiohttp import web

from nixops_lab.ec2.moto import MotoServer
from nixops_lab.ec2.server import Ec2Layer
from nixops_lab.machines import Disk, MachineSpec, Rule

ACCESS_KEY = "AKIALAB0000000000001"
SECRET_KEY = "secret-of-the-lab"
NEIGHBOUR_ACCESS_KEY = "AKIALAB0000000000002"
NEIGHBOUR_SECRET_KEY = "secret-of-the-neighbour"
REGION = "us-west-2"
PATIENCE_SECONDS = 20.0

Result = TypeVar("Result")

# Nothing waits unless a test wants it to.
_NO_DELAYS = {
    "pending_seconds": 0,
    "stopping_seconds": 0,
    "shutting_down_seconds": 0,
    "interface_release_seconds": 0,
    "metadata_seconds": 0,
    "address_seconds": 0,
    "volume.moving_seconds": 0,
    "volume.modifying_seconds": 0,
    "volume.optimizing_seconds": 0,
}


def eventually(look: Callable[[], Result], *, seconds: float = PATIENCE_SECONDS) -> Result:
    """The first true answer of `look`; AssertionError with the last one when time is up."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds:g} s"
        time.sleep(0.005)
    return answer


class Clock:
    """Real time plus what a test has added."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


class FakeMachines:
    """`Machines` in memory: remembers what it was told; operations can be held back or made to fail."""

    def __init__(self) -> None:
        self.on_poweroff: Callable[[str], Awaitable[None]] | None = None
        self.specs: dict[str, MachineSpec] = {}
        self.public_addresses: dict[str, str | None] = {}
        self.disks: dict[str, dict[str, Disk]] = {}  # by machine and volume id
        self.disks_in_use: set[str] = set()
        self.rules: dict[str, tuple[tuple[Rule, ...], tuple[Rule, ...]]] = {}
        self.calls: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.held: set[str] = set()
        self._on: set[str] = set()

    def state(self, name: str) -> str:
        if name not in self.specs:
            return "absent"
        return "on" if name in self._on else "off"

    async def _begin(self, operation: str, name: str) -> None:
        self.calls.append((operation, name))
        while operation in self.held:  # noqa: ASYNC110 - tests release it from another thread
            await asyncio.sleep(0.005)
        if operation in self.broken:
            raise OSError(f"{operation} is broken")

    async def create(self, spec: MachineSpec) -> None:
        await self._begin("create", spec.name)
        self.specs[spec.name] = spec
        self.public_addresses[spec.name] = spec.public_address

    async def start(self, name: str) -> None:
        await self._begin("start", name)
        assert name in self.rules, "booted before its rules were set"
        self._on.add(name)

    async def stop(self, name: str) -> None:
        await self._begin("stop", name)
        self._on.discard(name)

    async def reboot(self, name: str) -> None:
        await self._begin("reboot", name)

    async def destroy(self, name: str) -> None:
        await self._begin("destroy", name)
        self._on.discard(name)
        for told in (self.specs, self.public_addresses, self.rules, self.disks):
            told.pop(name, None)

    async def attach_disk(self, name: str, disk: Disk) -> None:
        await self._begin("attach_disk", name)
        self.disks.setdefault(name, {})[disk.volume_id] = disk

    async def detach_disk(self, name: str, volume_id: str) -> bool:
        await self._begin("detach_disk", name)
        if volume_id in self.disks_in_use:
            return False
        self.disks.get(name, {}).pop(volume_id, None)
        return True

    async def resize_disk(self, volume_id: str, gib: int) -> None:
        await self._begin("resize_disk", volume_id)
        for of_one in self.disks.values():
            if volume_id in of_one:
                of_one[volume_id] = replace(of_one[volume_id], gib=gib)

    async def copy_disk(self, volume_id: str, copy_id: str) -> None:
        await self._begin(f"copy_disk to {copy_id}", volume_id)

    async def remove_disk(self, volume_id: str) -> None:
        await self._begin("remove_disk", volume_id)

    async def set_public_address(self, name: str, address: str | None) -> None:
        await self._begin("set_public_address", name)
        self.public_addresses[name] = address

    async def set_rules(self, name: str, ingress: Sequence[Rule], egress: Sequence[Rule]) -> None:
        assert name in self.specs, "rules for a machine that is not there"
        await self._begin("set_rules", name)
        self.rules[name] = (tuple(ingress), tuple(egress))

    async def power_off_inside(self, name: str) -> None:
        self._on.discard(name)
        assert self.on_poweroff is not None
        await self.on_poweroff(name)


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ec2-layer", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=90)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@functools.cache
def _session() -> Any:
    # One for all tests: each Session parses EC2's model again, which takes longer than most tests.
    return boto3.Session()


def client_of(
    url: str,
    service: str = "ec2",
    *,
    region: str = REGION,
    access_key: str = ACCESS_KEY,
    secret_key: str = SECRET_KEY,
    read_timeout: float = 30,
) -> Any:
    """A boto3 client that never repeats a request by itself."""
    return _session().client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=botocore.config.Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=read_timeout),
    )


class RunningLayer:
    """A layer with its control interface, on loopback."""

    def __init__(self, loop: LoopThread, moto: MotoServer, folder: Path, seed: int) -> None:
        self.machines = FakeMachines()
        self.clock = Clock()
        self.log_path = folder / "ec2.log"
        self._loop = loop
        loop.run(self._start(moto, seed))
        self.turn(**_NO_DELAYS)

    async def _start(self, moto: MotoServer, seed: int) -> None:
        callers = {
            ACCESS_KEY: (SECRET_KEY, "lab"),
            NEIGHBOUR_ACCESS_KEY: (NEIGHBOUR_SECRET_KEY, "neighbour"),
        }
        self._layer = Ec2Layer(self.machines, callers, self.log_path, seed, moto=moto, clock=self.clock)
        self.url = f"http://127.0.0.1:{await self._layer.start('127.0.0.1', 0)}"
        application = web.Application()
        application.add_routes(self._layer.control_routes())
        self._control = web.AppRunner(application)
        await self._control.setup()
        await web.TCPSite(self._control, "127.0.0.1", 0).start()
        self.control_url = f"http://127.0.0.1:{self._control.addresses[0][1]}"

    def stop(self) -> None:
        self._loop.run(self._control.cleanup())
        self._loop.run(self._layer.stop())

    def client(self, service: str = "ec2", **settings: Any) -> Any:
        """A client of this layer; settings as in `client_of`."""
        return client_of(self.url, service, **settings)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await something in the layer's loop."""
        return self._loop.run(work)

    def control(self, method: str, path: str, content: object = None) -> Any:
        """One request to the control interface: the JSON of its reply."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.control_url}{path}", data=body, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return json.load(reply)

    def neighbour(self, service: str = "ec2", **settings: Any) -> Any:
        """A client of another tenant with an access key of its own."""
        return self.client(service, access_key=NEIGHBOUR_ACCESS_KEY, secret_key=NEIGHBOUR_SECRET_KEY, **settings)

    def turn(self, **knobs: object) -> None:
        """Set knobs."""
        self.control("POST", "/knobs", knobs)

    def fault(self, do: str, op: str, **settings: Any) -> None:
        """Set a fault; `nth` and `param` go into its `match`."""
        match = {name: settings.pop(name) for name in ("nth", "param") if name in settings} | {"op": op}
        self.control("POST", "/faults", {"match": match, "do": do, **settings})

    def until_settled(self, instance_id: str, state: str) -> None:
        """Wait until the instance is in that state, whatever answers show."""
        eventually(lambda: self._layer.state_of(instance_id) == state)

    def log(self) -> list[dict[str, Any]]:
        """The call log as it is on disk."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


class Cases:
    """Shorthand for what most tests start with."""

    def __init__(self, layer: RunningLayer, ec2: Any) -> None:
        self.layer = layer
        self.ec2 = ec2
        found = ec2.describe_images(Owners=["427812963091"], Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
        self.image_id: str = max(found["Images"], key=lambda image: image["CreationDate"])["ImageId"]

    def launch(self, **params: Any) -> str:
        """Id of one new instance, in whatever state."""
        return str(self.reply(**params)["Instances"][0]["InstanceId"])

    def reply(self, **params: Any) -> Any:
        """RunInstances for one t3.small of the newest image, with changes; None leaves a parameter out."""
        usual = {"ImageId": self.image_id, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1}
        return self.ec2.run_instances(**{name: value for name, value in (usual | params).items() if value is not None})

    def running(self, **params: Any) -> str:
        """Id of one instance that runs."""
        return self.until(self.launch(**params), "running")

    def describe(self, instance_id: str) -> Any:
        """The instance as EC2 shows it."""
        return self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    def state(self, instance_id: str) -> str:
        return str(self.describe(instance_id)["State"]["Name"])

    def until(self, instance_id: str, state: str) -> str:
        """Wait for a state; the id."""
        eventually(lambda: self.state(instance_id) == state)
        return instance_id
