"""The examples: what kustomize makes of them is accepted, and is what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from component.conftest import ROOT
from nixops_operator.api.machine_of_deployment import ChildMachine, machines_of

if TYPE_CHECKING:
    from component.conftest import ApiServer

EXAMPLE = ROOT / "examples/valgrind-docs"
TARGETS = ("aws-security-groups", "aws-plain", "existing-host")


def rendered(server: ApiServer, folder: str) -> dict[str, dict[str, Any]]:
    """Kind → object."""
    return {body["kind"]: body for body in yaml.safe_load_all(server.kubectl("kustomize", str(EXAMPLE / folder)))}


def webserver(server: ApiServer, target: str) -> ChildMachine:
    (child,) = machines_of(rendered(server, f"targets/{target}")["NixDeployment"])
    return child


@pytest.mark.parametrize("folder", ["machine", *(f"targets/{target}" for target in TARGETS)])
def test_the_api_server_takes_it(crds: ApiServer, folder: str) -> None:
    crds.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(EXAMPLE / folder))


@pytest.mark.parametrize("target", TARGETS)
def test_the_machine_follows_the_files(crds: ApiServer, target: str) -> None:
    """The ConfigMap's name, hash included, is the one that the machine names."""
    objects = rendered(crds, f"targets/{target}")
    name = objects["ConfigMap"]["metadata"]["name"]

    settings = webserver(crds, target).settings

    assert name.startswith("example-configuration-")
    assert settings.configuration.source is not None
    assert settings.configuration.source.config_map_ref.name == name
    assert {module.path for module in settings.configuration.modules} == set(objects["ConfigMap"]["data"])
    assert objects["ConfigMap"]["data"]["configuration.nix"] == (EXAMPLE / "machine/configuration.nix").read_text()


def test_on_ec2_with_security_groups(crds: ApiServer) -> None:
    child = webserver(crds, "aws-security-groups")

    assert child.name == "example-webserver"
    assert child.settings.target.ec2 is not None
    assert child.settings.target.ec2.security_groups == ("allow-http-all", "allow-ssh-all")
    assert child.settings.client_key.name == "example-my-key-pair-ssh"


def test_on_ec2_without(crds: ApiServer) -> None:
    child = webserver(crds, "aws-plain")

    assert child.settings.target.ec2 is not None
    assert child.settings.target.ec2.security_groups == ()
    assert "securityGroups" not in rendered(crds, "targets/aws-plain")["NixDeployment"]["spec"]


def test_on_a_host_that_exists(crds: ApiServer) -> None:
    settings = webserver(crds, "existing-host").settings
    env = dict(
        line.split("=", 1)
        for line in (EXAMPLE / "targets/existing-host/host.env").read_text().splitlines()
        if not line.startswith("#")
    )

    assert settings.target.host is not None
    assert settings.target.host.address == env["ADDRESS"]
    assert settings.ssh.host_keys == (env["HOST_KEY"],)
