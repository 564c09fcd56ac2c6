"""A real API server, shared by all tests of the level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from component.api_server import ACCOUNT, ROOT, ApiServer, compiled, establish_crds, running

__all__ = ["ACCOUNT", "ROOT", "ApiServer"]


@pytest.fixture(scope="session")
def programs() -> Path:
    """Folder with kube-apiserver, kubectl and helm."""
    return compiled()


@pytest.fixture(scope="session")
def api_server(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An empty cluster, see component.api_server."""
    with running(programs, tmp_path_factory.mktemp("api-server")) as server:
        yield server


@pytest.fixture(scope="session")
def crds(api_server: ApiServer) -> ApiServer:
    """The API server with both CRDs established."""
    establish_crds(api_server)
    return api_server
