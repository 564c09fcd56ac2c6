"""The whole crash matrix, or one plan with its trace: `make crash`, `make crash PLAN=<…>`.

In parts of which each is a sample of the whole. With `LOG=<file>` each plan that was played is written to that file at
once, and what it tells of is not played again: a run that was ended goes on.

Sets of texts have another order in each process, and with them the core's passes. The seed of that order is told, and
`make crash PYTHONHASHSEED=<seed>` has it again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crash import bench, forks, plans
from unit.fake_time import HotLoopError

SEED = "PYTHONHASHSEED"
PARTS = 4  # each plays every workload once more, a minute together


def one(text: str) -> int:
    """Its effects and log on the way, in the worlds' seconds."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    bench.Operator.tells = True
    try:
        plans.read(text).run()
    except (AssertionError, HotLoopError):
        traceback.print_exc()
        return 1
    print("as it should be")
    return 0


def every(log: Path | None) -> int:
    logging.disable(logging.CRITICAL)
    everything = plans.in_any_order(plans.everything())
    before = dict(_told(log)) if log is not None and log.exists() else {}
    found = [plan for plan in everything if str(plan) not in before]
    print(f"{len(everything)} plans, {len(everything) - len(found)} of them played before; {SEED}={os.environ[SEED]}")
    counts = Counter(before.values())

    def tell(outcome: forks.Outcome) -> None:
        counts[outcome.failure is None] += 1
        if outcome.failure is not None:
            print(f"make crash {SEED}={os.environ[SEED]} PLAN='{outcome.plan}'\n{outcome.failure}", flush=True)
        if log is not None:
            with log.open("a") as lines:
                lines.write(f"{'failed' if outcome.failure else 'well'} {outcome.plan} {outcome.seconds:.2f} s\n")
        if counts.total() % 500 == 0:
            print(f"{counts.total()} done, {counts[False]} failed", flush=True)

    gc.freeze()  # what was made so far lives as long as this process: nobody looks for garbage in it
    for part in range(PARTS):
        forks.play(found[part::PARTS], len(os.sched_getaffinity(0)), tell)
    print(f"{len(everything)} plans, {counts[False]} failed")
    return 1 if counts[False] else 0


def _told(log: Path) -> Iterator[tuple[str, bool]]:
    """Plan → whether it ended as it should."""
    for line in log.read_text().splitlines():
        word, plan, *_ = line.split()
        yield plan, word == "well"


if __name__ == "__main__":
    if SEED not in os.environ:
        os.environ[SEED] = str(random.randrange(2**32))
        os.execv(sys.executable, [sys.executable, "-m", "crash", *sys.argv[1:]])  # noqa: S606 - this very program
    parser = argparse.ArgumentParser(prog="crash", description=__doc__)
    parser.add_argument("plan", nargs="?", default="")
    parser.add_argument("--log", type=Path)
    chosen = parser.parse_args()
    sys.exit(one(chosen.plan) if chosen.plan else every(chosen.log))
