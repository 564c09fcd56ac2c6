"""A write that must not be lost to somebody else's: it says what EC2 has answered, which nobody can ask for again."""

from __future__ import annotations

from collections.abc import Callable

from nixops_operator.errors import Conflict
from nixops_operator.facts.kube import Body
from nixops_operator.objects import ReconciledObject
from nixops_operator.world import World

Fields = dict[str, object]


async def write(fields_on: Callable[[Body], Fields], given: ReconciledObject, body: Body, world: World) -> Body:
    """Merge fields into the status, and again on the newest object until they stand there. `fields_on`: what they are
    to be on an object, which may hold what others have written meanwhile. Raises Conflict where the object has gone,
    and what the Kubernetes port raises."""
    while True:
        try:
            body = await world.kube.write_intent(body, fields_on(body))
        except Conflict:
            fresh = await world.kube.get(given.key)
            if fresh is None or fresh["metadata"]["uid"] != given.uid:
                raise
            body = fresh
        else:
            world.cache.put(given.key, body)
            return body
