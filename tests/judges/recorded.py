"""Every version of our objects that an audit log holds, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KINDS = ("NixDeployment", "NixMachine")


def versions(audit_log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As the API server answered each write; dry runs made none."""
    found = {}
    for entry in audit_log:
        thing = entry.get("responseObject") or {}
        if thing.get("kind") in KINDS and "dryRun" not in entry.get("requestURI", ""):
            found[thing["metadata"]["uid"], thing["metadata"]["resourceVersion"]] = dict(thing)
    return list(found.values())
