"""From a cluster that has nothing of ours to machines that serve, and back, by what examples/gitops/argocd and flux
say and nothing else: definitions, the operator as a pod, its Secrets, machines.

Flux' helm-controller is played (`Release`); all others are the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.conftest import PERIODS, owner_of
from cluster.gitops import under_argocd, under_flux
from cluster.gitops.repository import Repository
from cluster.gitops.site import TITLE
from cluster.place import Place, condition, is_ready, standing
from cluster.polling import eventually
from nixops_lab import cluster, gitops, operator_pod
from nixops_lab.operator_process import NAMESPACE, Launch
from nixops_lab.paths import CHECKOUT
from nixops_lab.testing import Lab

ALLOW = "nixops.dev/allow-deletion"
DEFINITIONS = ("nixdeployments.nixops.dev", "nixmachines.nixops.dev")
IN_FLUX = f"--namespace={gitops.NAMESPACE}"
KUSTOMIZATION = under_flux.KUSTOMIZATION
RELEASE = "helmrelease.helm.toolkit.fluxcd.io"


@pytest.fixture
def bare(started_lab: Lab) -> Iterator[Lab]:
    """The lab with a node, and nothing of ours in its cluster."""
    lab = Lab.up(started_lab.paths.folder, with_node=True)
    was_running = lab.operator.is_running
    if was_running:
        lab.operator.stop()
    remove_ours(lab)
    yield lab
    remove_ours(lab)
    cluster.install(lab.paths)
    if was_running:
        lab.operator.restart()


def remove_ours(lab: Lab) -> None:
    """What the lab installs for an operator that is a process, or a test has installed."""
    where = ("--namespace=machines", "nixd,nixm,secrets", "--output=name")
    for name in lab.kubectl("get", *where, check=False).stdout.split():  # a failed test's, whose operator is gone
        forget = '--patch={"metadata":{"finalizers":[]}}'
        lab.kubectl("patch", name, "--namespace=machines", "--type=merge", forget, check=False)
    things = yaml.safe_dump_all(cluster.rights(cluster.render(lab.paths)))
    lab.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=things)
    lab.kubectl("delete", "crd", "--ignore-not-found", *DEFINITIONS)
    lab.kubectl("delete", "namespace", "--ignore-not-found", NAMESPACE, "machines", "--timeout=120s")


@pytest.fixture
def values(bare: Lab) -> dict[str, Any]:
    """What the chart needs in the lab: the image and where EC2 is."""
    return operator_pod.brought(bare.paths, bare.state, Launch(environment={}, settings=PERIODS))


@pytest.fixture
def machines(bare: Lab) -> Place:
    """The example's own namespace, which may not be there yet."""
    return Place(bare, "machines", owner_of(bare))


