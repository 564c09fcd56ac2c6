"""Copies of source trees that lie in a box' store while it runs.

A store of its own cannot be shown another's paths without a mount: so each source is copied once, which takes some
seconds for a whole nixpkgs, and then moved from box to box, which takes none. One copy is in one box at a time.

Whoever has the box' rights could change a copy: so it is looked through before it goes from one tenant to another.
Content, mode and number of entries cannot change without their time of change (ctime), which nobody can set; the folder
on top, which must be writable to be moved, cannot get or lose an entry without its time of modification, and the box
cannot set that either (seccomp.py). To look at the twenty thousand files of nixpkgs takes a sixth of what an evaluation
takes: from one evaluation of a tenant to its next, a copy goes as it is, as its store does (stores.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixops_operator.adapters.nix.boxes.folders import LockedFolder, is_real, remove_tree
from nixops_operator.adapters.nix.programs import NixFailedError, output_of
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry

_KEPT = 16  # copies that nobody uses at the moment
_AT_ONCE = 500  # paths in one command line


@dataclass(frozen=True)
class _Copy:
    """`modified`: when its top was, in ns. `changed`: when the youngest entry below it was, in ns."""

    source: str
    modified: int
    changed: int


@dataclass(frozen=True)
class _Kept:
    """A copy in the pool. `tenant`: whose evaluation used it last, and ended well; None for nobody's."""

    copy: _Copy
    at: Path
    tenant: str | None


class Trees:
    """`folder`: on the same disk as the boxes, without links. `environment`: of cp(1)."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._parent = folder
        self._environment = environment
        self._pool: LockedFolder | None = None
        self._kept: list[_Kept] = []  # the longest unused first
        self._number = 0

    @contextlib.asynccontextmanager
    async def lent(
        self, sources: Sequence[str], store: Path, tenant: str | None, *, unseen: bool
    ) -> AsyncIterator[None]:
        """The sources lie in the folder `store` meanwhile, a path without links. `tenant`: as in Box.run. `unseen`:
        take a copy that this tenant used last as it is. Raises Retry if they cannot be copied there."""
        lent: list[_Copy] = []
        user: str | None = None
        try:
            try:
                taken = [await self._taken(source, store, tenant if unseen else None) for source in sources]
                lent += [copy for copy in taken if copy is not None]
                missing = sorted(set(sources) - {copy.source for copy in lent})
                for start in range(0, len(missing), _AT_ONCE):
                    await self._copied(missing[start : start + _AT_ONCE], store)
                lent += await asyncio.to_thread(_copies_of, missing, store)
            except (NixFailedError, OSError) as error:
                raise Retry(Reason.EVALUATING, f"the sources could not be laid into the box: {error}") from error
            yield
            user = tenant
        finally:
            await asyncio.shield(asyncio.to_thread(self._take_back, lent, store, user))

    async def clear(self) -> None:
        """Remove the copies that nobody uses at the moment. Raises OSError."""
        while self._kept:
            await asyncio.to_thread(remove_tree, self._kept.pop(0).at)

    async def _taken(self, source: str, store: Path, tenant: str | None) -> _Copy | None:
        """`tenant`: whose copy need not be looked through."""
        while fitting := [kept for kept in self._kept if kept.copy.source == source]:
            own = [kept for kept in fitting if kept.tenant is not None and kept.tenant == tenant]
            chosen = (own or fitting)[0]
            try:
                self._kept.remove(chosen)
            except ValueError:  # another evaluation's end has made room meanwhile, in its thread
                continue
            if bool(own) or await asyncio.to_thread(_is_unchanged, chosen):
                await asyncio.to_thread(_move, chosen.at, store / _name(source))
                return chosen.copy
            await asyncio.to_thread(remove_tree, chosen.at)
        return None

    async def _copied(self, sources: Sequence[str], store: Path) -> None:
        await output_of(("cp", "--archive", "--reflink=auto", "--", *sources, str(store)), self._environment)

    def _take_back(self, copies: Sequence[_Copy], store: Path, user: str | None) -> None:
        """Into the pool; what is not where it was put belongs to the box and goes with it."""
        if not is_real(store):
            return
        if self._pool is None:
            self._pool = LockedFolder.new(self._parent)
        for copy in copies:
            self._number += 1
            at = self._pool.path / f"{self._number}-{_name(copy.source)}"
            with contextlib.suppress(OSError):
                _move(store / _name(copy.source), at)
                self._kept.append(_Kept(copy, at, user))
        while len(self._kept) > _KEPT:
            remove_tree(self._kept.pop(0).at)


def _name(source: str) -> str:
    return Path(source).name


def _copies_of(sources: Sequence[str], store: Path) -> list[_Copy]:
    """Of the folders among them, as they were just laid into a box; files are quickly copied again."""
    return [
        _copy_of(source, at) for source in sources if not (at := store / _name(source)).is_symlink() and at.is_dir()
    ]


def _copy_of(source: str, at: Path) -> _Copy:
    return _Copy(source, at.lstat().st_mtime_ns, _youngest(at))


def _move(at: Path, to: Path) -> None:
    """A folder must be writable to be moved; its time of modification stays. Raises OSError."""
    at.chmod(0o755)
    at.rename(to)
    to.chmod(0o555)


def _is_unchanged(kept: _Kept) -> bool:
    """Whether a copy that was in a box is as it was."""
    with contextlib.suppress(OSError):
        return _copy_of(kept.copy.source, kept.at) == kept.copy
    return False


def _youngest(at: Path) -> int:
    """The latest change of what lies below a folder, in ns; 0 if nothing does. Raises OSError."""
    youngest = 0
    folders = [str(at)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                youngest = max(youngest, entry.stat(follow_symlinks=False).st_ctime_ns)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return youngest
