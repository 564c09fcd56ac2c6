"""The operator's process as it runs in a cluster, with everything real but Nix, and a record of its loop's lateness."""

from __future__ import annotations

import asyncio
import sys

from benchmarks import lag
from component import core_without_nix  # gives the process a Nix in memory
from nixops_operator import logs, settings
from nixops_operator.exits import Ended


async def life() -> None:
    chosen = settings.load()
    logs.set_up(chosen.log.level)
    async with lag.recorded():
        await core_without_nix.process.run(chosen)


if __name__ == "__main__":
    try:
        asyncio.run(life())
    except Ended as ended:
        sys.exit(ended.code)
