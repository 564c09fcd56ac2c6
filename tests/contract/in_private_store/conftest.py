"""One store and one signing key for all suites."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from contract.nix_bench import BOX, nixpkgs_folder
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.adapters.nix.signing import generate_signing_key
from nixops_operator.facts.nix import Source


@pytest.fixture(scope="session")
def signing_key() -> str:
    return asyncio.run(generate_signing_key("test-1"))


@pytest.fixture(scope="session")
def scratch() -> Path:
    return Path(tempfile.mkdtemp())


@pytest.fixture(scope="session")
def nix(signing_key: str, scratch: Path) -> SandboxedNix:
    return SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX)


@pytest.fixture(scope="session")
def nixpkgs(nix: SandboxedNix) -> Source:
    return asyncio.run(nix.add_path(nixpkgs_folder()))
