"""A store with a whole nixpkgs in it, which `LAB_REAL_NIXPKGS` names."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import pytest

from contract.in_private_store.conftest import scratch, signing_key
from contract.nix_bench import BOX
from nixops_operator.adapters.nix.boxes.box import EvaluationLimits
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.facts.nix import Source

__all__ = ["scratch", "signing_key"]


@pytest.fixture(scope="session")
def nix(signing_key: str, scratch: Path) -> SandboxedNix:
    """It may take as long as it takes: on a machine that others use, one evaluation takes more than the operator's five
    minutes. Its CPU is limited as ever."""
    limits = EvaluationLimits(timeout=timedelta(hours=1))
    return SandboxedNix(scratch=scratch, signing_key=signing_key, box=BOX, evaluation_limits=limits)


@pytest.fixture(scope="session")
def nixpkgs(nix: SandboxedNix) -> Source:
    return asyncio.run(nix.add_path(Path(os.environ["LAB_REAL_NIXPKGS"])))
