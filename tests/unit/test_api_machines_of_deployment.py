"""Which machines a NixDeployment asks for, and with which settings."""

from __future__ import annotations

from typing import Any

import pytest

from nixops_operator.api.machine_of_deployment import machines_of
from nixops_operator.errors import InvalidSpec

MODULES = {"modules": [{"inline": "{ }"}]}
ON_EC2 = {"ec2": {"instanceType": "t2.micro", "keyPair": "door", "securityGroups": ["web"]}}
ADDRESS = "eipalloc-0123456789abcdef0"
VOLUME = "vol-0123456789abcdef0"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1v"


def deployment(*machines: dict[str, Any], **fields: Any) -> dict[str, Any]:
    spec = {
        "aws": {"region": "us-west-2"},
        "keyPairs": [{"name": "door"}],
        "securityGroups": [{"name": "web", "description": "the site"}],
        "machines": list(machines),
    }
    return {"metadata": {"name": "shop"}, "spec": spec | fields}


def machine(name: str = "web", **fields: Any) -> dict[str, Any]:
    return {"name": name, "target": ON_EC2, "configuration": MODULES} | fields


def at(address: dict[str, Any]) -> dict[str, Any]:
    return {"ec2": ON_EC2["ec2"] | {"elasticIp": address}}


def with_volumes(*ids: str) -> dict[str, Any]:
    named = zip(("data", "more"), ("/dev/sdf", "/dev/sdg"), ids, strict=False)
    volumes = [{"name": name, "device": device, "volumeId": volume_id} for name, device, volume_id in named]
    return {"ec2": ON_EC2["ec2"] | {"volumes": volumes}}


def test_a_child_is_named_after_deployment_and_machine() -> None:
    (child,) = machines_of(deployment(machine("web", labels={"tier": "front"})))

    assert (child.name, child.machine) == ("shop-web", "web")
    assert child.labels == {"tier": "front", "nixops.dev/deployment": "shop", "nixops.dev/machine": "web"}


@pytest.mark.parametrize(
    ("replicas", "names"),
    [
        pytest.param({}, ["shop-web"], id="absent: one, name as is"),
        pytest.param({"replicas": 1}, ["shop-web-0"], id="one: numbered"),
        pytest.param({"replicas": 3}, ["shop-web-0", "shop-web-1", "shop-web-2"], id="three"),
        pytest.param({"replicas": 0}, [], id="none"),
    ],
)
def test_replicas_number_the_machines(replicas: dict[str, int], names: list[str]) -> None:
    assert [child.name for child in machines_of(deployment(machine("web", **replicas)))] == names


def test_replicas_share_what_was_merged_and_parsed() -> None:
    """Merging, judging and parsing cost as much as the YAML is long, not as many machines as it asks for."""
    first, *others = machines_of(deployment(machine("web", replicas=200)))

    assert len(others) == 199
    assert all(other.spec is first.spec and other.settings is first.settings for other in others)


def test_no_replicas_need_no_settings() -> None:
    assert machines_of(deployment({"name": "web", "replicas": 0})) == ()


def test_the_order_of_the_list_is_kept() -> None:
    children = machines_of(deployment(machine("zoo"), machine("bar", replicas=2), machine("ape")))

    assert [child.machine for child in children] == ["zoo", "bar-0", "bar-1", "ape"]


