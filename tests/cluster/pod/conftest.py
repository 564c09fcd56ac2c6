"""One lab with a node for all tests of the pod, and the operator on it as the chart installs it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.conftest import FOLDERS, PERIODS, places_in
from cluster.place import Place
from nixops_lab.testing import Lab


@pytest.fixture(scope="session")
def started_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    kept = os.environ.get("NIXOPS_TEST_LAB")
    lab = Lab.up(Path(kept) if kept else FOLDERS / f"pod-{os.getpid()}", with_node=True)
    try:
        yield lab
    finally:
        if kept is None:
            lab.down()
            if not request.session.testsfailed:
                shutil.rmtree(lab.paths.folder)  # after a failure its logs are the evidence


@pytest.fixture(scope="session")
def running_operator(started_lab: Lab) -> Lab:
    """The lab with the operator's pod in it."""
    started_lab.operator.start(settings=PERIODS, is_pod=True)
    return started_lab


@pytest.fixture(scope="session")
def new_place(running_operator: Lab) -> Callable[[str], Place]:
    """In this lab. That of the other levels would be kept for them, with the lab of whoever asked first."""
    return places_in(running_operator)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], None]]:
    """Seconds since the last time; all are printed at the end of the test."""
    lines: list[str] = []
    last = time.monotonic()

    def tell(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        lines.append(f"  {now - last:6.1f} s  {what}")
        last = now

    yield tell
    with capsys.disabled():
        print("\n" + "\n".join(lines))
