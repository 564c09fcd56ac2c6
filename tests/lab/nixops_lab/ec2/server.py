"""The endpoint: takes a request apart, has it answered, writes it down, replies."""

import asyncio
import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from nixops_lab.ec2 import control, protocol, roles, standing
from nixops_lab.ec2.buckets import Buckets
from nixops_lab.ec2.calllog import CallLog, resources_in, without_user_data
from nixops_lab.ec2.cloud import Cloud, Hosts
from nixops_lab.ec2.errors import Ec2Error, unsupported
from nixops_lab.ec2.faults import Fault, Faults
from nixops_lab.ec2.firewall import Firewall
from nixops_lab.ec2.knobs import Knobs, Panel
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.moto import Moto, MotoServer
from nixops_lab.ec2.operations import FORWARDED, is_read, served
from nixops_lab.ec2.signature import Claim, expired_session, read_claim, unknown_caller, verify

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What goes back. `result` is "ok" or the error code; `is_committed`: something was or may have been changed."""

    status: int
    body: bytes
    result: str
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/xml;charset=UTF-8"})
    resources: tuple[str, ...] = ()
    is_committed: bool = False


@dataclass
class Received:
    """One request, as far as it was understood."""

    seq: int
    arrived: float
    request_id: str
    method: str
    path: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    claim: Claim | None = None
    operation: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def service(self) -> str:
        return "ec2" if self.claim is None else self.claim.service


class Ec2Layer:
    """EC2 for one lab, with moto behind it.

    `callers` is access key → (secret key, name). `policies`: name → operations of EC2 that its IAM policy allows, all
    for who is not there. `log_path` gets the call log. `seed` decides ids and order.
    moto listens on `moto_port` (0: a free one) as a child of the layer, unless a running `moto` is given to share.
    Seconds since 1970 come from `clock`.
    """

    def __init__(
        self,
        machines: Hosts,
        callers: Mapping[str, tuple[str, str]],
        log_path: Path,
        seed: int = 0,
        moto_port: int = 0,
        *,
        moto: MotoServer | None = None,
        clock: Callable[[], float] = time.time,
        policies: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self._machines = machines
        self._callers = callers
        self._policies = policies
        self._log_path = log_path
        self._seed = seed
        self._moto_server = moto or MotoServer(moto_port)
        self._owns_moto = moto is None
        self._panel = Panel(clock, {*callers, *(name for _secret, name in callers.values())})
        self._panel.follow(self._listen_or_refuse)
        self._faults = Faults()
        self._roles = roles.Roles()
        self._buckets = Buckets()
        self._calls = CallLog(log_path)
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def moto_port(self) -> int:
        """Where moto listens."""
        return self._moto_server.port

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (of interest where 0 was asked for)."""
        if self._owns_moto:
            await self._moto_server.start()
        self._session = aiohttp.ClientSession()
        self._moto = Moto(self._moto_server.url, self._session)
        self._cloud = Cloud(self._machines, self._panel, self._moto, self._seed)
        self._firewall = Firewall(self._machines)
        self._lifecycle = Lifecycle(self._cloud, self._firewall)
        self._served = served(self._lifecycle)
        self._machines.on_poweroff = self._lifecycle.powered_off
        application = web.Application(client_max_size=2**22)
        application.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        # Bound and never listening, this socket keeps the port while nobody listens (socket(7), SO_REUSEADDR).
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind((host, port))
        await self._listen_or_refuse(self._panel.knobs)
        return int(self._place.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end the transitions and moto. Machines stay as they are."""
        self._stopping.set()
        if self._runner is not None:
            await self._lifecycle.close()
            await self._runner.cleanup()
            self._place.close()
        if self._session is not None:
            await self._session.close()
        if self._owns_moto:
            await self._moto_server.stop()
        self._calls.close()

    async def turn(self, changes: Mapping[str, object]) -> None:
        """Set knobs, as `POST /knobs` does."""
        await self._panel.turn(changes)

    def state_of(self, instance_id: str) -> str | None:
        """The state of an instance as it is, which answers may not show yet; None for one that is not there."""
        found = [region.instances.get(instance_id) for region in self._cloud.regions.values()]
        return next((instance.state for instance in found if instance is not None), None)

    def control_routes(self) -> Sequence[web.RouteDef]:
        """Routes of the control interface (control.py)."""
        return control.routes(self._calls, self._faults, self._panel)

    async def _listen_or_refuse(self, knobs: Knobs) -> None:
        if self._runner is None:
            return
        if self._site is None and not knobs.endpoint_refuses:
            host, port = self._place.getsockname()
            self._site = web.TCPSite(self._runner, host, port, reuse_address=True)
            await self._site.start()
        elif self._site is not None and knobs.endpoint_refuses:
            await self._site.stop()
            self._site = None
            assert self._runner.server is not None
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            seq=self._calls.next_seq(),
            arrived=time.monotonic(),
            request_id=str(uuid.uuid4()),
            method=request.method,
            path=request.path_qs,
            url=f"http://{request.host}{request.path_qs}",
            headers=request.headers,
            body=await request.read(),
        )
        try:
            self._identify(received)
            self._understand(received)
        except Ec2Error as error:
            reply = self._refusal(received, error)
            self._write_down(received, reply)
            return _response(reply)
        if (
            how := standing.unanswered(self._panel.knobs, self._caller(received), received.operation or "")
        ) is not None:
            self._write_down(received, None, fault=how)
            if how == "silent":
                await self._stopping.wait()
            return _cut(request)
        fault = self._faults.meeting(received.operation or "", received.parameters)
        if fault is None:
            reply = await self._answer(received)
            self._write_down(received, reply)
            return _response(reply)
        return await self._serve_fault(request, received, fault)

    async def _serve_fault(self, request: web.Request, received: Received, fault: Fault) -> web.StreamResponse:
        failure = self._refusal(received, Ec2Error(fault.code, fault.message, fault.status))
        match fault.do:
            case "commit-drop":
                reply = await self._answer(received)
                self._write_down(received, reply, fault=fault.do, is_sent=False)
                return _cut(request)
            case "drop":
                self._write_down(received, None, fault=fault.do)
                return _cut(request)
            case "hang":
                self._write_down(received, None, fault=fault.do)
                await self._stopping.wait()
                return _cut(request)
            case "delay":
                await asyncio.sleep(fault.seconds)
                reply = await self._answer(received)
            case "error" if fault.when == "after":
                done = await self._answer(received)
                reply = Reply(failure.status, failure.body, failure.result, failure.headers, done.resources, True)
            case _:
                reply = failure
        self._write_down(received, reply, fault=fault.do)
        return _response(reply)

    def _identify(self, received: Received) -> None:
        """Who calls. Raises Ec2Error for strangers and wrong signatures."""
        received.claim = claim = read_claim(received.headers)
        # Named in the log before the signature is checked: a refused call has an operation, too.
        received.operation = dict(_form(received)).get("Action") or received.headers.get("X-Amz-Target")
        session = self._roles.session(claim.access_key)
        if session is None and claim.access_key not in self._callers:
            raise unknown_caller(claim.service)
        if session is not None and received.headers.get("X-Amz-Security-Token") != session.token:
            raise unknown_caller(claim.service)
        if session is not None and session.ends_at < time.time():
            raise expired_session(claim.service)
        secret = session.secret if session is not None else self._callers[claim.access_key][0]
        # Real time, not the lab's clock: the caller signed with it.
        verify(claim, secret, received.method, received.url, received.headers, received.body, time.time())

    def _understand(self, received: Received) -> None:
        """The parameters. Raises Ec2Error for what EC2 does not know."""
        form = dict(_form(received))
        if received.service != "ec2":
            received.parameters = {name: text for name, text in form.items() if name not in {"Action", "Version"}}
            return
        model = protocol.operation_model(form.get("Action", ""))
        received.parameters = protocol.parse(model, form)

    def _caller(self, received: Received) -> standing.Caller:
        """The caller of a request that was identified."""
        assert received.claim is not None
        access_key = received.claim.access_key
        return standing.Caller(access_key, self._name_of(access_key) or "", received.service)

    def _name_of(self, access_key: str) -> str | None:
        """As the call log tells: a caller's name, or `role/<name>`."""
        session = self._roles.session(access_key)
        if session is not None:
            return f"role/{session.role}"
        return self._callers[access_key][1] if access_key in self._callers else None

    async def _answer(self, received: Received) -> Reply:
        try:
            return await self._execute(received)
        except Ec2Error as error:
            return self._refusal(received, error)
        except Exception:  # noqa: BLE001 - the edge: a mistake here is a 500 to the caller and a traceback in the log
            _log.exception("%s failed", received.operation)
            return self._refusal(received, Ec2Error("InternalError", "An internal error has occurred", 500))

    async def _execute(self, received: Received) -> Reply:
        name = received.operation
        assert received.claim is not None
        region_name = received.claim.region
        caller = self._caller(received)
        policy = self._policies.get(caller.name)
        standing.admit(self._panel.knobs, caller, name or "", received.parameters, policy)
        factor = self._panel.knobs.buckets_factor
        if factor is not None and received.service == "ec2":
            now = self._panel.clock()
            if not self._buckets.has_token(region_name, name or "", received.parameters, factor, now):
                raise Ec2Error("RequestLimitExceeded", "Request limit exceeded.", 503)
        if received.service == "sts" and name == "AssumeRole":
            return self._assume_role(received)
        if received.service != "ec2":
            return await self._forward(received)
        assert name is not None
        if received.parameters.get("DryRun"):
            raise Ec2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        if name in FORWARDED:
            reply = await self._forward(received)
            if not is_read(name):
                await self._cloud.network_changed(region_name)
            return reply
        if name not in self._served:
            raise unsupported(f"the lab does not model {name}")
        region = await self._cloud.region(region_name)
        result = await self._served[name](self._cloud, region, received.parameters)
        if not is_read(name):
            await self._firewall.apply(region)
        return Reply(
            status=200,
            body=protocol.write(protocol.operation_model(name), result, received.request_id),
            result="ok",
            resources=() if is_read(name) else tuple(resources_in(result)),
            is_committed=not is_read(name),
        )

    def _assume_role(self, received: Received) -> Reply:
        lasts = self._panel.knobs.session_seconds
        caller = self._caller(received).name
        session = self._roles.assume(caller, received.parameters, time.time(), lasts)
        name = received.parameters.get("RoleSessionName", "")
        return Reply(200, roles.reply(session, name, received.request_id), "ok", {"Content-Type": "text/xml"})

    async def _forward(self, received: Received) -> Reply:
        status, headers, body = await self._moto.forward(
            received.method, received.path, received.headers, received.body
        )
        if status < 300:
            return Reply(status, body, "ok", headers, is_committed=not is_read(received.operation or ""))
        return Reply(status, body, protocol.error_code(body) or str(status), headers)

    def _refusal(self, received: Received, error: Ec2Error) -> Reply:
        write = protocol.write_error if received.service == "ec2" else protocol.write_query_error
        return Reply(error.status, write(error, received.request_id), error.code)

    def _write_down(
        self, received: Received, reply: Reply | None, *, fault: str | None = None, is_sent: bool = True
    ) -> None:
        claim = received.claim
        asked = resources_in(received.parameters)
        self._calls.append(
            {
                "time": datetime.now(UTC).isoformat(),
                "seq": received.seq,
                "caller": claim.access_key if claim else None,
                "caller_name": self._name_of(claim.access_key) if claim else None,
                "region": claim.region if claim else None,
                "service": received.service,
                "operation": received.operation,
                "parameters": without_user_data(received.parameters),
                "result": reply.result if reply else None,
                "resources": list(dict.fromkeys([*asked, *(reply.resources if reply else ())])),
                "attempt": _attempt(received.headers),
                "token": received.parameters.get("ClientToken"),
                "fault": fault,
                "committed": reply.is_committed if reply else False,
                "status": reply.status if reply and is_sent else None,
                "ms": round((time.monotonic() - received.arrived) * 1000, 1),
            }
        )


def _form(received: Received) -> list[tuple[str, str]]:
    """Parameters of the body and of the query, as in a form."""
    _, _, query = received.path.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    if received.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
        pairs += parse_qsl(received.body.decode("utf-8", "replace"), keep_blank_values=True)
    return pairs


def _attempt(headers: Mapping[str, str]) -> int | None:
    """Which attempt of botocore's this is, as it says itself; 1 is the first."""
    found = re.search(r"attempt=(\d+)", headers.get("amz-sdk-request", ""))
    return int(found[1]) if found else None


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, headers=reply.headers)


def _cut(request: web.Request) -> web.Response:
    """Close the connection; what is returned has nowhere to go."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
