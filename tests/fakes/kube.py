"""The Kubernetes API in memory, for everything that uses ports.kube.

kube = FakeKube()
body = kube.apply({"kind": "NixMachine", "metadata": {"namespace": "default", "name": "web"}, "spec": {…}})
kube.delete(Key(Kind.MACHINE, "default", "web"))
kube.collect_garbage()
"""

from __future__ import annotations

import marshal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Any
from uuid import UUID

from fakes.effects import Effects, effect
from fakes.kube_garbage import FINALIZERS, Propagation, Thing, collect
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict
from nixops_operator.facts import kube as facts
from nixops_operator.facts.kube import Body, Event, Key, Kind, OwnerReference, Page, key_of
from nixops_operator.names import FINALIZER, IN_USE_FINALIZER

__all__ = ["CLUSTER_ID", "EVENT_WINDOW", "FakeKube", "PostedEvent", "Propagation", "Secret", "key_of", "merge_patch"]

CLUSTER_ID = "00000000-0000-4000-8000-000000000000"
EVENT_WINDOW = timedelta(minutes=10)
_WAITING = frozenset(FINALIZERS.values())


@dataclass
class Secret:
    """A Secret as it lies in the cluster. A test changes it in place, as `kubectl edit` does; another one under the
    name is another object."""

    data: dict[str, bytes]
    owner: OwnerReference | None = None
    type_: str = "Opaque"
    immutable: bool = False
    finalizers: tuple[str, ...] = ()
    deleted_at: datetime | None = None


@dataclass
class PostedEvent:
    """An Event, counted while it repeats."""

    event: Event
    first: datetime
    count: int = 1


