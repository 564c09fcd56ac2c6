"""The operator, started the way its pod would start it.

    nsenter (the lab's network) → bwrap (root file system of the image, own processes) → setpriv (uid 65532)

* Root: that of the image which the repository's Dockerfile makes, its Python and Nix; the checkout's code lies over
  the installed package, so that an edit counts at the next start; the miniature nixpkgs. All of it read-only; /nix,
  HOME and /tmp writable.
* Rights: no capability, no way to get one, the service account of the chart. Never the cluster's administrator.
* A process namespace of its own: `kill` takes the operator and everything it started at once, as the death of a
  container does.
"""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from nixops_lab import control_plane, image, processes, state
from nixops_lab.network import entering
from nixops_lab.paths import CHECKOUT, LabPaths
from nixops_lab.report import LabError

USER_ID = 65532  # the `nonroot` user of distroless images, and the chart's
NAMESPACE = "nixops-system"
SERVICE_ACCOUNT = "nixops-operator"
TOKEN_LIFE = "48h"
STOP_SECONDS = 30  # Kubernetes' default terminationGracePeriodSeconds
ROOT_FOLDERS = ("bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr")
COMMAND = ("python", "-m", "nixops_operator")
PACKAGE = "nixops_operator"


@dataclass(frozen=True)
class Launch:
    """What the caller asked for; kept, so that `restart` repeats it. `command` empty: the operator itself. `is_pod`: as
    a pod (operator_pod.py); `values`: more of the chart's."""

    environment: Mapping[str, str]
    settings: Mapping[str, object]
    command: Sequence[str] = ()
    is_pod: bool = False
    values: Mapping[str, object] = field(default_factory=dict)


def configuration(paths: LabPaths, ports: Mapping[str, int], settings: Mapping[str, object]) -> dict[str, object]:
    """The operator's settings file. `settings`: dotted key → value, on top of what the lab sets."""
    merged: dict[str, object] = {
        "nix": {"substituters": [], "nixpkgs": {"path": str(paths.nixpkgs)}},
        "aws": {"endpointUrl": f"http://127.0.0.1:{ports['ec2']}"},
        "ec2": {"defaultImage": {"owner": "427812963091", "name": "nixos/25.11*"}},
        "hosts": {"allowedCidrs": ["192.0.2.0/24"]},
        "resyncPeriod": "5s",
        "server": {"port": ports["operator"]},
    }
    for key, value in settings.items():
        *parents, last = key.split(".")
        place = merged
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise LabError(f"--set {key}: {parent} is a value ({inner!r}), not a group of settings")
            place = inner
        place[last] = value
    return merged


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """`a.b=value` each; the value is YAML, so that 5, true and [x, y] mean what they look like."""
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise LabError(f"{pair}: write KEY=VALUE, with dots between the parts of KEY")
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise LabError(f"{pair}: the value is no YAML: {error}") from None
    return settings