def operators(place: Place) -> list[dict[str, Any]]:
    """Its pods; that the API server has admitted them in a *restricted* namespace is the example's label."""
    where = (f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/name=nixops-operator")
    return list(json.loads(place.kubectl("get", "pods", *where, "--output=json"))["items"])


def is_restricted(place: Place) -> bool:
    labels = json.loads(place.lab.kubectl("get", "namespace", NAMESPACE, "--output=json").stdout)["metadata"]["labels"]
    return bool(labels.get("pod-security.kubernetes.io/enforce") == "restricted")


def allow_deletion(place: Place) -> None:
    place.kubectl("annotate", "nixd", "web", f"{ALLOW}=true", "--field-manager=nixops-cli")


def test_all_waves_of_argocd(
    argocd: Any, machines: Place, values: dict[str, Any], new_repository: Callable[[str], Repository]
) -> None:
    site = under_argocd.planted(machines, new_repository(f"waves-{os.getpid()}"), values)
    revision = site.commit("All of it")
    with under_argocd.applied(site):
        eventually(lambda: machines.find("externalsecret", "aws"), "the Secrets' wave has begun", 240, site.told)
        assert len(operators(machines)) == 1, "the wave before is the operator's"
        assert is_restricted(machines)
        under_argocd.external_secrets(site)
        for name in ("machines", "nixops"):
            site.synced(revision, name)
        assert site.titles() == {TITLE}

        # Everything but the definitions is taken out of git at once: first the machines go, and only when somebody says
        # so, to Argo CD and to the chart's protection; then the others.
        kept = "  - operator.yaml\n  - secrets.yaml\n  - machines.yaml\n"
        site.repository.replace("applications/kustomization.yaml", kept, "")
        for name in ("operator", "secrets", "machines"):
            (site.repository.folder / f"applications/{name}.yaml").unlink()
        site.commit("Nothing any more")
        site.waits_for("pruning confirmation of argoproj.io/Application/machines", "nixops")
        site.approve("nixops")
        eventually(lambda: "deletionTimestamp" in site.application()["metadata"], "it is being deleted", 60, site.told)
        site.approve("machines")
        eventually(lambda: ALLOW in json.dumps(site.application()), "the protection asks as well", 60, site.told)
        assert machines.live_instances()
        assert operators(machines)
        allow_deletion(machines)
        eventually(lambda: site.find("machines") is None, "the machines are gone", 180, site.told)
        eventually(lambda: site.find("nixops-operator") is None, "the operator's Application is gone", 120, site.told)
        eventually(lambda: operators(machines) == [], "its pod is gone", 120, site.told)
    assert machines.left_in_ec2() == []
    assert machines.objects() == []


def test_all_layers_of_flux(
    flux: Any,
    machines: Place,
    values: dict[str, Any],
    new_repository: Callable[[str], Repository],
    tmp_path: Path,
) -> None:
    lab = machines.lab
    machines.kubectl("create", "namespace", "machines")
    lab.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(DEFINITION_OF_RELEASES))
    repository = new_repository(f"layers-{os.getpid()}")
    layers = planted(machines, repository, values, tmp_path)
    repository.commit("All of it")

    lab.kubectl("apply", "--kustomize", str(layers))
    release = Release(lab)
    try:
        eventually(release.is_wanted, "the operator's layer has begun", 120, lambda: told(machines))
        assert not is_there(machines, "machines"), "it waits for the operator"
        release.install()
        eventually(lambda: is_there(machines, "machines"), "the machines' layer is ready", 240, lambda: told(machines))
        assert is_restricted(machines)
        site = under_flux.Site(machines, repository)
        assert site.titles() == {TITLE}

        # In the order of the README, the operator up: the machines, what they needed, and the operator.
        lab.kubectl("delete", KUSTOMIZATION, "machines", IN_FLUX, "--wait=false")
        log = lab.paths.logs / "kustomize-controller.log"  # Flux says it nowhere else
        eventually(lambda: ALLOW in log.read_text(), "the protection asks", 60, lambda: told(machines))
        assert machines.live_instances()
        allow_deletion(machines)
        eventually(lambda: not exists(machines, "machines"), "the machines are gone", 180, lambda: told(machines))
        assert machines.left_in_ec2() == []
        lab.kubectl("delete", KUSTOMIZATION, "machines-secrets", "nixops-operator", IN_FLUX, "--wait=false")
        eventually(release.is_ended, "the release is to go", 60, lambda: told(machines))
        release.uninstall()
        eventually(lambda: not exists(machines, "nixops-operator"), "its layer is gone", 60, lambda: told(machines))
        eventually(lambda: operators(machines) == [], "its pod is gone", 120)
        assert machines.find("secret", "aws") is None
        lab.kubectl("delete", KUSTOMIZATION, "nixops-crds", IN_FLUX)
        assert machines.objects() == [], "the definitions are still there"
    finally:
        lab.kubectl("delete", "--ignore-not-found", "--wait=false", "--kustomize", str(layers))
        release.uninstall()


def planted(place: Place, repository: Repository, values: dict[str, Any], folder: Path) -> Path:
    """The example's files in the repository, as its README says what to change; the layers, with its address."""
    site = under_flux.Site(place, repository)
    example = under_flux.EXAMPLE
    site.copy(example / "machines", example / "secrets", example / "operator", CHECKOUT / "crds", CHECKOUT / "helm")
    file = repository.folder / "operator/helmrelease.yaml"
    namespace, release = yaml.safe_load_all(file.read_text())
    release["spec"]["values"] |= values
    file.write_text(yaml.safe_dump_all([namespace, release]))
    identity = under_flux.encrypted_secrets(site)
    key = ["create", "secret", "generic", "sops-age", IN_FLUX, f"--from-literal=age.agekey={identity}"]
    place.lab.kubectl(*key)
    layers = Path(shutil.copytree(example / "layers", folder / "layers"))
    source = layers / "source.yaml"
    source.write_text(source.read_text().replace("https://git.example.org/machines.git", repository.url))
    return layers


