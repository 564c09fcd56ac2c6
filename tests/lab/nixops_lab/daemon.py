"""The lab's own process: machines, EC2 in front of them, and the control interface.

Runs as root inside the lab's network: `python -m nixops_lab.daemon LAB_FOLDER ROOT_FILE_SYSTEM`. It may be killed at
any
moment: `nixops_lab.machines.clean` ends what it leaves.

    GET  /health               200 once the given host answers on its SSH port, 503 before
    GET  /machines             [{name, state, private_address, public_address, leader}], by name
    POST /machines/NAME/kill   cuts the machine's power
    POST /machines/NAME/start  switches a given host on; an instance is EC2's to start
    PUT  /machines/NAME        {"root": FOLDER}: one more given host, with this root file system; replies as in the list
    …  /cache/…                the binary cache's and the sources' (binary_cache/server.py)
    …                          the EC2 layer's own routes: call log, faults, knobs, reset (ec2/control.py)
"""

import asyncio
import json
import re
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from aiohttp import web

from nixops_lab import identities, state
from nixops_lab.binary_cache.server import PORT as CACHE_PORT
from nixops_lab.binary_cache.server import CacheServer
from nixops_lab.ec2 import Ec2Layer
from nixops_lab.environment import HOST_ADDRESS, HOST_NAME, HOST_PORT
from nixops_lab.machines import OPEN, MachineError, Machines, MachineSpec
from nixops_lab.machines.wires import CACHE_ADDRESS
from nixops_lab.paths import CHECKOUT, LabPaths

RELEASE = "25.11"
HOST_NAMES = re.compile(r"[a-z][a-z0-9-]{0,31}")
BANNER_POLL_SECONDS = 0.05


def given_host(who: identities.Identities, name: str = HOST_NAME, address: str = HOST_ADDRESS) -> MachineSpec:
    """A NixOS system that exists without EC2: fixed address, fixed host key, the lab's client key for root."""
    return MachineSpec(
        name=name,
        private_address=address,
        public_address=None,
        release=RELEASE,
        user_data=identities.host_key_user_data(who),
        authorized_keys=(who.client_public_key,),
    )


def callers(who: identities.Identities) -> dict[str, tuple[str, str]]:
    """Access key → secret and name in the call log, as the EC2 layer takes them."""
    named = {"person": who.person, "operator": who.operator, "neighbour": who.neighbour}
    return {key.id: (key.secret, name) for name, key in named.items()}


POLICY = CHECKOUT / "docs" / "reference" / "iam-policy.json"


def policies() -> dict[str, frozenset[str]]:
    """Name in the call log → what it may do in EC2. The operator, and whoever it works for, has the rights that its
    documentation asks for, and no others."""
    statements = json.loads(POLICY.read_text())["Statement"]
    actions = [action for one in statements if isinstance(one["Action"], list) for action in one["Action"]]
    allowed = frozenset(action.removeprefix("ec2:") for action in actions)
    return {"operator": allowed, "neighbour": allowed}


class Control:
    """The daemon's own routes."""

    def __init__(self, machines: Machines, who: identities.Identities) -> None:
        self.is_ready = False
        self._machines = machines
        self._who = who
        first = ip_address(HOST_ADDRESS)
        self._addresses = (each for each in ip_network(f"{first}/24", strict=False).hosts() if each > first)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/machines", self._list),
            web.post("/machines/{name}/kill", self._kill),
            web.post("/machines/{name}/start", self._start),
            web.put("/machines/{name}", self._add),
        ]

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"ready": self.is_ready}, status=200 if self.is_ready else 503)

    async def _list(self, _request: web.Request) -> web.Response:
        described = await asyncio.gather(*(self._described(name) for name in self._machines.names()))
        return web.json_response([each for each in described if each is not None])

    async def _kill(self, request: web.Request) -> web.Response:
        try:
            await self._machines.kill(request.match_info["name"])
        except MachineError as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.json_response({})

    async def _start(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name.startswith("i-"):
            return web.json_response({"error": "an instance is started by StartInstances"}, status=409)
        try:
            await self._machines.start(name)
        except MachineError as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.json_response({})

    async def _add(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not HOST_NAMES.fullmatch(name) or name.startswith("i-"):
            return web.json_response({"error": f"{name}: write a host's name, and none of an instance"}, status=400)
        root = Path((await request.json())["root"])
        try:
            await boot_given_host(self._machines, given_host(self._who, name, str(next(self._addresses))), root)
        except MachineError as error:
            return web.json_response({"error": str(error)}, status=409)
        return web.json_response(await self._described(name))

    async def _described(self, name: str) -> dict[str, object] | None:
        standing = await self._machines.standing(name)
        if self._machines.state(name) == "absent":  # destroyed while it was asked
            return None
        return {
            "name": name,
            "state": standing,
            "last_line": self._machines.last_line(name) if standing == "dead" else "",
            "private_address": self._machines.spec(name).private_address,
            "public_address": self._machines.public_address(name),
            "leader": self._machines.leader(name),
        }


async def boot_given_host(machines: Machines, spec: MachineSpec, root: Path | None = None) -> None:
    """Returns when its sshd speaks. `root`: another root file system than the lab's machines have."""
    await machines.create(spec, root)
    await machines.set_rules(spec.name, ingress=OPEN, egress=OPEN)
    await machines.start(spec.name)
    while not await speaks_ssh(spec.private_address, HOST_PORT):  # noqa: ASYNC110 - another machine tells no event
        await asyncio.sleep(BANNER_POLL_SECONDS)


async def speaks_ssh(address: str, port: int) -> bool:
    """True if a server's identification comes (RFC 4253, 4.2) within a second."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                return (await reader.read(4)) == b"SSH-"
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return False


async def serve(paths: LabPaths, root: Path) -> None:
    """Until it is killed."""
    lab = state.read(paths.state)
    if lab is None:
        raise SystemExit(f"no lab in {paths.folder}: start it with `lab up --dir {paths.folder}`")
    who = identities.load(paths)
    machines = Machines(paths.folder, paths.namespace, root)
    ec2 = Ec2Layer(machines, callers(who), paths.ec2_log, lab.seed, policies=policies())
    control = Control(machines, who)
    cache = CacheServer(None, paths.archives)
    application = web.Application()
    application.add_routes([*control.routes(), *ec2.control_routes(), *cache.control_routes()])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", lab.ports["control"]).start()
    await machines.start()
    await cache.start(CACHE_ADDRESS, CACHE_PORT)
    async with asyncio.TaskGroup() as group:
        group.create_task(boot_given_host(machines, given_host(who)))
        group.create_task(ec2.start("127.0.0.1", lab.ports["ec2"]))
    control.is_ready = True
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(LabPaths.of(sys.argv[1]), Path(sys.argv[2])))
