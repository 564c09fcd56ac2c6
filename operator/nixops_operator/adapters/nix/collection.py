"""Garbage collection of the operator's store: which roots it has, and Nix' own collector."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path

from nixops_operator.adapters.nix.programs import output_of

_TIMEOUT = timedelta(minutes=30)
"""Of the collector; Nix deletes some thousand paths a second. Everything waits for it."""


class StoreCollection:
    """`roots`: the folder of our roots, links to store paths under any names. `free`: bytes that are free."""

    def __init__(self, roots: Path, environment: Mapping[str, str], free: Callable[[], int]) -> None:
        self._roots = roots
        self._environment = environment
        self._free = free

    async def collect(self, wanted: Collection[str], to_free: int) -> int:
        """Delete what no root holds, until so many bytes more are free, or all of it. Returns how many more are free.
        Nobody else may use the store meanwhile (StoreUse.alone).

        `wanted`: what is to have a root afterwards, as far as the store has it, and nothing besides. Raises
        NixFailedError, OSError, TimeoutError.
        """
        before = self._free()
        await asyncio.to_thread(set_roots, self._roots, wanted)
        async with asyncio.timeout(_TIMEOUT.total_seconds()):
            # At first not what wanted derivations are built with: a build that was cut goes on from there, and the next
            # edit needs it again. The derivations of finished systems hold nothing.
            await self._delete(to_free, keeps_outputs=True)
            # Some file systems show late what was freed: what is nearly enough is enough.
            if (missing := to_free - (self._free() - before)) > to_free // 2:
                await self._delete(missing, keeps_outputs=False)
        return max(self._free() - before, 0)

    async def _delete(self, count: int, *, keeps_outputs: bool) -> None:
        options = {"keep-outputs": str(keeps_outputs).lower(), "keep-derivations": "false"}
        given = [part for name, value in options.items() for part in ("--option", name, value)]
        await output_of(("nix-store", "--gc", "--max-freed", str(count), *given), self._environment)


def set_roots(folder: Path, wanted: Collection[str]) -> None:
    """Afterwards the links in `folder` show `wanted`, as far as it exists, and nothing else. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    held = set()
    for link in tuple(folder.iterdir()):
        target = str(link.readlink()) if link.is_symlink() else ""
        if target in wanted and target not in held:
            held.add(target)
        else:
            link.unlink()
    for path in wanted:
        if path not in held and os.path.lexists(path):
            (folder / Path(path).name).symlink_to(path)
