"""Watching our two kinds, by kopf. The only file that imports it, and all that is asked of it: authentication, list and
watch, back-offs, signals. Handlers keep the newest body and wake its key; they never raise, write or wait.

An event only says "look now". Our own resync makes up for events that were lost, and shows when the watch itself is
dead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import kopf

from nixops_operator.api.group import GROUP, VERSION
from nixops_operator.cache import Cache, resource_version
from nixops_operator.errors import OperatorError
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.ports.kube import Kube
from nixops_operator.workqueue import OWNER_PACE, WorkQueue

log = logging.getLogger(__name__)

_RELEVANT = ("uid", "generation", "deletionTimestamp", "labels", "annotations", "ownerReferences")


class NothingRemembered(kopf.DiffBaseStorage):
    """kopf's memory of the last handled object, switched off: it would copy whole specs into annotations, and each body
    for each event."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:  # noqa: ARG002
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:  # noqa: ARG002
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        """Stores nothing."""


class NothingInProgress(kopf.ProgressStorage):
    """kopf's memory of handlers that are retried, switched off: `on.event` knows no retries."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:  # noqa: ARG002
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Stores nothing."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """There is nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Touches nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class Intake:
    """Where events and lists go: newest bodies into the cache, keys of relevant changes into the queue."""

    def __init__(self, cache: Cache, queue: WorkQueue[Key]) -> None:
        self._cache = cache
        self._queue = queue
        self.events = 0  # seen since the start; shows that the watch lives

    def saw(self, kind: Kind, body: Body) -> bool:
        """An object exists in this version. Returns whether that was news."""
        metadata = body["metadata"]
        key = Key(kind, metadata["namespace"], metadata["name"])
        known = self._cache.put(key, body)
        if known is body:
            return False
        if known is None or _is_relevant(known, body):
            self._queue.add(key)
        if known is None or _conditions(known) != _conditions(body) or _is_relevant(known, body):
            self._wake_owner(body)
            if known is not None:
                self._wake_owner(known)  # another than the body's, where the child was let go or adopted
        if known is None:
            self._wake_whose_name_it_has(key)
        return True

    def gone(self, key: Key, version: int) -> bool:
        """An object did not exist at that version. Returns whether that was news."""
        known = self._cache.drop(key, version)
        if known is None:
            return False
        self._queue.add(key)
        self._wake_owner(known)
        self._wake_whose_name_it_has(key)
        return True

    def _wake_owner(self, body: Body) -> None:
        owner = self._cache.owner_key(body)
        if owner is not None:
            self._queue.add_paced(owner, OWNER_PACE)

    def _wake_whose_name_it_has(self, key: Key) -> None:
        """A machine that has the name of a deployment's own stands in its way, and is out of it when it is gone. Such
        names are `<deployment>-…` (names.machine_object_name); whether it is one of them, the pass knows."""
        if key.kind is not Kind.MACHINE:
            return
        dashes = (place for place, letter in enumerate(key.name) if letter == "-")
        for deployment in (Key(Kind.DEPLOYMENT, key.namespace, key.name[:dash]) for dash in dashes):
            if self._cache.get(deployment) is not None:
                self._queue.add(deployment)


def _is_relevant(before: Body, after: Body) -> bool:
    """Whether a pass is due. Not for a finalizer that was added: ours is by the very pass that goes on."""
    was, now = before["metadata"], after["metadata"]
    has_lost = not set(was.get("finalizers") or ()) <= set(now.get("finalizers") or ())
    return has_lost or any(was.get(field) != now.get(field) for field in _RELEVANT)


def _conditions(body: Body) -> list[tuple[Any, ...]]:
    status = body.get("status") or {}
    found = [(c["type"], c["status"], c["reason"], c.get("message")) for c in status.get("conditions") or ()]
    return [*found, (status.get("observedGeneration"),)]


@dataclass(frozen=True)
class ApiServer:
    """Where the operator's own connection found the API server, and whether certificates must have all that RFC 5280
    wants."""

    url: str
    is_strict: bool


class _Lenient(kopf.ConnectionInfo):
    def as_ssl_context(self) -> ssl.SSLContext:
        context = super().as_ssl_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def connected_to(server: ApiServer, found: kopf.ConnectionInfo) -> kopf.ConnectionInfo:
    """What kopf has found, but at the same address: for a pod kopf takes the API server's name in the cluster's DNS
    (kopf.login_with_service_account), which may not be there; the kubelet tells its address
    (KUBERNETES_SERVICE_HOST)."""
    kind = kopf.ConnectionInfo if server.is_strict else _Lenient
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.init}
    return kind(**{**fields, "server": server.url})