@pytest.mark.parametrize(
    ("fields", "own", "expected"),
    [
        pytest.param({"suspend": True}, {}, {"suspend": True}, id="the deployment's word is a default"),
        pytest.param({"suspend": True}, {"suspend": False}, {"suspend": False}, id="the machine's word wins"),
        pytest.param(
            {"deletionPolicy": "Retain", "defaults": {"deletionPolicy": "Delete"}},
            {},
            {"deletionPolicy": "Delete"},
            id="defaults win over the deployment's word",
        ),
        pytest.param(
            {"defaults": {"activation": {"timeout": "1h", "confirmTimeout": "2m"}}},
            {"activation": {"timeout": "10m"}},
            {"activation": {"timeout": "10m", "confirmTimeout": "2m"}},
            id="maps merge, scalars replace",
        ),
        pytest.param(
            {"defaults": {"configuration": {"modules": [{"inline": "{ a = 1; }"}], "system": "x86_64-linux"}}},
            {},
            {"configuration": MODULES | {"system": "x86_64-linux"}},
            id="lists replace",
        ),
        pytest.param(
            {"aws": {"region": "eu-central-1", "credentials": {"secretRef": {"name": "aws"}}}},
            {"aws": {"credentials": {"profile": "stage"}}},
            {"aws": {"region": "eu-central-1", "credentials": {"secretRef": {"name": "aws"}, "profile": "stage"}}},
            id="aws merges, too",
        ),
    ],
)
def test_settings_are_merged(fields: dict[str, Any], own: dict[str, Any], expected: dict[str, Any]) -> None:
    (child,) = machines_of(deployment(machine(**own), **fields))

    assert {key: child.spec[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("fields", "own", "expected"),
    [
        pytest.param({}, {}, ("shop-door-ssh", "ssh-privatekey"), id="generated key: the deployment's Secret"),
        pytest.param(
            {"keyPairs": [{"name": "door", "privateKeySecretRef": {"name": "mine", "key": "id"}}]},
            {},
            ("mine", "id"),
            id="supplied key: its Secret",
        ),
        pytest.param(
            {"keyPairs": [{"name": "door", "privateKeySecretRef": {"name": "mine"}}]},
            {},
            ("mine", "ssh-privatekey"),
            id="supplied key: the usual data key",
        ),
        pytest.param(
            {},
            {"ssh": {"privateKeySecretRef": {"name": "own", "key": "id"}}},
            ("own", "id"),
            id="the machine's own word wins",
        ),
        pytest.param(
            {"ssh": {"privateKeySecretRef": {"name": "all"}}},
            {"target": {"ec2": {"instanceType": "t2.micro", "keyPair": "made-in-the-console"}}},
            ("all", "ssh-privatekey"),
            id="a key pair that is no entry",
        ),
    ],
)
def test_the_client_key_comes_from_the_key_pair(
    fields: dict[str, Any], own: dict[str, Any], expected: tuple[str, str]
) -> None:
    (child,) = machines_of(deployment(machine(**own), **fields))

    assert (child.settings.client_key.name, child.settings.client_key.key) == expected


def test_the_input_is_left_alone() -> None:
    body = deployment(machine("web"), ssh={"user": "root"}, defaults={"ssh": {"address": "Public"}})
    before = repr(body)

    machines_of(body)

    assert repr(body) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(
            deployment(*(machine(f"m{number}", replicas=256) for number in range(256))),
            "spec: more than 256 machines, all replicas counted; spread them over several NixDeployments",
            id="a kilobyte that asks for 65,536 machines",
        ),
        pytest.param(
            deployment(machine("web", replicas=256), machine("db")),
            "spec: more than 256 machines",
            id="one machine too many",
        ),
        pytest.param(
            deployment(machine("web-0"), machine("web", replicas=1)),
            "spec.machines[1].name: two machines would be called web-0; rename one",
            id="two machines of one name after numbering",
        ),
        pytest.param(
            deployment(machine("web", replicas=2, target=at({"id": ADDRESS}))),
            f"spec.machines[0].target.ec2.elasticIp: {ADDRESS} is one thing, and these are 2 machines; name another",
            id="one address for two replicas",
        ),
        pytest.param(
            deployment(machine("web", replicas=2), defaults={"target": at({"address": "198.51.100.9"})}),
            "198.51.100.9 is one thing, and these are 2 machines",
            id="one address for all, from the defaults",
        ),
        pytest.param(
            deployment(machine("db", target=at({"id": ADDRESS})), machine("web", target=at({"id": ADDRESS}))),
            f"spec.machines[1].target.ec2.elasticIp: {ADDRESS} is given to machine db, too",
            id="one address for two machines",
        ),
        pytest.param(
            deployment(machine("db", target=with_volumes(VOLUME)), machine("web", target=with_volumes(VOLUME))),
            f"spec.machines[1].target.ec2.volumes[data].volumeId: {VOLUME} is given to machine db, too",
            id="one volume for two machines",
        ),
        pytest.param(
            deployment(machine("web", replicas=3, target=with_volumes(VOLUME))),
            f"{VOLUME} is one thing, and these are 3 machines",
            id="one volume for three replicas",
        ),
        pytest.param(
            deployment(machine("web", target=with_volumes(VOLUME, VOLUME))),
            "two volumes have the same volumeId",
            id="one volume for two entries",
        ),
        pytest.param(
            deployment(machine("w" * 62, replicas=1)), "is longer than 63 characters", id="numbered name too long"
        ),
        pytest.param(
            deployment({"name": "web", "configuration": MODULES}),
            "spec.machines[0].target: Field required",
            id="no target",
        ),
        pytest.param(
            deployment(machine(target={"ec2": {"keyPair": "door"}})),
            "spec.machines[0].target.ec2.instanceType: Field required",
            id="half a target",
        ),
        pytest.param(
            deployment(machine(target={"ec2": {"instanceType": "t2.micro"}, "host": {"address": "192.0.2.10"}})),
            "target needs exactly one of ec2 and host",
            id="two targets",
        ),
        pytest.param(
            deployment(machine(target={"ec2": ON_EC2["ec2"] | {"securityGroups": ["webb"]}})),
            "spec.machines[0].target.ec2.securityGroups: webb is none of spec.securityGroups",
            id="unknown security group",
        ),
        pytest.param(
            deployment(machine(target={"ec2": {"instanceType": "t2.micro", "keyPair": "other"}})),
            "spec.machines[0].target.ec2.keyPair: other is none of spec.keyPairs; add it there, or name the Secret",
            id="unknown key pair",
        ),
        pytest.param(
            deployment(machine(labels={"nixops.dev/machine": "db"})),
            "spec.machines[0].labels: labels nixops.dev/… belong to the operator",
            id="a label of ours",
        ),
        pytest.param(
            deployment(machine(target={"ec2": {"instanceType": "t2.micro"}})),
            "ssh.privateKeySecretRef is missing",
            id="no client key",
        ),
        pytest.param(deployment(machine(), aws={}), "spec.machines[0]: target.ec2 needs aws.region", id="no region"),
        pytest.param(
            deployment(machine(target={"host": {"address": "192.0.2.10"}}, ssh={"privateKeySecretRef": {"name": "k"}})),
            "target.host needs ssh.hostKeys",
            id="a given host without a host key",
        ),
        pytest.param(
            deployment(machine(targte={})), "spec.machines[0].targte: is not a field of this object", id="a typo"
        ),
        pytest.param(deployment(machine(), defaults={"x": 1}), "spec.machines[0].x: is not", id="a typo in defaults"),
    ],
)
def test_what_cannot_be_carried_out_is_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        machines_of(body)

    assert message in caught.value.message


def test_a_given_host_needs_no_region() -> None:
    ssh = {"privateKeySecretRef": {"name": "key"}, "hostKeys": [HOST_KEY + " root@box"]}

    (child,) = machines_of(deployment(machine(target={"host": {"address": "192.0.2.10"}}, ssh=ssh), aws={}))

    assert child.settings.ssh.pinned_host_keys == (HOST_KEY,)
