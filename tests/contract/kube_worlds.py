"""A cluster as its users see it, in memory and real: what a contract test does by hand, the same on both."""

from __future__ import annotations

import asyncio
import base64
import copy
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fakes.kube import FakeKube
from fakes.kube import Secret as FakeSecret
from fakes.kube_garbage import Propagation
from nixops_operator.adapters.kube import Connection, KubernetesApi
from nixops_operator.facts.kube import Body, Event, Key, Kind, OwnerReference, Secret
from nixops_operator.ports.kube import Kube

MERGE_PATCH = "application/merge-patch+json"
PATIENCE = 120.0
"""Seconds until the controllers have done what they do; they take one or two."""
API = "/apis/nixops.dev/v1alpha1"


class World(Protocol):
    kube: Kube
    namespace: str

    async def apply(self, body: Body) -> Body: ...

    async def delete(self, key: Key, propagation: Propagation = Propagation.BACKGROUND) -> None: ...

    async def delete_namespace(self) -> None: ...

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None: ...

    async def drop_finalizers(self, key: Key) -> None: ...

    async def put_config_map(self, name: str, texts: Mapping[str, str], binary: Mapping[str, bytes]) -> None: ...

    async def put_secret(self, name: str, data: Mapping[str, bytes]) -> None: ...

    async def edit_secret(self, name: str, data: Mapping[str, bytes]) -> None: ...

    async def delete_secret(self, name: str) -> None: ...

    async def set_secret_finalizers(self, name: str, finalizers: list[str]) -> None: ...

    async def secret_owner(self, name: str) -> str | None: ...

    async def event_counts(self, name: str) -> list[tuple[str, int]]: ...


@dataclass
class FakeWorld:
    kube: FakeKube = field(default_factory=FakeKube)
    namespace: str = "shop"

    async def apply(self, body: Body) -> Body:
        return self.kube.apply(body)

    async def delete(self, key: Key, propagation: Propagation = Propagation.BACKGROUND) -> None:
        self.kube.delete(key, propagation)

    async def delete_namespace(self) -> None:
        self.kube.delete_namespace(self.namespace)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """What the controllers bring about holds in the end."""
        self.kube.collect_garbage()
        assert await holds()

    async def drop_finalizers(self, key: Key) -> None:
        self.kube.edit(key, lambda body: body["metadata"].pop("finalizers", None))

    async def put_config_map(self, name: str, texts: Mapping[str, str], binary: Mapping[str, bytes]) -> None:
        self.kube.config_maps[self.namespace, name] = {key: text.encode() for key, text in texts.items()} | dict(binary)

    async def put_secret(self, name: str, data: Mapping[str, bytes]) -> None:
        self.kube.secrets[self.namespace, name] = FakeSecret(dict(data))

    async def edit_secret(self, name: str, data: Mapping[str, bytes]) -> None:
        self.kube.secrets[self.namespace, name].data.update(data)

    async def delete_secret(self, name: str) -> None:
        self.kube.delete_secret_as_user(self.namespace, name)

    async def set_secret_finalizers(self, name: str, finalizers: list[str]) -> None:
        self.kube.set_secret_finalizers(self.namespace, name, finalizers)

    async def secret_owner(self, name: str) -> str | None:
        secret = self.kube.secrets[self.namespace, name]
        return None if secret.owner is None else secret.owner.uid

    async def event_counts(self, name: str) -> list[tuple[str, int]]:
        return sorted(
            (posted.event.message, posted.count) for posted in self.kube.events if posted.event.key.name == name
        )


