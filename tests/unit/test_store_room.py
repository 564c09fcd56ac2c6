"""What of the operator's store stays, and when the rest has to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nixops_operator.facts.nix import Archive, Evaluation, Folder, Source, StoreSpace, Tree
from nixops_operator.nix.store_paths import tree_path_of
from nixops_operator.store_room import StoreLimits, bytes_to_collect, stored_at, wanted_paths

GIB = 1024**3
LIMITS = StoreLimits(min_free=4 * GIB, max_free=8 * GIB)
IN_A_VOLUME = StoreLimits(min_free=4 * GIB, max_free=8 * GIB, max_size=20 * GIB)

HASH = f"sha256-{'A' * 43}="
TREE = frozenset({tree_path_of("source", bytes(32))})


def path(letter: str, name: str = "nixos-system-web-25.11") -> str:
    return f"/nix/store/{letter * 32}-{name}"


DESIRED, CURRENT, BOOTED, PREVIOUS, ACTIVATED = map(path, "12345")


@pytest.mark.parametrize(
    ("space", "limits", "expected"),
    [
        pytest.param(StoreSpace(4 * GIB), LIMITS, 0, id="as much as is to be free"),
        pytest.param(StoreSpace(4 * GIB - 1), LIMITS, 4 * GIB + 1, id="less: until there is plenty"),
        pytest.param(StoreSpace(0), LIMITS, 8 * GIB, id="nothing"),
        pytest.param(StoreSpace(50 * GIB, 17 * GIB), IN_A_VOLUME, 0, id="the volume is nearly full"),
        pytest.param(StoreSpace(50 * GIB, 18 * GIB), IN_A_VOLUME, 4 * GIB, id="too nearly, though the disk is not"),
        pytest.param(StoreSpace(1 * GIB, 18 * GIB), IN_A_VOLUME, 7 * GIB, id="both: the larger counts"),
        pytest.param(StoreSpace(50 * GIB, None), IN_A_VOLUME, 0, id="not measured"),
        pytest.param(StoreSpace(50 * GIB, 900 * GIB), LIMITS, 0, id="of any size where none is set"),
    ],
)
def test_when_how_much_is_collected(space: StoreSpace, limits: StoreLimits, expected: int) -> None:
    assert bytes_to_collect(space, limits) == expected


def machine(status: dict[str, Any] | None = None, **configuration: Any) -> dict[str, Any]:
    return {"spec": {"configuration": configuration}, **({"status": status} if status is not None else {})}


LIVING = {
    "system": {"desired": DESIRED, "current": CURRENT, "booted": BOOTED, "previous": PREVIOUS, "revision": "11111111"},
    "activation": {"toplevel": ACTIVATED},
}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(machine(LIVING), {DESIRED, CURRENT, BOOTED, PREVIOUS, ACTIVATED}, id="what it runs and ran"),
        pytest.param(machine(), set(), id="nothing yet"),
        pytest.param(machine({"system": {"current": CURRENT}}), {CURRENT}, id="some of it"),
        pytest.param(machine({"system": {"current": "/etc/passwd"}}), set(), id="no store path"),
        pytest.param(machine({"system": {"current": 7}, "activation": "x"}), set(), id="of a shape that means nothing"),
        pytest.param(machine(nixpkgs={"url": "u", "hash": HASH}), TREE, id="its nixpkgs"),
        pytest.param(machine(source={"archive": {"url": "u", "hash": HASH}}), TREE, id="its source"),
        pytest.param(machine(nixpkgs={"path": "nixpkgs"}), set(), id="nixpkgs inside of the source"),
        pytest.param(machine(nixpkgs={"url": "u", "hash": "sha1-x"}), set(), id="no hash"),
        pytest.param({"spec": {"configuration": "x"}}, set(), id="a spec of any shape"),
    ],
)
def test_what_a_living_machine_needs(found: dict[str, Any], expected: set[str]) -> None:
    assert wanted_paths([found], [], []) == expected


def test_what_jobs_go_on_with() -> None:
    """Evaluated and not built yet, fetched and not evaluated yet, built and not copied yet."""
    drv = path("6", "nixos-system-web-25.11.drv")
    source = Source(path("7", "source"), HASH)
    results = [Evaluation(drv, DESIRED), source, CURRENT, None, "told"]
    assert wanted_paths([], results, []) == {drv, DESIRED, source.store_path, CURRENT}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param(Archive("https://example.org/nixpkgs.tar.gz", HASH), TREE, id="by its hash"),
        pytest.param(Folder(Path("/nixpkgs")), frozenset(), id="a folder says nothing before it is read"),
        pytest.param(None, frozenset(), id="none"),
    ],
)
def test_the_nixpkgs_of_those_who_name_none(tree: Tree | None, expected: frozenset[str]) -> None:
    assert stored_at(tree) == expected
    assert wanted_paths([machine()], [], stored_at(tree)) == expected
