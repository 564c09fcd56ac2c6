"""The peer: what the same framework costs with handlers as its documentation shows them. They look at nothing, decide
nothing, and write a status of the same shape; a timer writes it again every `RESYNC` seconds."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from typing import Any

import kopf

from benchmarks import lag


def conditions(generation: int, known: Any) -> list[dict[str, Any]]:
    """Four, as many as a stalled machine of ours has; their times stay while they do."""
    if known:
        return [{**condition, "observedGeneration": generation} for condition in known]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    same = {"reason": "HostForbidden", "message": "lies in no network that the administrator allows"}
    rows = (("Ready", "False"), ("Stalled", "True"), ("InfrastructureReady", "True"), ("Reachable", "False"))
    return [
        {"type": kind, "status": status, "lastTransitionTime": now, "observedGeneration": generation, **same}
        for kind, status in rows
    ]


def tell(body: kopf.Body, patch: kopf.Patch) -> None:
    """The status, into the patch that kopf sends."""
    generation = body.metadata["generation"]
    patch.status["observedGeneration"] = generation
    patch.status["conditions"] = conditions(generation, body.status.get("conditions"))


registry = kopf.OperatorRegistry()


@kopf.on.create("nixops.dev", "v1alpha1", "nixmachines", registry=registry)
@kopf.on.update("nixops.dev", "v1alpha1", "nixmachines", registry=registry)
@kopf.on.resume("nixops.dev", "v1alpha1", "nixmachines", registry=registry)
async def see(body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
    tell(body, patch)


@kopf.timer("nixops.dev", "v1alpha1", "nixmachines", interval=float(os.environ["RESYNC"]), registry=registry)
async def look_again(body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
    tell(body, patch)


@kopf.on.login(registry=registry)
def login(**arguments: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_kubeconfig(**arguments)


async def life() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # ours posts one Event an object; kopf's own would be two
    async with lag.recorded():
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            namespaces=[os.environ["NAMESPACE"]],
            stop_flag=stop,
        )


if __name__ == "__main__":
    asyncio.run(life())
