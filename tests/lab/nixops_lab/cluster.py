"""What an administrator installs before the operator: custom resource definitions, namespace, service account, roles.

Everything comes from the repository's `crds/` and from the chart as helm renders it;
what runs the operator itself (Deployment, settings) is the lab's own (operator_process.py).
"""

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from nixops_lab.control_plane import kubectl
from nixops_lab.operator_process import NAMESPACE, SERVICE_ACCOUNT
from nixops_lab.paths import CHECKOUT, LabPaths
from nixops_lab.report import LabError

RIGHTS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
CHART = CHECKOUT / "helm" / "nixops-operator"
DEFINITIONS = CHECKOUT / "crds"


def install_changes(paths: LabPaths) -> None:
    """Applies the repository's present state, if this lab has another one."""
    present = digest([*DEFINITIONS.glob("*.yaml"), *CHART.rglob("*")])
    installed = paths.control_plane / "installed"
    if not installed.exists() or installed.read_text() != present:
        install(paths)
        installed.write_text(present)


def digest(files: Iterable[Path]) -> str:
    """Of the names and contents of those that are files."""
    parts = [(str(path), path.read_bytes()) for path in sorted(files) if path.is_file()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def install(paths: LabPaths) -> None:
    """Applies the repository's present state. Safe to repeat."""
    documents: list[object] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for definition in sorted(DEFINITIONS.glob("*.yaml")):
        documents += yaml.safe_load_all(definition.read_text())
    documents += rights(render(paths))
    # Server-side: a client-side apply copies each definition into an annotation, which has a limit of 256 KiB.
    apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=nixops-lab", "--filename=-"]
    kubectl(paths, apply, stdin=yaml.safe_dump_all(documents))
    if any(DEFINITIONS.glob("*.yaml")):
        kubectl(paths, ["wait", "--for=condition=Established", "--timeout=30s", *(f"--filename={DEFINITIONS}",)])


def render(paths: LabPaths) -> str:
    """The chart with its default values, under the names that the lab uses."""
    argv = [str(paths.programs / "helm"), "template", SERVICE_ACCOUNT, str(CHART), f"--namespace={NAMESPACE}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"helm template {CHART} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def rights(rendered: str) -> list[object]:
    """The documents of a rendered chart that give rights.

    A namespaced one without a namespace gets the operator's, as `helm install` does.
    """
    documents = [document for document in yaml.safe_load_all(rendered) if document and document["kind"] in RIGHTS]
    for document in documents:
        if not document["kind"].startswith("Cluster"):
            document["metadata"].setdefault("namespace", NAMESPACE)
    return list(documents)
