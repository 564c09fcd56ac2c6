"""What is in git is what runs: examples/gitops/flux under Flux' own controllers, from the first commit to the last.

The tests of one site follow each other as commits do; each leaves it as it found it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from cluster.gitops.repository import Repository
from cluster.gitops.site import MACHINES, TITLE
from cluster.gitops.under_flux import KUSTOMIZATION, Site, layers, planted
from cluster.place import Place, condition, is_ready
from cluster.polling import eventually
from judges import kstatus
from nixops_lab.paths import CHECKOUT


@pytest.fixture(scope="module")
def site(flux: Any, shared_place: Place, new_repository: Callable[[str], Repository]) -> Iterator[Site]:
    site = planted(shared_place, new_repository(shared_place.namespace))
    revision = site.repository.commit("Two machines")
    site.place.apply(*layers(site))
    site.applied(revision)
    yield site
    site.place.kubectl("delete", KUSTOMIZATION, "--all", "--wait", "--timeout=180s", check=False)


def test_a_sync_is_ready_when_the_machines_serve(site: Site) -> None:
    """G1: and not while nobody has looked at them."""
    assert site.titles() == {TITLE}
    sync = condition(site.sync(), "Ready")
    deployment = condition(site.place.get("nixdeployment", "web"), "Ready")

    assert sync["lastTransitionTime"] >= deployment["lastTransitionTime"]
    assert kstatus.status(site.place.get("nixdeployment", "web")) == "Current"


def test_nix_arrives_unharmed(site: Site) -> None:
    """G9: `${title}` is Nix' own; post-build substitution would have put nothing in its place."""
    patch = {"postBuild": {"substitute": {"title": "taken by Flux"}}}
    site.place.kubectl("patch", KUSTOMIZATION, "machines", "--type=merge", f"--patch={json.dumps({'spec': patch})}")
    try:
        site.intervals(2)
        assert "${title}" in json.dumps(site.place.get("configmap", site_source(site)))
        assert site.titles() == {TITLE}
    finally:
        site.place.kubectl(
            "patch", KUSTOMIZATION, "machines", "--type=json", '--patch=[{"op":"remove","path":"/spec/postBuild"}]'
        )


def site_source(site: Site) -> str:
    deployment = site.place.get("nixdeployment", "web")
    return str(deployment["spec"]["defaults"]["configuration"]["source"]["configMapRef"]["name"])


def test_at_rest_nobody_writes(site: Site) -> None:
    """G3: for ten intervals, but for dry runs."""
    eventually(
        lambda: all(is_ready(thing) and not condition(thing, "Reconciling") for thing in site.place.objects()),
        "all rest",
        last=site.told,
    )
    versions, since = site.versions(), site.place.mark()

    site.intervals(10)

    assert site.written(since) == []
    assert site.versions() == versions


def test_a_broken_commit_fails_with_its_reason_and_the_old_system_serves(site: Site) -> None:
    """G2: a wait that would end at its timeout otherwise."""
    site.repository.replace("machines/configuration.nix", "services.httpd.enable = true;", "services.httpd.enable = ;")
    revision = site.repository.commit("A module that is none")

    words = site.failed(revision)
    told = condition(site.place.get("nixdeployment", "web"), "Stalled")
    titles = site.titles()
    site.applied(site.repository.revert())

    assert "NixDeployment" in words
    assert "Failed" in words
    assert "configuration.nix:6:27: syntax error" in told["message"]
    assert titles == {TITLE}
    assert site.titles() == {TITLE}


def test_changes_behind_git_s_back_are_put_right(site: Site) -> None:
    """G4: an instance stopped by hand, and a child's spec edited, which is not in git at all."""
    before = {name: site.instance(name) for name in MACHINES}
    site.place.ec2.stop_instances(InstanceIds=[before["web-one"]])
    edit = {"op": "replace", "path": "/spec/target/ec2/instanceType", "value": "t3.small"}
    site.place.patch("nixmachine", "web-two", edit)

    eventually(
        lambda: site.place.get("nixmachine", "web-two")["spec"]["target"]["ec2"]["instanceType"] == "t2.micro",
        "the child is as its deployment has it",
    )
    site.runs_again(before["web-one"], site.told)
    assert {name: site.instance(name) for name in MACHINES} == before
    eventually(lambda: is_ready(site.sync()), "the sync is ready again", last=site.told)


