"""pytest fixtures of a running layer.

pytest_plugins = ["nixops_lab.ec2.fixtures"]

def test_…(ec2, layer, cases): instance_id = cases.running(); ec2.stop_instances(…); layer.machines.state(…)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nixops_lab.ec2.moto import MotoServer
from nixops_lab.ec2.testing import Cases, LoopThread, RunningLayer


@pytest.fixture(scope="session")
def layer_loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def moto_server(layer_loop: LoopThread) -> Iterator[MotoServer]:
    server = MotoServer()
    layer_loop.run(server.start())
    yield server
    layer_loop.run(server.stop())


@pytest.fixture
def layer(layer_loop: LoopThread, moto_server: MotoServer, tmp_path: Path) -> Iterator[RunningLayer]:
    running = RunningLayer(layer_loop, moto_server, tmp_path, seed=7)
    yield running
    running.stop()


@pytest.fixture
def ec2(layer: RunningLayer) -> Iterator[Any]:
    client = layer.client()
    yield client
    client.close()


@pytest.fixture
def cases(layer: RunningLayer, ec2: Any) -> Cases:
    return Cases(layer, ec2)
