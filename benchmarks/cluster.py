"""The API server as its administrator sees it: makes and edits objects, and hears when they were judged."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from component.api_server import ApiServer

OBJECTS = "/apis/nixops.dev/v1alpha1/namespaces/{}/nixmachines"
PATIENCE = 300.0  # seconds
AT_ONCE = 8  # requests; more only make the API server's queue longer
_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDl6nHSVW1GRr4VCsFpkW1v0a2bJH8Qw3PjUOb5eYlJm"
_WRITES = re.compile(
    r'apiserver_request_total\{(?=[^}]*resource="(?:nixmachines|nixdeployments|events|secrets)")'
    r'(?=[^}]*verb="(?:PATCH|POST|PUT|DELETE|APPLY)")[^}]*\} (\S+)'
)


def machine(name: str, namespace: str) -> dict[str, Any]:
    """About 2 kB that cannot go far: a given host in a network that no administrator allowed is looked at, judged, and
    never dialled."""
    module = "{ services.httpd.enable = true; # " + "x" * 1200 + "\n}"
    return {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "target": {"host": {"address": "192.0.2.1"}},
            "ssh": {"privateKeySecretRef": {"name": "client"}, "hostKeys": [_HOST_KEY]},
            "configuration": {"modules": [{"inline": module}]},
        },
    }


class Cluster:
    """One connection as the administrator, and what it has heard."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.judged: dict[tuple[str, str], tuple[int, float]] = {}  # namespace, name → generation, time.monotonic
        self.listeners: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()

    async def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The reply. Raises RuntimeError for a refusal."""
        text = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=text, headers={"Content-Type": content_type}) as reply:
            answer = await reply.read()
            if reply.status >= 300:
                raise RuntimeError(f"{method} {path}: {reply.status} {answer[:300]!r}")
            found: dict[str, Any] = json.loads(answer)
            return found

    async def make(self, namespace: str, names: Iterable[str]) -> None:
        """Objects that cannot go far."""
        await _all(
            names, lambda name: self.request("POST", OBJECTS.format(namespace), machine(name, namespace)), AT_ONCE
        )

    async def edit(self, namespace: str, names: Iterable[str], text: str) -> None:
        """Another inline module."""
        spec = {"configuration": {"modules": [{"inline": text}]}}
        await _all(
            names,
            lambda name: self.request(
                "PATCH", f"{OBJECTS.format(namespace)}/{name}", {"spec": spec}, "application/merge-patch+json"
            ),
            AT_ONCE,
        )

    async def writes(self) -> int:
        """How many requests that change something of ours the API server has answered since its start."""
        async with self._session.get("/metrics") as reply:
            return int(sum(float(one) for one in _WRITES.findall(await reply.text())))

    async def until_judged(self, namespace: str, count: int, generation: int, check: Callable[[], None]) -> None:
        """Until so many objects have been judged in that generation. `check` raises if that will never be."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for listener in self.listeners:
                if listener.done():
                    listener.result()
            found = sum(where == namespace and told >= generation for (where, _), (told, _) in self.judged.items())
            if found >= count:
                return
            check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{found} of {count} were judged within {PATIENCE:.0f} s")
            self._heard.clear()
            try:
                async with asyncio.timeout(5):
                    await self._heard.wait()
                    await asyncio.sleep(0.2)
            except TimeoutError:
                continue

    def judged_at(self, namespace: str) -> list[float]:
        """When each was judged last, as time.monotonic."""
        return [when for (where, _), (_, when) in self.judged.items() if where == namespace]

    async def listen(self, namespace: str) -> None:
        """For ever: a list, then a watch, and again when the API server ends that."""
        while True:
            everything = await self.request("GET", OBJECTS.format(namespace))
            for body in everything["items"]:
                self._hear(namespace, body)
            query = {"watch": "1", "resourceVersion": everything["metadata"]["resourceVersion"]}
            async with self._session.get(OBJECTS.format(namespace), params=query, timeout=NO_LIMIT) as reply:
                async for line in reply.content:
                    self._hear(namespace, json.loads(line)["object"])

    def _hear(self, namespace: str, body: Mapping[str, Any]) -> None:
        status, metadata = body.get("status") or {}, body["metadata"]
        generation = metadata.get("generation")  # an error that ends the watch has none
        if generation is None or status.get("observedGeneration") != generation or not status.get("conditions"):
            return
        place = namespace, metadata["name"]
        if self.judged.get(place, (0, 0.0))[0] < generation:
            self.judged[place] = generation, time.monotonic()
            self._heard.set()


NO_LIMIT = aiohttp.ClientTimeout(total=None)


async def _all(names: Iterable[str], work: Callable[[str], Awaitable[object]], at_once: int) -> None:
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


@asynccontextmanager
async def connected(server: ApiServer, namespaces: Iterable[str]) -> AsyncIterator[Cluster]:
    """The cluster, with these namespaces made and listened to."""
    config = json.loads(server.kubeconfig.read_text())
    url, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
    async with aiohttp.ClientSession(
        url,
        headers={"Authorization": f"Bearer {token}"},
        connector=aiohttp.TCPConnector(ssl=False),
        read_bufsize=2**21,
    ) as session:
        cluster = Cluster(session)
        for namespace in namespaces:
            await cluster.request(
                "POST",
                "/api/v1/namespaces",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            )
        cluster.listeners += [asyncio.create_task(cluster.listen(one)) for one in namespaces]
        try:
            yield cluster
        finally:
            for listener in cluster.listeners:
                listener.cancel()
            await asyncio.gather(*cluster.listeners, return_exceptions=True)
