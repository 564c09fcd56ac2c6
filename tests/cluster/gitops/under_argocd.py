"""examples/gitops/argocd, brought to a place by Argo CD's own controllers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from cluster.gitops.repository import Repository
from cluster.gitops.site import EXAMPLES
from cluster.gitops.site import Site as AnySite
from cluster.place import Place
from cluster.polling import eventually
from judges import argo
from nixops_lab.argocd import NAMESPACE
from nixops_lab.paths import CHECKOUT

EXAMPLE = EXAMPLES / "argocd"
APPLICATION = "application.argoproj.io"
CUSTOMIZATIONS = (CHECKOUT / "docs/reference/argocd/argocd-cm.yaml", EXAMPLE / "argocd-cm.yaml")
IN_ARGOCD = f"--namespace={NAMESPACE}"
ELSEWHERE = "https://git.example.org/machines.git"


@dataclass(frozen=True)
class Site(AnySite):
    """Argo CD brings it to the place."""

    def application(self, name: str = "machines") -> dict[str, Any]:
        """Empty until it is there."""
        return self.find(name) or {}

    def find(self, name: str) -> dict[str, Any] | None:
        text = self.place.kubectl("get", APPLICATION, name, IN_ARGOCD, "--output=json", "--ignore-not-found")
        return json.loads(text) if text else None

    def health(self, name: str = "machines") -> str:
        return str(self.application(name).get("status", {}).get("health", {}).get("status", ""))

    def doing(self, name: str = "machines") -> str:
        """The phase and words of the sync that is under way, or was the last, and the words of each object in it."""
        operation = self.application(name).get("status", {}).get("operationState", {})
        each = operation.get("syncResult", {}).get("resources", [])
        return "; ".join([operation.get("phase", ""), operation.get("message", ""), *(one["message"] for one in each)])

    def synced(self, revision: str, name: str = "machines", health: str = "Healthy") -> None:
        """Until Argo CD says of this revision that it is what runs, and nothing is under way any more."""

        def look() -> bool:
            status = self.application(name).get("status", {})
            sync, operation = status.get("sync", {}), status.get("operationState", {})
            return (
                (sync.get("status"), sync.get("revision")) == ("Synced", revision)
                and (operation.get("phase"), operation.get("syncResult", {}).get("revision")) == ("Succeeded", revision)
                and status["health"]["status"] == health
            )

        eventually(look, f"{name} is {health} at {revision}", 240, self.told)

    def waits_for(self, words: str, name: str = "machines") -> None:
        """Until its sync says that it waits for that."""
        eventually(lambda: words in self.doing(name), f"{name} waits for {words}", 120, self.told)

    def told(self) -> str:
        names = self.place.kubectl("get", APPLICATION, IN_ARGOCD, "--output=name").split()
        return (
            "\n".join(f"{name}: {self.health(name)}, {self.doing(name)}" for name in _bare(names))
            + "\n"
            + (self.standing("nixdeployments"))
        )

    def intervals(self, number: int) -> list[str]:
        """So many comparisons of git and cluster more; what each has found."""
        found, last = [], self.application()["status"].get("reconciledAt")

        def look() -> bool:
            nonlocal last
            status = self.application()["status"]
            if status.get("reconciledAt") != last:
                last = status.get("reconciledAt")
                found.append(status["sync"]["status"])
            return len(found) >= number

        eventually(look, f"{number} comparisons", 30 + 10 * number, self.told)
        return found

    def annotate(self, application: str, *words: str) -> None:
        self.place.kubectl("annotate", "--overwrite", APPLICATION, application, IN_ARGOCD, *words)

    def approve(self, application: str) -> None:
        """As the button of its pages does."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.annotate(application, f"argocd.argoproj.io/deletion-approved={now}")

    def act(self, action: str) -> None:
        """An action of a NixDeployment, as argocd-server takes it: what the Lua changes, as a merge patch."""
        before = self.place.get("nixdeployment", "web")
        after = argo.act(before, action)
        old, new = (thing["metadata"].get("annotations", {}) for thing in (before, after))
        changes = {name: new.get(name) for name in {*old, *new} if old.get(name) != new.get(name)}
        patch = json.dumps({"metadata": {"annotations": changes}})
        words = ("--type=merge", f"--patch={patch}", "--field-manager=argocd-server")
        self.place.kubectl("patch", "nixdeployment", "web", *words)

    def commit(self, message: str) -> str:
        return _bare([self.repository.commit(message)])[0]

    def revert(self) -> str:
        return _bare([self.repository.revert()])[0]


def _bare(names: list[str]) -> list[str]:
    return [name.rsplit("/", 1)[-1].rsplit(":", 1)[-1] for name in names]


def planted(place: Place, repository: Repository, values: Mapping[str, Any] | None = None) -> Site:
    """The example's files in the repository, as its README says what to change: the address, and here the namespace.

    `values`: what the chart needs in the lab beside those of the example. Without them the lab's own operator runs.
    """
    site = Site(place, repository)
    site.copy(EXAMPLE / "applications", EXAMPLE / "machines", EXAMPLE / "secrets", CHECKOUT / "crds", CHECKOUT / "helm")
    repository.replace("applications/kustomization.yaml", ELSEWHERE, repository.url)
    for name in ("machines", "secrets"):
        repository.replace(f"applications/{name}.yaml", "namespace: machines", f"namespace: {place.namespace}")
    operator = repository.folder / "applications/operator.yaml"
    if values is None:
        repository.replace("applications/kustomization.yaml", "  - operator.yaml\n", "")
        operator.unlink()
    else:
        application = yaml.safe_load(operator.read_text())
        application["spec"]["source"]["helm"]["valuesObject"] |= values
        operator.write_text(yaml.safe_dump(application))
    return site


@contextmanager
def applied(site: Site) -> Iterator[None]:
    """The Application that holds the others, by the commands of the example; all are forgotten at the end."""
    for patch in CUSTOMIZATIONS:
        site.place.kubectl("patch", "configmap", "argocd-cm", IN_ARGOCD, f"--patch-file={patch}")
    root = (EXAMPLE / "root.yaml").read_text().replace(ELSEWHERE, site.repository.url)
    site.place.kubectl("apply", "--validate=strict", "--filename=-", IN_ARGOCD, stdin=root)
    try:
        yield
    finally:
        forget = '--patch=[{"op":"add","path":"/metadata/finalizers","value":[]}]'
        for name in site.place.kubectl("get", APPLICATION, IN_ARGOCD, "--output=name").split():
            site.place.kubectl("delete", name, IN_ARGOCD, "--wait=false")
            site.place.kubectl("patch", name, IN_ARGOCD, "--type=json", forget, check=False)


def external_secrets(site: Site) -> None:
    """What the External Secrets Operator does: the Secret is there, and then the object says so."""
    key, secret = site.place.operator_identity
    site.place.secret("aws", {"accessKeyId": key, "secretAccessKey": secret})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "SecretSynced", "message": "", "lastTransitionTime": now}
    patch = json.dumps({"status": {"conditions": [ready]}})
    site.place.kubectl("patch", "externalsecret", "aws", "--subresource=status", "--type=merge", f"--patch={patch}")
