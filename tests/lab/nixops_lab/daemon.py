"""The lab's own process: machines, EC2 in front of them, and the control interface.

Runs as root inside the lab's network namespace: `python -m nixops_lab.daemon LAB_FOLDER ROOT`. SIGTERM powers the
machines off and ends it.

    GET  /health                    200 once the given host answers on its SSH port, 503 before
    GET  /machines                  [{name, state, private_address, public_address, leader}]
    POST /machines/NAME/kill        cuts the machine's power
    …                               the EC2 layer's own routes: call log, faults, knobs, reset
"""

import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

from nixops_lab import identities, state
from nixops_lab.paths import LabPaths

RELEASE = "25.11"


class Daemon:
    """The parts, started in order and stopped in reverse."""

    def __init__(self, paths: LabPaths, root: Path) -> None:
        lab = state.read(paths.state)
        if lab is None:
            raise SystemExit(f"no lab in {paths.folder}: start it with `lab up --dir {paths.folder}`")
        self.paths = paths
        self.root = root
        self.lab = lab
        self.identities = identities.load(paths)
        self.is_ready = False
        self.machines = None
        self.stops = []

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"ready": self.is_ready}, status=200 if self.is_ready else 503)

    async def start(self) -> None:
        application = web.Application()
        routes = [web.get("/health", self.health)]
        if (Path(__file__).parent / "machines" / "__init__.py").exists():
            raise NotImplementedError
        application.add_routes(routes)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.lab.ports["control"]).start()
        self.stops.append(runner.cleanup)
        self.is_ready = True

    async def stop(self) -> None:
        for stop in reversed(self.stops):
            await stop()


async def run(paths: LabPaths, root: Path) -> None:
    """Until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    daemon = Daemon(paths, root)
    try:
        await daemon.start()
        await stopping.wait()
    finally:
        await daemon.stop()


if __name__ == "__main__":
    asyncio.run(run(LabPaths.of(sys.argv[1]), Path(sys.argv[2])))
