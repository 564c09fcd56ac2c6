"""The examples: what kustomize makes of them is accepted, and is what they promise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from component.conftest import ROOT
from component.test_chart import template
from nixops_operator.api import crd
from nixops_operator.api.machine_of_deployment import ChildMachine, machines_of

if TYPE_CHECKING:
    from component.conftest import ApiServer

EXAMPLES = ROOT / "examples"
EXAMPLE = EXAMPLES / "valgrind-docs"
TARGETS = ("aws-security-groups", "aws-plain", "existing-host")


def rendered(server: ApiServer, folder: str) -> dict[str, dict[str, Any]]:
    """Kind → object."""
    return {body["kind"]: body for body in yaml.safe_load_all(server.kubectl("kustomize", str(EXAMPLE / folder)))}


def webserver(server: ApiServer, target: str) -> ChildMachine:
    (child,) = machines_of(rendered(server, f"targets/{target}")["NixDeployment"])
    return child


def _holds_our_objects(folder: Path) -> bool:
    return any("apiVersion: nixops.dev/" in path.read_text() for path in folder.glob("**/*.yaml"))


OURS = [
    str(path.parent.relative_to(EXAMPLES))
    for name in ("kustomization.yaml", "Chart.yaml")
    for path in sorted(EXAMPLES.glob(f"**/{name}"))
    if _holds_our_objects(path.parent) or "targets" in path.parts
]
"""Each folder of examples/ that kustomize or helm makes our objects of."""
BESIDE = ["gitops/flux/secrets"]


def manifests(server: ApiServer, folder: str) -> str:
    path = EXAMPLES / folder
    if (path / "Chart.yaml").exists():
        done = server.run("helm", "template", "web", str(path))
        assert done.returncode == 0, done.stderr
        return done.stdout
    return server.kubectl("kustomize", str(path))


def test_no_example_is_left_out() -> None:
    written = {path for path in EXAMPLES.glob("**/*.yaml") if "apiVersion: nixops.dev/" in path.read_text()}

    assert written
    assert all(any(path.is_relative_to(EXAMPLES / folder) for folder in OURS) for path in written)


APPLY = {"client-side": (), "server-side": ("--server-side",)}


@pytest.fixture
def _difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl's note of what it applied last is its own affair: of an object without annotations its two ways write it
    differently."""
    program = tmp_path / "difference"
    program.write_text('#!/bin/sh\nexec diff --unified --new-file --ignore-matching-lines=\'{"apiVersion":\' "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("KUBECTL_EXTERNAL_DIFF", str(program))


@pytest.mark.usefixtures("_difference")
@pytest.mark.parametrize("way", APPLY)
@pytest.mark.parametrize("folder", [*OURS, *BESIDE])
def test_the_api_server_keeps_it_as_it_is(crds: ApiServer, folder: str, way: str) -> None:
    """What was applied differs from the example in nothing, whichever way one asks: who compares at each interval, as
    Flux and Argo CD do, finds nothing to do."""
    text = manifests(crds, folder)
    namespace = "--namespace=example-" + re.sub("[^a-z0-9]+", "-", f"{folder} {way}")
    crds.kubectl("create", "namespace", namespace.removeprefix("--namespace="))
    crds.kubectl("apply", namespace, "--validate=strict", *APPLY[way], "--filename=-", stdin=text)

    for asked in APPLY.values():
        done = crds.run("kubectl", "diff", namespace, *asked, "--filename=-", stdin=text)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("_difference")
@pytest.mark.parametrize("way", APPLY)
def test_a_difference_would_be_seen(crds: ApiServer, way: str) -> None:
    text = manifests(crds, "gitops/flux/machines")
    crds.kubectl("create", "namespace", f"differs-{way}")
    crds.kubectl("apply", f"--namespace=differs-{way}", *APPLY[way], "--filename=-", stdin=text)

    edited = text.replace("instanceType: t2.micro", "instanceType: t3.small")
    done = crds.run("kubectl", "diff", f"--namespace=differs-{way}", *APPLY[way], "--filename=-", stdin=edited)

    assert done.returncode == 1
    assert "+        instanceType: t3.small" in done.stdout


@pytest.mark.parametrize(
    ("file", "where"),
    [
        pytest.param("flux/operator/helmrelease.yaml", ("values",), id="Flux"),
        pytest.param("argocd/applications/operator.yaml", ("source", "helm", "valuesObject"), id="Argo CD"),
    ],
)
def test_the_chart_takes_the_values_of(api_server: ApiServer, file: str, where: tuple[str, ...]) -> None:
    *_, installation = yaml.safe_load_all((EXAMPLES / "gitops" / file).read_text())
    values = installation["spec"]
    for name in where:
        values = values[name]

    kinds = {document["kind"] for document in template(api_server, values)}

    assert "ValidatingAdmissionPolicy" in kinds
    assert "CustomResourceDefinition" not in kinds, "an earlier layer has them"


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


def test_the_database_has_what_its_configuration_uses(crds: ApiServer) -> None:
    bodies = list(yaml.safe_load_all(crds.kubectl("kustomize", str(EXAMPLES / "database"))))
    text = next(body["data"]["configuration.nix"] for body in bodies if body["kind"] == "ConfigMap")
    (child,) = machines_of(next(body for body in bodies if body["kind"] == "NixDeployment"))

    ec2 = child.settings.target.ec2
    assert ec2 is not None
    (volume,) = ec2.volumes
    (key,) = child.settings.keys
    assert f'device = "{volume.device}";' in text
    assert volume.deletion_policy == "Retain"
    assert f"deployment.keys.{key.name}.path" in text
    assert f'"{key.name}-key.service"' in text
    assert all(f"systemd.services.{unit.removesuffix('.service')} = " in text for unit in key.restart_units)
    assert ec2.elastic_ip is not None


def overlay(folder: Path, kustomization: dict[str, Any], **files: str) -> str:
    """A kustomization of a user's own, as a folder to render."""
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return str(folder)


@pytest.mark.parametrize(
    "naming", [pytest.param({}, id="with a hash"), pytest.param({"namePrefix": "test-"}, id="with a prefix, too")]
)
def test_generated_secrets_are_followed(api_server: ApiServer, tmp_path: Path, naming: dict[str, str]) -> None:
    """The usual way to have the credentials beside the deployment, encrypted in git."""
    machine = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"name": "lone"},
        "spec": {
            "aws": {"credentials": {"secretRef": {"name": "aws"}}},
            "ssh": {"privateKeySecretRef": {"name": "door"}},
            "configuration": {"source": {"configMapRef": {"name": "example-configuration"}}},
        },
    }
    supplied = [
        {"op": "add", "path": "/spec/keyPairs/-", "value": {"name": "door", "privateKeySecretRef": {"name": "door"}}},
        {"op": "add", "path": "/spec/machines/0/ssh", "value": {"privateKeySecretRef": {"name": "door"}}},
    ]
    folder = overlay(
        tmp_path,
        {
            "resources": [os.path.relpath(EXAMPLE / "targets/aws-security-groups", tmp_path), "lone.yaml"],
            "secretGenerator": [
                {"name": "aws", "files": ["credentials"]},
                {"name": "door", "files": ["ssh-privatekey"]},
            ],
            "patches": [{"target": {"kind": "NixDeployment"}, "patch": yaml.safe_dump(supplied)}],
            **naming,
        },
        **{"lone.yaml": yaml.safe_dump(machine), "credentials": "[default]", "ssh-privatekey": "no key"},
    )

    objects = list(
        yaml.safe_load_all(api_server.kubectl("kustomize", folder, "--load-restrictor=LoadRestrictionsNone"))
    )

    made = {body["metadata"]["name"] for body in objects if body["kind"] in ("Secret", "ConfigMap")}
    named = {reference["name"] for body in objects for reference in _references(body.get("spec"))}
    assert len(made) == 3
    assert all(name.startswith(naming.get("namePrefix", "")) for name in made)
    assert named == made


def _references(part: Any) -> Iterator[dict[str, Any]]:
    """All that name a Secret or ConfigMap."""
    if isinstance(part, dict):
        for field, value in part.items():
            if field.endswith(REFERENCES):
                yield value
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


REFERENCES = ("ecretRef", "onfigMapRef", "onfigMapKeyRef")


def _paths_of_references(schema: dict[str, Any], path: str) -> Iterator[str]:
    for field, part in schema.get("properties", {}).items():
        if field.endswith(REFERENCES):
            yield f"{path}/{field}/name"
        yield from _paths_of_references(part, f"{path}/{field}")
    if "items" in schema:
        yield from _paths_of_references(schema["items"], path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("**/name-reference.yaml")), ids=lambda path: path.parts[-3])
def test_kustomize_is_told_every_place_that_names_another_object(path: Path) -> None:
    text = path.read_text()
    told = {
        (spec["kind"], spec["path"]) for entry in yaml.safe_load(text)["nameReference"] for spec in entry["fieldSpecs"]
    }

    definitions = [definition["spec"] for definition in crd.all_crds().values()]
    assert told == {
        (definition["names"]["kind"], path)
        for definition in definitions
        for path in _paths_of_references(
            definition["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec"
        )
    }
