"""Folders for one piece of work, which are gone after it whatever was left in them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any


@contextlib.asynccontextmanager
async def private_folder(parent: Path) -> AsyncIterator[Path]:
    """An empty one."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        # Builds leave much behind. A cancelled call may end before the thread; the folder goes all the same.
        await asyncio.to_thread(shutil.rmtree, folder, onerror=_unlock)


def _unlock(function: Callable[[str], Any], path: str, _error: Any) -> None:
    """A builder may leave folders that their owner cannot empty."""
    parent = Path(path).parent
    parent.chmod(0o700)
    if not Path(path).is_symlink():
        os.chmod(path, 0o700)  # noqa: PTH101 - beside os.* functions that rmtree hands over
    function(path)
