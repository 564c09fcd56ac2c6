"""The Kubernetes API, as the operator uses it; the chart's RBAC is exactly this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Protocol

from nixops_operator.effects import effect, look, port
from nixops_operator.facts.kube import Body, Event, Key, Kind, OwnerReference, Page, Secret

__all__ = ["Body", "Event", "Key", "Kind", "Kube", "OwnerReference", "Page", "Secret"]


@port
class Kube(Protocol):
    """Raises, all: Retry (`ProgressingWithRetry`) on connection failures, 429 and 5xx; Blocked on 403: `AccessDenied`,
    where the namespace is being terminated as well, or `QuotaExceeded` where a ResourceQuota is used up. A namespace
    that is being terminated takes nothing new, no Event either, until it is gone; what is there can still be changed.

    Writes of objects take the `resourceVersion` they were decided on and raise Conflict when it is no longer the
    newest.
    """

    @look
    async def cluster_id(self) -> str:
        """The uid of the namespace kube-system; constant for a cluster's life."""

    @look
    def list(self, kind: Kind) -> AsyncIterator[Page]:
        """All objects of that kind in the watched namespaces, a page at a time, so that nobody need hold them all: one
        list of the whole cluster, or one for each namespace, with versions of their own. At least one page. A list
        that takes longer than the API server can still continue it (410) ends with Retry and is begun anew."""

    @look
    async def get(self, key: Key) -> Body | None:
        """A quorum read of one object (no resourceVersion given); None if it does not exist."""

    @effect("kube.set_finalizer")
    async def add_finalizer(self, body: Body) -> Body:
        """Put our finalizer on by a JSON patch with tests on uid and resourceVersion; returns the new object. Raises
        Conflict."""

    @effect("kube.set_finalizer")
    async def remove_finalizer(self, body: Body) -> Body:
        """Take our finalizer off, in the same way; an object that is gone already is success (returns the body
        given)."""

    @effect("kube.write_intent")
    async def write_intent(self, body: Body, status: Body) -> Body:
        """Merge-patch these status fields now, in mid-pass. The patch carries resourceVersion; raises Conflict."""

    @effect("kube.patch_status")
    async def patch_status(self, body: Body, status: Body) -> Body:
        """The pass's one status write: merge-patch; a key with None is removed. Carries resourceVersion; Conflict."""

    @effect("kube.create_machine")
    async def create_machine(self, body: Body) -> Body:
        """Create a NixMachine. Repeating: AlreadyExists raises Conflict."""

    @effect("kube.replace_spec")
    async def replace_machine_spec(
        self,
        body: Body,
        spec: Body,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Body:
        """Replace the whole spec by a JSON patch with tests on uid and resourceVersion. Of labels and annotations those
        named change, and None removes one. Raises Conflict."""

    @effect("kube.delete_machine")
    async def delete_machine(self, body: Body) -> None:
        """Delete a NixMachine, with the uid as precondition; NotFound is success."""

    @look
    async def read_secret(self, namespace: str, name: str) -> Secret | None:
        """A quorum read of one Secret, or None. Callers never put its data in logs, status, Events, argv or
        environment."""

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
        """Create a Secret. True if created; False if one of that name exists (nothing is changed)."""

    @effect("kube.put_secret")
    async def update_secret(self, namespace: str, secret: Secret, data: Mapping[str, bytes]) -> Secret:
        """Merge-patch the data of the very Secret that was read, in the version that was read; returns the new one.
        Raises Conflict when it has changed or gone, Blocked (`InvalidSpec`) when it is immutable."""

    @effect("kube.put_secret")
    async def remove_secret(self, namespace: str, secret: Secret) -> None:
        """DELETE with the uid as precondition. One that has gone, or has made place for another of its name, is
        success; one with finalizers stays until they are off."""

    @effect("kube.put_secret")
    async def hold_secret(self, namespace: str, secret: Secret) -> Secret:
        """Put the finalizer `nixops.dev/in-use` on the very Secret that was read, in the version that was read;
        returns the new one. Raises Conflict when it has changed or gone, and when it is being deleted: then it takes
        no new finalizer."""

    @effect("kube.put_secret")
    async def release_secret(self, namespace: str, secret: Secret) -> None:
        """Take that finalizer off. One that has gone is success; raises Conflict when it has changed since it was
        read."""

    @effect("kube.put_secret")
    async def disown_secret(self, namespace: str, name: str, uid: str) -> None:
        """Take the owner of that uid off, so that the Secret stays when it goes. NotFound is success; raises Conflict
        if it changed meanwhile."""

    @look
    async def get_config_map(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """`data` and decoded `binaryData` of a ConfigMap, or None."""

    @effect("kube.post_event")
    async def post_event(self, event: Event) -> None:
        """Post an Event. Same (object, reason, message) within 10 minutes raises `count` of the first."""
