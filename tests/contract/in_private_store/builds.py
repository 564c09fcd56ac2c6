"""Builds: signed, rooted, shut in; and copies that the far end can judge."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.far_store import far_store
from contract.nix_bench import (
    BOX,
    MODEL,
    arguments_of,
    descendants,
    file_built_by,
    listing,
    request,
    runs,
    store,
    until,
)
from nixops_operator.adapters.nix import builder as builder_module
from nixops_operator.adapters.nix import sandboxed_nix
from nixops_operator.adapters.nix.probe import SandboxUnsafe
from nixops_operator.adapters.nix.sandboxed_nix import BuildLimits, SandboxedNix, VolumeLimits
from nixops_operator.adapters.nix.signing import generate_signing_key, public_half
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Source

Texts = list[str]


async def built(nix: SandboxedNix, nixpkgs: Source, *modules: str, progress: Texts | None = None) -> str:
    evaluation = await nix.evaluate(request(nixpkgs, *modules, public_key=nix.public_key))
    toplevel = await nix.build(evaluation.drv_path, (progress if progress is not None else []).append)
    assert toplevel == evaluation.toplevel
    return toplevel


def text_of(*parts: str) -> str:
    return Path(*parts).read_text()


async def signatures(*store_arguments: str) -> list[list[str]]:
    """Path and signatures of each path of a closure."""
    lines = (await store("nix", "path-info", "--sigs", "--recursive", *store_arguments)).splitlines()
    # "ultimate" says that it was built here, which is no signature.
    return [[word for word in line.split() if word != "ultimate"] for line in lines]


async def test_the_model_example_is_built(nix: SandboxedNix, nixpkgs: Source) -> None:
    progress: Texts = []
    toplevel = await built(nix, nixpkgs, MODEL, progress=progress)
    assert "webserver" in text_of(toplevel, "etc", "hostname") or (Path(toplevel) / "nixos-version").exists()
    assert all(text.endswith(" built") for text in progress)


async def test_the_whole_closure_is_signed_with_our_key(nix: SandboxedNix, nixpkgs: Source) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)
    signed = await signatures(toplevel)
    assert len(signed) > 10
    for path, *marks in signed:
        assert any(mark.startswith("test-1:") for mark in marks), path
    verify = ("nix", "store", "verify", "--recursive", "--no-contents", "--sigs-needed", "1", "--trusted-public-keys")
    await store(*verify, nix.public_key, toplevel)


async def test_building_again_changes_nothing(nix: SandboxedNix, nixpkgs: Source) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)
    before = await signatures(toplevel)
    assert await built(nix, nixpkgs, MODEL) == toplevel
    assert await signatures(toplevel) == before


async def test_a_built_system_survives_garbage_collection(nix: SandboxedNix, nixpkgs: Source) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)
    roots = await store("nix-store", "--query", "--roots", toplevel)
    assert "/nix/var/nix/gcroots/nixops/" in roots
    assert toplevel not in (await store("nix-store", "--gc", "--print-dead")).splitlines()


async def test_a_failed_build_names_the_derivation_and_its_last_line(nix: SandboxedNix, nixpkgs: Source) -> None:
    evaluation = await nix.evaluate(
        request(nixpkgs, file_built_by("echo working; echo no such thing >&2; exit 3", "bad"))
    )
    with pytest.raises(Blocked) as failed:
        await nix.build(evaluation.drv_path, lambda _: None)
    assert failed.value.reason is Reason.BUILD_FAILED
    assert failed.value.message == "build of bad failed with exit code 3: no such thing"


async def test_a_derivation_that_is_not_there(nix: SandboxedNix) -> None:
    with pytest.raises(Blocked, match=r"a\.drv"):
        await nix.build("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.drv", lambda _: None)


@pytest.mark.parametrize("text", ["--help", "/etc/passwd", "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a"])
async def test_what_is_no_derivation_is_refused(nix: SandboxedNix, text: str) -> None:
    with pytest.raises(Blocked, match="not the path of a derivation"):
        await nix.build(text, lambda _: None)


async def test_a_builder_sees_nothing_but_its_inputs(nix: SandboxedNix, nixpkgs: Source, scratch: Path) -> None:
    """No file, process, environment, address or store path besides; and it can change none."""
    mark = scratch / "host-file"
    mark.write_text("host")
    seen = ""

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = "connected"
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    other = await nix.add_tree({"other": b"another tenant's"})
    script = f"""
      {{
        test ! -e {mark} || echo reads-host-file
        test ! -e {other.store_path} || echo reads-another-path
        test ! -e /nix/var || echo reads-the-data-base
        (echo x >/nix/store/planted) 2>/dev/null && test -e /nix/store/planted && echo in-its-own-store
        (bash -c "echo x >/dev/tcp/127.0.0.1/{port}") 2>/dev/null && echo reaches-the-network
        env | grep -c -e NIX_CONFIG -e NIXPKGS -e NIXOPS | grep -vx 0
        for pid in /proc/[0-9]*; do tr "\\0" " " <$pid/cmdline; done | grep -e py[t]est -e py[t]hon
        echo end
      }} >$out
    """
    try:
        await built(nix, nixpkgs, file_built_by(script))
    finally:
        server.close()
        await server.wait_closed()
    output = await store("nix-store", "--query", "--outputs", await derivation_of("seen"))
    assert set(text_of(output).split()) <= {"end", "in-its-own-store"}
    assert not await exists("/nix/store/planted")
    assert seen == ""


async def exists(path: str) -> bool:
    return await asyncio.to_thread(os.path.lexists, path)


async def derivation_of(name: str) -> str:
    drvs = await asyncio.to_thread(lambda: [str(path) for path in Path("/nix/store").glob(f"*-{name}.drv")])
    assert len(drvs) == 1
    return drvs[0]


LIMITS = BuildLimits()


@pytest.mark.parametrize(
    ("limits", "script", "message"),
    [
        pytest.param(
            replace(LIMITS, memory=256 * 1024**2),
            "head -c 500M /dev/zero | tail >$out",
            "build of hungry failed with exit code 1: tail: memory exhausted",
            id="memory",
        ),
        pytest.param(
            replace(LIMITS, silent=timedelta(seconds=1)),
            "while :; do :; done",
            "build of hungry timed out after 1 seconds( of silence)?",
            id="silence",
        ),
        pytest.param(
            replace(LIMITS, output=100_000),
            "while :; do echo on and on and on and on; done",
            "build of hungry killed after writing more than 100000 bytes of log output: on and on and on and on",
            id="log",
        ),
        pytest.param(
            replace(LIMITS, timeout=timedelta(seconds=3)),
            "while :; do :; done",
            "build of nixos-system-webserver-25.11.lab took longer than 3s",
            id="time",
        ),
    ],
)
async def test_a_build_has_limits(
    nix: SandboxedNix,
    nixpkgs: Source,
    scratch: Path,
    signing_key: str,
    limits: BuildLimits,
    script: str,
    message: str,
) -> None:
    limited = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, build_limits=limits)
    evaluation = await nix.evaluate(request(nixpkgs, file_built_by(script, "hungry")))
    with pytest.raises(Blocked) as failed:
        await limited.build(evaluation.drv_path, lambda _: None)
    assert re.fullmatch(message, failed.value.message)
    assert descendants() == set()


async def test_a_build_has_a_limit_of_processes(
    nix: SandboxedNix, nixpkgs: Source, scratch: Path, signing_key: str
) -> None:
    """In all namespaces below its own, and only there; for root the kernel counts none."""
    limited = SandboxedNix(
        scratch=scratch, signing_key=signing_key, box=BOX, build_limits=replace(LIMITS, processes=40)
    )
    script = "for n in $(seq 60); do sleep 100 & done; echo $n >$out"
    evaluation = await nix.evaluate(request(nixpkgs, file_built_by(script, "forking")))
    if os.geteuid() == 0:
        await limited.build(evaluation.drv_path, lambda _: None)
        return
    with pytest.raises(Blocked, match=r"build of forking failed .*Cannot fork"):
        await limited.build(evaluation.drv_path, lambda _: None)


async def test_no_build_begins_on_a_full_disk(
    nix: SandboxedNix, nixpkgs: Source, scratch: Path, signing_key: str
) -> None:
    evaluation = await nix.evaluate(request(nixpkgs, file_built_by("echo >$out", "unlucky")))
    full = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, build_limits=replace(LIMITS, disk=2**60))
    with pytest.raises(Retry, match=r"the operator's disk is full: .* is free at /nix; .*store\.sizeLimit") as refused:
        await full.build(evaluation.drv_path, lambda _: None)
    assert refused.value.reason is Reason.BUILDING


async def test_a_build_that_fills_the_volume_is_ended_before_the_pod_is_evicted(
    nix: SandboxedNix, nixpkgs: Source, scratch: Path, signing_key: str
) -> None:
    endless = file_built_by("dd if=/dev/zero of=$out bs=1M count=200; sleep 3600")
    evaluation = await nix.evaluate(request(nixpkgs, endless))
    measuring = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, volume_limits=VolumeLimits(2**60))
    used = (await measuring.space()).used
    assert used is not None
    limited = SandboxedNix(
        scratch=scratch,
        signing_key=signing_key,
        box=BOX,
        build_limits=replace(LIMITS, disk=1),
        volume_limits=VolumeLimits(store=used + 100 * 1024**2),
    )
    with pytest.raises(Retry, match=r"left at /nix of the .* of the setting nix\.store\.maxSize, .* evicts") as ended:
        await limited.build(evaluation.drv_path, lambda _: None)
    assert ended.value.reason is Reason.BUILDING
    assert descendants() == set()


async def test_cancelling_a_build_ends_every_process(nix: SandboxedNix, nixpkgs: Source) -> None:
    endless = file_built_by("while :; do :; done", "endless-loop")
    evaluation = await nix.evaluate(request(nixpkgs, endless))
    task = asyncio.create_task(nix.build(evaluation.drv_path, lambda _: None))
    await until(lambda: any("while :; do" in arguments_of(pid) for pid in descendants()))
    started = descendants()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(runs(pid) for pid in started))
    assert descendants() == set()


async def test_nothing_of_a_build_stays_in_the_scratch_folder(
    nix: SandboxedNix, nixpkgs: Source, scratch: Path
) -> None:
    evaluation = await nix.evaluate(request(nixpkgs, file_built_by("mkdir -p a/b; chmod 0 a; exit 1", "locked")))
    before = listing(scratch)
    with pytest.raises(Blocked):
        await nix.build(evaluation.drv_path, lambda _: None)
    assert listing(scratch) == before


async def test_the_signing_key_is_nowhere_to_be_seen(
    monkeypatch: pytest.MonkeyPatch, nix: SandboxedNix, nixpkgs: Source, scratch: Path, signing_key: str
) -> None:
    """Not in an argument or a variable of any child, not on disk, not in what is printed of the port."""
    told: list[str] = []
    start = asyncio.create_subprocess_exec

    async def recorded(*argv: str, **given: Any) -> asyncio.subprocess.Process:
        told.extend((*argv, *given["env"].values()))
        return await start(*argv, **given)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", recorded)
    await built(nix, nixpkgs, MODEL, '{ networking.hostName = "signed"; }')
    assert any("sign" in each for each in told)
    secret = base64.b64encode(base64.b64decode(signing_key.partition(":")[2])[:32]).decode()[:40]
    assert secret in signing_key  # the control
    assert not [each for each in told if secret in each]
    assert secret not in repr(nix)
    assert await files_with(secret.encode(), scratch, Path("/nix")) == []


async def files_with(content: bytes, *folders: Path) -> list[Path]:
    def search() -> list[Path]:
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if os.access(path, os.R_OK) and content in path.read_bytes()]

    return await asyncio.to_thread(search)


async def test_a_generated_key_signs_for_its_public_half() -> None:
    key = await generate_signing_key("nixops-1")
    assert key.startswith("nixops-1:")
    assert public_half(key).startswith("nixops-1:")
    assert await generate_signing_key("nixops-1") != key


@pytest.mark.parametrize("text", ["", "nixops-1", "nixops-1:", "nixops-1:AAAA", ":" + "A" * 86 + "==", "n:not base64!"])
def test_what_is_no_signing_key_is_refused(text: str) -> None:
    with pytest.raises(Blocked) as failed:
        public_half(text)
    assert failed.value.reason is Reason.SECRET_NOT_FOUND
    assert not text.partition(":")[2] or text.partition(":")[2] not in failed.value.message


async def test_a_signed_closure_arrives_with_its_signatures(
    nix: SandboxedNix, nixpkgs: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxed_nix, "_PROGRESS_SECONDS", 0.0)
    toplevel = await built(nix, nixpkgs, MODEL)
    progress: Texts = []
    async with far_store(tmp_path, nix.public_key) as (socket, far):
        await nix.copy(toplevel, socket, progress.append)
        await nix.copy(toplevel, socket, lambda _: None)  # repeating is safe
    closure = await store("nix-store", "--query", "--requisites", toplevel)
    assert sorted(await signatures("--store", far, toplevel)) == sorted(await signatures(toplevel))
    assert {path for path, *_ in await signatures("--store", far, toplevel)} == set(closure.split())
    assert progress[0] == "asking what the machine has", "bytes count before the first path is there"
    assert progress[-1].partition(",")[0] == f"{len(closure.split())} of {len(closure.split())} copied"


async def test_a_far_end_that_does_not_know_our_key_refuses(nix: SandboxedNix, nixpkgs: Source, tmp_path: Path) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)
    stranger = public_half(await generate_signing_key("stranger-1"))
    async with far_store(tmp_path, stranger) as (socket, far):
        with pytest.raises(Retry, match=r"lacks a (valid )?signature") as failed:
            await nix.copy(toplevel, socket, lambda _: None)
        with pytest.raises(Exception, match="is not valid"):
            await signatures("--store", far, toplevel)
    assert failed.value.reason is Reason.COPY_FAILED


async def test_a_connection_that_breaks_is_tried_again(nix: SandboxedNix, nixpkgs: Source, tmp_path: Path) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "socket")
    async with server:
        with pytest.raises(Retry) as failed:
            await nix.copy(toplevel, tmp_path / "socket", lambda _: None)
    assert failed.value.reason is Reason.COPY_FAILED


async def test_no_socket_at_all(nix: SandboxedNix, nixpkgs: Source, tmp_path: Path) -> None:
    toplevel = await built(nix, nixpkgs, MODEL)
    with pytest.raises(Retry) as failed:
        await nix.copy(toplevel, tmp_path / "nowhere", lambda _: None)
    assert failed.value.reason is Reason.COPY_FAILED


async def test_a_node_that_cannot_build_is_known_at_the_start(
    nix: SandboxedNix, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nix.probe_builder()
    assert nix.no_builder("x86_64-linux") is None
    assert nix.no_builder("aarch64-linux") == "the operator's node is x86_64-linux and builds nothing for aarch64-linux"
    monkeypatch.setattr(builder_module, "PROCESSES", ("bwrap", "--no-such-option"))
    monkeypatch.setattr(builder_module, "ROOT_PROCESSES", ("bwrap", "--no-such-option"))
    with pytest.raises(SandboxUnsafe, match="cannot confine a builder on its node: "):
        await nix.probe_builder()
    assert "cannot confine a builder" in str(nix.no_builder("x86_64-linux"))
    monkeypatch.undo()
    await nix.probe_builder()
    assert nix.no_builder("x86_64-linux") is None


async def test_a_full_disk_says_nothing_about_the_node(signing_key: str, scratch: Path) -> None:
    full = SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, build_limits=BuildLimits(disk=2**62))
    with pytest.raises(Retry, match="could not try a builder: the operator's disk is full"):
        await full.probe_builder()
    assert "disk is full" in str(full.no_builder("x86_64-linux"))
