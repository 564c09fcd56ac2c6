"""Private folders that a crash of the operator leaves behind, and nobody else's hands take away.

A folder in use is locked (flock(2)); the kernel lifts the lock with the process that held it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LockedFolder:
    """Not inherited by child processes."""

    path: Path
    descriptor: int

    @classmethod
    def new(cls, parent: Path, prefix: str = "") -> LockedFolder:
        """An empty folder of mode 0700 in `parent`, which is made if it is missing. `prefix`: of its name. Raises
        OSError."""
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
            # Whoever clears away at this moment may have come between.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                return cls(path, _locked(path))

    def remove(self) -> None:
        """With all that is in it, whatever its modes. Raises OSError."""
        try:
            remove_tree(self.path)
        finally:
            os.close(self.descriptor)


def remove_leftovers(parent: Path, prefix: str = "") -> None:
    """Every folder in `parent` with such a name that no process holds, unless it is another user's. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        for path in tuple(parent.glob(f"{prefix}*")):
            with contextlib.suppress(FileNotFoundError, BlockingIOError, NotADirectoryError, PermissionError):
                LockedFolder(path, _locked(path)).remove()


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.lstat()
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_real(path: Path) -> bool:
    """Whether this absolute path exists and leads through no link: what runs in a box may put one in a folder's place,
    and whoever follows it from outside is where the box could not go."""
    return os.path.realpath(path) == str(path) and path.is_dir()


def remove_tree(path: Path) -> None:
    """A file, or a folder with all that is in it, although folders of a store cannot be written to. Raises OSError.

    Modes of files stay as they are: they may have other names.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        for folder, inner, _ in os.walk(path):
            for name in (".", *inner):
                at = os.path.join(folder, name)  # noqa: PTH118 - as os.walk gives them
                if not os.path.islink(at):  # noqa: PTH114
                    os.chmod(at, 0o700)  # noqa: PTH101
        shutil.rmtree(path)
