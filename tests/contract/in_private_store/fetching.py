"""Trees that come as tarballs, from a server on loopback into a real store."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web

from contract.nix_bench import BOX, listing, nixpkgs_folder, request, store
from nixops_operator.adapters.egress.egress import Egress
from nixops_operator.adapters.nix.fetched_trees import SourceLimits
from nixops_operator.adapters.nix.programs import output_of, trusted_environment
from nixops_operator.adapters.nix.sandboxed_nix import BuildLimits, SandboxedNix, VolumeLimits
from nixops_operator.api.reasons import Reason
from nixops_operator.egress_policy import EgressPolicy
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Archive, Module

WRONG = f"sha256-{'A' * 43}="
OPEN = EgressPolicy(allowed=(ip_network("127.0.0.1/32"),), ports=frozenset(range(1, 65536)))


@contextlib.asynccontextmanager
async def serving(body: bytes, asked: list[str]) -> AsyncIterator[str]:
    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(body=body) if request.path == "/tree.tar.gz" else web.Response(status=404)

    async with served(answer) as url:
        yield url


@contextlib.asynccontextmanager
async def served(answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/tree.tar.gz"
    finally:
        await runner.cleanup()


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    egress = Egress(OPEN)
    yield egress
    await egress.close()


async def used(folder: Path) -> int:
    """Bytes on disk."""
    return int(
        (await output_of(("du", "--summarize", "--block-size=1", str(folder)), trusted_environment(None))).split()[0]
    )


@contextlib.asynccontextmanager
async def fetching(scratch: Path, signing_key: str, policy: EgressPolicy = OPEN) -> AsyncIterator[SandboxedNix]:
    egress = Egress(policy)
    try:
        yield SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, egress=egress)
    finally:
        await egress.close()


def tarball(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, "nixpkgs-0000000")
    return packed.getvalue()


async def right_hash(nix: SandboxedNix, url: str) -> str:
    """What the refusal of a wrong hash says."""
    with pytest.raises(Blocked, match="has the hash sha256-") as refused:
        await nix.fetch(Archive(url, WRONG), lambda _: None)
    return refused.value.message.split("has the hash ")[1].split(",")[0]


async def test_nixpkgs_by_content(scratch: Path, signing_key: str, tmp_path: Path) -> None:
    """Fetched once, by its hash; a system is evaluated with it, and with modules of another archive."""
    asked: list[str] = []
    tree = tmp_path / "tree"
    (tree / "machines").mkdir(parents=True)
    (tree / "machines/box.nix").write_text("{ imports = [ ./more.nix ]; }")
    (tree / "machines/more.nix").write_text("{ environment.etc.from-archive.text = builtins.readFile ./text; }")
    (tree / "machines/text").write_text("hello")
    # Other tests may have stored nixpkgs itself in this store.
    own_nixpkgs = tmp_path / "nixpkgs"
    shutil.copytree(nixpkgs_folder(), own_nixpkgs, symlinks=True)
    (own_nixpkgs / "another").write_text("another nixpkgs")
    async with (
        serving(tarball(own_nixpkgs), asked) as url,
        serving(tarball(tree), []) as own,
        fetching(scratch, signing_key) as nix,
    ):
        right = await right_hash(nix, url)
        told: list[str] = []
        nixpkgs = await nix.fetch(Archive(url, right), told.append)
        assert told[-2:] == ["unpacking", "storing"]
        count = len(asked)
        assert await nix.fetch(Archive(f"{url}/moved", right), told.append) == nixpkgs
        assert len(asked) == count
        assert nixpkgs == await nix.add_path(own_nixpkgs)
        source = await nix.fetch(Archive(own, await right_hash(nix, own)), lambda _: None)
        module = Module("machines/box.nix", path="machines/box.nix")
        evaluation = await nix.evaluate(replace(request(nixpkgs), source=source, modules=(module,)))
    assert "nixos-system-" in evaluation.toplevel
    assert await store("nix-store", "--check-validity", nixpkgs.store_path) == ""


async def test_what_is_not_fetched(scratch: Path, signing_key: str) -> None:
    async with serving(b"<html>", []) as url, fetching(scratch, signing_key) as nix:
        for place, words in ((url, "no tarball"), (f"{url}x", "404"), (f"{url}?token=hunter2", r"gz\?…: it is no")):
            with pytest.raises(Blocked, match=words) as refused:
                await nix.fetch(Archive(place, WRONG), lambda _: None)
            assert refused.value.reason is Reason.SOURCE_NOT_FOUND
            assert "hunter2" not in str(refused.value)
        with pytest.raises(Retry):
            await nix.fetch(Archive("http://127.0.0.1:1/x", WRONG), lambda _: None)
    asked: list[str] = []
    async with serving(b"x", asked) as url, fetching(scratch, signing_key, EgressPolicy(ports=OPEN.ports)) as nix:
        with pytest.raises(Blocked, match="loopback") as refused:
            await nix.fetch(Archive(url, WRONG), lambda _: None)
    assert (refused.value.reason, asked) == (Reason.SOURCE_FORBIDDEN, [])


async def test_a_fetch_that_fills_the_volume_is_ended_before_the_pod_is_evicted(
    scratch: Path, signing_key: str, egress: Egress
) -> None:
    """It goes on and on, far below what one archive may have."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1024**2))
            await asyncio.sleep(0.02)  # fifty MB a second at most

    limits = VolumeLimits(scratch=await used(scratch) + 50 * 1024**2)
    nix = SandboxedNix(
        scratch=scratch,
        signing_key=signing_key,
        box=BOX,
        egress=egress,
        build_limits=BuildLimits(disk=1),
        source_limits=SourceLimits(compressed=2**40),
        volume_limits=limits,
    )
    before = listing(scratch)
    async with served(answer) as url:
        with pytest.raises(Retry, match=r"left at .* of the setting nix\.scratch\.maxSize, .* evicts") as ended:
            await nix.fetch(Archive(url, WRONG), lambda _: None)
    assert ended.value.reason is Reason.FETCHING
    assert listing(scratch) == before
