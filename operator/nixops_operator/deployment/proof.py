"""Nothing is destroyed on the word of a cache: just before, the deployment is read anew, by quorum."""

from __future__ import annotations

from nixops_operator.errors import Conflict
from nixops_operator.facts.kube import Body, Key
from nixops_operator.world import World


async def still_stands(key: Key, uid: str, body: Body, world: World) -> None:
    """Whether what the plan was made of still holds: the very object, in deletion or not as then, of the same
    generation, which every edit of its `deletionPolicy` raises. Raises Conflict if not: the pass starts anew.
    """
    fresh = await world.kube.get(key)
    if fresh is None:
        raise Conflict(f"{key} has gone")
    then, now = body["metadata"], fresh["metadata"]
    if now["uid"] != uid or now["generation"] != then["generation"] or _is_deleting(now) != _is_deleting(then):
        raise Conflict(f"{key} has changed since its things were found to go")


def _is_deleting(metadata: Body) -> bool:
    return bool(metadata.get("deletionTimestamp"))