def test_suspended_by_a_commit_nothing_moves(site: Site) -> None:
    """The sync becomes ready all the same; what is done by hand stays until the commit that resumes."""
    instance = site.instance("web-one")
    site.repository.replace("machines/nixdeployment.yaml", "spec:\n  aws:", "spec:\n  suspend: true\n  aws:")
    site.applied(site.repository.commit("Suspend"))

    site.stop(instance)
    site.intervals(3)
    assert site.state(instance) == "stopped"

    site.applied(site.repository.revert())
    site.runs_again(instance, site.told)


def test_paused_as_documented_it_stays_so(site: Site) -> None:
    """G8: Flux takes back what managers wrote whose names begin with kubectl; the documented command names another."""
    pause = ("annotate", "--overwrite", "nixd", "web", "nixops.dev/paused=true")
    site.place.kubectl(*pause)
    eventually(lambda: not _is_paused(site), "Flux has taken back what kubectl wrote", 60)

    site.place.kubectl(*pause, "--field-manager=nixops-cli")
    site.intervals(3)
    assert _is_paused(site)
    assert condition(site.place.get("nixdeployment", "web"), "Paused")["status"] == "True"

    site.place.kubectl("annotate", "nixd", "web", "nixops.dev/paused-", "--field-manager=nixops-cli")
    eventually(lambda: not condition(site.place.get("nixdeployment", "web"), "Paused"), "it goes on")


def _is_paused(site: Site) -> bool:
    return "nixops.dev/paused" in site.place.get("nixdeployment", "web")["metadata"].get("annotations", {})


def test_a_request_as_flux_makes_it_is_answered(site: Site) -> None:
    """G9: by the deployment and by its machines."""
    asked = f"now-{site.place.mark()}"
    words = ("--overwrite", "--field-manager=flux-client-side-apply", "nixd", "web")
    site.place.kubectl("annotate", *words, f"reconcile.fluxcd.io/requestedAt={asked}")

    for kind, name in (("nixdeployment", "web"), *(("nixmachine", name) for name in MACHINES)):
        eventually(
            lambda kind=kind, name=name: site.place.get(kind, name)["status"].get("lastHandledReconcileAt") == asked,  # type: ignore[misc]
            f"{name} has answered",
        )


def test_a_machine_taken_out_of_git_goes_and_no_other(site: Site) -> None:
    """G4: with its instance; the deployment's other machine is not pruned."""
    before = {name: site.instance(name) for name in MACHINES}
    site.repository.replace("machines/nixdeployment.yaml", "    - name: two\n", "")
    site.applied(site.repository.commit("One machine less"))

    eventually(lambda: site.place.find("nixmachine", "web-two") is None, "it is gone", 120, site.told)
    assert [each["InstanceId"] for each in site.place.live_instances()] == [before["web-one"]]
    assert site.place.title(site.address("web-one")) == TITLE


def test_the_end_of_a_layer_is_the_end_of_its_instances(site: Site) -> None:
    """G7: `deletionPolicy: WaitForTermination`; with the operator down it waits, and says for what."""
    site.place.lab.operator.stop()
    site.place.kubectl("delete", KUSTOMIZATION, "machines", "--wait=false")
    eventually(
        lambda: site.place.get("nixdeployment", "web")["metadata"].get("deletionTimestamp"), "Flux has deleted it", 60
    )
    assert site.place.find(KUSTOMIZATION, "machines") is not None
    assert site.place.live_instances()

    site.place.lab.operator.restart()

    eventually(lambda: site.place.find(KUSTOMIZATION, "machines") is None, "the layer is gone", 180, site.told)
    assert site.place.left_in_ec2() == []
    assert site.place.objects() == []
    assert site.place.find("secret", "aws") is not None, "the layer below is still there"


