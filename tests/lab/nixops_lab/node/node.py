"""Joining the node to a running lab: its files, its network, its processes; and images for it.

It is ended as machines are: by its cgroup (machines/leftovers.py); what it mounts lies in a namespace of its own.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nixops_lab import control_plane, network, processes
from nixops_lab.machines.cgroups import MachineCgroups
from nixops_lab.node import files, oci
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError

INSIDE = Path(__file__).parent / "inside.sh"
GROUP = "node"  # of its processes, beside those of machines
PROGRAMS = ("kubelet", "kube-scheduler")
READY_SECONDS = 90
# $1…: cgroups, `--`, command. It becomes the command.
_IN_CGROUPS = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'


def join(
    paths: LabPaths,
    ports: Mapping[str, int],
    tools: Path,
    programs: Path,
    started: Callable[[str, processes.Recorded], None],
) -> None:
    """Until the API server calls the node Ready. `tools`: tools_root's folder; `programs`: that of `build.sh --node`.
    `started` is told the process at once. Raises LabError with the log's end."""
    _write(paths, programs)
    cgroups = MachineCgroups(paths.namespace, GROUP)
    cgroups.create()
    _nft(paths, files.rules(ports["api"], ports["ec2"]))
    log = paths.logs / "node.log"
    inside = ["bash", str(INSIDE), str(tools), str(paths.node), control_plane.NODE, files.ADDRESS]
    process = processes.start(
        [
            *("sh", "-c", _IN_CGROUPS, "sh", *map(str, cgroups.folders), "--"),
            *network.entering(paths.namespace),
            *("unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "--", *inside),
        ],
        log,
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    started(GROUP, process)
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(paths):
        if not processes.is_alive(process) or time.monotonic() > deadline:
            ends = "\n".join(f"{each}:\n{control_plane.tail(each)}" for each in (log, *_logs(paths)))
            raise LabError(f"the node is not Ready. The ends of its logs:\n{ends}")
        time.sleep(0.2)


def load(paths: LabPaths, archive: Path) -> None:
    """An OCI archive's image becomes one of the node's. Raises LabError."""
    with archive.open("rb") as content:
        done = subprocess.run(
            enter(paths, ["ctr", "--namespace=k8s.io", "images", "import", "--local", "-"]),
            stdin=content, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"the node does not take {archive}: {done.stderr.strip() or done.stdout.strip()}")


def has(paths: LabPaths, name: str) -> bool:
    """Whether an image of that name is there."""
    done = subprocess.run(
        enter(paths, ["ctr", "--namespace=k8s.io", "images", "list", "--quiet", f"name=={name}"]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return name in done.stdout.split()


def pid(paths: LabPaths) -> int | None:
    """Of its first process; None if there is no node."""
    for number in MachineCgroups(paths.namespace, GROUP).pids():
        try:
            status = Path(f"/proc/{number}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if fields["NSpid"].split()[1:] == ["1"]:
            return number
    return None


def enter(paths: LabPaths, command: Sequence[str]) -> list[str]:
    """The words that run `command` on the node. Raises LabError if there is none."""
    first = pid(paths)
    if first is None:
        raise LabError("this lab has no node: `lab up --node` joins one")
    clean = ["env", "--ignore-environment", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    return ["nsenter", f"--target={first}", "--all", "--", *clean, *command]


def _write(paths: LabPaths, programs: Path) -> None:
    etc, bin_folder = paths.node / "etc", paths.node / "upper/usr/local/bin"
    if paths.node.exists():
        shutil.rmtree(paths.node)
    for folder in (etc / "containerd", etc / "cni/net.d", etc / "kubernetes", bin_folder, paths.node / "images"):
        folder.mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy2(programs / name, bin_folder)
    for name in ("kubelet.kubeconfig", "scheduler.kubeconfig", "authority.crt"):
        shutil.copy2(paths.control_plane / name, etc / "kubernetes")
    (etc / "containerd/config.toml").write_text(files.CONTAINERD)
    (etc / "cni/net.d/10-lab.conflist").write_text(files.NETWORK)
    (etc / "kubernetes/kubelet.yaml").write_text(files.KUBELET)
    (etc / "kubernetes/resolv.conf").write_text("")
    (etc / "hostname").write_text(f"{control_plane.NODE}\n")
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    oci.write(
        paths.node / "images/pause.tar",
        files.PAUSE,
        {"pause": programs / "pause"},
        {"Entrypoint": ["/pause"], "User": "65535:65535"},
    )


def _nft(paths: LabPaths, script: str) -> None:
    # What comes from a pod is routed to the loopback, where the API server and EC2 listen.
    for argv in (["sysctl", "--quiet", "--write", "net.ipv4.conf.all.route_localnet=1"], ["nft", "-f", "-"]):
        command = [*network.entering(paths.namespace), *argv]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{argv[0]}: {done.stderr.strip()}")


def _is_ready(paths: LabPaths) -> bool:
    argv = ["get", "nodes", control_plane.NODE, "--ignore-not-found", "--output=json"]
    text = control_plane.kubectl(paths, argv)
    conditions = json.loads(text)["status"].get("conditions", []) if text else []
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


def _logs(paths: LabPaths) -> list[Path]:
    return sorted((paths.node / "log").glob("*.log"))
