"""What an evaluation leaves for the next one of its tenant: that is spared work, and nobody else sees anything of it.

Only the box of Landlock keeps stores; the other's lies in memory. What must be refused, both refuse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.nix_bench import BOX, MODEL, PYTHON, request
from nixops_operator.adapters.nix.boxes.box import Box, BoxKind, EvaluationLimits, Running
from nixops_operator.adapters.nix.disk import Disk
from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix, box_of
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import EvaluationRequest, Source
from nixops_operator.nix.evaluation_errors import Names

KEEPS = BOX is BoxKind.LANDLOCK


class Watched:
    """The box, and how many paths were known at the beginning of each run in it."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.kind = box.kind
        self.not_made = box.not_made
        self.forget = box.forget
        self.known: list[int] = []
        self.instead: Sequence[str] | None = None  # a program in the place of the evaluation

    @asynccontextmanager
    async def run(
        self, command: Sequence[str] | None, sources: Sequence[str], registration: bytes, tenant: str | None
    ) -> AsyncIterator[Running]:
        async with self._box.run(command or self.instead, sources, registration, tenant) as running:
            self.known.append(len(running.known))
            yield running


@pytest.fixture
def watched(nix: SandboxedNix, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The box of `nix`, in which nothing was evaluated before."""
    limits, disk = EvaluationLimits(), Disk((scratch,), 0)
    box = Watched(box_of(BOX, scratch, limits, disk))
    monkeypatch.setattr(nix, "_evaluator", Evaluator(scratch, box, limits, 1, disk))
    monkeypatch.setattr(nix, "_box", box)
    return box


def edited(nixpkgs: Source, number: int) -> EvaluationRequest:
    return request(nixpkgs, MODEL.replace("[ 80 ]", f"[ 80 {number} ]"))


async def test_the_next_evaluation_of_a_tenant_is_spared_what_the_last_one_made(
    nix: SandboxedNix, nixpkgs: Source, watched: Watched
) -> None:
    first = await nix.evaluate(edited(nixpkgs, 8001))
    assert (await nix.evaluate(edited(nixpkgs, 8002))).toplevel != first.toplevel
    assert await nix.evaluate(edited(nixpkgs, 8001)) == first
    empty, second, third = watched.known
    assert empty == 0
    assert (10 < second < third) if KEEPS else (second, third) == (0, 0)


async def test_another_tenant_s_evaluation_finds_nothing(nix: SandboxedNix, nixpkgs: Source, watched: Watched) -> None:
    asked = edited(nixpkgs, 8003)
    first = await nix.evaluate(asked)
    assert await nix.evaluate(replace(asked, tenant="neighbour")) == first
    assert watched.known == [0, 0]


async def test_what_fails_is_tried_without_what_was_there_before_it_is_told(
    nix: SandboxedNix, nixpkgs: Source, watched: Watched
) -> None:
    await nix.evaluate(edited(nixpkgs, 8004))
    with pytest.raises(Blocked, match="it is wrong"):
        await nix.evaluate(request(nixpkgs, 'throw "it is wrong"'))
    if KEEPS:
        _, kept, empty = watched.known
        assert kept > 0
        assert empty == 0


SPOILED = """
import os
root = os.environ["NIX_REMOTE"].removeprefix("local?root=")
with open(f"{root}/nix/var/nix/db/db.sqlite", "r+b") as file:
    file.write(b"x" * 4096)
"""
A_LINK = """
import os
root = os.environ["NIX_REMOTE"].removeprefix("local?root=")
os.rename(f"{root}/nix/store", f"{root}/nix/aside")
os.symlink("/nix/store", f"{root}/nix/store")
"""


async def test_one_that_was_spoiled_harms_nobody(nix: SandboxedNix, nixpkgs: Source, watched: Watched) -> None:
    """By a program in the place of Nix, as if Nix had been broken into."""
    if not KEEPS:
        return
    first = await nix.evaluate(edited(nixpkgs, 8005))
    evaluator = nix._evaluator

    async def nothing(output: object, known: set[str]) -> str:
        return ""

    await evaluator._boxed("", (), Names({}), nothing, command=(PYTHON, "-c", SPOILED), tenant="team")
    assert await nix.evaluate(edited(nixpkgs, 8005)) == first
    assert watched.known[-1] == 0


async def test_a_link_in_the_store_s_place_is_not_followed(
    nix: SandboxedNix, nixpkgs: Source, watched: Watched
) -> None:
    """Else the source would be taken out of the operator's own store, from everybody."""
    if not KEEPS:
        return

    async def nothing(output: object, known: set[str]) -> str:
        return ""

    program = (PYTHON, "-c", A_LINK)
    await nix._evaluator._boxed("", (nixpkgs.store_path,), Names({}), nothing, command=program, tenant="team")
    assert (Path(nixpkgs.store_path) / "nixos").is_dir()
    await nix.evaluate(edited(nixpkgs, 8006))
    assert watched.known == [0, 0]


async def test_a_path_is_known_to_the_tenant_alone_that_made_it(
    nix: SandboxedNix, nixpkgs: Source, watched: Watched
) -> None:
    """A program in the place of Nix that names another's system and shows nothing of it."""
    theirs = await nix.evaluate(edited(nixpkgs, 8007))
    said = f'{{"drvPath":"{theirs.drv_path}","toplevel":"{theirs.toplevel}","warnings":[]}}'
    watched.instead = ("sh", "-c", f"echo '{said}'; echo {theirs.drv_path}; echo")
    with pytest.raises(Blocked, match="the evaluation's result was refused"):
        await nix.evaluate(replace(edited(nixpkgs, 8007), tenant="neighbour"))


async def test_none_is_kept_when_garbage_is_collected(nix: SandboxedNix, nixpkgs: Source, watched: Watched) -> None:
    await nix.evaluate(edited(nixpkgs, 8008))
    await nix.collect(lambda: {nixpkgs.store_path}, 0)
    await nix.evaluate(edited(nixpkgs, 8008))
    assert watched.known == [0, 0]
