"""What the API server lets an edit change, and what a new object's status says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from component.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from component.conftest import ApiServer

VALID = ROOT / "tests/data/valid"


@pytest.fixture
def stored(crds: ApiServer) -> Iterator[ApiServer]:
    """The API server with machines `box` (EC2, in FIRST_SUBNET), `plain` (EC2) and `given`, deployment `shop`."""
    for path in ("machine-on-ec2-with-all-fields", "deployment-with-all-fields"):
        crds.kubectl("create", "-f", str(VALID / f"{path}.yaml"))
    given = (VALID / "machine-that-exists.yaml").read_text().replace("{name: box}", "{name: given}")
    crds.kubectl("create", "-f", "-", stdin=given)
    plain = (VALID / "machine-with-a-configmap.yaml").read_text().replace("{name: box}", "{name: plain}")
    crds.kubectl("create", "-f", "-", stdin=plain)
    yield crds
    crds.kubectl("delete", "nixm,nixd", "--all", "--wait=false")


def patch(server: ApiServer, what: str, change: dict[str, Any], *, refused: bool = False) -> str:
    arguments = ("patch", *what.split("/"), "--type=merge", "--dry-run=server", "-p", json.dumps(change))
    return server.refusal(*arguments) if refused else server.kubectl(*arguments)


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def carried_out(server: ApiServer, what: str, **status: Any) -> None:
    """The operator's word that something was done."""
    change = json.dumps({"status": status})
    server.kubectl("patch", *what.split("/"), "--subresource=status", "--type=merge", "-p", change)


def instance_in(subnet: str) -> dict[str, Any]:
    return {"accountId": ACCOUNT, "instance": {"id": "i-0123456789abcdef0", "subnetId": subnet}}


ACCOUNT = "123456789012"
IN_USE = {"accountId": ACCOUNT}
ACTIVATED = {
    "activation": {
        "id": "a1",
        "unit": "nixops-activate-a1.service",
        "toplevel": "/nix/store/x",
        "attempt": 1,
        "startedAt": "2026-05-01T12:00:00Z",
    }
}
FIRST_SUBNET, OTHER_SUBNET = "subnet-0123456789abcdef0", "subnet-01234567"
TO_HOST = {"ec2": None, "host": {"address": "192.0.2.10"}}
TO_EC2 = {"host": None, "ec2": {"instanceType": "t2.micro"}}


def subnet(name: str | None, *several: str) -> dict[str, Any]:
    return spec(target={"ec2": {"subnetId": name} | ({"subnetIds": list(several)} if several else {})})


