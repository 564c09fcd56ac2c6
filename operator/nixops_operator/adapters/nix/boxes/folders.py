"""Private folders that a crash of the operator leaves behind, and nobody else's hands take away.

A folder in use is locked (flock(2)); the kernel lifts the lock with the process that held it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LONG = 400  # characters of a path: what is deeper is moved up, and no look-up leads through hundreds of folders


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
    """A file, or a folder with all that is in it, in which nothing runs any more. Raises OSError.

    Whatever was made there: folders that may not be written to, as those of a store; folders in folders, deeper than a
    path may be long and than files may be open (shutil.rmtree keeps one open for each). Modes of files stay as they
    are: they may have other names.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        folders = [str(path)]  # each in one before it
        while folders:
            folder, inner = folders[-1], []
            os.chmod(folder, 0o700)  # noqa: PTH101 - no link
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
                    else:
                        os.unlink(entry.path)  # noqa: PTH108
            if inner:
                folders += (_within_reach(each, path) for each in inner)
            else:
                os.rmdir(folders.pop())  # noqa: PTH106


def _within_reach(folder: str, top: Path) -> str:
    """Where this folder is from now on: its path may not be so long that those in it have none."""
    if len(folder) <= _LONG:
        return folder
    os.chmod(folder, 0o700)  # noqa: PTH101 - no link; or it could not be moved
    at = f"{top}/{secrets.token_hex(16)}"
    os.rename(folder, at)  # noqa: PTH104
    return at
