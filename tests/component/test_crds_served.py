"""The API server takes the CRDs as they are meant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

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
