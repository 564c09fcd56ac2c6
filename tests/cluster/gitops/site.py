"""A repository, and the place that something brings it to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.gitops.repository import Repository
from cluster.place import Place, is_ready, standing
from cluster.polling import eventually
from nixops_lab.paths import CHECKOUT

EXAMPLES = CHECKOUT / "examples/gitops"
MACHINES = ("web-one", "web-two")
TITLE = "Two machines from git"
OURS = {"nixdeployments", "nixmachines", "configmaps", "secrets"}


@dataclass(frozen=True)
class Site:
    place: Place
    repository: Repository

    def copy(self, *folders: Path) -> None:
        """Into the working copy, under their own names."""
        for folder in folders:
            shutil.copytree(folder, self.repository.folder / folder.name)

    # --- machines -----------------------------------------------------------------------------------------------------

    def titles(self) -> set[str]:
        """What the machines serve."""
        return {self.place.title(self.address(machine)) for machine in MACHINES}

    def address(self, machine: str) -> str:
        found = self.place.find("nixmachine", machine)
        return str(((found or {}).get("status") or {}).get("addresses", {}).get("ssh", ""))

    def instance(self, machine: str) -> str:
        return str(self.place.get("nixmachine", machine)["status"]["instance"]["id"])

    def state(self, instance: str) -> str:
        (reservation,) = self.place.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        return str(reservation["Instances"][0]["State"]["Name"])

    def stop(self, instance: str) -> None:
        """Behind git's back."""
        self.place.ec2.stop_instances(InstanceIds=[instance])
        eventually(lambda: self.state(instance) == "stopped", "it is stopped")

    def runs_again(self, instance: str, last: object) -> None:
        eventually(lambda: self.state(instance) == "running", "it runs again", 180, last)
        eventually(lambda: is_ready(self.place.get("nixdeployment", "web")), "all is ready again", 180, last)

    # --- who wrote ----------------------------------------------------------------------------------------------------

    def versions(self) -> dict[str, str]:
        return {thing["metadata"]["name"]: thing["metadata"]["resourceVersion"] for thing in self.place.objects()}

    def written(self, since: int) -> list[tuple[str, str, str]]:
        """(who, verb, resource) of each write to what git and operator have here, but for dry runs."""
        return [
            (entry["user"]["username"], entry["verb"], entry["objectRef"]["resource"])
            for entry in self.requests(since)
            if entry["objectRef"]["resource"] in OURS
            and entry["verb"] not in {"get", "list", "watch"}
            and not is_dry_run(entry)
        ]

    def requests(self, since: int) -> Iterator[dict[str, Any]]:
        """Of anybody, about this namespace."""
        for entry in self.place.lab.audit_log()[since:]:
            if (entry.get("objectRef") or {}).get("namespace") == self.place.namespace:
                yield entry

    def standing(self, kind: str, *where: str) -> str:
        """What all syncs of that kind and all objects say of themselves."""
        syncs = json.loads(self.place.kubectl("get", kind, "--output=json", *where))["items"]
        return "\n".join(f"{each['metadata']['name']}: {standing(each)}" for each in [*syncs, *self.place.objects()])


def is_dry_run(entry: dict[str, Any]) -> bool:
    return "dryRun=All" in entry.get("requestURI", "")
