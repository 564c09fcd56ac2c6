"""examples/gitops/flux, brought to a place by Flux' own controllers."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.gitops.repository import Repository
from cluster.gitops.site import EXAMPLES, is_dry_run
from cluster.gitops.site import Site as AnySite
from cluster.place import Place, condition, is_ready
from cluster.polling import eventually
from nixops_lab import gitops
from nixops_lab.paths import SOURCES

EXAMPLE = EXAMPLES / "flux"
INTERVAL = 2  # seconds
KUSTOMIZATION = "kustomization.kustomize.toolkit.fluxcd.io"
FAILED = {"HealthCheckFailed", "ReconciliationFailed"}


@dataclass(frozen=True)
class Site(AnySite):
    """Flux brings it to the place."""

    def sync(self, layer: str = "machines") -> dict[str, Any]:
        return self.place.get(KUSTOMIZATION, layer)

    def applied(self, revision: str, layer: str = "machines") -> dict[str, Any]:
        """Until Flux says of this revision that it is applied and healthy."""

        def look() -> dict[str, Any] | None:
            found = self.sync(layer)
            return found if found["status"].get("lastAppliedRevision") == revision and is_ready(found) else None

        return eventually(look, f"{layer} is applied at {revision}", 240, self.told)

    def failed(self, revision: str) -> str:
        """Until Flux gives this revision up; its words."""

        def look() -> str:
            ready = condition(self.sync(), "Ready")
            tried = self.sync()["status"].get("lastAttemptedRevision") == revision
            return str(ready["message"]) if tried and ready.get("reason") in FAILED else ""

        return eventually(look, f"Flux gives {revision} up", 120, self.told)

    def told(self) -> str:
        return self.standing(KUSTOMIZATION)

    def intervals(self, number: int) -> None:
        """Until Flux has looked at the same revision so many times more; each look of it asks the API server what an
        apply would change."""
        since = self.place.mark()

        def looks() -> int:
            return sum(
                is_dry_run(entry) and entry["objectRef"]["resource"] == "nixdeployments"
                for entry in self.requests(since)
            )

        eventually(lambda: looks() >= number, f"{number} looks of Flux", 30 + 3 * INTERVAL * number, self.told)


def layers(site: Site) -> list[dict[str, Any]]:
    """The example's own, as its README says what to change: address and target, and here no Helm."""
    found = []
    for name in ("source", "secrets", "machines"):
        layer = yaml.safe_load((EXAMPLE / f"layers/{name}.yaml").read_text())
        layer["metadata"]["namespace"] = site.place.namespace
        spec = layer["spec"]
        spec["interval"] = f"{INTERVAL}s"
        if name == "source":
            spec["url"] = site.repository.url
        else:
            spec["targetNamespace"] = site.place.namespace
        if name == "machines":
            spec["retryInterval"] = f"{INTERVAL}s"
            # The operator of the lab is no pod that Flux could have made.
            spec["dependsOn"] = [each for each in spec["dependsOn"] if each["name"] != "nixops-operator"]
        found.append(layer)
    return found


def planted(place: Place, repository: Repository) -> Site:
    """The example's files in the repository, with the lab's credentials, encrypted."""
    site = Site(place, repository)
    site.copy(EXAMPLE / "machines", EXAMPLE / "secrets")
    place.secret("sops-age", {"age.agekey": encrypted_secrets(site)})
    return site


def encrypted_secrets(site: Site) -> str:
    """Puts the lab's credentials into the repository; the key that decrypts them."""
    key, secret = site.place.operator_identity
    secrets = site.repository.folder / "secrets/aws.yaml"
    content = yaml.safe_load(secrets.read_text())
    content["stringData"] = {"accessKeyId": key, "secretAccessKey": secret}
    secrets.write_text(yaml.safe_dump(content))
    identity = encrypt(secrets)
    assert secret not in secrets.read_text()
    return identity


def encrypt(file: Path) -> str:
    """By the commands of the example, for a new key of age; the key."""
    programs = gitops.compiled(SOURCES / "gitops" / "build.sh")
    identity = subprocess.run([programs / "age-keygen"], capture_output=True, text=True, check=True).stdout
    (recipient,) = re.findall("# public key: (.*)", identity)
    encrypted = ["--encrypt", "--age", recipient, "--encrypted-regex", "^(data|stringData)$", "--in-place", file]
    subprocess.run([programs / "sops", *encrypted], check=True)
    return identity
