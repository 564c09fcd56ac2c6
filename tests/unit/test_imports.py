"""Which way imports go: each part of the operator can be read with only what lies below it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

ROOT = "nixops_operator"
# Lists of words that import nothing of ours: below `errors` and `facts`, which the rest of `api` stands on.
BELOW_ALL = frozenset({f"{ROOT}.api.reasons", f"{ROOT}.api.group"})


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module → modules that it imports when it runs."""
    graph = grimp.build_graph(ROOT, cache_dir=None, exclude_type_checking_imports=True)
    return {module: graph.find_modules_directly_imported_by(module) - {ROOT} for module in graph.modules}


def _circle(imports: Mapping[str, Set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _part(module: str) -> str:
    return module if module in BELOW_ALL else ".".join(module.split(".")[:2])


def test_no_module_imports_itself_by_a_detour(imports: dict[str, set[str]]) -> None:
    assert _circle(imports) == []


def test_no_package_imports_itself_by_a_detour(imports: dict[str, set[str]]) -> None:
    between: dict[str, set[str]] = {}
    for module, imported in imports.items():
        between.setdefault(_part(module), set()).update(_part(name) for name in imported)

    assert _circle({part: others - {part} for part, others in between.items()}) == []
    assert [module for module in BELOW_ALL if between[module]] == []


def test_the_contract_starts_no_generator(imports: dict[str, set[str]]) -> None:
    """Who needs the group's name must not load what writes CustomResourceDefinitions."""
    assert [module for module, imported in imports.items() if f"{ROOT}.api.crd" in imported] == []
