"""Flux in the lab: its source-controller and kustomize-controller, and a git server that tests push to.

They run as processes inside the lab's network, each with a service account of its own that is the cluster's
administrator, as Flux' default installation has it. Argo CD runs likewise, see argocd.py.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def start(paths: LabPaths) -> None:
    """Compiles and starts what is missing in a running lab. Raises LabError."""
    with lifecycle.exclusively(paths):
        lab = lifecycle.running(paths)
        if all(name in lab.processes for name in CONTROLLERS):
            say("Flux runs already")
            return
        programs = compiled(SOURCES / "gitops" / "build.sh")
        install(paths, NAMESPACE, CONTROLLERS, programs / "crds")
        lab = with_git_server(paths, lab)
        for name in CONTROLLERS:
            environment = {"RUNTIME_NAMESPACE": NAMESPACE, "KUBECONFIG": kubeconfig(paths, lab, NAMESPACE, name)}
            lab = started(paths, lab, name, [str(programs / name), *_flags(paths, name)], environment)
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


def with_git_server(paths: LabPaths, lab: state.State) -> state.State:
    """The lab with its git server, which may run already."""
    if "git-server" in lab.processes:
        return lab
    repositories(paths).mkdir(exist_ok=True)
    argv = [sys.executable, "-m", "nixops_lab.git_server", str(GIT_PORT), str(repositories(paths))]
    return started(paths, lab, "git-server", argv, {})


def compiled(build: Path) -> Path:
    """The folder that a build script prints. Raises LabError."""
    done = subprocess.run([build], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{build} ended with {done.returncode}; what was said is above")
    return Path(done.stdout.strip())


def install(paths: LabPaths, namespace: str, controllers: Sequence[str], definitions: Path, *more: object) -> None:
    """The namespace with a service account for each controller, the definitions, and then what else there is to be."""
    documents: list[object] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}]
    for name in controllers:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{namespace}-{name}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        documents += [account, binding]
    for definition in sorted(definitions.glob("*.yaml")):
        documents += yaml.safe_load_all(definition.read_text())
    apply = ["apply", "--server-side", "--field-manager=nixops-lab", "--filename=-"]
    kubectl(paths, apply, stdin=yaml.safe_dump_all(documents))
    kubectl(paths, ["wait", "--for=condition=Established", "--timeout=30s", f"--filename={definitions}"])
    if more:
        kubectl(paths, apply, stdin=yaml.safe_dump_all(more))


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


def started(
    paths: LabPaths, lab: state.State, name: str, argv: Sequence[str], variables: Mapping[str, str]
) -> state.State:
    """The lab with one process more, inside its network."""
    environment = {**lifecycle.SOURCES_ON_PATH, **variables}
    process = processes.start([*network.entering(paths.namespace), *argv], paths.logs / f"{name}.log", environment)
    lab = lab.with_process(name, process)
    state.write(paths.state, lab)
    return lab


def kubeconfig(paths: LabPaths, lab: state.State, namespace: str, account: str) -> str:
    """A file for that service account, good for a day."""
    token = kubectl(paths, ["create", "token", account, f"--namespace={namespace}", "--duration=24h"]).strip()
    authority = (paths.control_plane / "authority.crt").read_text()
    config = paths.control_plane / f"{account}.kubeconfig"
    config.touch(mode=0o600)
    config.write_text(control_plane.kubeconfig(lab.ports["api"], authority, token, account, namespace))
    return str(config)
