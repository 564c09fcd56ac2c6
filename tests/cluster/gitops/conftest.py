"""Flux' and Argo CD's own controllers beside the operator, and repositories that hold examples/gitops."""

from __future__ import annotations

import pytest

from cluster.gitops.repository import Repository
from nixops_lab import argocd as argocd_of_lab
from nixops_lab import gitops
from nixops_lab.testing import Lab


@pytest.fixture(scope="session")
def flux(started_lab: Lab) -> Lab:
    """The lab with Flux in it."""
    gitops.start(started_lab.paths)
    return started_lab


@pytest.fixture(scope="session")
def argocd(started_lab: Lab) -> Lab:
    """The lab with Argo CD in it."""
    argocd_of_lab.start(started_lab.paths)
    return started_lab


@pytest.fixture(scope="module")
def new_repository(started_lab: Lab, tmp_path_factory: pytest.TempPathFactory):
    """Makes a repository of that name; Flux or Argo CD must be there."""
    return lambda name: Repository.made(started_lab, name, tmp_path_factory.mktemp(name))
