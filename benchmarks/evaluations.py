"""Evaluations through the operator and by bare Nix, in the operator's own store: `python -m benchmarks.evaluations
NIXPKGS MODULE`. The last line is what was measured, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from contract.far_store import Line, far_store
from contract.nix_bench import request, store
from nixops_operator.adapters.nix.boxes.box import BoxKind, EvaluationLimits
from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.adapters.nix.programs import trusted_environment
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.adapters.nix.signing import generate_signing_key

TIMES = 5  # of each: the first one is of a system that the store does not know, the others of one that it does
TRIVIAL_TIMES = 15
A_BUSY_MACHINE_S = timedelta(hours=1)

# What evaluates to the same as through the operator; its options are Nix' defaults.
BARE = """
(import (nixpkgs + "/nixos/lib/eval-config.nix") {
  system = "x86_64-linux";
  modules = [
    module
    ({ pkgs, modulesPath, ... }: {
      imports = [ (modulesPath + "/virtualisation/amazon-image.nix") ];
      environment.systemPackages = [ pkgs.inotify-tools ];
      networking.hostName = "webserver";
      system.stateVersion = "20.03";
    })
  ];
}).config.system.build.toplevel
"""


def cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def used() -> float:
    """Seconds of CPU of this process and of its children that have ended."""
    return cpu(resource.getrusage(resource.RUSAGE_SELF)) + cpu(resource.getrusage(resource.RUSAGE_CHILDREN))


def figures(seconds: list[tuple[float, float]], memory: float, trivial: list[tuple[float, float]]) -> dict[str, float]:
    """Of (CPU, wall) of each run, and of those of `1 + 1`."""
    (first_cpu, first_wall), *others = seconds
    return {
        "s CPU": first_cpu,
        "s CPU, the system known already": statistics.median(each for each, _ in others),
        "s wall": first_wall,
        "s wall, the system known already": statistics.median(each for _, each in others),
        "MB at most, of one process": memory / 1024,
        "ms CPU for 1 + 1": statistics.median(each for each, _ in trivial) * 1000,
        "ms wall for 1 + 1": statistics.median(each for _, each in trivial) * 1000,
    }


async def ours(nixpkgs: Path, module: str) -> tuple[dict[str, float], str]:
    """The figures, with those of bringing the derivations to a machine, and the store path of nixpkgs."""
    scratch = Path(tempfile.mkdtemp())
    nix = SandboxedNix(
        scratch=scratch,
        signing_key=await generate_signing_key("bench-1"),
        box=BoxKind.LANDLOCK,
        evaluation_limits=EvaluationLimits(timeout=A_BUSY_MACHINE_S),
    )
    tree = await nix.add_path(nixpkgs)
    seconds = []
    for _ in range(TIMES):
        before, at = used(), time.monotonic()
        evaluation = await nix.evaluate(request(tree, module))
        seconds.append((used() - before, time.monotonic() - at))
    trivial = [await _trivial(nix._evaluator) for _ in range(TRIVIAL_TIMES)]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return figures(seconds, memory, trivial) | await _brought(nix, evaluation.drv_path), tree.store_path


async def _brought(nix: SandboxedNix, drv_path: str) -> dict[str, float]:
    """Of one copy to a machine that has none of them, on this computer: without a network's latency."""
    paths = (await store("nix-store", "--query", "--requisites", drv_path)).splitlines()
    line = Line()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with far_store(Path(folder), nix.public_key, line) as (socket, _):
            at = time.monotonic()
            await nix.copy_derivations(drv_path, socket, lambda _: None)
            wall = time.monotonic() - at
    return {
        "derivations brought to a machine": sum(path.endswith(".drv") for path in paths),
        "MB for it": (line.sent + line.received) / 1e6,
        "round trips for it": line.round_trips,
        "s for it": wall,
    }


async def _trivial(evaluator: Evaluator) -> tuple[float, float]:
    before, at = used(), time.monotonic()
    await evaluator.value("1 + 1")
    return used() - before, time.monotonic() - at


def bare(nixpkgs: str, module: Path) -> dict[str, float]:
    """The same by Nix alone, in a store that lacks the system at first."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        environment = {**trusted_environment(None), "NIX_REMOTE": f"local?root={root}", "HOME": root}
        text = f"let nixpkgs = {nixpkgs}; module = {module}; in {BARE}"
        runs = [_run(("nix-instantiate", "--expr", text), environment) for _ in range(TIMES)]
        trivial = [_run(("nix-instantiate", "--eval", "--expr", "1 + 1"), environment) for _ in range(TRIVIAL_TIMES)]
    memory = max(usage.ru_maxrss for usage, _ in runs)
    seconds, trivial_seconds = ([(cpu(usage), wall) for usage, wall in each] for each in (runs, trivial))
    return figures(seconds, memory, trivial_seconds)


def _run(argv: tuple[str, ...], environment: Mapping[str, str]) -> tuple[resource.struct_rusage, float]:
    at = time.monotonic()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"nix-instantiate ended with {process.returncode}")
    return usage, time.monotonic() - at


def main() -> None:
    nixpkgs, module = map(Path, sys.argv[1:])
    through_the_operator, store_path = asyncio.run(ours(nixpkgs, module.read_text()))
    print(json.dumps({"ours": through_the_operator, "bare Nix": bare(store_path, module)}))


if __name__ == "__main__":
    main()
