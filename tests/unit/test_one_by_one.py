"""Whose turn it is to be given another instance, of the machines of a deployment."""

from __future__ import annotations

from typing import Any

import pytest

from nixops_operator.machine.one_by_one import goes_first

SERVES = {"Reachable": "True", "ConfigurationActive": "True"}
BEGUN = {"wanted": "{}", "attempt": 2, "other": {
    "attempt": 1, "token": "n1-a", "parametersHash": "a", "accountId": "1", "region": "us-west-2", "subnetId": "s",
    "requestedAt": "2026-11-22T12:00:00Z", "instanceId": "i-1",
}}  # fmt: skip


def machine(name: str, says: dict[str, str], *, spec: Any = None, **more: Any) -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": status, "reason": "Succeeded", "message": "", "observedGeneration": 1}
        for kind, status in says.items()
    ]
    metadata = {"namespace": "default", "name": name} | more.pop("metadata", {})
    status = {"conditions": conditions} | more
    return {"kind": "NixMachine", "metadata": metadata, "spec": spec or {}, "status": status}


@pytest.mark.parametrize(
    ("web", "db", "waits_for"),
    [
        pytest.param(machine("web", SERVES), machine("db", SERVES), "", id="both serve"),
        pytest.param(
            machine("web", SERVES),
            machine("db", SERVES, replacement=BEGUN),
            "NixMachine/default/db, which is being replaced",
            id="the other one is being replaced",
        ),
        pytest.param(
            machine("web", {}),
            machine("db", SERVES, replacement=BEGUN),
            "NixMachine/default/db, which is being replaced",
            id="the other one is being replaced, and this one does not serve",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", SERVES, replacement=BEGUN | {"refused": "no room"}),
            "",
            id="that of the other one was given up",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", SERVES | {"ConfigurationActive": "Unknown"}),
            "NixMachine/default/db, which is out of service",
            id="the other one has its new instance, and does not serve yet",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", SERVES | {"Reachable": "False"}),
            "NixMachine/default/db, which is out of service",
            id="the other one does not answer",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", SERVES | {"Healthy": "False"}),
            "NixMachine/default/db, which is out of service",
            id="the other one is not well",
        ),
        pytest.param(
            machine("web", SERVES | {"Healthy": "False"}),
            machine("db", SERVES | {"Healthy": "False"}),
            "",
            id="neither serves: they do not wait for each other",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", {"Reachable": "False"}, spec={"target": {"ec2": {"powerState": "Stopped"}}}),
            "",
            id="the other one is stopped, as declared",
        ),
        pytest.param(
            machine("web", SERVES),
            machine("db", {}, metadata={"deletionTimestamp": "2026-11-22T12:00:00Z"}),
            "",
            id="the other one is going",
        ),
    ],
)
def test_one_after_the_other(web, db, waits_for):
    assert goes_first(web, [db, web]) == waits_for
