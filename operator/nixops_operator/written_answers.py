"""A write that must not be lost to somebody else's: it says what EC2 has answered, which nobody can ask for again."""

from __future__ import annotations

from nixops_operator.errors import Conflict
from nixops_operator.facts.kube import Body
from nixops_operator.objects import ReconciledObject
from nixops_operator.world import World


async def write(fields: dict[str, object], given: ReconciledObject, body: Body, world: World) -> Body:
    """Merge these fields into the status, and again on the newest object until they stand there. Raises Conflict where
    the object has gone, and what the Kubernetes port raises."""
    while True:
        try:
            body = await world.kube.write_intent(body, fields)
        except Conflict:
            fresh = await world.kube.get(given.key)
            if fresh is None or fresh["metadata"]["uid"] != given.uid:
                raise
            body = fresh
        else:
            world.cache.put(given.key, body)
            return body
