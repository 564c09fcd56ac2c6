"""G10: examples/gitops/helm, installed by Helm 4, which waits by kstatus."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.place import Place, condition, is_ready
from cluster.polling import eventually
from judges import kstatus
from nixops_lab import environment
from nixops_lab.paths import CHECKOUT

EXAMPLE = CHECKOUT / "examples/gitops/helm/web"
TITLE = "A release of machines"
LONG = "--timeout=20m"
"""Far more than a failure may take, and than the test would last."""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "web"))


@pytest.fixture
def place_with_credentials(place: Place) -> Iterator[Place]:
    key, secret = place.operator_identity
    place.secret("aws", {"accessKeyId": key, "secretAccessKey": secret})
    yield place
    place.kubectl("delete", "nixd", "--all", "--timeout=120s")
    assert place.left_in_ec2() == []


class Release:
    """One call of helm under way."""

    def __init__(self, place: Place, *words: str) -> None:
        self.place = place
        argv = [str(place.lab.paths.programs / "helm"), *words, f"--namespace={place.namespace}", "--wait", LONG]
        self.process = subprocess.Popen(
            [*argv, "--set=machines={one}"],
            env=environment.inside(place.lab.paths, place.lab.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def is_waiting(self) -> bool:
        return self.process.poll() is None

    def ended(self) -> tuple[int, str]:
        """(exit status, what it said)."""
        text, _ = self.process.communicate(timeout=300)
        return self.process.returncode, text

    def found(self) -> dict[str, object] | None:
        return self.place.find("nixdeployment", "web")


def test_an_installation_ends_when_the_machines_serve(place_with_credentials: Place, chart: Path) -> None:
    """And so does an upgrade: a file edited in the chart is a new spec."""
    place = place_with_credentials
    release = Release(place, "install", "web", str(chart))
    eventually(lambda: _is_worked_on(place), "it is being worked on")
    assert release.is_waiting

    status, said = release.ended()
    assert status == 0, said
    assert is_ready(place.get("nixdeployment", "web"))
    address = place.get("nixmachine", "web-one")["status"]["addresses"]["ssh"]
    assert place.title(address) == TITLE

    configuration = chart / "configuration.nix"
    configuration.write_text(configuration.read_text().replace(TITLE, "The next release"))
    status, said = Release(place, "upgrade", "web", str(chart)).ended()
    assert status == 0, said
    assert place.title(address) == "The next release"


def _is_worked_on(place: Place) -> bool:
    found = place.find("nixdeployment", "web")
    return found is not None and kstatus.status(found) == "InProgress" and bool(condition(found, "Ready"))


def test_an_installation_that_needs_a_person_fails_at_once(place_with_credentials: Place, chart: Path) -> None:
    """With our words, not at its timeout. What a rollback would delete stays, by the example's annotation."""
    place = place_with_credentials
    configuration = chart / "configuration.nix"
    configuration.write_text(configuration.read_text().replace("enable = true;", "enable = ;"))

    status, said = Release(place, "install", "web", str(chart), "--rollback-on-failure").ended()

    assert status != 0
    assert "configuration.nix:6:27: syntax error" in said
    assert condition(place.get("nixdeployment", "web"), "Stalled")["status"] == "True"
