"""Whether those who wait for our objects wait for the same: Argo CD by its Lua, Flux and Helm 4 by kstatus, people by
`kubectl wait --for=condition=Ready`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from judges import argo, kstatus

AGREED = {
    ("Terminating", "Progressing"),
    ("InProgress", "Progressing"),
    ("InProgress", "Degraded"),  # another system runs, and policy leaves it: nothing is being done about it
    ("Failed", "Degraded"),
    ("Current", "Healthy"),
    *((each, "Suspended") for each in ("InProgress", "Failed", "Current")),
}


def disagreement(thing: Mapping[str, Any], script: str | None = None) -> str:
    """What is contradictory about this version of an object; empty if nothing is. `script`: another health.lua."""
    status, (health, message) = kstatus.status(thing), argo.health(thing, script)
    if (status, health) not in AGREED:
        return f"kstatus says {status}, Argo CD {health} ({message})"
    conditions = {each["type"]: each for each in (thing.get("status") or {}).get("conditions") or []}
    ready = conditions.get("Ready", {})
    is_met = ready.get("status") == "True" and ready.get("observedGeneration") == thing["metadata"].get("generation")
    if status == "Current" and not is_met:
        return f"kstatus says Current, `kubectl wait` waits on: Ready is {ready.get('status')}"
    if {"Reconciling", "Stalled"} <= conditions.keys():
        return "Reconciling and Stalled at once"
    return ""
