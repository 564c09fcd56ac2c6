"""Garbage collection of the operator's store: what is needed stays whole, everything else goes, and nobody is hit."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from contract.nix_bench import BOX, MODEL, file_built_by, request, store, until
from nixops_operator.adapters.nix.programs import NixFailedError
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix, VolumeLimits
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Evaluation, Source

ALL = 2**50  # bytes; more than there are
ROOTS = Path("/nix/var/nix/gcroots/nixops")


@pytest.fixture
def another(scratch: Path, signing_key: str) -> SandboxedNix:
    """The next process: nothing was given to anybody by it."""
    return SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX)


async def evaluated(nix: SandboxedNix, nixpkgs: Source, *modules: str) -> Evaluation:
    return await nix.evaluate(request(nixpkgs, *modules, public_key=nix.public_key))


async def built(nix: SandboxedNix, nixpkgs: Source, *modules: str) -> Evaluation:
    evaluation = await evaluated(nix, nixpkgs, *modules)
    await nix.build(evaluation.drv_path, lambda _: None)
    return evaluation


async def is_valid(path: str) -> bool:
    try:
        await store("nix-store", "--check-validity", path)
    except NixFailedError:
        return False
    return True


def rooted() -> set[str]:
    return {str(link.readlink()) for link in ROOTS.iterdir()}


async def test_what_is_wanted_stays_whole_and_everything_else_goes(
    nix: SandboxedNix, nixpkgs: Source, another: SandboxedNix
) -> None:
    kept = await built(nix, nixpkgs, MODEL, file_built_by("echo kept >$out"))
    gone = await built(nix, nixpkgs, MODEL, file_built_by("echo gone >$out"))
    wanted = {kept.toplevel, nixpkgs.store_path, "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-not-there"}

    assert await another.collect(lambda: wanted, ALL) > 0

    assert rooted() == {kept.toplevel, nixpkgs.store_path}
    verify = ("nix", "store", "verify", "--recursive", "--sigs-needed", "1", "--trusted-public-keys", nix.public_key)
    await store(*verify, kept.toplevel)
    assert not await is_valid(gone.toplevel)
    assert not await is_valid(gone.drv_path)
    assert (await store("nix-store", "--gc", "--print-dead")) == ""


async def test_what_is_evaluated_and_not_built_yet_can_be_built_afterwards(
    nix: SandboxedNix, nixpkgs: Source, another: SandboxedNix
) -> None:
    source = await nix.add_tree({"web.nix": b'{ environment.etc.web.text = "served"; }'})
    evaluation = await nix.evaluate(request(nixpkgs, "{ }", public_key=nix.public_key, source=source))

    await another.collect(lambda: {evaluation.drv_path, nixpkgs.store_path}, ALL)

    assert not await is_valid(source.store_path)  # it was read, and is named by nothing
    assert await another.build(evaluation.drv_path, lambda _: None) == evaluation.toplevel


async def test_what_a_cut_build_has_made_goes_last(nix: SandboxedNix, nixpkgs: Source, another: SandboxedNix) -> None:
    """Else a build on a small disk would begin anew each time."""
    await another.collect(lambda: {nixpkgs.store_path}, ALL)
    evaluation = await evaluated(
        nix, nixpkgs, file_built_by("echo half >$out", "half"), file_built_by("exit 1", "other")
    )
    with pytest.raises(Blocked, match="build of other failed"):
        await nix.build(evaluation.drv_path, lambda _: None)
    half = await output_of_derivation("half", evaluation)
    assert await is_valid(half)
    wanted = {evaluation.drv_path, nixpkgs.store_path}
    garbage = await nix.add_tree({"garbage": bytes(1024**2)})

    await another.collect(lambda: wanted, 1024**2)
    assert not await is_valid(garbage.store_path)
    assert await is_valid(half)

    await another.collect(lambda: wanted, ALL)
    assert not await is_valid(half)
    assert await is_valid(evaluation.drv_path)


async def output_of_derivation(name: str, evaluation: Evaluation) -> str:
    closure = (await store("nix-store", "--query", "--requisites", evaluation.drv_path)).splitlines()
    drv = next(path for path in closure if path.endswith(f"-{name}.drv"))
    return await store("nix-store", "--query", "--outputs", drv)


async def test_what_was_just_given_to_somebody_stays(nix: SandboxedNix, nixpkgs: Source, another: SandboxedNix) -> None:
    """He says what it is for only when he uses it."""
    source = await another.add_tree({"web.nix": b'{ environment.etc.web.text = "given"; }'})
    evaluation = await another.evaluate(request(nixpkgs, "{ }", public_key=nix.public_key, source=source))
    toplevel = await another.build(evaluation.drv_path, lambda _: None)

    await another.collect(lambda: {nixpkgs.store_path}, ALL)

    for path in (source.store_path, evaluation.drv_path, toplevel):
        assert await is_valid(path)


async def test_a_build_is_waited_for_and_everything_else_goes_on(
    nix: SandboxedNix, nixpkgs: Source, another: SandboxedNix
) -> None:
    """What it has made so far is held by nothing: builders' temporary roots overwrite each other."""
    module = file_built_by("echo begun >$out; sleep 3600", "endless")
    evaluation = await evaluated(another, nixpkgs, module)
    output = await output_of_derivation("endless", evaluation)
    build = asyncio.ensure_future(another.build(evaluation.drv_path, lambda _: None))
    await until(lambda: any(Path("/nix/store").glob(f"{Path(output).name}*.lock")))
    asked: list[str] = []

    def wanted() -> set[str]:
        asked.append("once alone")
        return {nixpkgs.store_path}

    collection = asyncio.ensure_future(another.collect(wanted, ALL))
    waiting: list[str] = []
    other = await evaluated(another, nixpkgs, "{ }")
    next_build = asyncio.ensure_future(another.build(other.drv_path, waiting.append))
    await evaluated(another, nixpkgs, MODEL)
    assert (asked, collection.done()) == ([], False)
    assert waiting == ["waiting until the operator's store has room again"]

    build.cancel()
    await collection
    assert asked == ["once alone"]
    assert await next_build == other.toplevel


async def test_room_is_measured(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    limits = VolumeLimits(store=2**60)
    measuring = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, volume_limits=limits)
    space = await measuring.space()
    disk = await asyncio.to_thread(shutil.disk_usage, "/nix")
    assert space.used is not None
    assert 1024**2 < space.used < disk.total
    assert 0 < space.free < disk.total
