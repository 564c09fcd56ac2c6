"""The API server takes the CRDs as they are meant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from component.conftest import ROOT
from nixops_operator.api import crd

if TYPE_CHECKING:
    from component.conftest import ApiServer

PLURALS = ("nixmachines", "nixdeployments")


@pytest.mark.parametrize("plural", PLURALS)
def test_the_schema_is_structural(crds: ApiServer, plural: str) -> None:
    conditions = json.loads(crds.kubectl("get", "crd", f"{plural}.nixops.dev", "-o", "json"))["status"]["conditions"]

    assert {c["type"]: c["status"] for c in conditions} == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("plural", PLURALS)
def test_nothing_of_the_schema_is_lost(crds: ApiServer, plural: str) -> None:
    """What a server does not know it drops without a word."""
    stored = json.loads(crds.kubectl("get", "crd", f"{plural}.nixops.dev", "-o", "json"))

    (version,) = stored["spec"]["versions"]
    assert version["schema"] == crd.all_crds()[plural]["spec"]["versions"][0]["schema"]


def test_short_names_and_category(crds: ApiServer) -> None:
    listed = crds.kubectl("api-resources", "--api-group=nixops.dev", "--categories=nixops", "--no-headers")

    assert [line.split()[:2] for line in sorted(listed.splitlines())] == [
        ["nixdeployments", "nixd"],
        ["nixmachines", "nixm"],
    ]


PAUSED = {
    "lastTransitionTime": "2026-11-22T12:00:00Z",
    "type": "Paused",
    "status": "True",
    "reason": "Suspended",
    "message": "suspended, nothing is changed",
}


@pytest.mark.parametrize(
    ("example", "name"), [("machine-that-exists", "nixm/box"), ("deployment-with-all-fields", "nixd/shop")]
)
def test_that_an_object_is_paused_is_seen_in_the_list(crds: ApiServer, example: str, name: str) -> None:
    """Ready and its reason stay what they were, so the line looked as if it were kept in line."""
    crds.kubectl("create", "-f", str(ROOT / f"tests/data/valid/{example}.yaml"))
    ready = PAUSED | {"type": "Ready", "reason": "Succeeded"}
    status = json.dumps({"status": {"conditions": [ready, PAUSED]}})

    crds.kubectl("patch", name, "--subresource=status", "--type=merge", "-p", status)

    head, line = crds.kubectl("get", name).splitlines()
    crds.kubectl("delete", name)
    assert head.split()[:4] == ["NAME", "READY", "STATUS", "PAUSED"]
    assert line.split()[1:4] == ["True", "Succeeded", "True"]
