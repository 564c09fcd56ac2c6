"""The bound: the three requests that a new object costs (finalizer, status, Event), by our own client and nothing else.

What the API server takes for them, nobody can take less for on the same processors; what is above is ours. Prints
`{"cpu": seconds, "wall": seconds}` for all objects of the namespace `NAMESPACE` that `KUBECONFIG` leads to.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.facts.kube import Body, Event, Kind, key_of

AT_ONCE = 8  # as many as the operator has workers
MESSAGE = "192.0.2.1 lies in no network that the administrator allows (hosts.allowedCidrs)"


def status(kinds: int = 8) -> dict[str, object]:
    """As large as what the operator says of an object that cannot go far."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    common = {"status": "False", "reason": "HostForbidden", "message": MESSAGE, "observedGeneration": 1}
    conditions = [{"type": f"Condition{n}", **common, "lastTransitionTime": now} for n in range(kinds)]
    return {"conditions": conditions, "observedGeneration": 1}


async def one_after_the_other(api: KubernetesApi, bodies: Iterator[Body]) -> None:
    for body in bodies:
        taken_up = await api.add_finalizer(body)
        judged = await api.patch_status(taken_up, status())
        key = key_of(judged)
        await api.post_event(Event(key, judged["metadata"]["uid"], "Warning", "HostForbidden", MESSAGE))


async def life() -> None:
    connection = await Connection.open()
    api = KubernetesApi(connection, namespaces=[os.environ["NAMESPACE"]])
    bodies = [body async for page in api.list(Kind.MACHINE) for body in page.bodies]
    cpu, wall, left = time.process_time(), time.monotonic(), iter(bodies)
    await asyncio.gather(*(one_after_the_other(api, left) for _ in range(AT_ONCE)))
    print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}))
    await connection.close()


if __name__ == "__main__":
    asyncio.run(life())