@pytest.mark.parametrize("is_running", [True, False], ids=["the operator up", "the operator down"])
def test_the_end_of_all_in_one_layer(
    flux: Any, place: Place, new_repository: Callable[[str], Repository], is_running: bool
) -> None:
    """G7: the credentials are deleted beside what needs them, and stay until nothing does."""
    site = planted(place, new_repository(place.namespace))
    site.repository.replace("machines/nixdeployment.yaml", "    - name: two\n", "")
    (site.repository.folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["secrets", "machines"]}))
    revision = site.repository.commit("A machine and its credentials")
    source, secrets, machines = layers(site)
    machines["spec"] |= {"path": "./", "dependsOn": [], "decryption": secrets["spec"]["decryption"]}
    place.apply(source, machines)
    site.applied(revision)
    assert place.live_instances()

    if not is_running:
        place.lab.operator.stop()
    place.kubectl("delete", KUSTOMIZATION, "machines", "--wait=false")
    if not is_running:
        both = (("secret", "aws"), ("nixdeployment", "web"))
        eventually(
            lambda: all("deletionTimestamp" in place.get(*each)["metadata"] for each in both), "both are deleted", 60
        )
        assert place.find(KUSTOMIZATION, "machines") is not None
        assert place.live_instances()
        place.lab.operator.restart()

    eventually(lambda: place.find(KUSTOMIZATION, "machines") is None, "the layer is gone", 180, site.told)
    assert place.left_in_ec2() == []
    assert place.objects() == []
    assert place.find("secret", "aws") is None


REFUSED = ("region: us-west-2", "region: us-east-1")
"""The region of what exists cannot be changed: the API server refuses, and `force` deletes and makes anew."""


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
def test_what_flux_forces_is_lost_unless_it_is_protected(
    flux: Any,
    place: Place,
    new_repository: Callable[[str], Repository],
    request: pytest.FixtureRequest,
    is_protected: bool,
) -> None:
    """G6: one typo, and `force: true`."""
    site = planted(place, new_repository(place.namespace))
    site.repository.replace("machines/nixdeployment.yaml", "    - name: two\n", "")
    revision = site.repository.commit("A machine")
    source, secrets, machines = layers(site)
    machines["spec"]["force"] = True
    if is_protected:
        request.getfixturevalue("deletion_protection")
    place.apply(source, secrets, machines)
    site.applied(revision)
    before = place.get("nixdeployment", "web")["metadata"]["uid"]
    (instance,) = place.live_instances()

    site.repository.replace("machines/nixdeployment.yaml", *REFUSED)
    revision = site.repository.commit("A typo")

    if is_protected:
        assert "nixops.dev/allow-deletion" in site.failed(revision)
        assert place.get("nixdeployment", "web")["metadata"]["uid"] == before
        assert [each["InstanceId"] for each in place.live_instances()] == [instance["InstanceId"]]
        site.applied(site.repository.revert())
        place.kubectl("annotate", "nixd", "web", "nixops.dev/allow-deletion=true", "--field-manager=nixops-cli")
    else:
        eventually(lambda: site.state(instance["InstanceId"]) in ("shutting-down", "terminated"), "it is lost", 120)
        site.repository.revert()
    place.kubectl("delete", KUSTOMIZATION, "machines", "--wait", "--timeout=120s")
    assert place.left_in_ec2() == []


@pytest.fixture
def deletion_protection(flux: Any, place: Place) -> Iterator[None]:
    """The chart's."""
    chart = str(CHECKOUT / "helm/nixops-operator")
    rendered = place.lab.run(
        ["helm", "template", "nixops-operator", chart, "--set=deletionProtection.enabled=true",
         "--show-only=templates/deletion-protection.yaml"]
    ).stdout  # fmt: skip
    place.lab.kubectl("apply", "--filename=-", stdin=rendered)
    eventually(lambda: _is_refused(place), "the policy is in force")
    yield
    place.lab.kubectl("delete", "--filename=-", stdin=rendered)


def _is_refused(place: Place) -> bool:
    ec2 = {"instanceType": "t2.micro", "keyPair": "none"}
    body = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"name": "canary", "annotations": {"nixops.dev/paused": "true"}},
        "spec": {
            "suspend": True,
            "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}},
            "ssh": {"privateKeySecretRef": {"name": "none"}},
            "target": {"ec2": ec2},
            "configuration": {"modules": [{"inline": "{ }"}]},
        },
    }
    place.apply(body)
    refused = place.lab.kubectl("--namespace", place.namespace, "delete", "nixm", "canary", check=False).returncode != 0
    if refused:
        place.kubectl("annotate", "nixm", "canary", "nixops.dev/allow-deletion=true", "--overwrite")
        place.kubectl("delete", "nixm", "canary")
    return refused
