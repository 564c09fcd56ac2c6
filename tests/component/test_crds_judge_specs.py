"""Which specs the API server takes, and with which words it refuses the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from component.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from component.conftest import ApiServer

VALID = sorted((ROOT / "tests/data/valid").glob("*.yaml"))
INVALID = sorted((ROOT / "tests/data/invalid").glob("*.yaml"))


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_accepted(crds: ApiServer, path: Path) -> None:
    crds.kubectl("create", "--dry-run=server", "--validate=strict", "-f", str(path))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused(crds: ApiServer, path: Path) -> None:
    expected = path.read_text().splitlines()[0].removeprefix("# refused: ")

    refusal = crds.refusal("create", "--dry-run=server", "--validate=strict", "-f", str(path))

    assert expected in refusal
