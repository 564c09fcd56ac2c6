"""Configurations on a real nixpkgs, in a store of their own: on this machine's Nix, and on that of the operator's image
in both boxes.

`LAB_REAL_NIXPKGS` names the folder, any checkout from 20.09 on; without it nothing of this runs. The tests themselves
are in `on_a_real_nixpkgs/`, see nix_namespace.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import nix_namespace
from nixops_lab import image
from nixops_operator.adapters.nix.boxes.box import BoxKind

TREE = os.environ.get("LAB_REAL_NIXPKGS")
SUITE = Path(__file__).parent / "on_a_real_nixpkgs" / "configurations.py"
THE_POD_S_USER = 65532
NAMESPACES, LANDLOCK = BoxKind.NAMESPACES, BoxKind.LANDLOCK
LIMIT = 3 * 3600  # s; some thirty evaluations of 3 s of CPU each, on a machine that may have fifty times as much to do

pytestmark = [
    pytest.mark.real_nixpkgs,
    pytest.mark.skipif(TREE is None, reason="LAB_REAL_NIXPKGS names no nixpkgs"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nix-store") is None, reason="needs root and Nix"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may look into. Not pytest's: each pytest of the same user that begins meanwhile shuts the
    folder above those (_pytest/tmpdir.py, `getbasetemp`), and the pod's user out."""
    with tempfile.TemporaryDirectory(prefix="real-nixpkgs-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.timeout(LIMIT + 300)  # the image may have to be built first
@pytest.mark.parametrize(
    ("is_image", "box"),
    [
        pytest.param(False, NAMESPACES, id="this machine's Nix"),
        pytest.param(True, NAMESPACES, id="the image's Nix"),
        pytest.param(True, LANDLOCK, id="the image's Nix in its own box"),
    ],
)
def test_configurations_on_a_real_nixpkgs(place: Path, is_image: bool, box: BoxKind) -> None:
    assert TREE is not None
    work, store, aside = place / "work", place / "store", place / "aside"
    for folder in (work, store, aside):
        folder.mkdir()
        os.chown(folder, THE_POD_S_USER, THE_POD_S_USER)
    argv = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-o", f"timeout={LIMIT}"),
        *(f"--basetemp={work / 'tmp'}", str(SUITE)),
    ]
    if is_image:
        shown = (work, Path(TREE))
        argv = nix_namespace.command_in_root(
            image.build_root(), argv, store=store, uid=THE_POD_S_USER, aside=aside, shown=shown
        )
    else:
        argv = nix_namespace.command(argv, store=store, uid=THE_POD_S_USER, aside=aside)
    repository = nix_namespace.REPOSITORY
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{repository}/operator:{repository}/tests",
        "LAB_REAL_NIXPKGS": TREE,
        "BOX": box,
    }
    # What it says goes where this process' own output goes: it is shown whatever the end.
    done = subprocess.run(argv, env=environment, cwd=repository, timeout=LIMIT, check=False)
    assert done.returncode == 0
