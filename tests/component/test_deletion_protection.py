"""The chart's deletionProtection, judged by a real API server: what deletes a machine by mistake is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from component.conftest import ApiServer
from component.test_chart import template

NAMESPACE = "protected"
GARBAGE_COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
ON_EC2: dict[str, Any] = {"ec2": {"instanceType": "t3.small", "subnetId": "subnet-0123456789abcdef0"}}
GIVEN: dict[str, Any] = {"host": {"address": "192.0.2.10"}}
MACHINE: dict[str, Any] = {
    "configuration": {"modules": [{"inline": "{ }"}]},
    "ssh": {
        "privateKeySecretRef": {"name": "ssh"},
        "hostKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"],
    },
}
AWS: dict[str, Any] = {"aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}}}


@pytest.fixture(scope="module")
def server(crds: ApiServer) -> Iterator[ApiServer]:
    rendered = [
        document
        for document in template(crds, {"deletionProtection": {"enabled": True}})
        if document["kind"].startswith("ValidatingAdmissionPolicy")
    ]
    assert len(rendered) == 2
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": rendered})
    crds.kubectl("create", "namespace", NAMESPACE)
    crds.kubectl("apply", "-f", "-", stdin=text)
    name = "canary"
    create(crds, "NixMachine", name, machine(ON_EC2))
    # A policy counts from the moment at which the API server has compiled it; nothing tells of that.
    for _ in range(600):
        if "allow-deletion" in crds.run("kubectl", "delete", "nixm", name, "-n", NAMESPACE, "--dry-run=server").stderr:
            break
    else:
        pytest.fail("the policy never came into force")
    yield crds
    crds.kubectl("delete", "-f", "-", stdin=text)


def machine(target: dict[str, Any], **more: Any) -> dict[str, Any]:
    aws = AWS if "ec2" in target else {}
    keys = {"hostKeys"} if "ec2" in target else set()
    ssh = {name: value for name, value in MACHINE["ssh"].items() if name not in keys}
    return {**MACHINE, **aws, "ssh": ssh, "target": target, **more}


def deployment(*targets: dict[str, Any], defaults: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    machines = [
        {"name": f"m{place}", **{name: value for name, value in machine(target).items() if name != "aws"}}
        for place, target in enumerate(targets)
    ]
    return {**AWS, "machines": machines, **({"defaults": defaults} if defaults else {}), **more}


def create(server: ApiServer, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> None:
    body = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
        "spec": spec,
    }
    server.kubectl("create", "-f", "-", stdin=json.dumps(body))


OWNER = {
    "apiVersion": "nixops.dev/v1alpha1",
    "kind": "NixDeployment",
    "name": "web",
    "uid": "0e6c2a9e-7a61-4f0e-8b0a-3f6f0f7f5b02",
    "controller": True,
}
ALLOWED = {"annotations": {"nixops.dev/allow-deletion": "true"}}


@pytest.mark.parametrize(
    ("kind", "spec", "metadata"),
    [
        pytest.param("NixMachine", machine(ON_EC2), {}, id="a machine on EC2"),
        pytest.param("NixDeployment", deployment(GIVEN, ON_EC2), {}, id="one machine on EC2 among others"),
        pytest.param(
            "NixDeployment",
            deployment({}, defaults={"target": ON_EC2}),
            {},
            id="on EC2 by the deployment's defaults",
        ),
        pytest.param(
            "NixMachine",
            machine(ON_EC2),
            {"ownerReferences": [{**OWNER, "controller": False}]},
            id="owned, not a child",
        ),
        pytest.param(
            "NixMachine",
            machine(ON_EC2),
            {"ownerReferences": [{**OWNER, "kind": "Team"}]},
            id="a child of something else",
        ),
        pytest.param(
            "NixMachine",
            machine(ON_EC2),
            {"annotations": {"nixops.dev/allow-deletion": "yes"}},
            id="allowed in other words",
        ),
        pytest.param("NixMachine", machine(ON_EC2, deletionPolicy="Delete"), {}, id="deletionPolicy Delete"),
    ],
)
def test_refused(
    server: ApiServer, request: pytest.FixtureRequest, kind: str, spec: dict[str, Any], metadata: Any
) -> None:
    name = named(request)
    create(server, kind, name, spec, **metadata)

    told = server.refusal("delete", kind, name, "--namespace", NAMESPACE)

    assert "nixops.dev/allow-deletion=true" in told
    assert "deletionPolicy to Retain" in told
    server.kubectl("get", kind, name, "--namespace", NAMESPACE)


@pytest.mark.parametrize(
    ("kind", "spec", "metadata"),
    [
        pytest.param("NixMachine", machine(ON_EC2), ALLOWED, id="allowed"),
        pytest.param("NixDeployment", deployment(ON_EC2), ALLOWED, id="a deployment, allowed"),
        pytest.param("NixMachine", machine(ON_EC2, deletionPolicy="Retain"), {}, id="retained"),
        pytest.param("NixMachine", machine(ON_EC2), {"ownerReferences": [OWNER]}, id="a deployment's own machine"),
        pytest.param("NixMachine", machine(GIVEN), {}, id="a given host"),
        pytest.param("NixDeployment", deployment(GIVEN), {}, id="given hosts alone"),
    ],
)
def test_goes(
    server: ApiServer, request: pytest.FixtureRequest, kind: str, spec: dict[str, Any], metadata: Any
) -> None:
    name = named(request)
    create(server, kind, name, spec, **metadata)

    server.kubectl("delete", kind, name, "--namespace", NAMESPACE)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("replace", "--force", "-f", "-"), id="kubectl replace --force"),
        pytest.param(("delete", "nixm", "--all"), id="delete --all"),
        pytest.param(
            ("delete", "--raw", "/apis/nixops.dev/v1alpha1/namespaces/protected/nixmachines"), id="a collection"
        ),
    ],
)
def test_what_deletes_in_passing_is_refused(server: ApiServer, words: tuple[str, ...]) -> None:
    body = json.loads(server.kubectl("get", "nixm", "canary", "--namespace", NAMESPACE, "--output=json"))

    assert "allow-deletion" in server.refusal("--namespace", NAMESPACE, *words, stdin=json.dumps(body))
    after = json.loads(server.kubectl("get", "nixm", "canary", "--namespace", NAMESPACE, "--output=json"))
    assert after["metadata"]["uid"] == body["metadata"]["uid"]


def test_who_deletes_again_what_is_going_already_is_no_mistake(server: ApiServer) -> None:
    """Flux and Argo CD delete again until it is gone; the annotation may have gone meanwhile, by their own apply."""
    create(server, "NixMachine", "going", machine(ON_EC2), finalizers=["example.org/kept"], **ALLOWED)
    server.kubectl("delete", "nixm", "going", "--namespace", NAMESPACE, "--wait=false")
    server.kubectl("annotate", "nixm", "going", "--namespace", NAMESPACE, "nixops.dev/allow-deletion-")

    server.kubectl("delete", "nixm", "going", "--namespace", NAMESPACE, "--wait=false")

    server.kubectl(
        "patch", "nixm", "going", "-n", NAMESPACE, "--type=json", '-p=[{"op":"remove","path":"/metadata/finalizers"}]'
    )


def named(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.callspec.id.lower())[:40].strip("-")
