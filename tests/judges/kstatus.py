"""kstatus' judgement of our kinds, as Flux and Helm 4 wait by it (fluxcd/cli-utils, pkg/kstatus/status: generic.go and
status.go). `tests/lab/gitops/kstatus` is the package itself; tests/contract/test_kstatus.py compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def status(thing: Mapping[str, Any]) -> str:
    """Terminating, InProgress, Failed or Current."""
    if thing["metadata"].get("deletionTimestamp"):
        return "Terminating"
    told = thing.get("status") or {}
    if "observedGeneration" in told and told["observedGeneration"] != thing["metadata"].get("generation", 0):
        return "InProgress"
    conditions = told.get("conditions") or []
    for each in conditions:
        if each["type"] == "Reconciling" and each["status"] == "True":
            return "InProgress"
        if each["type"] == "Stalled" and each["status"] == "True":
            return "Failed"
    ready = next((each["status"] for each in conditions if each["type"] == "Ready"), None)
    return "InProgress" if ready in ("False", "Unknown") else "Current"
