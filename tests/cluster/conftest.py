"""One lab for all tests of the whole system: API server, EC2, machines, and the operator as its pod would run it.

With NIXOPS_TEST_LAB=<folder> the lab in that folder is started if need be, and left running at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest

from cluster.place import Place
from judges import recorded
from judges.agreement import disagreement
from nixops_lab.testing import Lab

PERIODS = {"ec2.sweepPeriod": "5s", "ec2.networkPeriod": "5s"}
FOLDERS = Path("/var/lib/nixops-lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def started_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    kept = os.environ.get("NIXOPS_TEST_LAB")
    lab = Lab.up(Path(kept) if kept else FOLDERS / f"cluster-{os.getpid()}")
    try:
        yield lab
        things = recorded.versions(lab.audit_log())
        told = {
            f"{thing['kind']} {thing['metadata']['name']}: {wrong}"
            for thing in things
            if (wrong := disagreement(thing))
        }
        assert not told, f"of {len(things)} versions of objects: {sorted(told)}"
    finally:
        if kept is None:
            lab.down()
            if not request.session.testsfailed:
                shutil.rmtree(lab.paths.folder)  # after a failure its logs are the evidence


@pytest.fixture(scope="session")
def running_operator(started_lab: Lab) -> Lab:
    """The lab with the operator in it."""
    if started_lab.operator.is_running:
        started_lab.operator.stop()
    started_lab.operator.start(settings=PERIODS)
    return started_lab


@pytest.fixture
def lab(running_operator: Lab) -> Iterator[Lab]:
    """Faults and knobs end with the test, and the operator runs again."""
    yield running_operator
    come_to_rest(running_operator)


def come_to_rest(lab: Lab) -> None:
    lab.reset()
    if not lab.operator.is_running:
        lab.operator.restart()


def owner_of(lab: Lab) -> Any:
    """EC2 as the account's owner."""
    return cast("Any", boto3).client(
        "ec2",
        endpoint_url=lab.env["AWS_ENDPOINT_URL"],
        region_name=lab.env["AWS_DEFAULT_REGION"],
        aws_access_key_id=lab.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=lab.env["AWS_SECRET_ACCESS_KEY"],
    )


def places_in(lab: Lab) -> Callable[[str], Place]:
    """Makes a namespace whose name begins with that of a test; whoever asks clears it."""
    owner, count = owner_of(lab), 0

    def make(name: str) -> Place:
        nonlocal count
        count += 1
        namespace = f"{re.sub('[^a-z0-9]+', '-', name.lower())[:40].strip('-')}-{os.getpid()}-{count}"
        place = Place(lab, namespace, owner)
        lab.kubectl("create", "namespace", namespace)
        return place

    return make


@pytest.fixture(scope="session")
def new_place(running_operator: Lab) -> Callable[[str], Place]:
    """Of the session, so who brings another lab brings this, too."""
    return places_in(running_operator)


@pytest.fixture
def place(request: pytest.FixtureRequest, lab: Lab, new_place: Callable[[str], Place]) -> Iterator[Place]:
    """A namespace of the test's own."""
    place = new_place(request.node.name.removeprefix("test_"))
    yield place
    come_to_rest(lab)
    place.clear()


@pytest.fixture(scope="module")
def shared_place(
    request: pytest.FixtureRequest, running_operator: Lab, new_place: Callable[[str], Place]
) -> Iterator[Place]:
    """One namespace for all tests of a module."""
    place = new_place(request.node.path.stem.removeprefix("test_"))
    yield place
    come_to_rest(running_operator)
    place.clear()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str, float], None]]:
    """Prints at the end of the test how long each thing took that it was told of, with when that began."""
    told: list[str] = []
    yield lambda what, begun: told.append(f"{what} {time.monotonic() - begun:.1f} s")
    with capsys.disabled():
        print(f"\n{', '.join(told)}")
