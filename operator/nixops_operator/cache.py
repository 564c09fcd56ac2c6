"""The newest known object of each key, and who owns whom. Filled by the watch, by our own lists, and by the replies to
our own writes."""

from __future__ import annotations

from nixops_operator.facts.kube import Body, Key


def resource_version(body: Body) -> int:
    """Resource versions of one resource are comparable integers (KEP-5504, Kubernetes 1.35)."""
    return int(body["metadata"]["resourceVersion"])


def owner_uid(body: Body) -> str | None:
    """The uid of the controlling owner, if any."""
    return next((r["uid"] for r in body["metadata"].get("ownerReferences", ()) if r.get("controller")), None)


class Cache:
    """Key → body. An older version never replaces a newer one."""

    def __init__(self) -> None:
        self._bodies: dict[Key, Body] = {}

    def get(self, key: Key) -> Body | None:
        return self._bodies.get(key)

    def known(self) -> tuple[Key, ...]:
        return tuple(self._bodies)

    def put(self, key: Key, body: Body) -> Body | None:
        """Keep the body if it is newer than the known one; returns the one that was known before, or `body` itself if
        it was older."""
        known = self._bodies.get(key)
        same_object = known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]
        if known is not None and same_object and resource_version(body) <= resource_version(known):
            return body
        self._bodies[key] = body
        return known

    def drop(self, key: Key) -> Body | None:
        return self._bodies.pop(key, None)

    def owned_by(self, uid: str) -> tuple[Body, ...]:
        """The objects that this uid controls, by name."""
        owned = (body for body in self._bodies.values() if owner_uid(body) == uid)
        return tuple(sorted(owned, key=lambda body: str(body["metadata"]["name"])))

    def key_of_uid(self, uid: str) -> Key | None:
        return next((key for key, body in self._bodies.items() if body["metadata"]["uid"] == uid), None)
