"""The tests' own kstatus, and the package by which Flux waits, of every version of every object that this lab has seen;
and what the lab's objects must have shown by then."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from judges import argo, kstatus, recorded
from nixops_lab.paths import SOURCES


def by_the_package(things: list[dict[str, Any]]) -> list[str]:
    built = subprocess.run([SOURCES / "gitops/build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    program = Path(built.stdout.strip()) / "kstatus"
    lines = "".join(json.dumps(thing) + "\n" for thing in things)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


def test_kstatus_is_what_the_tests_take_it_for(flux: Any) -> None:
    written = [yaml.safe_load(path.read_text()) for path in argo.CUSTOMIZATIONS.glob("*/testdata/*.yaml")]
    things = [*written, *recorded.versions(flux.audit_log())]

    found = by_the_package(things)

    assert found == [kstatus.status(thing) for thing in things]
    assert set(found) == {"Current", "InProgress", "Failed", "Terminating"}
