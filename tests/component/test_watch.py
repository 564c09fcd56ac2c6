"""The process beside a real API server, by real kopf: what it hears, what it makes up for, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.connection import Connection
from nixops_operator.cache import Cache
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.watch import ApiServer, Intake, WatchDeadError, resync, resync_for_ever, watch_for_ever
from nixops_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from component.conftest import ApiServer

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds; a busy machine needs about 10

_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDl6nHSVW1GRr4VCsFpkW1v0a2bJH8Qw3PjUOb5eYlJm"


def machine(name: str, namespace: str = "default") -> dict[str, Any]:
    """A given host that no administrator allows: looked at and judged, never dialled."""
    return {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixMachine",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "target": {"host": {"address": "192.0.2.1"}},
            "ssh": {"privateKeySecretRef": {"name": "client"}, "hostKeys": [_HOST_KEY]},
            "configuration": {"modules": [{"inline": "{ }"}]},
        },
    }


def apply(server: ApiServer, body: dict[str, Any]) -> None:
    server.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def found(server: ApiServer, name: str, namespace: str = "default") -> dict[str, Any] | None:
    text = server.kubectl("get", "nixm", "-n", namespace, name, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text.strip() else None


def holder(server: ApiServer) -> str:
    text = server.kubectl("get", "lease", "-n", "nixops-system", "nixops-operator", "-o", "json", "--ignore-not-found")
    return json.loads(text)["spec"].get("holderIdentity") or "" if text.strip() else ""


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT:.0f} s"
        time.sleep(0.1)


@contextmanager
def operator(
    server: ApiServer, folder: Path, settings: dict[str, Any] | None = None, kubeconfig: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's process, by default as the cluster's administrator; killed at the end if it still lives."""
    config = folder / "config.yaml"
    ours = {"resyncPeriod": "5s", "server": {"address": "127.0.0.1", "port": 0}}
    config.write_text(yaml.safe_dump(ours | (settings or {})))
    path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "tests")])
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig or server.kubeconfig),
        "NIXOPS_CONFIG": str(config),
        "PYTHONPATH": path,
    }
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "component.core_without_nix"], env=environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.fixture
def ready_server(crds: ApiServer) -> ApiServer:
    crds.run("kubectl", "create", "namespace", "nixops-system")
    return crds


def stalled(server: ApiServer, name: str, namespace: str = "default") -> bool:
    conditions = ((found(server, name, namespace) or {}).get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Stalled" and one["reason"] == "HostForbidden" for one in conditions)


def test_asked_to_stop_it_releases_the_lease_and_ends_with_0(ready_server: ApiServer, tmp_path: Path) -> None:
    apply(ready_server, machine("stops"))
    with operator(ready_server, tmp_path) as process:
        until(lambda: stalled(ready_server, "stops"), "the first status")
        assert holder(ready_server)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0, (tmp_path / "log").read_text()[-3000:]
    assert holder(ready_server) == ""


def test_a_deletion_that_nobody_heard_is_carried_out_at_the_next_start(ready_server: ApiServer, tmp_path: Path) -> None:
    apply(ready_server, machine("sleeper"))
    with operator(ready_server, tmp_path) as process:
        until(lambda: stalled(ready_server, "sleeper"), "the first status")
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT)

    ready_server.kubectl("delete", "nixm", "-n", "default", "sleeper", "--wait=false")
    left = found(ready_server, "sleeper")
    assert left is not None, "the finalizer holds it"
    assert left["metadata"]["finalizers"] == ["nixops.dev/finalizer"]

    with operator(ready_server, tmp_path):
        until(lambda: found(ready_server, "sleeper") is None, "the deletion")


def answer(url: str) -> tuple[int, str] | None:
    """Status and text of an HTTP GET; None if nobody listens yet."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def lease_of_another(name: str) -> dict[str, Any]:
    """A Lease that somebody holds for a day."""
    taken = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "nixops-system"},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 86_400, "renewTime": taken},
    }


def test_while_another_holds_the_lease_every_question_is_answered(ready_server: ApiServer, tmp_path: Path) -> None:
    apply(ready_server, lease_of_another("taken"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"server": {"address": "127.0.0.1", "port": port}, "lease": {"name": "taken"}}

    with operator(ready_server, tmp_path, settings) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answer(f"{url}/healthz"), "the server")
        answers = {path: answer(f"{url}/{path}") for path in ("healthz", "readyz", "metrics")}
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0, (tmp_path / "log").read_text()[-3000:]

    assert answers["healthz"] == (200, "ok\n")
    assert answers["readyz"] == (503, "the Lease is not held\n")
    metrics = answers["metrics"]
    assert metrics is not None
    assert (metrics[0], "nixops_leader 0.0" in metrics[1]) == (200, True)


@pytest.mark.parametrize(
    "namespaces", [pytest.param([], id="all namespaces"), pytest.param(["watched"], id="one namespace")]
)
def test_it_acts_where_it_is_told_to_with_the_rights_of_the_chart(
    ready_server: ApiServer, tmp_path: Path, namespaces: list[str]
) -> None:
    server, config = ready_server, {"watch": {"namespaces": namespaces}}
    for namespace in ("watched", "unwatched"):
        server.run("kubectl", "create", "namespace", namespace)
        apply(server, machine("before", namespace))
    rendered = server.run(
        "helm", "template", "nixops-operator", str(ROOT / "helm/nixops-operator"), "--namespace", "nixops-system",
        "--show-only", "templates/rbac.yaml", "--values", "-", stdin=json.dumps({"config": config}),
    )  # fmt: skip
    server.kubectl("apply", "-f", "-", stdin=rendered.stdout)
    try:
        with operator(server, tmp_path, config, server.account) as process:
            until(lambda: stalled(server, "before", "watched"), "the list")
            apply(server, machine("after", "watched"))
            until(lambda: stalled(server, "after", "watched"), "the watch")
            server.kubectl("delete", "nixm", "-n", "watched", "before", "after")
            if not namespaces:
                until(lambda: stalled(server, "before", "unwatched"), "the others")
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT)
        beyond = found(server, "before", "unwatched")
    finally:
        server.kubectl("delete", "-f", "-", stdin=rendered.stdout)
        server.kubectl(
            "patch", "nixm", "-n", "unwatched", "before", "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
        server.kubectl("delete", "nixm", "-n", "unwatched", "before")

    assert beyond is not None
    assert ("finalizers" in beyond["metadata"]) == (not namespaces)
    assert "is forbidden" not in (tmp_path / "log").read_text(), "the API server refused something"


class _NothingServed(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Says nothing."""


