"""Builds of which others have a part: the lab's binary cache and sources, on loopback, and real Nix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from contract.nix_bench import BOX, request, store
from nixops_lab.binary_cache.server import CacheServer
from nixops_lab.binary_cache.signing_key import PUBLIC_KEY
from nixops_operator.adapters.egress.egress import Egress
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.adapters.nix.substitution import Substituter
from nixops_operator.egress_policy import EgressPolicy
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Source

OPEN = EgressPolicy(allowed=(ip_network("127.0.0.1/32"),), ports=frozenset(range(1, 65536)))


@dataclass
class Bench:
    server: CacheServer
    nix: SandboxedNix
    nixpkgs: Source

    @property
    def archives(self) -> list[str]:
        """What was fetched of the cache's archives."""
        return [entry["path"] for entry in self.server.log if entry["path"].startswith("/nar/")]

    async def build(self, package: str, told: list[str] | None = None) -> str:
        """A system that needs this package of the miniature nixpkgs."""
        config = f'nixpkgs.config.labCacheUrl = "http://127.0.0.1:{self.server.port}";'
        text = f'{{ pkgs, ... }}: {{ {config} environment.etc.it.text = "${{{package}}}"; }}'
        evaluation = await self.nix.evaluate(request(self.nixpkgs, text, public_key=self.nix.public_key))
        return await self.nix.build(evaluation.drv_path, told.append if told is not None else lambda _: None)


@contextlib.asynccontextmanager
async def bench(
    scratch: Path, signing_key: str, nixpkgs: Source, policy: EgressPolicy = OPEN, caches: int = 1
) -> AsyncIterator[Bench]:
    """Its `server` is the first of so many caches."""
    servers = [CacheServer(Path(os.environ["LAB_CACHE_FOLDER"]), scratch) for _ in range(caches)]
    for server in servers:
        await server.start("127.0.0.1", 0)
    egress = Egress(policy)
    given = [Substituter(f"http://127.0.0.1:{server.port}", (PUBLIC_KEY,)) for server in servers]
    try:
        nix = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, egress=egress, substituters=given)
        yield Bench(servers[0], nix, nixpkgs)
    finally:
        await egress.close()
        for server in servers:
            await server.close()


async def test_what_a_cache_has_is_not_built(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        told: list[str] = []
        toplevel = await here.build("pkgs.prebuilt.cached 96", told)
        assert len(here.archives) == 7  # 96, 48, 24, 12, 6, 3 and 1 need each other
        assert any("of 7 fetched" in text for text in told)
        here.server.log.clear()
        assert await here.build("pkgs.prebuilt.cached 96") == toplevel
        assert here.server.log == []
    found = (await store("nix-store", "--query", "--requisites", toplevel)).splitlines()
    cached = next(path for path in found if path.endswith("-cached-96-1.0"))
    signed = await store("nix", "--extra-experimental-features", "nix-command", "path-info", "--sigs", cached)
    assert "lab-cache-1:" in signed
    assert "test-1:" in signed


async def test_archives_may_be_named_with_a_query(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.server.turn({"queries": True})
        assert await here.build("pkgs.prebuilt.cached 70")
        assert here.archives


async def test_what_lies_behind_a_fixed_hash_is_fetched(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.build("pkgs.prebuilt.fromSource 1")
        assert "/source/source-1.txt" in [entry["path"] for entry in here.server.log]
        wrong = 'pkgs.fetchurl { url = "http://127.0.0.1:%d/source/source-2.txt"; sha256 = "%s"; }'
        with pytest.raises(Blocked, match=r"another hash.*build\.on: Target"):
            await here.build(wrong % (here.server.port, "0" * 64))


async def test_a_source_at_a_forbidden_address_is_not_fetched(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    async with bench(scratch, signing_key, nixpkgs, EgressPolicy(ports=OPEN.ports)) as here:
        with pytest.raises((Blocked, Retry), match="loopback"):
            await here.build("pkgs.prebuilt.fromSource 3")
        assert here.server.log == []


async def test_a_cache_that_fails_now_and_then_is_asked_again(scratch: Path, signing_key: str, nixpkgs: Source) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.server.turn({"flaky": True})
        assert await here.build("pkgs.prebuilt.cached 26")


async def test_much_is_not_built_where_a_cache_gives_no_archives(
    scratch: Path, signing_key: str, nixpkgs: Source
) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.server.turn({"archives_fail": True})
        with pytest.raises(Retry, match=r"does not answer .*503.*waiting for it rather than building \d+ things"):
            await here.build("toString (map pkgs.prebuilt.cached (builtins.genList (n: 160 + n) 40))")


@pytest.mark.parametrize(
    ("number", "of_the_first"),
    [
        pytest.param(122, {"missing": "cached-61-"}, id="it lacks what its own paths need"),
        pytest.param(124, {"wrong_signature": True}, id="its signatures are wrong"),
        pytest.param(126, {"truncated": True}, id="its archives break off"),
        pytest.param(128, {"archives_fail": True}, id="it gives no archives"),
        pytest.param(130, {"locked": True}, id="it does not know us"),
    ],
)
async def test_what_one_cache_lacks_another_gives(
    scratch: Path, signing_key: str, nixpkgs: Source, number: int, of_the_first: dict[str, object]
) -> None:
    async with bench(scratch, signing_key, nixpkgs, caches=2) as here:
        await here.server.turn(dict(of_the_first))
        assert await here.build(f"pkgs.prebuilt.cached {number}")


@pytest.mark.parametrize(
    ("number", "knobs", "words"),
    [
        pytest.param(101, {"missing": "cached-101-"}, "cached-101", id="a path is missing"),
        pytest.param(103, {"wrong_signature": True}, "signature", id="a wrong signature"),
        pytest.param(105, {"truncated": True}, "could not be had", id="it breaks off"),
        pytest.param(107, {"refuses": True}, "does not answer", id="nobody listens"),
        pytest.param(109, {"locked": True}, "does not know the operator.*netrcFile.*401", id="who are you"),
    ],
)
async def test_a_cache_that_fails_is_told_and_recovered_from(
    scratch: Path, signing_key: str, nixpkgs: Source, number: int, knobs: dict[str, object], words: str
) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.server.turn(dict(knobs))
        with pytest.raises((Retry, Blocked), match=words):
            await here.build(f"pkgs.prebuilt.cached {number}")
        await here.server.turn(
            {"missing": "", "wrong_signature": False, "truncated": False, "refuses": False, "locked": False}
        )
        assert await here.build(f"pkgs.prebuilt.cached {number}")


async def test_a_source_that_only_a_cache_has_is_waited_for_with_it(
    scratch: Path, signing_key: str, nixpkgs: Source
) -> None:
    package = 'pkgs.fetchurl { url = "mirror://gnu/x-1.txt"; sha256 = "%s"; }'
    async with bench(scratch, signing_key, nixpkgs) as here:
        with pytest.raises(Blocked, match="names no plain URL"):
            await here.build(package % ("1" * 64))
        await here.server.turn({"refuses": True})
        with pytest.raises(Retry, match=r"does not answer .* names no plain URL"):
            await here.build(package % ("2" * 64))


async def test_what_can_be_built_is_built_where_the_cache_fails(
    scratch: Path, signing_key: str, nixpkgs: Source
) -> None:
    async with bench(scratch, signing_key, nixpkgs) as here:
        await here.server.turn({"refuses": True})
        assert await here.build("pkgs.prebuilt.buildable 5")
