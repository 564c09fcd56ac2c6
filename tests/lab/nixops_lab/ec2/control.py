"""The control interface of the layer, mounted by the lab's daemon at LAB_CONTROL_URL.

GET    /ec2/log?since=N    entries with seq > N, as a JSON list
GET    /knobs              all knobs
POST   /knobs              {"name": value, …}: set some, reply as GET
GET    /faults             faults that are set, with how often each was met
POST   /faults             one fault (faults.py) or a list of them
POST   /reset              no faults, knobs at their defaults; instances and log stay
"""

from collections.abc import Sequence
from dataclasses import asdict

from aiohttp import web

from nixops_lab.ec2.calllog import CallLog
from nixops_lab.ec2.faults import Faults, read_fault
from nixops_lab.ec2.knobs import Panel


def routes(log: CallLog, faults: Faults, panel: Panel) -> Sequence[web.RouteDef]:
    """The routes, to be added to any aiohttp application."""

    async def get_log(request: web.Request) -> web.Response:
        try:
            since = int(request.query.get("since", "0"))
        except ValueError:
            return _refused("`since` is a number")
        return web.json_response([entry for entry in log.entries if entry["seq"] > since])

    async def get_knobs(_request: web.Request) -> web.Response:
        return web.json_response(panel.knobs.as_dict())

    async def post_knobs(request: web.Request) -> web.Response:
        try:
            changes = await request.json()
            if not isinstance(changes, dict):
                return _refused("a JSON object is expected")
            await panel.turn(changes)
        except ValueError as error:
            return _refused(str(error))
        return web.json_response(panel.knobs.as_dict())

    async def get_faults(_request: web.Request) -> web.Response:
        return web.json_response([asdict(fault) for fault in faults.all])

    async def post_faults(request: web.Request) -> web.Response:
        try:
            wanted = await request.json()
            added = [read_fault(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
        except (ValueError, TypeError, AttributeError) as error:
            return _refused(str(error))
        faults.all += added
        return web.json_response([asdict(fault) for fault in faults.all])

    async def post_reset(_request: web.Request) -> web.Response:
        faults.all.clear()
        await panel.reset()
        return web.json_response({})

    return [
        web.get("/ec2/log", get_log),
        web.get("/knobs", get_knobs),
        web.post("/knobs", post_knobs),
        web.get("/faults", get_faults),
        web.post("/faults", post_faults),
        web.post("/reset", post_reset),
    ]


def _refused(reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=400)