def is_there(place: Place, layer: str) -> bool:
    return is_ready(json.loads(place.lab.kubectl("get", KUSTOMIZATION, layer, IN_FLUX, "--output=json").stdout))


def exists(place: Place, layer: str) -> bool:
    return bool(place.lab.kubectl("get", KUSTOMIZATION, layer, IN_FLUX, "--ignore-not-found").stdout)


def told(place: Place) -> str:
    found = json.loads(place.lab.kubectl("get", KUSTOMIZATION, IN_FLUX, "--output=json").stdout)["items"]
    return "\n".join(f"{each['metadata']['name']}: {standing(each)}" for each in found)


DEFINITION_OF_RELEASES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "helmreleases.helm.toolkit.fluxcd.io"},
    "spec": {
        "group": "helm.toolkit.fluxcd.io",
        "names": {"kind": "HelmRelease", "plural": "helmreleases", "singular": "helmrelease"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v2",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                        # As in Flux' own definition: kstatus takes an object without a status for done.
                        "properties": {
                            "status": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                                "default": {"observedGeneration": -1},
                            }
                        },
                    },
                },
            }
        ],
    },
}


@dataclass(frozen=True)
class Release:
    """The operator's HelmRelease, and what helm-controller makes of it: it has source-controller package the chart, and
    installs that with the release's values. Its finalizer lets it uninstall first."""

    lab: Lab

    def find(self) -> dict[str, Any]:
        """Empty if there is none."""
        words = ("get", RELEASE, "nixops-operator", f"--namespace={NAMESPACE}", "--ignore-not-found", "--output=json")
        return dict(json.loads(self.lab.kubectl(*words, check=False).stdout or "{}"))

    def is_wanted(self) -> bool:
        return bool(self.find())

    def is_ended(self) -> bool:
        return "deletionTimestamp" in self.find().get("metadata", {})

    def install(self) -> None:
        self._patch("metadata", {"finalizers": ["finalizers.fluxcd.io"]})
        release = self.find()
        archive = self._chart(release["spec"]["chart"]["spec"])
        words = ["upgrade", "--install", "nixops-operator", archive, f"--namespace={NAMESPACE}", "--values=-", "--wait"]
        operator_pod.helm(self.lab.paths, words, yaml.safe_dump(release["spec"]["values"]))
        now = "2026-01-01T00:00:00Z"
        ready = {"type": "Ready", "status": "True", "reason": "InstallSucceeded", "message": ""}
        self._patch(
            "status",
            {
                "observedGeneration": release["metadata"]["generation"],
                "conditions": [{**ready, "lastTransitionTime": now}],
            },
            "--subresource=status",
        )

    def uninstall(self) -> None:
        """Safe to repeat."""
        if self.find():
            words = ["uninstall", "nixops-operator", f"--namespace={NAMESPACE}", "--ignore-not-found", "--wait"]
            operator_pod.helm(self.lab.paths, words)
            self._patch("metadata", {"finalizers": []})

    def _chart(self, spec: dict[str, Any]) -> str:
        """The file that source-controller has made of the chart in git."""
        chart = {
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "HelmChart",
            "metadata": {"name": "nixops-system-nixops-operator", "namespace": spec["sourceRef"].pop("namespace")},
            "spec": {"interval": "10m", **spec},
        }
        self.lab.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(chart))
        name = chart["metadata"]["name"]

        def made() -> str:
            found = json.loads(self.lab.kubectl("get", "helmchart", name, IN_FLUX, "--output=json").stdout)
            return str(found["status"]["artifact"]["path"]) if condition(found, "Ready").get("status") == "True" else ""

        path = eventually(made, "source-controller has packaged the chart", 60)
        return str(self.lab.paths.folder / "flux-storage" / path)

    def _patch(self, part: str, content: dict[str, Any], *words: str) -> None:
        patch = json.dumps({part: content})
        where = (RELEASE, "nixops-operator", f"--namespace={NAMESPACE}", "--type=merge", f"--patch={patch}")
        self.lab.kubectl("patch", *where, *words)
