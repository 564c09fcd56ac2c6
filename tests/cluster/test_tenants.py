"""Two tenants in one cluster: what one writes into its own namespace reaches nothing of the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, is_ready, standing
from cluster.polling import eventually
from nixops_lab.testing import Lab

DEPLOYMENT, MACHINE = "site", "web"
HOLD = "example.org/hold"


@pytest.fixture
def neighbour(lab: Lab, new_place: Callable[[str], Place]) -> Iterator[Place]:
    """The namespace of somebody else, who may write NixMachines there and nothing elsewhere."""
    place = new_place("neighbour")
    yield place
    for thing in place.objects():
        if thing["metadata"].get("finalizers"):
            others = [each for each in thing["metadata"]["finalizers"] if each != HOLD]
            place.patch(
                thing["kind"],
                thing["metadata"]["name"],
                {"op": "replace", "path": "/metadata/finalizers", "value": others},
            )
    place.clear()


@pytest.fixture
def key_pair(place: Place) -> Iterator[str]:
    """Made by hand, of the lab's client key."""
    material = place.lab.paths.client_key.with_suffix(".pub").read_bytes()
    place.ec2.import_key_pair(KeyName=place.namespace, PublicKeyMaterial=material)
    yield place.namespace
    place.ec2.delete_key_pair(KeyName=place.namespace)


def deployment() -> dict[str, Any]:
    """A key pair and a group, no machine."""
    made = specs.on_ec2(specs.page("unused"), DEPLOYMENT)
    del made["spec"]["machines"]
    return made


def machine(key_pair: str) -> dict[str, Any]:
    """A machine of its own, in the default group, that no deployment has made."""
    spec = {
        "aws": specs.aws(),
        "target": {"ec2": {"instanceType": "t2.micro", "keyPair": key_pair}},
        "ssh": {"privateKeySecretRef": {"name": "existing-host-ssh"}},
        "configuration": {"modules": [{"inline": specs.page("By hand")}]},
    }
    return {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixMachine", "metadata": {"name": MACHINE}, "spec": spec}


def pretended_child(lab: Lab, owner: dict[str, Any], finalizers: list[str]) -> dict[str, Any]:
    """A machine of the neighbour's that says that the other tenant's deployment controls it."""
    made = specs.on_host(lab, specs.page("Of the neighbour"), MACHINE, suspend=True)
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    made["metadata"] |= {"ownerReferences": [reference], "finalizers": finalizers}
    return made


def until_noticed(neighbour: Place) -> None:
    """The operator has judged the neighbour's machine, or the garbage collector has taken it: its owner is in another
    namespace, which counts as absent (Kubernetes documentation, "Owners and Dependents")."""

    def is_noticed() -> bool:
        thing = neighbour.find("nixmachine", MACHINE)
        return thing is None or "deletionTimestamp" in thing["metadata"] or bool(thing.get("status") or {})

    eventually(is_noticed, "the neighbour's machine is noticed")


def edit(place: Place) -> None:
    """One more pass of the deployment, waited for to its end."""
    place.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": "/spec/keyPairs/-", "value": {"name": "another"}})
    eventually(
        lambda: is_ready(place.get("nixdeployment", DEPLOYMENT)),
        "the edit is carried out",
        last=lambda: standing(place.get("nixdeployment", DEPLOYMENT)),
    )


@pytest.mark.parametrize("finalizers", [[], [HOLD]], ids=["without a finalizer", "with a finalizer"])
def test_a_machine_that_names_anothers_deployment_as_its_owner_harms_nothing_of_the_other(
    place: Place, neighbour: Place, key_pair: str, finalizers: list[str]
) -> None:
    place.aws_secret()
    place.ssh_secret()
    place.apply(deployment(), machine(key_pair))
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    instance_id = eventually(
        lambda: ((place.get("nixmachine", MACHINE).get("status") or {}).get("instance") or {}).get("id"),
        "the machine made by hand has an instance",
        last=lambda: standing(place.get("nixmachine", MACHINE)),
    )

    def lives() -> bool:
        kept = place.find("nixmachine", MACHINE)
        is_kept = kept is not None and "deletionTimestamp" not in kept["metadata"]
        return is_kept and instance_id in [each["InstanceId"] for each in place.live_instances()]

    neighbour.apply(pretended_child(place.lab, place.get("nixdeployment", DEPLOYMENT), finalizers))
    until_noticed(neighbour)
    edit(place)
    assert lives()

    place.kubectl("delete", "nixdeployment", DEPLOYMENT, "--timeout=60s")
    assert place.find("nixdeployment", DEPLOYMENT) is None
    assert lives()
