"""The binary cache and the server of sources, by themselves: what Nix makes of them, and each knob."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nixops_lab.binary_cache.server import CacheServer
from nixops_lab.binary_cache.signing_key import PUBLIC_KEY, SECRET_KEY

NARINFO = "StorePath: /nix/store/aaaa-hello-1\nURL: nar/hello.nar.xz\nSig: lab-cache-1:QUJDREVGR0hJSktM\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[CacheServer]:
    (tmp_path / "cache/nar").mkdir(parents=True)
    (tmp_path / "archives").mkdir()
    (tmp_path / "cache/aaaa.narinfo").write_text(NARINFO)
    (tmp_path / "cache/nar/hello.nar.xz").write_bytes(bytes(100_000))
    (tmp_path / "archives/x.tar").write_bytes(b"tar")
    made = CacheServer(tmp_path / "cache", tmp_path / "archives")
    await made.start("127.0.0.1", 0)
    yield made
    await made.close()


async def get(server: CacheServer, path: str) -> tuple[int, bytes]:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, allow_redirects=False) as answer:
        return answer.status, await answer.read()


async def test_what_it_serves(server: CacheServer) -> None:
    assert await get(server, "/aaaa.narinfo") == (200, NARINFO.encode())
    assert (await get(server, "/nar/hello.nar.xz"))[1] == bytes(100_000)
    assert await get(server, "/source/source-7.txt") == (200, b"source 7 of the lab\n")
    assert await get(server, "/archive/x.tar") == (200, b"tar")
    assert (await get(server, "/../../etc/passwd"))[0] == 404
    assert (await get(server, "/onward?to=http://x/"))[0] == 302
    assert [entry["status"] for entry in server.log] == [200, 200, 200, 200, 404, 302]
    assert server.log[1]["bytes"] == 100_000


async def test_the_knobs(server: CacheServer) -> None:
    await server.turn({"missing": "hello-1"})
    assert (await get(server, "/aaaa.narinfo"))[0] == 404
    await server.turn({"missing": "", "wrong_signature": "true"})
    assert b"Sig: lab-cache-1:AAAAAAAAR0hJSktM" in (await get(server, "/aaaa.narinfo"))[1]
    await server.turn({"wrong_signature": False, "truncated": True})
    with pytest.raises(aiohttp.ClientError):
        await get(server, "/nar/hello.nar.xz")
    await server.turn({"truncated": False, "bytes_per_second": 200_000, "latency_seconds": 0.1})
    began = time.monotonic()
    await get(server, "/nar/hello.nar.xz")
    assert time.monotonic() - began > 0.5
    await server.turn({"refuses": True})
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(server, "/aaaa.narinfo")
    await server.turn({"refuses": False, "bytes_per_second": 0, "latency_seconds": 0})
    assert (await get(server, "/aaaa.narinfo"))[0] == 200
    with pytest.raises(ValueError, match="no knob speed"):
        await server.turn({"speed": 1})


def test_the_key_is_one_that_nix_knows() -> None:
    if shutil.which("nix") is None:
        pytest.skip("needs Nix")
    argv = ["nix", "--extra-experimental-features", "nix-command", "key", "convert-secret-to-public"]
    done = subprocess.run(argv, input=SECRET_KEY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PUBLIC_KEY


@pytest.mark.lab
class TestInALab:
    """One machine fetches from it, as Nix does."""

    def test_a_machine_substitutes(self, tmp_path: Path) -> None:
        from nixops_lab.testing import Lab  # noqa: PLC0415 - the other tests need none of it

        with Lab.up(tmp_path / "lab") as lab:
            url, key = lab.env["LAB_CACHE_URL"], lab.env["LAB_CACHE_KEY"]
            lab.fill_cache()
            found = subprocess.run(
                [
                    "sh",
                    "-c",
                    f"grep -l 'cached-200-1.0$' {os.environ['HOME']}/.cache/nixops-lab/binary-cache-*/*.narinfo",
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            path = next(
                line.removeprefix("StorePath: ")
                for line in Path(found[-1]).read_text().splitlines()
                if line.startswith("StorePath: ")
            )
            command = ["nix-store", "--realise", path, "--option", "substituters", url]
            lab.machine_exec("given-host", [*command, "--option", "trusted-public-keys", key])
            asked = [entry["path"] for entry in lab.control.cache_log()]
            assert sum(path.startswith("/nar/") for path in asked) == 8  # 200, 100, 50, 25, 12, 6, 3, 1
