"""Copies of sources that go from box to box: none goes to another tenant, or into an empty store, as somebody else has
changed it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.boxes.trees import Trees

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As it lies in a store: nothing may be written to."""
    folder = tmp_path / "hash-source"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/default.nix").write_text("the source's")
    for path in (folder / "lib/default.nix", folder / "lib", folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    return folder


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "boxes", ENVIRONMENT)


class Boxes:
    """Each with a store of its own, one after the other."""

    def __init__(self, trees: Trees, source: Path, folder: Path) -> None:
        self._trees = trees
        self._source = source
        self._folder = folder
        self._count = 0

    async def run(self, tenant: str | None, does: Callable[[Path], object] = lambda _: None, *, unseen: bool) -> str:
        """What the program of a box finds in the source, before it does something to it."""
        self._count += 1
        store = self._folder / str(self._count)
        store.mkdir()
        async with self._trees.lent([str(self._source)], store, tenant, unseen=unseen):
            copy = store / self._source.name
            found = (copy / "lib/default.nix").read_text()
            does(copy)
        assert not copy.exists()
        return found


@pytest.fixture
def boxes(trees: Trees, source: Path, tmp_path: Path) -> Boxes:
    return Boxes(trees, source, tmp_path)


def change(copy: Path) -> None:
    (copy / "lib/default.nix").chmod(0o644)
    (copy / "lib/default.nix").write_text("somebody's own")


def add(copy: Path) -> None:
    (copy / "lib").chmod(0o755)
    (copy / "lib/more.nix").touch()


def identity(copy: Path) -> int:
    """Since when it is there: moving the folder changes nothing of what lies in it."""
    return (copy / "lib/default.nix").stat().st_ctime_ns


async def test_a_copy_goes_from_box_to_box(boxes: Boxes) -> None:
    seen: list[int] = []
    for tenant, unseen in (("a", False), ("a", True), ("b", False), (None, False)):
        await boxes.run(tenant, lambda copy: seen.append(identity(copy)), unseen=unseen)
    assert len(set(seen)) == 1


@pytest.mark.parametrize("does", [change, add, lambda copy: (copy / "lib/default.nix").chmod(0o755)])
@pytest.mark.parametrize(
    ("tenant", "unseen"),
    [
        pytest.param("b", True, id="to another tenant"),
        pytest.param("a", False, id="into an empty store"),
        pytest.param(None, True, id="to nobody's evaluation"),
    ],
)
async def test_one_that_was_changed_goes_no_further(
    boxes: Boxes, does: Callable[[Path], object], tenant: str | None, unseen: bool
) -> None:
    seen: list[int] = []
    await boxes.run("a", lambda copy: (seen.append(identity(copy)), does(copy)), unseen=False)
    assert await boxes.run(tenant, lambda copy: seen.append(identity(copy)), unseen=unseen) == "the source's"
    assert len(set(seen)) == 2


async def test_a_tenant_that_changes_one_harms_itself(boxes: Boxes) -> None:
    await boxes.run("a", change, unseen=False)
    assert await boxes.run("a", unseen=True) == "somebody's own"
    assert await boxes.run("b", unseen=True) == "the source's"


async def test_not_even_that_after_an_evaluation_that_failed(boxes: Boxes) -> None:
    def fail(copy: Path) -> None:
        change(copy)
        raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        await boxes.run("a", fail, unseen=False)
    assert await boxes.run("a", unseen=True) == "the source's"


async def test_what_is_cleared_is_copied_anew(boxes: Boxes, trees: Trees) -> None:
    await boxes.run("a", change, unseen=False)
    await trees.clear()
    assert await boxes.run("a", unseen=True) == "the source's"
