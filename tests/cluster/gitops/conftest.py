"""Flux' own controllers beside the operator, and a repository that holds examples/gitops/flux."""

from __future__ import annotations

import pytest

from cluster.gitops.repository import Repository
from nixops_lab import gitops
from nixops_lab.testing import Lab


@pytest.fixture(scope="session")
def flux(started_lab: Lab) -> Lab:
    """The lab with Flux in it."""
    gitops.start(started_lab.paths)
    return started_lab


@pytest.fixture(scope="module")
def new_repository(flux: Lab, tmp_path_factory: pytest.TempPathFactory):
    """Makes a repository of that name, with a first commit that is empty."""
    return lambda name: Repository.made(flux, name, tmp_path_factory.mktemp(name))
