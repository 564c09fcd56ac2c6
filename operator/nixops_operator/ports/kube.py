"""The Kubernetes API, as the operator uses it; the chart's RBAC is exactly this."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from nixops_operator.facts.kube import Body, Event, Key, Kind, OwnerReference, Secret

__all__ = ["Body", "Event", "Key", "Kind", "Kube", "OwnerReference", "Secret"]


class Kube(Protocol):
    """Raises, all: Retry (`ProgressingWithRetry`) on connection failures, 429 and 5xx; Blocked (`AccessDenied`) on 403.

    Writes of objects take the `resourceVersion` they were decided on and raise Conflict when it is no longer the
    newest.
    """

    async def cluster_id(self) -> str:
        """The uid of the namespace kube-system; constant for a cluster's life."""

    async def list(self, kind: Kind) -> tuple[list[Body], str]:
        """All objects of that kind in the watched namespaces (paged, 500 each) and the list's resourceVersion."""

    async def get(self, key: Key) -> Body | None:
        """A quorum read of one object (no resourceVersion given); None if it does not exist."""

    async def add_finalizer(self, body: Body) -> Body:
        """Effect: `kube.set_finalizer`. JSON patch with tests on uid and resourceVersion; returns the new object.
        Raises Conflict."""

    async def remove_finalizer(self, body: Body) -> Body:
        """Effect: `kube.set_finalizer`. As above; an object that is gone already is success (returns the body
        given)."""

    async def write_intent(self, body: Body, status: Body) -> Body:
        """Merge-patch these status fields now, in mid-pass. Effect: `kube.write_intent`. The patch carries
        resourceVersion; raises Conflict."""

    async def patch_status(self, body: Body, status: Body) -> Body:
        """The pass's one status write: merge-patch; a key with None is removed. Effect: `kube.patch_status`. Carries
        resourceVersion; Conflict."""

    async def create_machine(self, body: Body) -> Body:
        """Effect: `kube.create_machine`. Repeating: AlreadyExists raises Conflict."""

    async def replace_machine_spec(
        self,
        body: Body,
        spec: Body,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Body:
        """Effect: `kube.replace_spec`. JSON-patch `replace /spec` with tests on uid and resourceVersion. Of labels and
        annotations those named change, and None removes one. Raises Conflict."""

    async def delete_machine(self, body: Body) -> None:
        """Effect: `kube.delete_machine`. DELETE with the uid as precondition; NotFound is success."""

    async def get_secret(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """Decoded data of a Secret, or None. Callers never put it in logs, status, Events, argv or environment."""

    async def read_secret(self, namespace: str, name: str) -> Secret | None:
        """A quorum read of one Secret, or None."""

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
        """Effect: `kube.put_secret`. True if created; False if one of that name exists (nothing is changed)."""

    async def patch_secret(self, namespace: str, name: str, data: Mapping[str, bytes]) -> None:
        """Effect: `kube.put_secret`. Merge-patch the data of a Secret that we own."""

    async def update_secret(self, namespace: str, secret: Secret, data: Mapping[str, bytes]) -> Secret:
        """Effect: `kube.put_secret`. Merge-patch the data of the very Secret that was read, in the version that was
        read; returns the new one. Raises Conflict when it has changed or gone, Blocked (`InvalidSpec`) when it is
        immutable."""

    async def remove_secret(self, namespace: str, secret: Secret) -> None:
        """Effect: `kube.put_secret`. DELETE with the uid as precondition. One that has gone, or has made place for
        another of its name, is success; one with finalizers stays until they are off."""

    async def hold_secret(self, namespace: str, secret: Secret) -> Secret:
        """Effect: `kube.put_secret`. Put the finalizer `nixops.dev/in-use` on the very Secret that was read, in the
        version that was read; returns the new one. Raises Conflict when it has changed or gone, and when it is being
        deleted: then it takes no new finalizer."""

    async def release_secret(self, namespace: str, secret: Secret) -> None:
        """Effect: `kube.put_secret`. Take that finalizer off. One that has gone is success; raises Conflict when it has
        changed since it was read."""

    async def is_secret_owned(self, namespace: str, name: str, uid: str) -> bool:
        """Whether it exists and names the object of that uid as an owner, so that it goes with it."""

    async def disown_secret(self, namespace: str, name: str, uid: str) -> None:
        """Effect: `kube.put_secret`. It stays when the object of that uid goes. NotFound is success; raises Conflict if
        it changed meanwhile."""

    async def delete_secret(self, namespace: str, name: str) -> None:
        """Effect: `kube.put_secret`. Only of Secrets that we own; NotFound is success."""

    async def get_config_map(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """`data` and decoded `binaryData` of a ConfigMap, or None."""

    async def post_event(self, event: Event) -> None:
        """Effect: `kube.post_event`. Same (object, reason, message) within 10 minutes raises `count` of the first."""
