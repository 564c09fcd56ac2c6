"""The whole crash matrix, or one plan with its trace: `make crash`, `make crash PLAN=<…>`.

In an order in which every part of the matrix is a sample of the whole. With `LOG=<file>` each plan that was played is
written to that file at once, and what it tells of is not played again: a run that was ended goes on.

Sets of texts have another order in each process, and with them the core's passes. The seed of that order is told, and
`make crash PYTHONHASHSEED=<seed>` has it again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from crash import bench, plans
from unit.fake_time import HotLoopError

SEED = "PYTHONHASHSEED"


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
    failed = sum(not is_well for is_well in before.values())
    with multiprocessing.Pool(len(os.sched_getaffinity(0)), _begin) as pool:
        for number, (plan, failure, seconds) in enumerate(pool.imap(_play, found, chunksize=4), start=1):
            if failure is not None:
                failed += 1
                print(f"make crash {SEED}={os.environ[SEED]} PLAN='{plan}'\n{failure}", flush=True)
            if log is not None:
                with log.open("a") as lines:
                    lines.write(f"{'failed' if failure else 'well'} {plan} {seconds:.2f} s\n")
            if number % 500 == 0:
                print(f"{number} done, {failed} failed", flush=True)
    print(f"{len(everything)} plans, {failed} failed")
    return 1 if failed else 0


def _told(log: Path) -> Iterator[tuple[str, bool]]:
    """Plan → whether it ended as it should."""
    for line in log.read_text().splitlines():
        word, plan, *_ = line.split()
        yield plan, word == "well"


def _begin() -> None:
    """What was made so far lives as long as this process: nobody looks for garbage in it."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _play(plan: plans.Plan) -> tuple[plans.Plan, str | None, float]:
    begun = time.process_time()
    failure = plans.failure_of(plan)
    return plan, failure, time.process_time() - begun


if __name__ == "__main__":
    if SEED not in os.environ:
        os.environ[SEED] = str(random.randrange(2**32))
        os.execv(sys.executable, [sys.executable, "-m", "crash", *sys.argv[1:]])  # noqa: S606 - this very program
    parser = argparse.ArgumentParser(prog="crash", description=__doc__)
    parser.add_argument("plan", nargs="?", default="")
    parser.add_argument("--log", type=Path)
    chosen = parser.parse_args()
    sys.exit(one(chosen.plan) if chosen.plan else every(chosen.log))
