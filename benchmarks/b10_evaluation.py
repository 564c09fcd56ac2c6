"""B10, the price of a box: the model example on a whole nixpkgs, evaluated through the operator and by bare Nix.

    the image's root, as the pod's user ─► the operator's Landlock box, and its Nix alone     in turn, in one run

`LAB_REAL_NIXPKGS` names the nixpkgs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import table
from benchmarks.processes import ROOT
from contract import nix_namespace
from nixops_lab import image

THE_POD_S_USER = 65532
MODULE = ROOT / "examples/valgrind-docs/machine/configuration.nix"
CPU, WALL, MEMORY = "s CPU", "s wall", "MB at most, of one process"
TRIVIAL_CPU, TRIVIAL = "ms CPU for 1 + 1", "ms wall for 1 + 1"
GOALS: dict[str, table.Goal | None] = {
    CPU: None,
    f"{CPU}, the system known already": None,
    f"{CPU}, the system known already, as share of bare Nix'": table.AtMost(1.15),
    WALL: None,
    f"{WALL}, the system known already": None,
    MEMORY: None,
    f"{MEMORY}, as share of bare Nix'": table.AtMost(1.2),
    TRIVIAL_CPU: None,
    TRIVIAL: None,
    "ms that the box adds to it": table.AtMost(10),
    "derivations brought to a machine": None,
    "MB for it": None,
    "round trips for it": None,
    "s for it": None,
}


def main() -> None:
    tree = os.environ.get("LAB_REAL_NIXPKGS")
    if tree is None:
        sys.exit("LAB_REAL_NIXPKGS names no nixpkgs")
    with tempfile.TemporaryDirectory(prefix="b10-", dir="/var/tmp") as folder:
        found: dict[str, dict[str, float]] = json.loads(_in_the_image(Path(folder), Path(tree)).splitlines()[-1])
    ours, bare = found["ours"], found["bare Nix"]
    known = f"{CPU}, the system known already"
    ours[f"{known}, as share of bare Nix'"] = ours[known] / bare[known]
    ours[f"{MEMORY}, as share of bare Nix'"] = ours[MEMORY] / bare[MEMORY]
    ours["ms that the box adds to it"] = ours[TRIVIAL] - bare[TRIVIAL]
    table.show("B10, the model example on a whole nixpkgs", GOALS, found, f"load {os.getloadavg()[0]:.1f}")


def _in_the_image(place: Path, tree: Path) -> str:
    """What evaluations.py prints there."""
    place.chmod(0o755)
    work, store, aside = place / "work", place / "store", place / "aside"
    for folder in (work, store, aside):
        folder.mkdir()
        os.chown(folder, THE_POD_S_USER, THE_POD_S_USER)
    # A pod sees its own processes alone; the box looks at them all.
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    argv += nix_namespace.command_in_root(
        image.build_root(),
        [sys.executable, "-m", "benchmarks.evaluations", str(tree), str(MODULE)],
        store=store,
        uid=THE_POD_S_USER,
        aside=aside,
        shown=(work, tree),
    )
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "tests", ".")),
    }
    done = subprocess.run(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
