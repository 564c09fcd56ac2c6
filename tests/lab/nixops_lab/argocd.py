"""Argo CD in the lab: its application-controller and repo-server, on a Redis, with the git server that Flux has, too.

There is no argocd-server: nobody looks at pages, and for an action it sends the patch that the action's Lua makes.
"""

import base64
import os
import secrets
from pathlib import Path

from nixops_lab import gitops, lifecycle
from nixops_lab.paths import SOURCES, LabPaths
from nixops_lab.report import say

NAMESPACE = "argocd"
CONTROLLER = "argocd-application-controller"
REPO_SERVER = "argocd-repo-server"
# Inside the lab's network, where nobody else is.
REDIS_PORT, REPO_SERVER_PORT, REPO_SERVER_METRICS_PORT, CONTROLLER_METRICS_PORT = 9796, 9797, 9798, 9799
RESYNC_SECONDS = 3
PROCESSES = ("redis", REPO_SERVER, CONTROLLER)


def start(paths: LabPaths) -> None:
    """Compiles and starts what is missing in a running lab. Raises LabError."""
    with lifecycle.exclusively(paths):
        lab = lifecycle.running(paths)
        if all(name in lab.processes for name in PROCESSES):
            say("Argo CD runs already")
            return
        programs = gitops.compiled(SOURCES / "gitops" / "argocd" / "build.sh")
        gitops.install(paths, NAMESPACE, [CONTROLLER], programs / "crds", *_settings())
        lab = gitops.with_git_server(paths, lab)
        folder = paths.folder / "argocd"
        folder.mkdir(exist_ok=True)
        redis = ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        lab = gitops.started(paths, lab, "redis", redis, {})
        lab = gitops.started(paths, lab, REPO_SERVER, _repo_server(programs), _repo_server_variables(paths, programs))
        variables = {
            "KUBECONFIG": gitops.kubeconfig(paths, lab, NAMESPACE, CONTROLLER),
            # What it takes for its own cluster is that of KUBECONFIG.
            "ARGOCD_FAKE_IN_CLUSTER": "true",
        }
        gitops.started(paths, lab, CONTROLLER, _controller(programs), variables)
    say("Argo CD runs; its Applications belong into the namespace argocd")


def _settings() -> list[object]:
    """What its installation has beside the programs (manifests/base/config), and the project that its server makes."""

    def named(kind: str, name: str, **more: object) -> dict[str, object]:
        labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "argocd"}
        metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}

    everything = {"group": "*", "kind": "*"}
    project = {
        "sourceRepos": ["*"],
        "destinations": [{"namespace": "*", "server": "*"}],
        "clusterResourceWhitelist": [everything],
    }
    return [
        named("ConfigMap", "argocd-cm", data={}),
        named("Secret", "argocd-secret", data={"server.secretkey": base64.b64encode(secrets.token_bytes(32)).decode()}),
        {**named("AppProject", "default", spec=project), "apiVersion": "argoproj.io/v1alpha1"},
    ]


def _repo_server(programs: Path) -> list[str]:
    return [
        str(programs / REPO_SERVER),
        "--address=127.0.0.1",
        f"--port={REPO_SERVER_PORT}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={REPO_SERVER_METRICS_PORT}",
        "--disable-tls",
        "--client-ca-path=",
        f"--redis=127.0.0.1:{REDIS_PORT}",
        # Else it takes a branch for as it was three minutes ago.
        f"--revision-cache-expiration={RESYNC_SECONDS}s",
    ]


def _repo_server_variables(paths: LabPaths, programs: Path) -> dict[str, str]:
    folder = paths.folder / "argocd"
    return {
        "PATH": f"{programs}:{paths.programs}:{os.environ['PATH']}",  # git-verify-wrapper.sh, kustomize; helm; git
        "TMPDIR": str(folder),
        "ARGOCD_ASK_PASS_SOCK": str(folder / "ask-pass.sock"),
        "ARGOCD_GPG_ENABLED": "false",
    }


def _controller(programs: Path) -> list[str]:
    return [
        str(programs / CONTROLLER),
        f"--repo-server=127.0.0.1:{REPO_SERVER_PORT}",
        "--repo-server-plaintext",
        f"--redis=127.0.0.1:{REDIS_PORT}",
        f"--metrics-port={CONTROLLER_METRICS_PORT}",
        f"--app-resync={RESYNC_SECONDS}",
        "--app-resync-jitter=0",
    ]
