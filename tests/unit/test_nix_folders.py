"""Folders that tenants' programs have written to go, whatever is in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.boxes.folders import remove_leftovers, remove_tree
from nixops_operator.adapters.nix.private_folder import private_folder


def nested(depth: int, name: str) -> Callable[[Path], None]:
    """Folders in folders; no path names the innermost."""

    def make(at: Path) -> None:
        outer = os.open(at, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=outer)
            inner = os.open(name, os.O_RDONLY, dir_fd=outer)
            os.close(outer)
            outer = inner
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=outer))
        os.close(outer)

    return make


def locked(at: Path) -> None:
    (at / "a/b").mkdir(parents=True)
    (at / "a/b/file").touch()
    (at / "a/b").chmod(0)
    (at / "a").chmod(0o555)
    at.chmod(0o555)


def links(at: Path) -> None:
    (at / "a").mkdir()
    (at / "a/out").symlink_to("/")
    (at / "up").symlink_to("..")
    (at / "gone").symlink_to("nowhere")


def wide(at: Path) -> None:
    for outer in range(8):
        for inner in range(8):
            (at / f"{outer}/{inner}").mkdir(parents=True)
            (at / f"{outer}/{inner}/file").touch()


LEFT = [
    pytest.param(nested(60, "n" * 200), id="longer than a path may be"),
    pytest.param(nested(1500, "n"), id="deeper than files may be open"),
    pytest.param(locked, id="what may not be written to"),
    pytest.param(links, id="links"),
    pytest.param(wide, id="many"),
]


@pytest.mark.parametrize("make", LEFT)
def test_what_a_crash_left_does_not_keep_the_operator_from_starting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    (tmp_path / "nixops-operator-x").mkdir()
    make(tmp_path / "nixops-operator-x")
    remove_leftovers(tmp_path, "nixops-operator-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", LEFT)
async def test_what_a_build_left_goes_with_its_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    async with private_folder(tmp_path) as folder:
        make(folder)
    assert sorted(tmp_path.parent.glob(f"{tmp_path.name}/*")) == []


def test_a_link_is_removed_and_not_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "nowhere")
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
