"""What a release of the chart leaves and brings, on a cluster that had nothing of it before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from component.api_server import ApiServer, running
from component.test_chart import CHART
from component.test_deletion_protection import ON_EC2, machine

NEWER = "monitoring"
"""A field of `target.ec2` that an earlier release does not have yet."""


@pytest.fixture
def server(programs: Path, tmp_path: Path) -> Iterator[ApiServer]:
    """Its own, for the other tests' one has the definitions already, and not from a chart."""
    with running(programs, tmp_path) as server:
        server.kubectl("create", "namespace", "nixops-system")
        yield server


def earlier_chart(folder: Path) -> Path:
    """As it was before `NEWER` came."""
    chart = folder / "earlier"
    shutil.copytree(CHART, chart)
    for path in (chart / "templates/crds").glob("*.yaml"):
        path.write_text(_without(path.read_text()))
    return chart


def _without(definition: str) -> str:
    """The lines of the field left out: those of its key, and what is further in than that."""
    kept, inside = [], None
    for line in definition.splitlines(keepends=True):
        depth = len(line) - len(line.lstrip())
        if inside is not None and depth > inside:
            continue
        inside = depth if line.strip() == f"{NEWER}:" else None
        if inside is None:
            kept.append(line)
    return "".join(kept)


def helm(server: ApiServer, *words: str) -> None:
    done = server.run("helm", *words, "--namespace=nixops-system")
    assert done.returncode == 0, done.stderr


def manifest(**ec2: Any) -> str:
    spec = machine({"ec2": {**ON_EC2["ec2"], **ec2}})
    body = {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixMachine", "metadata": {"name": "web"}, "spec": spec}
    return json.dumps(body)


def test_an_upgrade_brings_new_fields_to_objects_that_exist(server: ApiServer, tmp_path: Path) -> None:
    helm(server, "install", "nixops-operator", str(earlier_chart(tmp_path)))
    server.kubectl("wait", "--for=condition=Established", "crd/nixmachines.nixops.dev", "--timeout=30s")
    server.kubectl("apply", "--filename=-", stdin=manifest())
    before = json.loads(server.kubectl("get", "nixm", "web", "--output=json"))
    told = server.refusal("apply", "--validate=strict", "--filename=-", stdin=manifest(**{NEWER: True}))
    assert f'unknown field "spec.target.ec2.{NEWER}"' in told

    helm(server, "upgrade", "nixops-operator", str(CHART))

    after = json.loads(server.kubectl("get", "nixm", "web", "--output=json"))
    assert after == before
    server.kubectl("apply", "--validate=strict", "--filename=-", stdin=manifest(**{NEWER: True}))
    after = json.loads(server.kubectl("get", "nixm", "web", "--output=json"))
    assert after["spec"]["target"]["ec2"][NEWER] is True
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_what_is_uninstalled_leaves_definitions_and_objects(server: ApiServer) -> None:
    """And the same release can be installed again."""
    helm(server, "install", "nixops-operator", str(CHART))
    server.kubectl("wait", "--for=condition=Established", "crd/nixmachines.nixops.dev", "--timeout=30s")
    server.kubectl("apply", "--filename=-", stdin=manifest())

    helm(server, "uninstall", "nixops-operator")

    server.kubectl("get", "nixm", "web")
    helm(server, "install", "nixops-operator", str(CHART))
    server.kubectl("get", "nixm", "web")