def parse_environment(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` each."""
    for pair in pairs:
        if "=" not in pair:
            raise LabError(f"--env {pair}: write NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def installed_package(root: Path) -> Path:
    """Where the image's environment has the operator's code, as seen inside. Raises LabError if it is nowhere."""
    for found in (root / "opt/nixops-operator/lib").glob(f"python3.*/site-packages/{PACKAGE}"):
        return Path("/") / found.relative_to(root)
    raise LabError(f"{root} has no {PACKAGE} in /opt/nixops-operator: is the Dockerfile another one?")


def sandbox(paths: LabPaths, root: Path, status_fd: int) -> list[str]:
    """bwrap's arguments. `root`: the image's root file system.

    Binding each of the lab's paths at its own place reaches it even below a private home: the folders above are made
    anew.
    """

    def binds() -> Iterator[str]:
        for name in ROOT_FOLDERS:
            folder = root / name
            if folder.is_symlink():
                yield from ("--symlink", str(folder.readlink()), f"/{name}")
            elif folder.is_dir():
                yield from ("--ro-bind", str(folder), f"/{name}")
        yield from ("--ro-bind", str(CHECKOUT / "operator" / PACKAGE), str(installed_package(root)))
        yield from ("--dev", "/dev", "--dir", "/proc", "--ro-bind", "/sys", "/sys", "--dir", "/run", "--dir", "/var")
        yield from ("--dir", "/home")
        yield from ("--perms", "1777", "--tmpfs", "/tmp", "--perms", "1777", "--tmpfs", "/var/tmp")
        bound = sorted({paths.nixpkgs, paths.operator / "config.yaml", paths.operator / "kubeconfig"})
        # Said one by one: folders that bwrap makes on its own are as private as what is bound below them.
        for parent in sorted({parent for path in bound for parent in path.parents} - {Path("/")}):
            yield from ("--dir", str(parent))
        # Sorted, so that a mount never hides one made before it.
        for path in bound:
            yield from ("--ro-bind", str(path), str(path))
        yield from (
            "--bind",
            str(paths.operator / "nix"),
            "/nix",
            "--bind",
            str(paths.operator / "home"),
            "/home/nixops",
        )

    return [
        "bwrap",
        "--unshare-pid",
        "--as-pid-1",
        "--unshare-ipc",
        "--unshare-uts",
        "--json-status-fd",
        str(status_fd),
        "--cap-add",
        "ALL",  # setpriv gives all of them up; it and the mount below need some
        *binds(),
        "--chdir",
        "/home/nixops",
        "--",
        # A /proc that bwrap mounts has parts covered; the kernel then lets no user namespace inside mount another one
        # (mount_too_revealing() in Linux' fs/namespace.c), which the operator's own build sandbox needs to.
        "/bin/sh",
        "-c",
        # The shell stays as the first process: when the operator ends, all it started ends, as in a container.
        'mount -t proc proc /proc && setpriv "$@"; exit $?',
        "setpriv",
        f"--reuid={USER_ID}",
        f"--regid={USER_ID}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
    ]


def environment(paths: LabPaths, extra: Mapping[str, str]) -> dict[str, str]:
    """Only what a pod would have."""
    return {
        "HOME": "/home/nixops",
        "USER": "nixops",
        "PATH": "/opt/nixops-operator/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "KUBECONFIG": str(paths.operator / "kubeconfig"),
        "NIXOPS_CONFIG": str(paths.operator / "config.yaml"),
        "POD_NAMESPACE": NAMESPACE,
        **extra,
    }


def running(paths: LabPaths) -> processes.Recorded | None:
    """The first process of a living operator's namespace, or None."""
    try:
        recorded = processes.Recorded(**json.loads((paths.operator / "pid").read_text()))
    except FileNotFoundError:
        return None
    return recorded if processes.is_alive(recorded) else None


def start(paths: LabPaths, lab: state.State, launch: Launch) -> int:
    """Starts it and returns the operator's pid. Raises LabError if one is running, or if it ends at once."""
    if running(paths) is not None:
        raise LabError("the operator is running; `lab operator restart` starts it anew")
    prepare(paths)
    (paths.operator / "config.yaml").write_text(yaml.safe_dump(configuration(paths, lab.ports, launch.settings)))
    _write_private(paths.operator / "kubeconfig", _service_account_kubeconfig(paths, lab.ports["api"]))
    remember(paths, launch)
    root = image.build_root()
    status = paths.operator / "status"
    status.unlink(missing_ok=True)
    status_fd = os.open(status, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    command = launch.command or COMMAND
    try:
        process = processes.start(
            [*entering(paths.namespace), *sandbox(paths, root, status_fd), *command],
            paths.operator / "log",
            environment(paths, launch.environment),
            pass_fds=[status_fd],
        )
    finally:
        os.close(status_fd)
    pid = _await_pid(paths, process)
    if pid is None:
        raise LabError(f"the operator did not start. The end of its log:\n{control_plane.tail(paths.operator / 'log')}")
    return pid


def answers(lab: state.State) -> bool:
    """Whether its health port speaks HTTP; what it says there is its own affair."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://127.0.0.1:{lab.ports['operator']}/healthz", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def await_answer(paths: LabPaths, lab: state.State, limit: float) -> bool:
    """Waits up to `limit` seconds for its health port.

    Raises LabError, with the log's end, if the operator ends before.
    """
    deadline = time.monotonic() + limit
    while not answers(lab):
        if running(paths) is None:
            log = paths.operator / "log"
            raise LabError(f"the operator ended with {exit_code(paths)}. The end of {log}:\n{control_plane.tail(log)}")
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def stop(paths: LabPaths) -> int | None:
    """SIGTERM, then up to STOP_SECONDS, then SIGKILL, as the kubelet does.

    Its exit status; None if it was not running.
    """
    process = running(paths)
    if process is None:
        return None
    if (inner := _inner(process.pid)) is not None:
        processes.send(inner, signal.SIGTERM)
    if processes.wait_gone([process], STOP_SECONDS):
        kill(paths)
    return exit_code(paths)


def kill(paths: LabPaths) -> bool:
    """SIGKILL to the operator and everything it started, at once. False if it was not running."""
    process = running(paths)
    if process is None:
        return False
    # The kernel ends a process namespace with its first process (pid_namespaces(7)).
    processes.end([process], grace=0)
    return True


def exit_code(paths: LabPaths) -> int | None:
    """How the last one ended: its exit status, 128 + signal; None if it runs or was killed from outside."""
    code = _status(paths).get("exit-code")
    return code if isinstance(code, int) else None


def last_launch(paths: LabPaths) -> Launch:
    """What the last `start` was asked for; nothing special if there was none."""
    try:
        return Launch(**json.loads((paths.operator / "launch.json").read_text()))
    except FileNotFoundError:
        return Launch({}, {})


def remember(paths: LabPaths, launch: Launch) -> None:
    """For `last_launch`."""
    _write_private(paths.operator / "launch.json", json.dumps(asdict(launch)))


def prepare(paths: LabPaths) -> None:
    """The operator's writable folders, owned by its uid: the volumes of its pod."""
    paths.operator.mkdir(parents=True, exist_ok=True)
    for folder in (paths.operator / "nix", paths.operator / "home"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, USER_ID, USER_ID)


def _service_account_kubeconfig(paths: LabPaths, port: int) -> str:
    arguments = ["create", "token", SERVICE_ACCOUNT, f"--namespace={NAMESPACE}", f"--duration={TOKEN_LIFE}"]
    token = control_plane.kubectl(paths, arguments).strip()
    authority = (paths.control_plane / "authority.crt").read_text()
    return control_plane.kubeconfig(port, authority, token, SERVICE_ACCOUNT, NAMESPACE)


def _write_private(path: Path, content: str) -> None:
    """For the operator's eyes, and root's; never seen half-written."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(content)
    os.chown(fresh, USER_ID, USER_ID)
    fresh.replace(path)


def _status(paths: LabPaths) -> dict[str, object]:
    """bwrap's reports (bwrap(1), --json-status-fd), one JSON object a line, merged."""
    merged: dict[str, object] = {}
    try:
        text = (paths.operator / "status").read_text()
    except FileNotFoundError:
        return merged
    # bwrap writes a line in pieces: the last one may be unfinished.
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            merged |= json.loads(line)
    return merged


def _inner(first: int) -> processes.Recorded | None:
    """The operator itself: the child of the namespace's first process; None before it is there or after its end."""
    below = processes.children(first)
    return processes.record(below[0]) if below else None


def _await_pid(paths: LabPaths, outermost: processes.Recorded) -> int | None:
    """Writes down the namespace's first process as soon as there is one; None if all ended before the operator ran."""
    while processes.is_alive(outermost):
        first = _status(paths).get("child-pid")
        if isinstance(first, int) and (recorded := processes.record(first)) is not None:
            _write_private(paths.operator / "pid", json.dumps(asdict(recorded)))
            if (inner := _inner(first)) is not None and _runs_as_operator(inner.pid):
                return inner.pid
    return None


def _runs_as_operator(pid: int) -> bool:
    """True once setpriv has become the command: before, neither uid nor signal handlers are the operator's."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == USER_ID and Path(f"/proc/{pid}/exe").readlink().name != "setpriv"
    except FileNotFoundError:
        return False