@pytest.mark.parametrize(
    ("what", "status", "change", "message"),
    [
        pytest.param(
            "nixm/box",
            IN_USE,
            spec(aws={"region": "us-west-2"}),
            "spec.aws.region cannot be changed any more, since something was made there: put the old region back, and"
            " create a new NixMachine for another region",
            id="region of a machine",
        ),
        pytest.param("nixm/box", IN_USE, spec(aws=None, target=TO_HOST), "spec.aws.region cannot", id="region removed"),
        pytest.param(
            "nixd/shop",
            IN_USE,
            spec(aws={"region": None}),
            "create a new NixDeployment for another region",
            id="region of a deployment",
        ),
        pytest.param(
            "nixm/box",
            instance_in(FIRST_SUBNET),
            subnet(OTHER_SUBNET),
            "spec.target.ec2.subnetId cannot be changed any more, since the instance exists: put the old value back,"
            " and create a new machine for another subnet",
            id="subnet",
        ),
        pytest.param("nixm/box", instance_in(FIRST_SUBNET), subnet(None), "subnetId cannot", id="subnet removed"),
        pytest.param(
            "nixm/box",
            instance_in(FIRST_SUBNET),
            subnet(None, OTHER_SUBNET),
            "subnetId cannot",
            id="subnet exchanged for others",
        ),
        pytest.param(
            "nixm/box", instance_in(OTHER_SUBNET), subnet("subnet-76543210"), "subnetId cannot", id="a third subnet"
        ),
        pytest.param(
            "nixm/plain", instance_in(OTHER_SUBNET), subnet(FIRST_SUBNET), "subnetId cannot", id="subnet added"
        ),
        pytest.param(
            "nixm/box",
            IN_USE,
            spec(target=TO_HOST),
            "the kind of spec.target cannot be changed any more, since the machine is in use: put the old target back,"
            " and create a new machine for the other kind",
            id="from EC2 to a given host",
        ),
        pytest.param(
            "nixm/given",
            ACTIVATED,
            spec(aws={"region": "us-west-2"}, target=TO_EC2),
            "the kind of spec.target cannot be changed any more",
            id="from a given host to EC2",
        ),
    ],
)
def test_what_was_carried_out_cannot_be_written_differently(
    stored: ApiServer, what: str, status: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    carried_out(stored, what, **status)

    refusal = patch(stored, what, change, refused=True)

    assert message in refusal
    assert "<nil>" not in refusal


@pytest.mark.parametrize(
    ("what", "status", "change"),
    [
        pytest.param("nixm/box", {}, spec(aws={"region": "us-west-2"}), id="region, nothing made yet"),
        pytest.param("nixd/shop", {}, spec(aws={"region": None}), id="region of a deployment, nothing made yet"),
        pytest.param("nixm/box", {}, spec(target=TO_HOST), id="from EC2 to a host, nothing made yet"),
        pytest.param(
            "nixm/given",
            {},
            spec(aws={"region": "us-west-2"}, target=TO_EC2),
            id="from a host to EC2, nothing done",
        ),
        pytest.param("nixm/given", IN_USE, spec(aws={"region": "us-west-2"}), id="region where there was none"),
        pytest.param("nixm/box", IN_USE, subnet(OTHER_SUBNET), id="subnet before there is an instance"),
        pytest.param(
            "nixm/box", instance_in(OTHER_SUBNET), subnet(OTHER_SUBNET), id="subnet: to where the instance is"
        ),
        pytest.param("nixm/box", instance_in(OTHER_SUBNET), subnet(None), id="subnet: what never was, taken back"),
        pytest.param(
            "nixm/box",
            instance_in(FIRST_SUBNET),
            subnet(None, OTHER_SUBNET, FIRST_SUBNET),
            id="subnet: exchanged for a list that holds it",
        ),
        pytest.param(
            "nixm/plain", instance_in(OTHER_SUBNET), subnet(OTHER_SUBNET), id="subnet: where it is, said at last"
        ),
        pytest.param("nixm/box", IN_USE, spec(target={"ec2": {"instanceType": "t3.large"}}), id="instance type"),
        pytest.param("nixm/box", IN_USE, spec(target={"ec2": {"image": None, "tags": None}}), id="image and tags"),
        pytest.param("nixm/given", ACTIVATED, spec(target={"host": {"address": "192.0.2.11"}}), id="address of a host"),
        pytest.param("nixd/shop", IN_USE, spec(machines=[]), id="all machines removed"),
        pytest.param("nixd/shop", IN_USE, spec(defaults=None, machines=[{"name": "web"}]), id="targets removed"),
        pytest.param(
            "nixd/shop", IN_USE, spec(defaults={"target": TO_HOST}), id="kind in defaults: its machines are the judges"
        ),
    ],
)
def test_the_rest_may_change(stored: ApiServer, what: str, status: dict[str, Any], change: dict[str, Any]) -> None:
    if status:
        carried_out(stored, what, **status)

    patch(stored, what, change)


SAMPLES = sorted((ROOT / "tests/data").glob("valid/*.yaml")) + sorted((ROOT / "tests/data").glob("stalled/*.yaml"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_is_admitted_can_be_written_as_it_is(crds: ApiServer, path: Path) -> None:
    """Also by the operator: finalizer and status of an object whose spec cannot be carried out."""
    kind, name = json.loads(crds.kubectl("create", "-f", str(path), "-o", 'jsonpath=["{.kind}","{.metadata.name}"]'))
    try:
        carried_out(
            crds, f"{kind}/{name}", **(instance_in(OTHER_SUBNET) | ACTIVATED if kind == "NixMachine" else IN_USE)
        )
        change = {"metadata": {"finalizers": ["nixops.dev/finalizer"]}}
        crds.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))
        crds.kubectl("apply", "--server-side", "--field-manager=again", "--force-conflicts", "-f", str(path))
        carried_out(crds, f"{kind}/{name}", accountId=None)
    finally:
        crds.kubectl("patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        crds.kubectl("delete", kind, name, "--wait=false")


@pytest.mark.parametrize("what", ["nixm/box", "nixd/shop"])
def test_a_new_object_says_that_nobody_looked_at_it(stored: ApiServer, what: str) -> None:
    assert stored.kubectl("get", what, "-o", "jsonpath={.status}") == '{"observedGeneration":-1}'


def test_a_status_written_in_mid_pass_leaves_it_so(stored: ApiServer) -> None:
    change = {"status": {"accountId": "123456789012"}}

    stored.kubectl("patch", "nixm", "box", "--subresource=status", "--type=merge", "-p", json.dumps(change))

    status = json.loads(stored.kubectl("get", "nixm", "box", "-o", "json"))["status"]
    assert status == {"observedGeneration": -1, "accountId": "123456789012"}


def test_nothing_of_a_spec_is_added_or_rewritten(stored: ApiServer) -> None:
    """Children are compared whole, and GitOps tools compare with git."""
    written = json.loads(
        stored.kubectl("create", "--dry-run=client", "-o", "json", "-f", str(VALID / "deployment-with-all-fields.yaml"))
    )

    assert json.loads(stored.kubectl("get", "nixd", "shop", "-o", "json"))["spec"] == written["spec"]


def test_columns_show_what_the_status_says(stored: ApiServer) -> None:
    now = "2026-05-01T12:00:00Z"
    status = {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Succeeded",
                "message": "runs",
                "lastTransitionTime": now,
                "observedGeneration": 1,
            }
        ],
        "target": "t2.micro",
        "addresses": {"ssh": "198.51.100.7"},
        "system": {"generation": 3, "revision": "0abcdefg"},
    }
    stored.kubectl("patch", "nixm", "box", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    header, row = stored.kubectl("get", "nixm", "box").splitlines()

    assert header.split() == ["NAME", "READY", "STATUS", "PAUSED", "TARGET", "ADDRESS", "SYSTEM", "AGE"]
    assert row.split()[:6] == ["box", "True", "Succeeded", "t2.micro", "198.51.100.7", "3"]
    assert stored.kubectl("get", "nixd").splitlines()[0].split() == [
        "NAME",
        "READY",
        "STATUS",
        "PAUSED",
        "MACHINES",
        "UPDATED",
        "REVISION",
        "AGE",
    ]


def test_the_largest_deployment_is_judged_within_the_api_server_s_cost_limits(crds: ApiServer) -> None:
    groups = [f"group-{number}" for number in range(32)]
    rules = [{"fromPort": 80, "toPort": 80, "groups": groups[16:]}] * 4
    machines = [{"name": f"m-{number}", "replicas": 1} for number in range(128)] + [
        {"name": f"n-{number}", "target": {"ec2": {"keyPair": "door-15", "securityGroups": groups[16:20]}}}
        for number in range(128)
    ]
    body = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixDeployment",
        "metadata": {"name": "large"},
        "spec": {
            "keyPairs": [{"name": f"door-{number}"} for number in range(16)],
            "securityGroups": [{"name": name, "description": "x", "ingress": rules} for name in groups],
            "machines": machines,
        },
    }
    assert 50_000 < len(json.dumps(body)) < 65_536

    crds.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))


