"""Folders for one piece of work, which are gone after it whatever was left in them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from nixops_operator.adapters.nix.boxes.folders import remove_tree


@contextlib.asynccontextmanager
async def private_folder(parent: Path) -> AsyncIterator[Path]:
    """An empty one."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        # Builds leave much behind. A cancelled call may end before the thread; the folder goes all the same.
        await asyncio.to_thread(remove_tree, folder)
