"""A real API server with etcd on free loopback ports: for tests of what only it can judge, and for benchmarks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ACCOUNT = "system:serviceaccount:nixops-system:nixops-operator"
START_LIMIT = 120  # seconds; a busy machine needs about 15


@dataclass(frozen=True)
class ApiServer:
    """A running API server: `kubectl` and `helm` run as its administrator."""

    programs: Path
    kubeconfig: Path
    account: Path  # a kubeconfig of the service account that the chart names, without any right of its own

    def run(self, program: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """One of the control plane's programs; its exit status is the caller's to judge."""
        return subprocess.run(
            [self.programs / program, *arguments],
            input=stdin,
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "KUBECACHEDIR": str(self.kubeconfig.parent / "cache"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl's output. Fails the test with its error text if it does not exit with 0."""
        done = self.run("kubectl", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl's error text. Fails the test if it succeeds."""
        done = self.run("kubectl", *arguments, stdin=stdin)
        assert done.returncode != 0, f"accepted: {done.stdout}"
        return done.stderr


def _free_ports(number: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _kubeconfig(path: Path, url: str, token: str) -> Path:
    """For who has the token; on loopback nobody checks the certificate."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "current-context": "test",
            }
        )
    )
    return path


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    trusting = ssl._create_unverified_context()  # noqa: S323 - a self-signed certificate on loopback
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/readyz", context=trusting, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the API server was not ready after {START_LIMIT} s: {log.read_text()[-3000:]}")


def compiled() -> Path:
    """Folder with kube-apiserver, kubectl and helm; compiled once, which takes about 12 minutes."""
    build = subprocess.run([ROOT / "tests/lab/control_plane/build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(build.stdout.strip())


@contextmanager
def running(programs: Path, folder: Path) -> Iterator[ApiServer]:
    """An empty cluster of etcd and API server alone, with RBAC, one administrator and the operator's account. Its files
    lie in `folder`."""
    etcd = shutil.which("etcd")
    assert etcd, "etcd is missing: apt-get install etcd-server"
    client, peer, secure = _free_ports(3)
    tokens = {"admin": secrets.token_hex(16), ACCOUNT: secrets.token_hex(16)}
    groups = {"admin": "system:masters", ACCOUNT: "system:serviceaccounts"}
    rows = [f"{token},{user},{user},{groups[user]}\n" for user, token in tokens.items()]
    (folder / "tokens.csv").write_text("".join(rows))
    (folder / "tokens.csv").chmod(0o600)
    subprocess.run(["openssl", "genrsa", "-out", folder / "accounts.key", "2048"], check=True, capture_output=True)
    url = f"https://127.0.0.1:{secure}"
    kubeconfig = _kubeconfig(folder / "kubeconfig", url, tokens["admin"])
    account = _kubeconfig(folder / "account", url, tokens[ACCOUNT])
    commands = {
        "etcd": [
            etcd,
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        ],
        "apiserver": [
            str(programs / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1",
            f"--secure-port={secure}",
            f"--cert-dir={folder}/certificates",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/accounts.key",
            f"--service-account-signing-key-file={folder}/accounts.key",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",  # nobody makes the namespaces' default accounts here
        ],
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
        _wait_until_ready(url, started[-1], folder / "apiserver.log")
        yield ApiServer(programs, kubeconfig, account)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def establish_crds(server: ApiServer) -> None:
    """Both of our kinds are served."""
    server.kubectl("apply", "-f", str(ROOT / "crds"))
    server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
