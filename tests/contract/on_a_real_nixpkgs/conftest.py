"""A store with a whole nixpkgs in it, which `LAB_REAL_NIXPKGS` names."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from contract.in_private_store.conftest import nix, scratch, signing_key
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.facts.nix import Source

__all__ = ["nix", "scratch", "signing_key"]


@pytest.fixture(scope="session")
def nixpkgs(nix: SandboxedNix) -> Source:
    return asyncio.run(nix.add_path(Path(os.environ["LAB_REAL_NIXPKGS"])))
