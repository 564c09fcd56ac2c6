"""The newest known object of each key, and who owns whom. Filled by the watch, by our own lists, and by the replies to
our own writes."""

from __future__ import annotations

from nixops_operator.facts.kube import Body, Key, Kind


def resource_version(body: Body) -> int:
    """Resource versions of one resource are comparable integers (KEP-5504, Kubernetes 1.35)."""
    return int(body["metadata"]["resourceVersion"])


def owner_uid(body: Body) -> str | None:
    """The uid of the controlling owner, if any."""
    return next((r["uid"] for r in body["metadata"].get("ownerReferences", ()) if r.get("controller")), None)


GONE_KEPT = 10_000
"""Late news of an object comes within seconds of its end; that many do not end in so short a time."""


class Cache:
    """Key → body. Watch, lists and replies overtake each other: an older version never replaces a newer one, and none
    brings back what has gone since."""

    def __init__(self) -> None:
        self._bodies: dict[Key, Body] = {}
        self._gone: dict[Key, int] = {}  # the version at which it was known not to exist; the oldest first

    def get(self, key: Key) -> Body | None:
        return self._bodies.get(key)

    def known(self) -> tuple[Key, ...]:
        return tuple(self._bodies)

    def put(self, key: Key, body: Body) -> Body | None:
        """Keep the body if it is newer than what is known; returns the one that was known before, or `body` itself if
        it was older."""
        known = self._bodies.get(key)
        newest = self._gone.get(key, 0) if known is None else resource_version(known)
        if resource_version(body) <= newest:
            return body
        self._bodies[key] = body
        self._gone.pop(key, None)
        return known

    def drop(self, key: Key, version: int) -> Body | None:
        """It did not exist at that version. Returns the one that was known, or None if that is younger and stays."""
        known = self._bodies.get(key)
        if known is not None and resource_version(known) > version:
            return None
        self._bodies.pop(key, None)
        self._gone[key] = max(version, self._gone.pop(key, 0))
        if len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        return known

    def newest_version(self, kind: Kind) -> int:
        """The highest version of any object of that kind, those that have gone included; 0 if none is known."""
        versions = [resource_version(body) for key, body in self._bodies.items() if key.kind is kind]
        versions += [version for key, version in self._gone.items() if key.kind is kind]
        return max(versions, default=0)

    def owned_by(self, uid: str) -> tuple[Body, ...]:
        """The objects that this uid controls, by name."""
        owned = (body for body in self._bodies.values() if owner_uid(body) == uid)
        return tuple(sorted(owned, key=lambda body: str(body["metadata"]["name"])))

    def key_of_uid(self, uid: str) -> Key | None:
        return next((key for key, body in self._bodies.items() if body["metadata"]["uid"] == uid), None)
