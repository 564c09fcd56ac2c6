"""The Nix port on Nix' own programs, in a store of its own: as the pod's user and as root.

The tests themselves are the files of `in_private_store/`: they run in a process that has another /nix (see
nix_namespace.py). Here each appears by its name.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import nix_namespace

FIXTURES = Path(__file__).parent / "in_private_store" / "conftest.py"
SUITES = sorted(set(FIXTURES.parent.glob("*.py")) - {FIXTURES})
LIMIT = 540  # s; far above what the suites take

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("nix-store") is None or shutil.which("bwrap") is None,
    reason="needs root, Nix and bubblewrap",
)


def behaviours() -> list[str]:
    """`<suite>::<test>` of all suites, read and not imported: importing them needs nothing of their world, but running
    does."""
    return [
        f"{suite.stem}::{node.name}"
        for suite in SUITES
        for node in ast.parse(suite.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="session")
def nixpkgs() -> Iterator[Path]:
    """A folder with the miniature nixpkgs, complete, with the names of today and with those of 2020."""
    with tempfile.TemporaryDirectory(prefix="nixpkgs-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        assemble = nix_namespace.REPOSITORY / "tests/lab/nixpkgs/assemble.sh"
        subprocess.run(["sh", str(assemble), f"{folder}/TODAY"], check=True)
        subprocess.run(["sh", str(assemble), f"{folder}/OF_2020", "20.09"], check=True)
        yield Path(folder)


@pytest.fixture(scope="session", params=[65532, 0], ids=["the pod's user", "root"])
def outcomes(request: pytest.FixtureRequest, nixpkgs: Path) -> dict[str, list[str]]:
    """Behaviour → what went wrong in each of its cases ('' for nothing)."""
    uid = request.param
    with tempfile.TemporaryDirectory(prefix="nix-store-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("store", "work", "aside"):
            (root / name).mkdir()
            os.chown(root / name, uid, uid)
        report = root / "work" / "report.xml"
        argv = nix_namespace.command(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"),
                *(
                    "-o",
                    "junit_logging=no",
                    "-o",
                    "timeout=120",
                    f"--basetemp={root / 'work' / 'tmp'}",
                    *map(str, SUITES),
                ),
            ],
            store=root / "store",
            uid=uid,
            aside=root / "aside",
        )
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(root / "work"),
            "TMPDIR": str(root / "work"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{nix_namespace.REPOSITORY}/operator:{nix_namespace.REPOSITORY}/tests",  # this checkout's
            "NIXPKGS": str(nixpkgs),
            "BOX": "Namespaces",
        }
        done = subprocess.run(
            argv,
            env=environment,
            cwd=nix_namespace.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert report.exists(), done.stdout + done.stderr
        return _outcomes(report)


def _outcomes(report: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest
        suite = case.get("classname", "").rsplit(".", 1)[-1]
        test = case.get("name", "").split("[", 1)[0]
        wrong = [problem.text or problem.tag for tag in ("failure", "error", "skipped") for problem in case.iter(tag)]
        found.setdefault(f"{suite}::{test}", []).append("\n".join(wrong))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("behaviour", behaviours())
def test_behaviour(outcomes: dict[str, list[str]], behaviour: str) -> None:
    cases = outcomes.get(behaviour)
    assert cases, f"{behaviour} was not run"
    assert not (wrong := [case for case in cases if case]), "\n\n".join(wrong)
