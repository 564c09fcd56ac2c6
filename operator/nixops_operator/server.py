"""/healthz, /readyz and /metrics over HTTP.

Healthy: resyncs end, passes end, the loop is not late. Ready: the Lease is held and the first lists are complete.
Neither asks AWS or a host.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

Probe = Callable[[], str | None]
"""None if all is well, else why not, for people."""


class Server:
    def __init__(self, address: str, port: int, healthy: Probe, ready: Probe, metrics: Callable[[], bytes]) -> None:
        self._address, self._port = address, port
        self._metrics = metrics
        app = web.Application()
        app.router.add_get("/healthz", lambda _: _answer(healthy()))
        app.router.add_get("/readyz", lambda _: _answer(ready()))
        app.router.add_get("/metrics", self._tell_metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, self._port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _tell_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), content_type="text/plain", charset="utf-8")


async def _answer(problem: str | None) -> web.Response:
    return web.Response(text=f"{problem or 'ok'}\n", status=200 if problem is None else 503)