def test_a_rule_that_came_later_lets_finalizers_go(crds: ApiServer) -> None:
    """Otherwise an object stored before the rule could never be deleted."""
    name = "nixmachines.nixops.dev"
    definition = json.loads(crds.kubectl("get", "crd", name, "-o", "json"))
    strict = [
        {"op": "replace", "path": "/spec/versions/0/schema", "value": definition["spec"]["versions"][0]["schema"]}
    ]
    lenient = json.loads(json.dumps(strict))
    lenient_spec = lenient[0]["value"]["openAPIV3Schema"]["properties"]["spec"]
    del lenient_spec["x-kubernetes-validations"], lenient_spec["properties"]["target"]["x-kubernetes-validations"]
    violator = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"name": "old", "finalizers": ["nixops.dev/finalizer"]},
        "spec": {"target": {}, "configuration": {"modules": [{"inline": "{ }"}]}},
    }
    crds.kubectl("patch", "crd", name, "--type=json", "-p", json.dumps(lenient))
    try:
        _until(lambda: crds.run("kubectl", "create", "-f", "-", stdin=json.dumps(violator)).returncode == 0)
    finally:
        crds.kubectl("patch", "crd", name, "--type=json", "-p", json.dumps(strict))
    fresh = json.dumps(violator | {"metadata": {"name": "new"}})
    _until(lambda: crds.run("kubectl", "create", "--dry-run=server", "-f", "-", stdin=fresh).returncode != 0)

    crds.kubectl("patch", "nixm", "old", "--subresource=status", "--type=merge", "-p", '{"status":{"accountId":"1"}}')
    crds.kubectl("delete", "nixm", "old", "--wait=false")
    crds.kubectl("patch", "nixm", "old", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')

    assert "not found" in crds.refusal("get", "nixm", "old")


def _until(condition: Callable[[], bool]) -> None:
    """The API server takes a changed CRD into use a moment later, and says so nowhere."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
