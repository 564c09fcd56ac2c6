"""The suites of `in_private_store/`, run in a process that has another /nix, and perhaps another root file system with
another Nix (see nix_namespace.py).

Their tests appear by name in `test_nix_*.py`: a file for each Nix, so that they run side by side.
"""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from contract import nix_namespace
from nixops_lab.binary_cache import contents

FIXTURES = Path(__file__).parent / "in_private_store" / "conftest.py"
ALL = tuple(sorted(path.stem for path in FIXTURES.parent.glob("*.py") if path != FIXTURES))
OF_THE_BOX = ("attacks", "evaluation", "limits", "port", "purity")
"""Those that depend on the box. Builds have one of their own, whatever evaluations run in."""
LIMIT = 540  # s; far above what the suites take
THE_POD_S_USER = 65532

Outcomes = Mapping[str, list[str]]
"""Behaviour → what went wrong in each of its cases ('' for nothing)."""


def without(suites: Sequence[str]) -> tuple[str, ...]:
    """All the others."""
    return tuple(suite for suite in ALL if suite not in suites)


def behaviours(suites: Sequence[str] = ALL) -> list[str]:
    """`<suite>::<test>` of these suites, read and not imported: importing them needs nothing of their world, but
    running does."""
    return [
        f"{suite}::{node.name}"
        for suite in suites
        for node in ast.parse(_file_of(suite).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@functools.cache
def outcomes(uid: int, box: str, root: Path | None = None, suites: Sequence[str] = ALL) -> Outcomes:
    """Each of them once, as this user, in this box, on the Nix of the root file system `root` or of this machine."""
    with tempfile.TemporaryDirectory(prefix="nix-store-", dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)
        for name in ("store", "work", "aside"):
            (place / name).mkdir()
            os.chown(place / name, uid, uid)
        nixpkgs = place / "nixpkgs"
        assemble = nix_namespace.REPOSITORY / "tests/lab/nixpkgs/assemble.sh"
        # The miniature, with the names of today and with those of 2020.
        subprocess.run(["sh", str(assemble), f"{nixpkgs}/TODAY"], check=True)
        subprocess.run(["sh", str(assemble), f"{nixpkgs}/OF_2020", "20.09"], check=True)
        # The cache of this user may lie where other users may not look.
        shutil.copytree(contents.make(nixpkgs / "TODAY"), nixpkgs / "binary-cache")
        return _run(place, nixpkgs, uid, box, root, suites)


def _run(place: Path, nixpkgs: Path, uid: int, box: str, root: Path | None, suites: Sequence[str]) -> Outcomes:
    work, store, aside = place / "work", place / "store", place / "aside"
    report = work / "report.xml"
    pytest = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"),
        *(
            "-o",
            "junit_logging=no",
            "-o",
            "timeout=120",
            f"--basetemp={work / 'tmp'}",
            *(str(_file_of(suite)) for suite in suites),
        ),
    ]
    if root is None:
        argv = nix_namespace.command(pytest, store=store, uid=uid, aside=aside)
    else:
        argv = nix_namespace.command_in_root(root, pytest, store=store, uid=uid, aside=aside, shown=(work, nixpkgs))
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(  # this checkout's
            f"{nix_namespace.REPOSITORY}/{part}" for part in ("operator", "tests", "tests/lab")
        ),
        "NIXPKGS": str(nixpkgs),
        "LAB_CACHE_FOLDER": str(nixpkgs / "binary-cache"),
        "BOX": box,
    }
    done = subprocess.run(
        argv, env=environment, cwd=nix_namespace.REPOSITORY, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert report.exists(), done.stdout + done.stderr
    return _outcomes(report)


def _file_of(suite: str) -> Path:
    return FIXTURES.with_name(f"{suite}.py")


def _outcomes(report: Path) -> Outcomes:
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest
        suite = case.get("classname", "").rsplit(".", 1)[-1]
        test = case.get("name", "").split("[", 1)[0]
        wrong = [problem.text or problem.tag for tag in ("failure", "error", "skipped") for problem in case.iter(tag)]
        found.setdefault(f"{suite}::{test}", []).append("\n".join(wrong))
    return found


def judge(found: Outcomes, behaviour: str) -> None:
    """Fails, with what they said, if cases of this behaviour went wrong, or none was run."""
    cases = found.get(behaviour)
    assert cases, f"{behaviour} was not run"
    assert not (wrong := [case for case in cases if case]), "\n\n".join(wrong)


def missing() -> str | None:
    """Why they cannot run here; None if they can."""
    if os.geteuid() != 0 or shutil.which("nix-store") is None or shutil.which("bwrap") is None:
        return "needs root, Nix and bubblewrap"
    return None
