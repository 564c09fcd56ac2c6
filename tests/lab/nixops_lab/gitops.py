"""Flux in the lab: its source-controller and kustomize-controller, and a git server that tests push to.

They run as processes inside the lab's network, each with a service account of its own that is the cluster's
administrator, as Flux' default installation has it.
"""

import subprocess
import sys
from pathlib import Path

import yaml

from nixops_lab import control_plane, lifecycle, network, processes, state
from nixops_lab.control_plane import kubectl
from nixops_lab.paths import SOURCES, LabPaths
from nixops_lab.report import LabError, say

NAMESPACE = "flux-system"
CONTROLLERS = ("source-controller", "kustomize-controller")
# Inside the lab's network, where nobody else is.
GIT_PORT, STORAGE_PORT = 9790, 9791
METRICS_PORTS = {"source-controller": 9792, "kustomize-controller": 9793}
HEALTH_PORTS = {"source-controller": 9794, "kustomize-controller": 9795}
START_SECONDS = 60


def start(paths: LabPaths) -> None:
    """Compiles and starts what is missing in a running lab. Raises LabError."""
    with lifecycle.exclusively(paths):
        lab = lifecycle.running(paths)
        if all(name in lab.processes for name in CONTROLLERS):
            say("Flux runs already")
            return
        programs = _compiled()
        _install(paths, programs)
        repositories(paths).mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "nixops_lab.git_server", str(GIT_PORT), str(repositories(paths))]
        lab = _started(paths, lab, "git-server", argv)
        for name in CONTROLLERS:
            lab = _started(paths, lab, name, [str(programs / name), *_flags(paths, name)])
    say("Flux runs; push to a repository made by `lab git NAME`, and name it http://127.0.0.1:9790/NAME.git")


def repositories(paths: LabPaths) -> Path:
    """The folder of the bare repositories, which the git server shows as http://127.0.0.1:9790/<name>.git."""
    return paths.folder / "git"


def repository(paths: LabPaths, name: str) -> Path:
    """A bare repository with the branch `main`, made if it is not there. Push to its path."""
    folder = repositories(paths) / f"{name}.git"
    if not folder.exists():
        argv = ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder)]
        subprocess.run(argv, check=True)
    return folder


def url(name: str) -> str:
    """As Flux finds it."""
    return f"http://127.0.0.1:{GIT_PORT}/{name}.git"


def _compiled() -> Path:
    done = subprocess.run([SOURCES / "gitops" / "build.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"Flux was not compiled ({done.returncode}); what was said is above")
    return Path(done.stdout.strip())


def _install(paths: LabPaths, programs: Path) -> None:
    documents: list[object] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for name in CONTROLLERS:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{NAMESPACE}-{name}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
        }
        documents += [account, binding]
    for definition in sorted((programs / "crds").glob("*.yaml")):
        documents += yaml.safe_load_all(definition.read_text())
    apply = ["apply", "--server-side", "--field-manager=nixops-lab", "--filename=-"]
    kubectl(paths, apply, stdin=yaml.safe_dump_all(documents))
    kubectl(paths, ["wait", "--for=condition=Established", "--timeout=30s", f"--filename={programs / 'crds'}"])


def _flags(paths: LabPaths, name: str) -> list[str]:
    shared = [
        f"--metrics-addr=127.0.0.1:{METRICS_PORTS[name]}",
        f"--health-addr=127.0.0.1:{HEALTH_PORTS[name]}",
        "--watch-all-namespaces",
        "--interval-jitter-percentage=0",
        "--requeue-dependency=1s",
    ]
    if name == "kustomize-controller":
        return shared
    storage = paths.folder / "flux-storage"
    storage.mkdir(exist_ok=True)
    address = f"127.0.0.1:{STORAGE_PORT}"
    return [*shared, f"--storage-path={storage}", f"--storage-addr={address}", f"--storage-adv-addr={address}"]


def _started(paths: LabPaths, lab: state.State, name: str, argv: list[str]) -> state.State:
    environment = {**lifecycle.SOURCES_ON_PATH, "RUNTIME_NAMESPACE": NAMESPACE}
    if name in CONTROLLERS:
        environment["KUBECONFIG"] = str(_kubeconfig(paths, lab, name))
    process = processes.start([*network.entering(paths.namespace), *argv], paths.logs / f"{name}.log", environment)
    lab = lab.with_process(name, process)
    state.write(paths.state, lab)
    return lab


def _kubeconfig(paths: LabPaths, lab: state.State, name: str) -> Path:
    token = kubectl(paths, ["create", "token", name, f"--namespace={NAMESPACE}", "--duration=24h"]).strip()
    authority = (paths.control_plane / "authority.crt").read_text()
    config = paths.control_plane / f"{name}.kubeconfig"
    config.touch(mode=0o600)
    config.write_text(control_plane.kubeconfig(lab.ports["api"], authority, token, name))
    return config