@dataclass
class FakeKube:
    """ports.kube.Kube. `secrets` and `config_maps` by (namespace, name); change them as a user would.

    `watchers` are called with ADDED, MODIFIED or DELETED and the object, as a watch tells it. Nothing collects garbage
    by itself: see `collect_garbage`, which is `gc_delay` behind.
    """

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    effects: Effects = field(default_factory=Effects)
    secrets: dict[tuple[str, str], Secret] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    events: list[PostedEvent] = field(default_factory=list)
    watchers: list[Callable[[str, Body], None]] = field(default_factory=list)
    gc_delay: timedelta = timedelta(0)
    page_size: int = 100
    _objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    _version: int = 1000
    _random: Random = field(default_factory=lambda: Random(1))
    _terminating: set[str] = field(default_factory=set)
    _gone: dict[str, datetime] = field(default_factory=dict)
    _shown: dict[tuple[str, str], tuple[Secret, facts.Secret]] = field(default_factory=dict)

    # As a user.

    def apply(self, body: Body) -> Body:
        """kubectl apply: creates the object, or replaces its spec, labels and annotations. Status is not taken."""
        key = key_of(body)
        if key not in self._objects:
            self._admit(key.namespace, f"create {key}")
            return self._create(key, body)
        new = _again(self._objects[key])
        new["spec"] = copied(body.get("spec", {}))
        for part in ("labels", "annotations"):
            if part in body["metadata"]:
                new["metadata"][part] = dict(body["metadata"][part])
        return self._store(key, new)

    def edit(self, key: Key, change: Callable[[dict[str, Any]], object]) -> Body:
        """kubectl edit: changes the object in place."""
        new = _again(self._objects[key])
        change(new)
        return self._store(key, new)

    def delete(self, key: Key, propagation: Propagation = Propagation.BACKGROUND) -> None:
        """kubectl delete --wait=false --cascade=…"""
        if key in self._objects:
            self._delete(key, propagation)

    def delete_namespace(self, namespace: str) -> None:
        """kubectl delete namespace --wait=false: all that is in it is deleted, at once what nothing holds, and nothing
        new is taken any more."""
        self._terminating.add(namespace)
        for name in [name for name in self.secrets if name[0] == namespace]:
            self._delete_secret(*name)
        for name in [name for name in self.config_maps if name[0] == namespace]:
            del self.config_maps[name]
        for key in [key for key in self._objects if key.namespace == namespace]:
            self._delete(key)

    def body(self, key: Key) -> Body | None:
        """The object as it is now, without a call in the log."""
        return _again(self._objects.get(key))

    def bodies(self, kind: Kind) -> list[Body]:
        return [_again(body) for body in self.shown(kind)]

    def shown(self, kind: Kind) -> list[Body]:
        """The same to be read at once, and not to be kept: it changes when the object does."""
        return [self._objects[key] for key in sorted(self._objects) if key.kind is kind]

    def delete_secret_as_user(self, namespace: str, name: str) -> None:
        """kubectl delete secret --wait=false."""
        self._delete_secret(namespace, name)

    def set_secret_finalizers(self, namespace: str, name: str, finalizers: Sequence[str]) -> None:
        """kubectl edit secret."""
        secret = self.secrets[namespace, name]
        secret.finalizers = tuple(finalizers)
        if secret.deleted_at and not finalizers:
            del self.secrets[namespace, name]

    def collect_garbage(self) -> None:
        """What kube-controller-manager does when it gets to it: it knows what happened `gc_delay` ago and earlier."""
        if self._may_be_garbage():
            collect(self._things, self._gone, lambda moment: self.now() - moment >= self.gc_delay)

    # The port.

    @effect("cluster_id")
    async def cluster_id(self) -> str:
        return CLUSTER_ID

    @effect("list")
    async def list(self, kind: Kind) -> AsyncIterator[Page]:
        """As many objects on a page as `page_size` says; what happens while they are read, they do not show."""
        bodies, version = self.bodies(kind), self._version
        for first in range(0, max(len(bodies), 1), self.page_size):
            yield Page(bodies[first : first + self.page_size], version)

    @effect("get")
    async def get(self, key: Key) -> Body | None:
        return self.body(key)

    @effect("kube.set_finalizer")
    async def add_finalizer(self, body: Body) -> Body:
        if FINALIZER in body["metadata"].get("finalizers", []):
            return body
        key, new = self._newest(body)
        if "deletionTimestamp" in body["metadata"]:
            raise Conflict(f"{key} is being deleted and takes no new finalizer")
        new["metadata"]["finalizers"] = [*new["metadata"].get("finalizers", []), FINALIZER]
        return self._store(key, new)

    @effect("kube.set_finalizer")
    async def remove_finalizer(self, body: Body) -> Body:
        if FINALIZER not in body["metadata"].get("finalizers", []):
            return body
        stored = self._objects.get(key_of(body))
        if stored is None or stored["metadata"]["uid"] != body["metadata"]["uid"]:
            return body
        key, _ = self._newest(body)
        return self._drop_finalizer(key, FINALIZER)

    @effect("kube.write_intent")
    async def write_intent(self, body: Body, status: Body) -> Body:
        return self._merge_status(body, status)

    @effect("kube.patch_status")
    async def patch_status(self, body: Body, status: Body) -> Body:
        return self._merge_status(body, status)

    @effect("kube.create_machine")
    async def create_machine(self, body: Body) -> Body:
        key = key_of(body)
        self._admit(key.namespace, f"create {key}")
        if key in self._objects:
            raise Conflict(f"{key} exists already")
        return self._create(key, body)

    @effect("kube.replace_spec")
    async def replace_machine_spec(
        self,
        body: Body,
        spec: Body,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Body:
        key, new = self._newest(body)
        new["spec"] = copied(dict(spec))
        for part, wanted in (("labels", labels), ("annotations", annotations)):
            changed = merge_patch(new["metadata"].pop(part, {}), wanted)
            if changed:
                new["metadata"][part] = changed
        return self._store(key, new)

    @effect("kube.delete_machine")
    async def delete_machine(self, body: Body) -> None:
        key = key_of(body)
        stored = self._objects.get(key)
        if stored is None:
            return
        if stored["metadata"]["uid"] != body["metadata"]["uid"]:
            raise Conflict(f"{key} is another object of the same name")
        self._delete(key)

    @effect("kube.put_secret")
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
        self._admit(namespace, f"create secret {namespace}/{name}")
        if (namespace, name) in self.secrets:
            return False
        self.secrets[namespace, name] = Secret(dict(data), owner, type_, immutable)
        return True

    @effect("read_secret")
    async def read_secret(self, namespace: str, name: str) -> facts.Secret | None:
        return self._secret(namespace, name)

    @effect("kube.put_secret")
    async def update_secret(self, namespace: str, secret: facts.Secret, data: Mapping[str, bytes]) -> facts.Secret:
        stored = self._newest_secret(namespace, secret)
        changed = {**stored.data, **data}
        if stored.immutable and changed != stored.data:
            raise Blocked(Reason.INVALID_SPEC, f"Secret/{namespace}/{secret.name} is immutable")
        stored.data = changed
        return self._read_back(namespace, secret.name)

    @effect("kube.put_secret")
    async def remove_secret(self, namespace: str, secret: facts.Secret) -> None:
        known = self._secret(namespace, secret.name)
        if known is not None and known.uid == secret.uid:
            self._delete_secret(namespace, secret.name)

    @effect("kube.put_secret")
    async def hold_secret(self, namespace: str, secret: facts.Secret) -> facts.Secret:
        if IN_USE_FINALIZER in secret.finalizers:
            return secret
        stored = self._newest_secret(namespace, secret)
        if stored.deleted_at:
            raise Conflict(f"Secret/{namespace}/{secret.name} is being deleted and takes no new finalizer")
        stored.finalizers = (*stored.finalizers, IN_USE_FINALIZER)
        return self._read_back(namespace, secret.name)

    @effect("kube.put_secret")
    async def release_secret(self, namespace: str, secret: facts.Secret) -> None:
        if IN_USE_FINALIZER not in secret.finalizers or (namespace, secret.name) not in self.secrets:
            return
        stored = self._newest_secret(namespace, secret)
        left = [one for one in stored.finalizers if one != IN_USE_FINALIZER]
        self.set_secret_finalizers(namespace, secret.name, left)

    @effect("kube.put_secret")
    async def disown_secret(self, namespace: str, name: str, uid: str) -> None:
        secret = self.secrets.get((namespace, name))
        if secret is not None and secret.owner is not None and secret.owner.uid == uid:
            secret.owner = None

    @effect("get_config_map")
    async def get_config_map(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        content = self.config_maps.get((namespace, name))
        return None if content is None else dict(content)

    @effect("kube.post_event")
    async def post_event(self, event: Event) -> None:
        self._admit(event.key.namespace, f"create event of {event.key}")
        for posted in self.events:
            if posted.event == event and self.now() - posted.first < EVENT_WINDOW:
                posted.count += 1
                return
        self.events.append(PostedEvent(replace(event), self.now()))

    def _secret(self, namespace: str, name: str) -> facts.Secret | None:
        """As it is now: another uid if it is another object than at the last look, another version if it changed."""
        stored = self.secrets.get((namespace, name))
        if stored is None:
            self._shown.pop((namespace, name), None)
            return None
        before, shown = self._shown.get((namespace, name), (None, None))
        uid = shown.uid if shown is not None and before is stored else self._new_uid()
        version = shown.resource_version if shown is not None else ""
        now = facts.Secret(
            name=name,
            uid=uid,
            resource_version=version,
            data=dict(stored.data),
            owner_uids=frozenset(() if stored.owner is None else (stored.owner.uid,)),
            type=stored.type_,
            is_immutable=stored.immutable,
            deleted_at=stored.deleted_at,
            finalizers=stored.finalizers,
        )
        if now != shown:
            self._version += 1
            now = replace(now, resource_version=str(self._version))
        self._shown[namespace, name] = stored, now
        return now

    def _read_back(self, namespace: str, name: str) -> facts.Secret:
        secret = self._secret(namespace, name)
        assert secret is not None
        return secret

    def _newest_secret(self, namespace: str, secret: facts.Secret) -> Secret:
        """The stored Secret, if `secret` is its newest form. Raises Conflict."""
        known = self._secret(namespace, secret.name)
        if known is None or known.uid != secret.uid:
            raise Conflict(f"Secret/{namespace}/{secret.name} is gone")
        if known.resource_version != secret.resource_version:
            raise Conflict(f"Secret/{namespace}/{secret.name} was changed meanwhile")
        return self.secrets[namespace, secret.name]

    def _delete_secret(self, namespace: str, name: str) -> None:
        stored = self.secrets.get((namespace, name))
        if stored is not None and stored.finalizers:
            stored.deleted_at = stored.deleted_at or self.now().replace(microsecond=0)
        else:
            self.secrets.pop((namespace, name), None)

    def _new_uid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _newest(self, body: Body) -> tuple[Key, dict[str, Any]]:
        """The stored object's copy, if `body` is its newest form. Raises Conflict."""
        key = key_of(body)
        stored = self._objects.get(key)
        if stored is None or stored["metadata"]["uid"] != body["metadata"]["uid"]:
            raise Conflict(f"{key} is gone")
        if stored["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict(f"{key} was changed meanwhile")
        return key, _again(stored)

    def _merge_status(self, body: Body, status: Body) -> Body:
        key, new = self._newest(body)
        new["status"] = merge_patch(new.get("status", {}), status)
        return self._store(key, new)

    def _admit(self, namespace: str, what: str) -> None:
        if namespace in self._terminating:
            message = f"{what}: namespace {namespace} is being terminated, so nothing can be created in it"
            raise Blocked(Reason.ACCESS_DENIED, message)

    def _may_be_garbage(self) -> bool:
        """Whether something waits for the collector, or stays and names an owner that is not there. Nothing else
        concerns it, and it is asked every second."""
        owners = {
            (key.namespace, key.kind.object_kind, key.name, body["metadata"]["uid"])
            for key, body in self._objects.items()
        }
        named: list[tuple[str, str, str, str]] = []
        for key, body in self._objects.items():
            metadata = body["metadata"]
            if not _WAITING.isdisjoint(metadata.get("finalizers", ())):
                return True
            if "deletionTimestamp" not in metadata:
                references = metadata.get("ownerReferences", ())
                named += [(key.namespace, one["kind"], one["name"], one["uid"]) for one in references]
        for (namespace, _), secret in self.secrets.items():
            owner = secret.owner
            if not _WAITING.isdisjoint(secret.finalizers):
                return True
            if owner is not None and secret.deleted_at is None:
                named.append((namespace, owner.kind.object_kind, owner.name, owner.uid))
        return not owners.issuperset(named)

    def _things(self) -> tuple[Thing, ...]:
        objects = (self._object_as_thing(key) for key in sorted(self._objects))
        return (*objects, *(self._secret_as_thing(*name) for name in sorted(self.secrets)))

    def _object_as_thing(self, key: Key) -> Thing:
        metadata = self._objects[key]["metadata"]
        deleted = metadata.get("deletionTimestamp")
        return Thing(
            kind=key.kind.object_kind,
            namespace=key.namespace,
            name=key.name,
            uid=metadata["uid"],
            references=metadata.get("ownerReferences", ()),
            finalizers=metadata.get("finalizers", ()),
            deleted_at=datetime.fromisoformat(deleted) if deleted else None,
            delete=lambda propagation: self.delete(key, propagation),
            disown=lambda uids: self._disown(key, uids),
            drop_finalizer=lambda finalizer: self._drop_finalizer(key, finalizer),
        )

    def _secret_as_thing(self, namespace: str, name: str) -> Thing:
        secret, shown = self.secrets[namespace, name], self._read_back(namespace, name)
        owner = secret.owner
        named = () if owner is None else ({"kind": owner.kind.object_kind, "name": owner.name, "uid": owner.uid},)
        return Thing(
            kind="Secret",
            namespace=namespace,
            name=name,
            uid=shown.uid,
            references=named,
            finalizers=secret.finalizers,
            deleted_at=secret.deleted_at,
            delete=lambda _: self._delete_secret(namespace, name),
            disown=lambda _: setattr(secret, "owner", None),
            drop_finalizer=lambda _: None,
        )

    def _disown(self, key: Key, uids: frozenset[str]) -> None:
        def change(body: dict[str, Any]) -> None:
            left = [one for one in body["metadata"].pop("ownerReferences", []) if one["uid"] not in uids]
            if left:
                body["metadata"]["ownerReferences"] = left

        if key in self._objects:
            self.edit(key, change)

    def _drop_finalizer(self, key: Key, finalizer: str) -> Body:
        new = _again(self._objects[key])
        left = [one for one in new["metadata"].pop("finalizers", []) if one != finalizer]
        if left:
            new["metadata"]["finalizers"] = left
        return self._store(key, new)

    def _create(self, key: Key, body: Body) -> Body:
        new = copied(dict(body))
        new.setdefault("apiVersion", "nixops.dev/v1alpha1")
        new["metadata"] = {
            **{name: value for name, value in new["metadata"].items() if name != "resourceVersion"},
            "uid": self._new_uid(),
            "generation": 1,
            "creationTimestamp": _timestamp(self.now()),
        }
        _judge_owners(key, new["metadata"].get("ownerReferences", ()))
        new.setdefault("spec", {})
        new["status"] = {"observedGeneration": -1}
        self._objects[key] = new
        return self._tell("ADDED", key)

    def _store(self, key: Key, new: dict[str, Any]) -> Body:
        old = self._objects[key]
        if new == old:
            return _again(old)
        if new["spec"] != old["spec"]:
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        self._objects[key] = new
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            return self._remove(key)
        return self._tell("MODIFIED", key)

    def _delete(self, key: Key, propagation: Propagation = Propagation.BACKGROUND) -> None:
        metadata = self._objects[key]["metadata"]
        if "deletionTimestamp" in metadata:
            return
        if propagation in FINALIZERS:
            metadata["finalizers"] = [*metadata.get("finalizers", []), FINALIZERS[propagation]]
        if not metadata.get("finalizers"):
            self._remove(key)
            return
        metadata["deletionTimestamp"] = _timestamp(self.now())
        metadata["generation"] += 1
        self._tell("MODIFIED", key)

    def _remove(self, key: Key) -> Body:
        body = self._tell("DELETED", key)
        self._gone[body["metadata"]["uid"]] = self.now()
        del self._objects[key]
        return body

    def _tell(self, what: str, key: Key) -> Body:
        self._version += 1
        self._objects[key]["metadata"]["resourceVersion"] = str(self._version)
        told = _again(self._objects[key])  # as informers share it: who hears may keep it, and changes nothing
        for watcher in self.watchers:
            watcher(what, told)
        return _again(self._objects[key])


def _again(stored: Any) -> Any:
    """A copy of what was `copied` before. Every event and every answer is one, and they are most of what the fake does:
    `copy.deepcopy`, which looks for cycles, takes a hundred times as long."""
    return marshal.loads(marshal.dumps(stored))  # noqa: S302 - its own bytes


def copied(value: Any) -> Any:
    """A copy of what JSON can hold, as JSON would bring it: in plain texts, dictionaries and lists."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): copied(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [copied(inner) for inner in value]
    return value


def _judge_owners(key: Key, references: Sequence[Mapping[str, Any]]) -> None:
    """The API server's validation of owner references."""
    for place, reference in enumerate(references):
        for field_name in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(field_name):
                path = f"metadata.ownerReferences[{place}].{field_name}"
                raise Blocked(Reason.INVALID_SPEC, f"create {key}: {path}: must not be empty")
    if sum(bool(reference.get("controller")) for reference in references) > 1:
        raise Blocked(Reason.INVALID_SPEC, f"create {key}: metadata.ownerReferences: only one may be the controller")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return copied(patch)
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
