"""Memory of the process that nothing uses, given back to the node."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from datetime import timedelta

PERIOD = timedelta(seconds=15)


def keep_for_good() -> None:
    """What is there now, all known objects, is never searched for cycles again, as the modules are not (__main__): with
    thousands of objects a full search takes tenths of a second, for which all passes stand still."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """A list of all objects, or many events at once, take a third more than what stays of them. glibc keeps what was
    freed between what is used, for the next of that size, and gives it back when it is told to (malloc_trim(3)). Other
    C libraries know no such call."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


async def give_back_for_ever() -> None:
    while True:
        await asyncio.sleep(PERIOD.total_seconds())
        await asyncio.to_thread(give_back)