def test_without_the_crds_it_ends_with_10_and_says_so(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), _NothingServed)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "none", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    users = [{"name": "none", "user": {"token": "none"}}]
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [cluster],
                "users": users,
                "contexts": [context],
                "current-context": "none",
            }
        )
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "nixops_operator"],
            env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    finally:
        server.shutdown()
        serving.join()
        server.server_close()

    assert ended.returncode == 10
    assert "nixmachines" in ended.stdout + ended.stderr


# --- what the watch hears ---------------------------------------------------------------------------------------------


class Listening:
    """Intake, cache and queue by themselves."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        self.intake = Intake(self.cache, self.queue)

    async def heard(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not holds():  # noqa: ASYNC110 - kopf's own tasks fill the cache
                await asyncio.sleep(0.05)


async def test_a_burst_of_edits_is_one_waiting_key(crds: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(crds.kubeconfig))
    listening, stop, key = Listening(), asyncio.Event(), Key(Kind.MACHINE, "default", "burst")
    connection = await Connection.open(str(crds.kubeconfig))
    server = ApiServer(connection.url, connection.is_strict)
    await connection.close()
    watching = asyncio.create_task(watch_for_ever(listening.intake, server, (), stop, asyncio.Event()))
    apply(crds, machine("burst"))
    await listening.heard(lambda: key in listening.cache.known())

    for number in range(10):
        crds.kubectl("annotate", "nixm", "-n", "default", "burst", f"edit={number}", "--overwrite")

    def newest() -> bool:
        body = listening.cache.get(key)
        return body is not None and body["metadata"].get("annotations", {}).get("edit") == "9"

    await listening.heard(newest)
    waiting = [await listening.queue.get() for _ in range(len(listening.queue))]
    stop.set()
    await watching
    crds.kubectl("delete", "nixm", "-n", "default", "burst", "--wait=false")

    assert waiting.count(key) == 1


async def test_what_no_event_told_of_is_repaired_by_the_next_list(crds: ApiServer) -> None:
    connection = await Connection.open(str(crds.kubeconfig))
    kube = KubernetesApi(connection)
    listening, key = Listening(), Key(Kind.MACHINE, "default", "unheard")
    try:
        apply(crds, machine("unheard"))
        await resync(kube, listening.cache, listening.intake)
        assert key in listening.cache.known()
        assert await resync(kube, listening.cache, listening.intake) == 0, "nothing new: nobody is woken"

        crds.kubectl("delete", "nixm", "-n", "default", "unheard", "--wait=false")
        await resync(kube, listening.cache, listening.intake)
        assert key not in listening.cache.known()
    finally:
        await connection.close()


async def test_a_dead_watch_is_noticed(crds: ApiServer) -> None:
    """Two lists in a row with news, and no event between them."""
    connection = await Connection.open(str(crds.kubeconfig))
    listening, rounds = Listening(), 0

    def told() -> None:
        nonlocal rounds
        rounds += 1
        crds.kubectl("annotate", "nixm", "-n", "default", "deaf", f"edit={rounds}", "--overwrite")

    try:
        apply(crds, machine("deaf"))
        with pytest.raises(WatchDeadError):
            async with asyncio.timeout(LIMIT):
                await resync_for_ever(
                    KubernetesApi(connection), listening.cache, listening.intake, timedelta(milliseconds=10), told
                )
    finally:
        await connection.close()
        crds.kubectl("delete", "nixm", "-n", "default", "deaf", "--wait=false")

    assert rounds == 2


async def test_the_lists_of_some_namespaces_hold_nothing_of_others(crds: ApiServer) -> None:
    for namespace in ("listed-1", "listed-2", "unlisted"):
        crds.run("kubectl", "create", "namespace", namespace)
        apply(crds, machine("there", namespace))
    connection = await Connection.open(str(crds.kubeconfig))
    try:
        api = KubernetesApi(connection, namespaces=("listed-1", "listed-2"))
        pages = [page async for page in api.list(Kind.MACHINE)]
    finally:
        await connection.close()

    assert [{body["metadata"]["namespace"] for body in page.bodies} for page in pages] == [{"listed-1"}, {"listed-2"}]
    for page in pages:
        assert page.version >= max(int(body["metadata"]["resourceVersion"]) for body in page.bodies)