class RealWorld:
    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection = connection
        self.kube = KubernetesApi(connection)
        self.namespace = namespace

    async def apply(self, body: Body) -> Body:
        collection = f"{API}/namespaces/{self.namespace}/{_kind(body).value}"
        path = f"{collection}/{body['metadata']['name']}"
        existing = await self._request("GET", path)
        if existing is None:
            return await self._request("POST", collection, copy.deepcopy(dict(body))) or {}
        existing["spec"] = body["spec"]
        existing["metadata"] |= body["metadata"]
        return await self._request("PUT", path, existing) or {}

    async def delete(self, key: Key, propagation: Propagation = Propagation.BACKGROUND) -> None:
        await self._request("DELETE", _path(key), {"propagationPolicy": propagation})

    async def delete_namespace(self) -> None:
        await self._request("DELETE", f"/api/v1/namespaces/{self.namespace}")

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await holds():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    async def drop_finalizers(self, key: Key) -> None:
        await self.connection.request(
            "PATCH",
            _path(key),
            "drop finalizers",
            body={"metadata": {"finalizers": None}},
            content_type=MERGE_PATCH,
            accepted=(404,),
        )

    async def put_config_map(self, name: str, texts: Mapping[str, str], binary: Mapping[str, bytes]) -> None:
        body = {"metadata": {"name": name}, "data": dict(texts), "binaryData": _encoded(binary)}
        await self._request("POST", f"/api/v1/namespaces/{self.namespace}/configmaps", body)

    async def put_secret(self, name: str, data: Mapping[str, bytes]) -> None:
        body = {"metadata": {"name": name}, "data": _encoded(data)}
        await self._request("POST", f"/api/v1/namespaces/{self.namespace}/secrets", body)

    async def edit_secret(self, name: str, data: Mapping[str, bytes]) -> None:
        await self._patch_secret(name, {"data": _encoded(data)})

    async def delete_secret(self, name: str) -> None:
        await self._request("DELETE", f"/api/v1/namespaces/{self.namespace}/secrets/{name}")

    async def secret_owner(self, name: str) -> str | None:
        secret = await self._request("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}") or {}
        owners = secret["metadata"].get("ownerReferences", [])
        return next((str(one["uid"]) for one in owners if one["controller"]), None)

    async def event_counts(self, name: str) -> list[tuple[str, int]]:
        events = await self._request("GET", f"/api/v1/namespaces/{self.namespace}/events") or {}
        return sorted(
            (one["message"], one["count"]) for one in events["items"] if one["involvedObject"]["name"] == name
        )

    async def set_secret_finalizers(self, name: str, finalizers: list[str]) -> None:
        await self._patch_secret(name, {"metadata": {"finalizers": finalizers}})

    async def put_quota(self, name: str, hard: Mapping[str, str]) -> None:
        """A ResourceQuota with nothing used yet, once the API server heeds it; no controller counts here."""
        path, probe = (f"/api/v1/namespaces/{self.namespace}/{kind}" for kind in ("resourcequotas", "configmaps"))
        hard = {**hard, "count/configmaps": "0"}
        await self._request("POST", path, {"metadata": {"name": name}, "spec": {"hard": hard}})
        status = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
        await self.connection.request("PATCH", f"{path}/{name}/status", "quota", body=status, content_type=MERGE_PATCH)
        body = {"metadata": {"name": "probe"}}
        # Admission reads quotas from a watch of its own.
        while await self.connection.request("POST", f"{probe}?dryRun=All", "probe", body=body, accepted=(403,)):
            pass

    async def _patch_secret(self, name: str, patch: object) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/secrets/{name}"
        await self.connection.request("PATCH", path, f"PATCH {path}", body=patch, content_type=MERGE_PATCH)

    async def _request(self, method: str, path: str, body: object = None) -> dict[str, Any] | None:
        return await self.connection.request(method, path, f"{method} {path}", body=body, accepted=(404,))


@asynccontextmanager
async def real_world(kubeconfig: Path) -> AsyncIterator[RealWorld]:
    """A namespace of its own on the API server."""
    connection = await Connection.open(str(kubeconfig))
    try:
        namespace = f"contract-{secrets.token_hex(4)}"
        await connection.request("POST", "/api/v1/namespaces", "namespace", body={"metadata": {"name": namespace}})
        yield RealWorld(connection, namespace)
    finally:
        await connection.close()


def machine(namespace: str, name: str = "web", **spec: object) -> dict[str, Any]:
    """A small valid NixMachine."""
    return {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "target": {"host": {"address": "192.0.2.10"}},
            "ssh": {"privateKeySecretRef": {"name": "ssh"}, "hostKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1v"]},
            "configuration": {"modules": [{"inline": "{ }"}]},
            **spec,
        },
    }


def present(secret: Secret | None) -> Secret:
    """A Secret that must be there."""
    assert secret is not None
    return secret


def key(namespace: str, name: str = "web") -> Key:
    return Key(Kind.MACHINE, namespace, name)


def owner(body: Body) -> OwnerReference:
    return OwnerReference(Kind.MACHINE, body["metadata"]["name"], body["metadata"]["uid"])


def owned_by(body: Body, namespace: str, name: str) -> dict[str, Any]:
    """A small NixMachine that this one controls, and whose deletion it waits for."""
    reference = {
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "name": body["metadata"]["name"],
        "uid": body["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    child = machine(namespace, name)
    child["metadata"]["ownerReferences"] = [reference]
    return child


def event(body: Body, message: str) -> Event:
    metadata = body["metadata"]
    return Event(key(metadata["namespace"], metadata["name"]), metadata["uid"], "Normal", "Succeeded", message)


def _kind(body: Body) -> Kind:
    return {kind.object_kind: kind for kind in Kind}[body["kind"]]


def _path(key: Key) -> str:
    return f"{API}/namespaces/{key.namespace}/{key.kind.value}/{key.name}"


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}
