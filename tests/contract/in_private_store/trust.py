"""What others may not decide for the operator: with which settings its Nix works, what a machine takes from it, and
what lies in its store besides what was built. Each attack is shown to work where nothing guards against it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from contract.far_store import far_store
from contract.nix_bench import file_built_by, listener, request, store
from nixops_operator.adapters.nix.programs import NixFailedError, output_of
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.nix import Evaluation, Module, Source

FLAWED = ((2, 26, 3), (2, 34, 4))
"""Versions, of those that are out there, in which a link in the way of a fixed output is written through
(CVE-2026-39860). Debian 13 has the first."""

BARE = "sandbox = false\nmax-jobs = 1\nbuild-users-group =\n"


async def by_itself(folder: Path, settings: str, drv_path: str) -> None:
    """Nix alone builds it in this store with these settings. Raises NixFailedError."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "USER": "somebody",
        "NIX_CONF_DIR": str(folder),
        "NIX_REMOTE": "local",
        "NIX_CONFIG": BARE + settings,
    }
    await output_of(("nix-store", "--realise", drv_path), environment)


async def test_no_settings_of_a_tenant_s_reach_the_operator_s_nix(
    nix: SandboxedNix, nixpkgs: Source, tmp_path: Path
) -> None:
    """Another cache, and a program after each build: in the system, in the source's files, in a builder's variables."""
    mark, hook = tmp_path / "the-hook-ran", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >{mark}\n")
    hook.chmod(0o755)
    async with listener() as (port, seen):
        cache = f"http://127.0.0.1:{port}"
        settings = f"substitute = true\nsubstituters = {cache}\npost-build-hook = {hook}\ndownload-attempts = 1\n"
        module = f"""{{ ... }}: {{
          nix.settings = {{ substituters = [ "{cache}" ]; post-build-hook = "{hook}"; require-sigs = false; }};
          environment.etc.asked.source = derivation {{
            name = "asked";
            system = "x86_64-linux";
            builder = "/bin/sh";
            args = [ "-c" "echo built >$out" ];
            NIX_CONFIG = builtins.readFile ./nix.conf;
            NIX_USER_CONF_FILES = ./nix.conf;
          }};
        }}"""
        flake = f'{{ nixConfig.substituters = [ "{cache}" ]; outputs = _: {{ }}; }}'
        texts = {"machine.nix": module, "nix.conf": settings, ".config/nix/nix.conf": settings, "flake.nix": flake}
        source = await nix.add_tree({name: text.encode() for name, text in texts.items()})
        wanted = replace(request(nixpkgs, source=source), modules=(Module("machine.nix", path="machine.nix"),))
        evaluation = await nix.evaluate(wanted)
        await nix.build(evaluation.drv_path, lambda _: None)
        assert seen == []
        assert not mark.exists()

        # The control: Nix with these settings does both.
        control = await nix.evaluate(request(nixpkgs, file_built_by("echo control >$out", "control")))
        await by_itself(tmp_path, settings, await derivation_in(control, "control"))
        assert seen != []
        assert mark.exists()


async def test_a_machine_takes_nothing_that_nobody_signed(nix: SandboxedNix, nixpkgs: Source, tmp_path: Path) -> None:
    evaluation = await nix.evaluate(request(nixpkgs, file_built_by("echo unsigned >$out", "unsigned")))
    (tmp_path / "bare").mkdir()
    await by_itself(tmp_path / "bare", "", evaluation.drv_path)
    (tmp_path / "far").mkdir()
    async with far_store(tmp_path / "far", nix.public_key) as (socket, far):
        with pytest.raises(Retry, match=r"lacks a (valid )?signature"):
            await nix.copy(evaluation.toplevel, socket, lambda _: None)
        asked = ("nix", "path-info", "--store", far, evaluation.toplevel)
        with pytest.raises(Exception, match="is not valid"):
            await store(*asked)

        # The control: signed by us it arrives there, and a store that judges nothing takes it as it is.
        unjudged = f"local?root={tmp_path / 'unjudged'}"
        await store("nix", "copy", "--no-check-sigs", "--to", unjudged, evaluation.toplevel)
        await nix.build(evaluation.drv_path, lambda _: None)
        await nix.copy(evaluation.toplevel, socket, lambda _: None)
        assert evaluation.toplevel in await store(*asked)


@pytest.fixture
def victim() -> Path:
    """A file that Nix itself may write where it builds."""
    path = Path("/nix/var/victim")
    path.write_text("whole")
    return path


async def test_no_builder_makes_a_fixed_output_here(
    nix: SandboxedNix, nixpkgs: Source, victim: Path, tmp_path: Path
) -> None:
    """Such builders have Nix' sandbox with a network, and write where Nix copies from. What they would fetch is fetched
    for them, or not at all."""
    digest = hashlib.sha256(b"planted").hexdigest()
    module = f"""{{ ... }}: {{
      environment.etc.fixed.source = derivation {{
        name = "fixed";
        system = "x86_64-linux";
        builder = "/bin/sh";
        PATH = "/usr/bin:/bin";
        args = [ "-c" "ln -s {victim} $out.tmp; printf planted >$out" ];
        outputHashMode = "flat";
        outputHashAlgo = "sha256";
        outputHash = "{digest}";
      }};
    }}"""
    evaluation = await nix.evaluate(request(nixpkgs, module))
    with pytest.raises(Blocked, match="fixed is to be fetched, and names no plain URL"):
        await nix.build(evaluation.drv_path, lambda _: None)
    assert await asyncio.to_thread(victim.read_text) == "whole"

    # The control: Nix alone runs it. A Nix that is not mended writes through the link, and stumbles over it afterwards;
    # Debian may mend its own without another version.
    fixed = await derivation_in(evaluation, "fixed")
    version = tuple(int(part) for part in (await store("nix-store", "--version")).split()[-1].split("."))
    try:
        await by_itself(tmp_path, "", fixed)
        found = "whole"
    except NixFailedError:
        assert FLAWED[0] <= version <= FLAWED[1]
        found = "planted"
    assert await asyncio.to_thread(victim.read_text) == found


async def derivation_in(evaluation: Evaluation, name: str) -> str:
    paths = (await store("nix-store", "--query", "--requisites", evaluation.drv_path)).splitlines()
    return next(path for path in paths if path.endswith(f"-{name}.drv"))