def registry(intake: Intake, server: ApiServer) -> kopf.OperatorRegistry:
    """kopf's handlers, in a registry of their own."""
    handlers = kopf.OperatorRegistry()
    for kind in Kind:
        _register(handlers, kind, intake)

    @kopf.on.login(registry=handlers, retries=3)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        # In the order in which the operator's own connection looks.
        is_told = bool(os.environ.get("KUBECONFIG"))
        found = (kopf.login_with_kubeconfig if is_told else kopf.login_with_service_account)(**arguments)
        return None if found is None else connected_to(server, found)

    return handlers


def _register(handlers: kopf.OperatorRegistry, kind: Kind, intake: Intake) -> None:
    @kopf.on.event(GROUP, VERSION, kind.value, registry=handlers)
    async def see(event: Mapping[str, Any], **_: Any) -> None:
        intake.events += 1
        body = dict(event["object"])
        body["metadata"] = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        if event.get("type") == "DELETED":
            key = Key(kind, body["metadata"]["namespace"], body["metadata"]["name"])
            intake.gone(key, resource_version(body))
        else:
            intake.saw(kind, body)


def settings() -> kopf.OperatorSettings:
    """How kopf is to behave. Time in seconds."""
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = True  # our two kinds are looked up before the start; no other appears later
    chosen.posting.enabled = False  # Events are posted by the reconciler
    chosen.peering.standalone = True  # a Lease decides who acts
    chosen.persistence.diffbase_storage = NothingRemembered()
    chosen.persistence.progress_storage = NothingInProgress()
    chosen.queueing.idle_timeout = 1  # an object's task and queue stay for so long after its last event
    chosen.watching.connect_timeout = 10
    chosen.watching.server_timeout = 600
    chosen.watching.chunk_size = 500
    chosen.networking.connect_timeout = 10
    chosen.networking.request_timeout = 60
    # About half an hour of patience: an API server's upgrade must not end the operator.
    chosen.networking.error_backoffs = (1, 1, 2, 3, 5, 8, 13, 21, *[30] * 60)
    chosen.queueing.exit_timeout = 5
    chosen.process.ultimate_exiting_timeout = 120
    return chosen


async def watch_for_ever(
    intake: Intake, server: ApiServer, namespaces: Sequence[str], stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Watches these namespaces; if there are none, the whole cluster. Returns when `stop` is set; raises if kopf gives
    up. Sets `ready` when kopf has taken up its work (and the signals)."""
    await kopf.operator(
        registry=registry(intake, server),
        settings=settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
        ready_flag=ready,
    )


class WatchDeadError(Exception):
    """What is known here does not go together with what the API server lists: only a new process, which knows nothing,
    can be trusted again."""


async def resync(kube: Kube, cache: Cache, intake: Intake) -> int:
    """Compare everything that exists with the cache, page by page; wake what differs. Returns how many did. Raises what
    the port raises, and WatchDeadError when versions have gone back, as they do when etcd is restored from a backup."""
    news = 0
    for kind in Kind:
        newest, versions = cache.newest_version(kind), []
        unlisted = {key for key in cache.known() if key.kind is kind}
        async for page in kube.list(kind):
            if page.version < newest:
                raise WatchDeadError(f"the API server lists version {page.version}, but {newest} was seen before")
            versions.append(page.version)
            for body in page.bodies:
                unlisted.discard(Key(kind, body["metadata"]["namespace"], body["metadata"]["name"]))
                news += intake.saw(kind, body)
        # What a list lacks did not exist at that list's version. Of several, the oldest holds for all.
        news += sum(intake.gone(key, min(versions)) for key in unlisted)
    return news


async def resync_for_ever(
    kube: Kube, cache: Cache, intake: Intake, period: timedelta, told: Callable[[], None]
) -> None:
    """Resync every period; `told` after each success. Raises WatchDeadError."""
    deaf_rounds = 0
    while True:
        events = intake.events
        await asyncio.sleep(period.total_seconds())
        try:
            news = await resync(kube, cache, intake)
        except OperatorError as error:
            log.warning("resync: %s", error)
            continue
        told()
        deaf_rounds = deaf_rounds + 1 if news and intake.events == events else 0
        if deaf_rounds >= 2:
            raise WatchDeadError("changes are listed that the watch never told of, twice running")
