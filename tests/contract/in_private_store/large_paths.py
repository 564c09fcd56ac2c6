"""One path of 200 MiB: added, evaluated with, made by an evaluation, built with, copied; and never held in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.in_private_store.builds import far_store
from contract.nix_bench import request
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.facts.nix import Module, Source

MIB = 1024**2
LARGE = 200 * MIB
MODULE = '{ environment.etc.large.source = builtins.path { name = "large"; path = ./large; }; }'


@contextmanager
def little_memory() -> Iterator[None]:
    """Nothing of that size is held by the operator's own process."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "web.nix").write_text(MODULE)
    with (folder / "large").open("wb") as file:
        file.write(b"begin")
        file.truncate(LARGE)
    return folder


async def test_from_a_folder_to_a_machine(nix: SandboxedNix, nixpkgs: Source, tree: Path, tmp_path: Path) -> None:
    far_folder = tmp_path / "far"
    far_folder.mkdir()
    with little_memory():
        source = await nix.add_path(tree)
        given = replace(
            request(nixpkgs, public_key=nix.public_key, source=source), modules=(Module("web.nix", path="web.nix"),)
        )
        evaluation = await nix.evaluate(given)
        toplevel = await nix.build(evaluation.drv_path, lambda _: None)
        async with far_store(far_folder, nix.public_key) as (socket, _):
            await nix.copy(toplevel, socket, lambda _: None)

    (arrived,) = (far_folder / "root/nix/store").glob("*-large")
    assert arrived.stat().st_size == LARGE
    with arrived.open("rb") as file:
        assert file.read(6) == b"begin\0"
    assert (Path(toplevel) / "etc/large").resolve() == Path("/nix/store") / arrived.name


async def test_from_files_in_memory_that_are_there_once(nix: SandboxedNix) -> None:
    files = {"large": bytes(LARGE), "web.nix": MODULE.encode()}
    with little_memory():
        source = await nix.add_tree(files)
    assert (Path(source.store_path) / "large").stat().st_size == LARGE
