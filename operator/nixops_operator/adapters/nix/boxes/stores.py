"""Stores of boxes, each kept for the next evaluation of the same tenant.

A system is two thousand derivations. In an empty store an evaluation writes all of them, and all have to be exported
and judged; from one edit to the next a few dozen are new.

What lies in a kept store was written by the tenant's own evaluation and is not believed any more than the first time.
Paths that are `known` came out of this store and are in ours since, under names that follow from their content; what
else leaves it is exported and judged. So whoever spoils a kept store spoils their own evaluations; and as one that
fails in a kept store is made once more in an empty one, not even those for long.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from nixops_operator.adapters.nix.boxes.folders import LockedFolder, remove_tree

_KEPT = 8  # stores, each of another tenant; those of real systems take 30 to 50 MB


@dataclass(frozen=True)
class _Kept:
    at: Path
    known: frozenset[str]


class KeptStores:
    """`folder`: on the same disk as the boxes. Not to be used by several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._parent = folder
        self._pool: LockedFolder | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by tenant; the longest unused first
        self._number = 0

    def take(self, tenant: str, root: Path) -> frozenset[str]:
        """Put this tenant's store at `root`, which is free, if there is one. Returns what is known of it."""
        if (kept := self._kept.pop(tenant, None)) is None:
            return frozenset()
        try:
            kept.at.rename(root)
        except OSError:
            remove_tree(kept.at)
            return frozenset()
        return kept.known

    def keep(self, tenant: str, root: Path, known: frozenset[str]) -> None:
        """Take the store at `root`, in which nothing runs any more. Raises OSError if it cannot be kept."""
        if self._pool is None:
            self._pool = LockedFolder.new(self._parent)
        self._number += 1
        at = self._pool.path / str(self._number)
        root.rename(at)
        # Another evaluation of this tenant may have been faster.
        before = self._kept.pop(tenant, None)
        self._kept[tenant] = _Kept(at, known)
        if before is None and len(self._kept) > _KEPT:
            _, before = self._kept.popitem(last=False)
        if before is not None:
            remove_tree(before.at)

    def clear(self) -> None:
        """Remove them all. Raises OSError."""
        while self._kept:
            remove_tree(self._kept.popitem()[1].at)
