"""ports.kube.Kube on a Connection."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from nixops_operator.adapters.kube.connection import JSON, JSON_PATCH, MERGE_PATCH, Connection, path_of
from nixops_operator.adapters.kube.events import EventPoster
from nixops_operator.api.group import API_VERSION, GROUP, VERSION
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Conflict, Retry
from nixops_operator.facts.kube import Body, Event, Key, Kind, OwnerReference, Page, Secret, key_of
from nixops_operator.names import FINALIZER, IN_USE_FINALIZER

PAGE = "100"
"""Objects a page: some 600 kB of JSON, which take 6 ms to parse and 1.5 MB once parsed."""

Patch = list[dict[str, Any]]


class KubernetesApi:
    """See ports.kube.Kube for what each method promises."""

    def __init__(
        self, connection: Connection, events: EventPoster | None = None, namespaces: Sequence[str] = ()
    ) -> None:
        """`namespaces`: those whose objects are listed; none stands for the whole cluster."""
        self._connection = connection
        self._events = events or EventPoster(connection)
        self._namespaces = namespaces
        self._cluster_id: str | None = None

    async def cluster_id(self) -> str:
        if self._cluster_id is None:
            namespace = await self._read(path_of("api", "v1", "namespaces", "kube-system"), "get namespace kube-system")
            if namespace is None:
                raise Retry(Reason.PROGRESSING_WITH_RETRY, "the cluster has no namespace kube-system yet")
            self._cluster_id = str(namespace["metadata"]["uid"])
        return self._cluster_id

    async def list(self, kind: Kind) -> AsyncIterator[Page]:
        lists = [(path_of("apis", GROUP, VERSION, kind.value), f"list {kind.value}")]
        if self._namespaces:
            lists = [
                (_collection_path(kind, namespace), f"list {kind.value} of namespace {namespace}")
                for namespace in self._namespaces
            ]
        for path, what in lists:
            async for page in self._pages(path, what):
                yield page

    async def _pages(self, path: str, what: str) -> AsyncIterator[Page]:
        query = {"limit": PAGE}
        while True:
            page = await self._connection.request("GET", path, what, query=query)
            if page is None or "items" not in page:
                raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{what}: the reply has no items")
            metadata = page["metadata"]
            yield Page([_without_managed_fields(body) for body in page["items"]], int(metadata["resourceVersion"]))
            if not metadata.get("continue"):
                return
            query = {"limit": PAGE, "continue": metadata["continue"]}

    async def get(self, key: Key) -> Body | None:
        body = await self._read(_object_path(key), f"get {key}")
        return None if body is None else _without_managed_fields(body)

    async def add_finalizer(self, body: Body) -> Body:
        finalizers = body["metadata"].get("finalizers", [])
        if FINALIZER in finalizers:
            return body
        if "deletionTimestamp" in body["metadata"]:
            raise Conflict(f"{key_of(body)} is being deleted and takes no new finalizer")
        return await self._patch_object(body, _addition(FINALIZER, finalizers))

    async def remove_finalizer(self, body: Body) -> Body:
        finalizers = body["metadata"].get("finalizers", [])
        if FINALIZER not in finalizers:
            return body
        key = key_of(body)
        answer = await self._connection.request(
            "PATCH",
            _object_path(key),
            f"patch {key}",
            body=_tests(body["metadata"]) + _removal(FINALIZER, finalizers),
            content_type=JSON_PATCH,
            accepted=(404,),
        )
        return body if answer is None else _without_managed_fields(answer)

    async def write_intent(self, body: Body, status: Body) -> Body:
        return await self._merge_status(body, status)

    async def patch_status(self, body: Body, status: Body) -> Body:
        return await self._merge_status(body, status)

    async def create_machine(self, body: Body) -> Body:
        key = key_of(body)
        return await self._change("POST", _collection_path(key.kind, key.namespace), f"create {key}", dict(body))

    async def replace_machine_spec(
        self,
        body: Body,
        spec: Body,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Body:
        patch: Patch = [{"op": "replace", "path": "/spec", "value": dict(spec)}]
        patch += _changes("labels", body["metadata"].get("labels"), labels)
        patch += _changes("annotations", body["metadata"].get("annotations"), annotations)
        return await self._patch_object(body, patch)

    async def delete_machine(self, body: Body) -> None:
        key = key_of(body)
        await self._connection.request(
            "DELETE",
            _object_path(key),
            f"delete {key}",
            body={"preconditions": {"uid": body["metadata"]["uid"]}},
            accepted=(404,),
        )

    async def create_secret(
        self,
        namespace: str,
        name: str,
        data: Mapping[str, bytes],
        *,
        owner: OwnerReference | None,
        type_: str,
        immutable: bool,
    ) -> bool:
        answer = await self._connection.request(
            "POST",
            path_of("api", "v1", "namespaces", namespace, "secrets"),
            f"create secret {namespace}/{name}",
            body={
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": namespace} | _owned(owner),
                "type": type_,
                "immutable": immutable,
                "data": _encoded(data),
            },
            accepted=(409,),
            says_content=False,
        )
        return answer is not None

    async def read_secret(self, namespace: str, name: str) -> Secret | None:
        body = await self._read(_secret_path(namespace, name), f"get secret {namespace}/{name}")
        return None if body is None else _secret(body)

    async def update_secret(self, namespace: str, secret: Secret, data: Mapping[str, bytes]) -> Secret:
        patch = {"metadata": _identity(secret), "data": _encoded(data)}
        return await self._patch_secret(namespace, secret, patch, MERGE_PATCH)

    async def remove_secret(self, namespace: str, secret: Secret) -> None:
        await self._connection.request(
            "DELETE",
            _secret_path(namespace, secret.name),
            f"delete secret {namespace}/{secret.name}",
            body={"preconditions": {"uid": secret.uid}},
            accepted=(404, 409),
        )

    async def hold_secret(self, namespace: str, secret: Secret) -> Secret:
        if IN_USE_FINALIZER in secret.finalizers:
            return secret
        if secret.is_deleting:
            raise Conflict(f"secret {namespace}/{secret.name} is being deleted and takes no new finalizer")
        patch = _tests(_identity(secret)) + _addition(IN_USE_FINALIZER, secret.finalizers)
        return await self._patch_secret(namespace, secret, patch, JSON_PATCH)

    async def release_secret(self, namespace: str, secret: Secret) -> None:
        if IN_USE_FINALIZER not in secret.finalizers:
            return
        await self._connection.request(
            "PATCH",
            _secret_path(namespace, secret.name),
            f"patch secret {namespace}/{secret.name}",
            body=_tests(_identity(secret)) + _removal(IN_USE_FINALIZER, secret.finalizers),
            content_type=JSON_PATCH,
            accepted=(404,),
            says_content=False,
        )

    async def disown_secret(self, namespace: str, name: str, uid: str) -> None:
        secret = await self._read(_secret_path(namespace, name), f"get secret {namespace}/{name}")
        if secret is None:
            return
        others = [owner for owner in _owners(secret) if owner["uid"] != uid]
        version = secret["metadata"]["resourceVersion"]
        await self._connection.request(
            "PATCH",
            _secret_path(namespace, name),
            f"patch secret {namespace}/{name}",
            body={"metadata": {"resourceVersion": version, "ownerReferences": others}},
            content_type=MERGE_PATCH,
            accepted=(404,),
            says_content=False,
        )

    async def get_config_map(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        path = path_of("api", "v1", "namespaces", namespace, "configmaps", name)
        config_map = await self._read(path, f"get config map {namespace}/{name}")
        if config_map is None:
            return None
        texts = {key: text.encode() for key, text in (config_map.get("data") or {}).items()}
        return texts | _decoded(config_map.get("binaryData"))

    async def post_event(self, event: Event) -> None:
        await self._events.post(event)

    async def _read(self, path: str, what: str) -> dict[str, Any] | None:
        return await self._connection.request("GET", path, what, accepted=(404,))

    async def _change(
        self, method: str, path: str, what: str, body: object, content_type: str = JSON, *, says_content: bool = True
    ) -> Body:
        answer = await self._connection.request(
            method, path, what, body=body, content_type=content_type, says_content=says_content
        )
        if answer is None:
            raise Conflict(f"{what}: the object is gone")
        return _without_managed_fields(answer)

    async def _patch_object(self, body: Body, patch: Patch) -> Body:
        key = key_of(body)
        tested = _tests(body["metadata"]) + patch
        return await self._change("PATCH", _object_path(key), f"patch {key}", tested, JSON_PATCH)

    async def _patch_secret(self, namespace: str, secret: Secret, patch: object, content_type: str) -> Secret:
        path, what = _secret_path(namespace, secret.name), f"patch secret {namespace}/{secret.name}"
        return _secret(await self._change("PATCH", path, what, patch, content_type, says_content=False))

    async def _merge_status(self, body: Body, status: Body) -> Body:
        key = key_of(body)
        # A resourceVersion is never given twice, so it stands for the uid, too.
        patch = {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"]}, "status": dict(status)}
        return await self._change("PATCH", f"{_object_path(key)}/status", f"patch status of {key}", patch, MERGE_PATCH)


def _tests(metadata: Mapping[str, Any]) -> Patch:
    """A patch that begins with these changes only the object that was looked at."""
    return [{"op": "test", "path": f"/metadata/{name}", "value": metadata[name]} for name in ("uid", "resourceVersion")]


def _addition(finalizer: str, present: Sequence[str]) -> Patch:
    path, value = ("/metadata/finalizers/-", finalizer) if present else ("/metadata/finalizers", [finalizer])
    return [{"op": "add", "path": path, "value": value}]


def _removal(finalizer: str, present: Sequence[str]) -> Patch:
    place = f"/metadata/finalizers/{present.index(finalizer)}"
    return [{"op": "test", "path": place, "value": finalizer}, {"op": "remove", "path": place}]


def _changes(field: str, present: Mapping[str, str] | None, wanted: Mapping[str, str | None]) -> Patch:
    """What brings a map of strings in the metadata to the wanted values; None: not there."""
    kept = {name: value for name, value in wanted.items() if value is not None}
    if not present:
        return [{"op": "add", "path": f"/metadata/{field}", "value": kept}] if kept else []
    patch: Patch = []
    for name, value in sorted(wanted.items()):
        path = f"/metadata/{field}/{_pointer(name)}"
        if value is not None:
            patch.append({"op": "add", "path": path, "value": value})
        elif name in present:
            patch.append({"op": "remove", "path": path})
    return patch


def _collection_path(kind: Kind, namespace: str) -> str:
    return path_of("apis", GROUP, VERSION, "namespaces", namespace, kind.value)


def _object_path(key: Key) -> str:
    return _collection_path(key.kind, key.namespace) + path_of(key.name)


def _secret_path(namespace: str, name: str) -> str:
    return path_of("api", "v1", "namespaces", namespace, "secrets", name)


def _pointer(name: str) -> str:
    """RFC 6901."""
    return name.replace("~", "~0").replace("/", "~1")


def _owners(body: Body) -> Sequence[Mapping[str, Any]]:
    return body["metadata"].get("ownerReferences") or ()


def _owned(owner: OwnerReference | None) -> dict[str, Any]:
    if owner is None:
        return {}
    reference = {
        "apiVersion": API_VERSION,
        "kind": owner.kind.object_kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
    }
    return {"ownerReferences": [reference]}


def _identity(secret: Secret) -> dict[str, str]:
    return {"uid": secret.uid, "resourceVersion": secret.resource_version}


def _secret(body: Mapping[str, Any]) -> Secret:
    metadata = body["metadata"]
    return Secret(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        data=_decoded(body.get("data")),
        owner_uids=frozenset(owner["uid"] for owner in _owners(body)),
        type=body.get("type", "Opaque"),
        is_immutable=bool(body.get("immutable")),
        deleted_at=datetime.fromisoformat(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
        finalizers=tuple(metadata.get("finalizers") or ()),
    )


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}


def _decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (data or {}).items()}


def _without_managed_fields(body: dict[str, Any]) -> Body:
    body["metadata"].pop("managedFields", None)
    return body
