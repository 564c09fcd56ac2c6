"""The server of the cache's folder and of sources, with knobs for what real ones do.

    GET /nix-cache-info, /<hash>.narinfo, /nar/<file>   the folder's files
    GET /source/source-<n>.txt                          `source <n> of the lab`, as prebuilt.nix expects it
    GET /archive/<file>                                 files of a second folder: tarballs that a test puts there
    GET /onward?to=URL                                  an answer that sends on to URL

Control (mounted by the lab's daemon): GET /cache/knobs, POST /cache/knobs {…}, GET /cache/log, POST /cache/reset.
"""

import asyncio
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from nixops_lab.machines.wires import CACHE_ADDRESS

PORT = 80
URL = f"http://{CACHE_ADDRESS}"
_SOURCE = re.compile(r"source-(\d{1,6})\.txt")
_PIECE = 16 * 1024  # bytes


@dataclass(frozen=True)
class Knobs:
    """All off at first. `missing`: a part of a store path's name, or of a file's, that is answered with 404."""

    latency_seconds: float = 0.0  # before each answer
    bytes_per_second: int = 0  # of all answers together; 0: as fast as it goes
    refuses: bool = False  # nobody listens
    wrong_signature: bool = False
    truncated: bool = False  # archives end in the middle, and the connection with them
    missing: str = ""
    queries: bool = False  # archives are named with a query, as harmonia's are, and not found without
    locked: bool = False  # 401 to whoever asks
    flaky: bool = False  # 503 to whoever asks about something for the first time
    archives_fail: bool = False  # 503 in place of each archive


class CacheServer:
    """`folder`: of the cache, None while there is none. `archives`: of other files; what appears there is served."""

    def __init__(self, folder: Path | None, archives: Path) -> None:
        self.folder = folder
        self.archives = archives
        self.knobs = Knobs()
        self.log: list[dict[str, Any]] = []
        """{path, status, bytes}, the oldest first; what broke off has the bytes that left."""
        self._free_at = 0.0  # when the line is free again, on the loop's clock
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._address = ("", 0)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._address[1]

    async def start(self, address: str, port: int) -> None:
        """Listens; port 0 takes any free one."""
        application = web.Application()
        application.add_routes([web.get("/{path:.*}", self._get)])
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        self._address = (address, port)
        await self._listen()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def turn(self, changes: dict[str, Any]) -> None:
        """Raises ValueError for a knob that there is not, or a value that it cannot have."""
        known = {each.name: type(each.default) for each in fields(Knobs)}
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"there is no knob {name} of the cache; there are {', '.join(sorted(known))}")
            changes[name] = _as(known[name], name, value)
        self.knobs = replace(self.knobs, **changes)
        await (self._unlisten() if self.knobs.refuses else self._listen())

    async def _listen(self) -> None:
        if self._site is None and self._runner is not None:
            self._site = web.TCPSite(self._runner, *self._address)
            await self._site.start()
            server = self._site._server
            assert isinstance(server, asyncio.Server)
            self._address = server.sockets[0].getsockname()[:2]

    async def _unlisten(self) -> None:
        if self._site is not None:
            await self._site.stop()
            self._site = None
            assert self._runner is not None
            assert self._runner.server is not None
            for connection in self._runner.server.connections:
                connection.force_close()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        entry: dict[str, Any] = {"path": f"/{path}", "status": 200, "bytes": 0}
        self.log.append(entry)
        await asyncio.sleep(self.knobs.latency_seconds)
        if path == "onward":
            entry["status"] = 302
            return web.Response(status=302, headers={"Location": request.query["to"]})
        body = self._body(path, request.query_string)
        is_first = sum(other["path"] == entry["path"] for other in self.log) == 1
        if (self.knobs.flaky and is_first) or (self.knobs.archives_fail and path.startswith("nar/")):
            entry["status"] = 503
        elif self.knobs.locked:
            entry["status"] = 401
        elif body is None:
            entry["status"] = 404
        if body is None or entry["status"] != 200:
            return web.Response(status=entry["status"])
        is_cut = self.knobs.truncated and path.startswith(("nar/", "archive/", "source/"))
        response = web.StreamResponse()
        response.content_length = len(body)
        await response.prepare(request)
        for start in range(0, len(body) // 2 if is_cut else len(body), _PIECE):
            piece = body[start : start + _PIECE]
            await self._wait_for_the_line(len(piece))
            await response.write(piece)
            entry["bytes"] += len(piece)
        if is_cut and request.transport is not None:
            request.transport.abort()
        return response

    def _body(self, path: str, query: str) -> bytes | None:
        if self.knobs.missing and self.knobs.missing in path:
            return None
        place, _, name = path.rpartition("/")
        if place == "nar" and self.knobs.queries and not query.startswith("hash="):
            return None
        if place == "source":
            found = _SOURCE.fullmatch(name)
            return f"source {found[1]} of the lab\n".encode() if found else None
        folder = self.archives if place == "archive" else self.folder
        file = folder / ("nar" if place == "nar" else "") / name if folder else None
        if file is None or place not in ("", "nar", "archive") or not file.is_file():
            return None
        body = file.read_bytes()
        if name.endswith(".narinfo"):
            named = re.search(rb"^StorePath: (.*)$", body, re.MULTILINE)
            if self.knobs.missing and named and self.knobs.missing.encode() in named[1]:
                return None
            if self.knobs.queries:
                query = f"?hash={name.removesuffix('.narinfo')}"
                body = re.sub(rb"^(URL: .*)$", rb"\1" + query.encode(), body, flags=re.MULTILINE)
            if self.knobs.wrong_signature:
                body = re.sub(rb"^(Sig: [^:]*:).{8}", rb"\1AAAAAAAA", body, flags=re.MULTILINE)
        return body

    async def _wait_for_the_line(self, count: int) -> None:
        rate = self.knobs.bytes_per_second
        if rate <= 0:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + count / rate
        await asyncio.sleep(self._free_at - now)

    def control_routes(self) -> list[web.RouteDef]:
        """See the module."""

        async def get_knobs(_request: web.Request) -> web.Response:
            return web.json_response(asdict(self.knobs))

        async def post_knobs(request: web.Request) -> web.Response:
            try:
                await self.turn(dict(await request.json()))
            except (ValueError, TypeError) as error:
                return web.json_response({"error": str(error)}, status=400)
            return web.json_response(asdict(self.knobs))

        async def get_log(_request: web.Request) -> web.Response:
            return web.json_response(self.log)

        async def post_reset(_request: web.Request) -> web.Response:
            self.log.clear()
            await self.turn(asdict(Knobs()))
            return web.json_response({})

        async def post_fill(request: web.Request) -> web.Response:
            self.folder = Path((await request.json())["folder"])
            return web.json_response({})

        return [
            web.get("/cache/knobs", get_knobs),
            web.post("/cache/knobs", post_knobs),
            web.get("/cache/log", get_log),
            web.post("/cache/reset", post_reset),
            web.post("/cache/fill", post_fill),
        ]


def _as(kind: type, name: str, value: Any) -> Any:
    """A knob's value, also as a word of a command line."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        return kind(value)
    except (KeyError, ValueError):
        raise ValueError(f"{name} is {value!r}, which it cannot be") from None
