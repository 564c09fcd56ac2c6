"""The operator's process: settings, logs, the CRDs, and then its life. The exit code tells why it ended.

0 asked to stop · 10 the CRDs are not served · 11 the Lease was lost · 12 the watch is dead · 13 a pass does not end ·
14 unsafe or invalid settings · 1 anything else
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nixops_operator import composition, logs, settings
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.adapters.kube.lease import Lease
from nixops_operator.api.group import GROUP, VERSION
from nixops_operator.effects import Layer
from nixops_operator.errors import OperatorError
from nixops_operator.exits import Ended, Exit
from nixops_operator.facts.kube import Kind
from nixops_operator.lifecycle import Lifecycle, take_signals
from nixops_operator.settings import Settings

log = logging.getLogger("nixops_operator")

THREADS = 64
"""For what would block the event loop. Python's default, six on two processors, is as many as sources that are unpacked
at once, for a minute each; all else would wait for those: disk limits of evaluations, answers of the API server."""
GARBAGE_AT = 10_000
"""Containers made and not freed since the last search for cycles; Python's default of 700 comes with every few objects
of ours. A search of so few takes about a millisecond."""


def main() -> None:
    """Entry point `nixops-operator`."""
    logs.set_up("INFO")
    try:
        chosen = settings.load()
    except (settings.Refused, OSError) as error:
        for line in str(error).splitlines():
            log.error("settings: %s", line)  # noqa: TRY400 - for whoever wrote them; a traceback would hide the words
        sys.exit(Exit.UNSAFE)
    logs.set_up(chosen.log.level)
    try:
        asyncio.run(run(chosen))
    except Ended as ended:
        (log.info if ended.code is Exit.STOPPED else log.error)("ending: %s", ended)
        sys.exit(ended.code)


async def run(chosen: Settings, layers: Sequence[Layer] = ()) -> None:
    """The operator's whole life. Always ends by raising Ended. `layers` go inside the fence and the audit."""
    _collect_less_garbage()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="work"))
    stop = asyncio.Event()
    take_signals(stop)
    async with contextlib.AsyncExitStack() as stack:
        connection = await Connection.open(requests_per_second=chosen.kube.requests_per_second)
        stack.push_async_callback(connection.close)
        await _crds_served(connection)
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lease = Lease(connection, chosen.lease.namespace, chosen.lease.name, identity)
        await Lifecycle(composition.wire(chosen, connection, lease, layers), stop).run()


def _collect_less_garbage() -> None:
    """What lives as long as the process, modules above all, is never searched for cycles again: at each of many small
    searches, and at the great ones that stop the loop, it was most of what was looked at (gc, `freeze`)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AT, *gc.get_threshold()[1:])


async def _crds_served(connection: Connection) -> None:
    try:
        found = await connection.request("GET", f"/apis/{GROUP}/{VERSION}", "look for the CRDs", accepted=(404,))
    except OperatorError as error:
        raise Ended(Exit.FAILED, f"the API server does not answer: {error}") from error
    served = {resource["name"] for resource in (found or {}).get("resources", ())}
    missing = [kind.value for kind in Kind if kind.value not in served]
    if missing:
        raise Ended(
            Exit.CRDS_MISSING, f"the cluster does not serve {', '.join(missing)}.{GROUP}: apply the CRDs (crds/)"
        )


if __name__ == "__main__":
    main()
