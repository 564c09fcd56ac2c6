"""Which specs the API server takes, and with which words it refuses the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from component.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from component.conftest import ApiServer

# Those of `stalled` are refused by the operator alone, after merging: tests/unit/test_api_parse.py.
ACCEPTED = sorted((ROOT / "tests/data").glob("valid/*.yaml")) + sorted((ROOT / "tests/data").glob("stalled/*.yaml"))
INVALID = sorted((ROOT / "tests/data/invalid").glob("*.yaml"))


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_accepted(crds: ApiServer, path: Path) -> None:
    crds.kubectl("create", "--dry-run=server", "--validate=strict", "-f", str(path))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused(crds: ApiServer, path: Path) -> None:
    expected = path.read_text().splitlines()[0].removeprefix("# refused: ")

    refusal = crds.refusal("create", "--dry-run=server", "--validate=strict", "-f", str(path))

    assert expected in refusal


@pytest.mark.parametrize(
    "name", ["access-key-in-description", "access-key-in-tag", "private-key-in-argument", "private-key-in-module"]
)
def test_a_refusal_does_not_repeat_the_secret(crds: ApiServer, name: str) -> None:
    """GitOps tools copy it into status, events and chat rooms."""
    path = ROOT / f"tests/data/invalid/{name}.yaml"

    refusal = crds.refusal("create", "--dry-run=server", "-f", str(path))

    assert "AKIA" not in refusal
    assert "BEGIN" not in refusal
