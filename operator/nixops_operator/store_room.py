"""What of the operator's Nix store is needed, and when the rest has to go. Pure; store_keeping.py looks and acts.

free < minFree, or used > 85 % of maxSize ──► collect ──► until free ≥ maxFree and used ≤ 70 % of maxSize
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nixops_operator.facts.kube import Body
from nixops_operator.facts.nix import Archive, Evaluation, Source, StoreSpace, Tree
from nixops_operator.nix.store_paths import SOURCE_NAME, digest_of, is_store_path, tree_path_of

_FULL, _ROOMY = 0.85, 0.7
"""Of the size that the store may have. A build writes some GB before it is looked at again."""
_SYSTEMS = (
    *(("status", "system", name) for name in ("desired", "current", "booted", "previous")),
    ("status", "activation", "toplevel"),
)
_HASHES = (("spec", "configuration", "nixpkgs", "hash"), ("spec", "configuration", "source", "archive", "hash"))


@dataclass(frozen=True)
class StoreLimits:
    """Bytes; `max_size` None: the disk alone counts."""

    min_free: int
    max_free: int
    max_size: int | None = None


def bytes_to_collect(space: StoreSpace, limits: StoreLimits) -> int:
    """How much has to go now; 0 while there is room."""
    for_disk = limits.max_free - space.free if space.free < limits.min_free else 0
    if limits.max_size is None or space.used is None or space.used <= _FULL * limits.max_size:
        return for_disk
    return max(for_disk, space.used - int(_ROOMY * limits.max_size))


def wanted_paths(machines: Iterable[Body], results: Iterable[object], sources: Iterable[str]) -> frozenset[str]:
    """Store paths that stay, with all that they refer to.

    `machines`: the living NixMachines: what each runs, is to run and may go back to, and the trees that its spec names
    by hash. `results`: of jobs, in whose place somebody goes on. `sources`: of configurations that name none.
    """
    paths = {*sources}
    for machine in machines:
        paths.update(_text_at(machine, path) for path in _SYSTEMS)
        paths.update(*(_of_hash(_text_at(machine, path)) for path in _HASHES))
    for result in results:
        match result:
            case Source(path):
                paths.add(path)
            case Evaluation(drv_path, toplevel):
                paths |= {drv_path, toplevel}
            case str(path):
                paths.add(path)
    return frozenset(filter(is_store_path, paths))


def stored_at(tree: Tree | None) -> frozenset[str]:
    """Where a tree lies in the store, if it says so itself."""
    return _of_hash(tree.nar_hash) if isinstance(tree, Archive) else frozenset()


def _of_hash(nar_hash: str) -> frozenset[str]:
    """Nowhere, if it is no hash."""
    try:
        return frozenset({tree_path_of(SOURCE_NAME, digest_of(nar_hash))})
    except ValueError:
        return frozenset()


def _text_at(body: Body, path: tuple[str, ...]) -> str:
    """What an object says there; "" if nothing, or no text: it may have been written under other rules."""
    found: object = body
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""
