"""The whole crash matrix, or one plan with its trace: `make crash`, `make crash PLAN=<…>`."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import traceback

from crash import bench, plans
from unit.fake_time import HotLoopError


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


def every() -> int:
    logging.disable(logging.CRITICAL)
    found = list(plans.everything())
    print(f"{len(found)} plans")
    failed = 0
    with multiprocessing.Pool() as pool:
        for number, failure in enumerate(pool.imap(plans.failure_of, found), start=1):
            if failure is not None:
                failed += 1
                print(failure, flush=True)
            if number % 500 == 0:
                print(f"{number} done, {failed} failed", flush=True)
    print(f"{len(found)} plans, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(one(sys.argv[1]) if sys.argv[1:] and sys.argv[1] else every())
