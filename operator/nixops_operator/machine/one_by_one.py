"""One machine of a deployment after the other is given another instance: an edit that asks for fifty ends at the first
that does not come up with it, as the rolling update of a StatefulSet does. Pure.

    db is being replaced ─► db's configuration is active, it answers, its checks pass ─► web is replaced ─► …
                                                    └ not so: web waits, and says for whom

A machine that is out of service itself waits only while another one is being replaced: its end costs nobody anything,
and two that are out of service do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nixops_operator.api.conditions import Truth, find_condition
from nixops_operator.api.machine_spec import PowerState
from nixops_operator.api.reasons import ConditionType
from nixops_operator.api.status import ReplacementStatus, read
from nixops_operator.facts.kube import Body, key_of


def goes_first(machine: Body, siblings: Iterable[Body]) -> str:
    """Why the machine is not replaced yet, in words for the end of a sentence; empty: it is its turn. `siblings`: the
    machines of its deployment, itself among them, by name."""
    others = [one for one in siblings if key_of(one) != key_of(machine) and not _is_deleting(one)]
    for one in others:
        if _is_replaced(one):
            return f"{key_of(one)}, which is being replaced"
    if _is_out_of_service(machine):
        return ""
    for one in others:
        if _is_out_of_service(one):
            return f"{key_of(one)}, which is out of service"
    return ""


def _is_deleting(body: Body) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))


def _is_replaced(body: Body) -> bool:
    found = read(ReplacementStatus, (body.get("status") or {}).get("replacement"))
    return found is not None and found.other is not None and not found.refused


def _is_out_of_service(body: Body) -> bool:
    if _part(body, "spec", "target", "ec2").get("powerState") == PowerState.STOPPED:
        return False  # as it is to be
    answers, runs, is_well = (find_condition(body, kind) for kind in _SERVES)
    serves = all(one is not None and one.status is Truth.TRUE for one in (answers, runs))
    return not serves or (is_well is not None and is_well.status is Truth.FALSE)  # without checks it is not told


_SERVES = (ConditionType.REACHABLE, ConditionType.CONFIGURATION_ACTIVE, ConditionType.HEALTHY)


def _part(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Whatever a spec of another release holds."""
    found: Any = body
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
