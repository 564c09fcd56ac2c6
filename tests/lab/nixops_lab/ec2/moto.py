"""moto's server: its own process, and the two ways in which the layer speaks to it.

It answers what the layer does not model: STS, IAM, VPCs, subnets, zones, instance types.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

import aiohttp
import botocore.parsers
import botocore.serialize

from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.protocol import operation_model

# moto imports all of its services first; about 2 s on an idle machine.
START_SECONDS = 60.0
STOP_SECONDS = 5.0

# moto's documentation, "Configuration: environment variables": without these it accepts what EC2 refuses.
_STRICT = {
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "date", "server"}


class MotoServer:
    """A `moto_server` child on a loopback port (0: a free one). Dies with this process."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or _free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Return when it answers. Raises RuntimeError if it cannot listen, ends or takes too long."""
        _refuse_taken(self.port)
        arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "KILL",
            *arguments,
            env={**os.environ, **_STRICT},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._answers(self._process)
        except TimeoutError:
            await self.stop()
            raise RuntimeError(f"moto_server did not answer on {self.url} within {START_SECONDS:.0f} s") from None

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while process.returncode is None:
                try:
                    async with session.get(f"{self.url}/moto-api/") as reply:
                        if reply.status == 200:
                            return
                except (aiohttp.ClientConnectionError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        raise RuntimeError(f"moto_server ended with exit status {process.returncode}")

    async def stop(self) -> None:
        """End the child and wait for it. Harmless when it never started."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _refuse_taken(port: int) -> None:
    """Another server on the port would answer in moto's place."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise RuntimeError(f"moto_server cannot listen on 127.0.0.1:{port}: {error.strerror}") from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Moto:
    """A client of a running moto server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def forward(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Pass a request on unchanged: status, headers and body of the reply."""
        passed = {name: value for name, value in headers.items() if name.lower() not in {"host", "accept-encoding"}}
        async with self._session.request(
            method, f"{self._url}{path}", headers=passed, data=body, allow_redirects=False
        ) as reply:
            kept = {name: value for name, value in reply.headers.items() if name.lower() not in _HOP_BY_HOP}
            return reply.status, kept, await reply.read()

    async def instance_profile(self, name: str) -> Mapping[str, str] | None:
        """`InstanceProfileName`, `InstanceProfileId` and `Arn` of an IAM instance profile; None if there is none."""
        form = {"Action": "GetInstanceProfile", "Version": "2010-05-08", "InstanceProfileName": name}
        scope = "Credential=LAYER/20000101/us-east-1/iam/aws4_request"
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"}
        async with self._session.post(f"{self._url}/", data=form, headers=headers) as reply:
            body = await reply.read()
            if reply.status == 404:
                return None
            assert reply.status < 300, body
        root = ET.fromstring(body)  # noqa: S314 - our own moto's reply
        wanted = ("InstanceProfileName", "InstanceProfileId", "Arn")
        found = {element.tag.rpartition("}")[2]: str(element.text) for element in root.iter()}
        return {field: found[field] for field in wanted}

    async def call(self, region: str, operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask an EC2 operation for the layer itself. Raises Ec2Error with moto's code."""
        model = operation_model(operation)
        request = botocore.serialize.create_serializer("ec2").serialize_to_request(dict(params), model)
        # moto reads service and region from here; it checks no signature.
        scope = f"Credential=LAYER/20000101/{region}/ec2/aws4_request"
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"}
        async with self._session.post(f"{self._url}/", data=request["body"], headers=headers) as reply:
            status, raw = reply.status, {"status_code": reply.status, "headers": {}, "body": await reply.read()}
        assert model.output_shape is not None
        parsed = botocore.parsers.create_parser("ec2").parse(raw, model.output_shape)
        if status >= 300:
            error = parsed["Error"]
            raise Ec2Error(error["Code"], error["Message"], status)
        return dict(parsed)
