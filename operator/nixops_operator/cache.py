"""The newest known object of each key, who owns whom, who needs which Secret, and who has which address and volume.
Filled by the watch, by our own lists, and by the replies to our own writes."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

from nixops_operator.facts.kube import Body, Key, Kind, controller_of


def resource_version(body: Body) -> int:
    """Resource versions of one resource are comparable integers (KEP-5504, Kubernetes 1.35)."""
    return int(body["metadata"]["resourceVersion"])


GONE_KEPT = 10_000
"""Late news of an object comes within seconds of its end; that many do not end in so short a time."""


class Cache:
    """Key → body. Watch, lists and replies overtake each other: an older version never replaces a newer one, and none
    brings back what has gone since.

    Who owns whom, who needs which Secret, and what lies in a namespace, is found without a walk over all objects: every
    write, every pass of a deployment and every end of an object asks.
    """

    def __init__(self) -> None:
        self._bodies: dict[Key, Body] = {}
        self._gone: dict[Key, int] = {}  # the version at which it was known not to exist; the oldest first
        self._newest: dict[Kind, int] = {}
        self._in_namespace = _Index()
        self._children = _Index()
        self._by_secret = _Index()
        self._by_claim = _Index()

    def get(self, key: Key) -> Body | None:
        return self._bodies.get(key)

    def known(self) -> tuple[Key, ...]:
        return tuple(self._bodies)

    def put(self, key: Key, body: Body) -> Body | None:
        """Keep the body if it is newer than what is known; returns the one that was known before, or `body` itself if
        it was older."""
        known = self._bodies.get(key)
        newest = self._gone.get(key, 0) if known is None else resource_version(known)
        version = resource_version(body)
        if version <= newest:
            return body
        self._bodies[key] = _with_shared_texts(body, known)
        self._gone.pop(key, None)
        self._newest[key.kind] = max(version, self._newest.get(key.kind, 0))
        self._index(key, known, body)
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
        self._newest[key.kind] = max(version, self._newest.get(key.kind, 0))
        self._index(key, known, None)
        return known

    def newest_version(self, kind: Kind) -> int:
        """The highest version of any object of that kind, those that have gone included; 0 if none is known."""
        return self._newest.get(kind, 0)

    def in_namespace(self, kind: Kind, namespace: str) -> tuple[Body, ...]:
        """The objects of that kind in that namespace, by name."""
        return tuple(self._bodies[key] for key in self._in_namespace.get((kind, namespace)))

    def children(self, owner: Key, uid: str) -> tuple[Body, ...]:
        """The NixMachines that the owner of that key and uid controls, by name.

        A reference counts in its own namespace alone: whoever writes objects of another one gets nothing done here.
        """
        return tuple(self._bodies[key] for key in self._children.get((owner, uid)))

    def owner_key(self, body: Body) -> Key | None:
        """The key of the object that controls this one, if that very object is known: of the body's namespace, with the
        kind, name and uid of the reference."""
        claim = _claimed_owner(body)
        if claim is None:
            return None
        key, uid = claim
        owner = self._bodies.get(key)
        return key if owner is not None and owner["metadata"]["uid"] == uid else None

    def users_of_secret(self, namespace: str, name: str, *, besides: Key | None = None) -> Iterator[Body]:
        """The objects of that namespace that may have something in EC2, made with the credentials in that Secret. In no
        order: there may be thousands, and whoever asks whether there is one looks at one."""
        return (self._bodies[key] for key in self._by_secret.all((namespace, name)) if key != besides)

    def claimants(self, ec2_id: str) -> Iterator[Body]:
        """The NixMachines, of any namespace, that have written down that elastic address or volume as theirs."""
        return (self._bodies[key] for key in self._by_claim.all(ec2_id))

    def _index(self, key: Key, before: Body | None, after: Body | None) -> None:
        place = (key.kind, key.namespace)
        self._in_namespace.move(key, None if before is None else place, None if after is None else place)
        self._by_secret.move(
            key,
            None if before is None else _secret_in_use(before),
            None if after is None else _secret_in_use(after),
        )
        if key.kind is Kind.MACHINE:
            claimed, claims = _claims(before), _claims(after)
            for ec2_id in claimed ^ claims:
                self._by_claim.move(key, ec2_id if ec2_id in claimed else None, ec2_id if ec2_id in claims else None)
            self._children.move(
                key,
                None if before is None else _claimed_owner(before),
                None if after is None else _claimed_owner(after),
            )


def _with_shared_texts(part: Any, known: Any) -> Any:
    """The same, with equal texts once in memory, and all that has not changed since the `known` one. Each body comes
    with field names of its own, and a thousand of them say much the same: it takes half the memory. How deep it goes,
    the CRDs' schemas bound."""
    if isinstance(part, dict):
        if part == known:
            return known
        before = known if isinstance(known, dict) else {}
        return {_shared(name): _with_shared_texts(value, before.get(name)) for name, value in part.items()}
    if isinstance(part, list):
        if part == known:
            return known
        there = known if isinstance(known, list) else []
        return [_with_shared_texts(value, one) for value, one in zip(part, chain(there, repeat(None)), strict=False)]
    return _shared(part)


def _shared(one: Any) -> Any:
    return sys.intern(one) if type(one) is str else one


def _claimed_owner(body: Body) -> tuple[Key, str] | None:
    """Key and uid of the NixDeployment that a body names as its controller."""
    reference = controller_of(body)
    if reference is None or reference.kind is not Kind.DEPLOYMENT:
        return None
    return Key(reference.kind, body["metadata"]["namespace"], reference.name), reference.uid


def _secret_in_use(body: Body) -> tuple[str, str] | None:
    """Namespace and name of the Secret whose credentials the object needs, as long as something may exist that was made
    with them. Whatever else its spec holds."""
    found: object = body.get("spec")
    for field in ("aws", "credentials", "secretRef", "name"):
        found = found.get(field) if isinstance(found, Mapping) else None
    if not isinstance(found, str) or not (body.get("status") or {}).get("accountId"):
        return None
    return body["metadata"]["namespace"], found


def _claims(body: Body | None) -> frozenset[str]:
    """Ids in the object's status of the elastic address and the volumes that it has."""
    status = (body or {}).get("status") or {}
    address, volumes = status.get("elasticIp"), status.get("volumes") or ()
    found = [one.get("volumeId") for one in volumes if isinstance(one, Mapping)]
    found.append(address.get("allocationId") if isinstance(address, Mapping) else None)
    return frozenset(one for one in found if isinstance(one, str))


class _Index:
    """Property → keys that have it."""

    def __init__(self) -> None:
        self._keys: defaultdict[Hashable, set[Key]] = defaultdict(set)

    def get(self, of: Hashable) -> list[Key]:
        """Those keys, in order."""
        return sorted(self._keys.get(of, ()))

    def all(self, of: Hashable) -> frozenset[Key] | set[Key]:
        """Those keys, in no order."""
        return self._keys.get(of, frozenset())

    def move(self, key: Key, before: Hashable | None, after: Hashable | None) -> None:
        """A key's property has changed; None: it has none."""
        if before == after:
            return
        if before is not None:
            self._keys[before].discard(key)
            if not self._keys[before]:
                del self._keys[before]
        if after is not None:
            self._keys[after].add(key)
