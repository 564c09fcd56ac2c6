"""The operator as a real pod on the lab's node: the chart, installed by helm with its default values, in a namespace
that admits *restricted* pods only.

Not default are: the image, which no registry has; the nixpkgs, an image that is mounted as a volume; and where EC2 and
hosts are in the lab. Whatever else is chosen is said with `--set`, as settings of the operator.
"""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nixops_lab import control_plane, debian, image, node
from nixops_lab.cluster import CHART
from nixops_lab.node import files, oci
from nixops_lab.operator_process import NAMESPACE, SERVICE_ACCOUNT, Launch, configuration
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError, say
from nixops_lab.state import State

RELEASE = SERVICE_ACCOUNT  # also the names of its Deployment and of the label of its pods
PLACE_OF_NIXPKGS = "/nixpkgs"
PORT = 8080  # the chart's
GONE_SECONDS = 150  # more than the pod's grace period


def start(paths: LabPaths, lab: State, launch: Launch) -> str:
    """Installs or upgrades the release; the new pod's name, as soon as there is one. Raises LabError."""
    if launch.command:
        raise LabError("a pod runs the operator: leave out `--pod` to run another program in its place")
    values = brought(paths, lab, launch)
    admit = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl(paths, ["label", "--overwrite", "namespace", NAMESPACE, admit])
    # The lab has applied definitions and roles itself; from now on they are the release's.
    ownership = ["--take-ownership", "--force-conflicts"]
    argv = ["upgrade", "--install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--values=-", *ownership]
    helm(paths, argv, yaml.safe_dump(values))
    return _newest_pod(paths)


def brought(paths: LabPaths, lab: State, launch: Launch) -> dict[str, Any]:
    """The chart's values, for whoever installs it. What they name is on the node then. Raises LabError."""
    node.enter(paths, [])  # before minutes are spent on an image
    built = image.build()
    _bring(paths, built.name, built.archive)
    return values_for(paths, lab, launch, built.name, _nixpkgs_image(paths))


def values_for(paths: LabPaths, lab: State, launch: Launch, name: str, nixpkgs: str) -> dict[str, Any]:
    """The chart's values. `name` and `nixpkgs` are images, as `repository:tag`."""
    repository, _, tag = name.rpartition(":")
    elsewhere = {
        "nix.nixpkgs.path": PLACE_OF_NIXPKGS,
        "aws.endpointUrl": f"http://{files.ADDRESS}:{lab.ports['ec2']}",
        "server.port": PORT,
    }
    volume = {"name": "nixpkgs", "image": {"reference": nixpkgs, "pullPolicy": "Never"}}
    mount = {"name": "nixpkgs", "mountPath": PLACE_OF_NIXPKGS, "readOnly": True}
    return {
        "image": {"repository": repository, "tag": tag},
        "config": configuration(paths, lab.ports, {**elsewhere, **launch.settings}),
        "extraEnv": [{"name": key, "value": value} for key, value in launch.environment.items()],
        "extraVolumes": [volume],
        "extraVolumeMounts": [mount],
        **launch.values,
    }


def await_ready(paths: LabPaths, pod: str, limit: float) -> bool:
    """Waits up to `limit` seconds. Raises LabError, with what it said, if its container ends before."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status = _get(paths, "pod", pod).get("status", {})
        if any((each["type"], each["status"]) == ("Ready", "True") for each in status.get("conditions", [])):
            return True
        for container in status.get("containerStatuses", []):
            ended = container["state"].get("terminated") or container["lastState"].get("terminated")
            if ended:
                raise LabError(f"the operator ended with {ended['exitCode']}. Its log:\n{log(paths)[-3000:]}")
        time.sleep(0.2)
    return False


def running(paths: LabPaths) -> str | None:
    """The name of a pod that is Ready; None if there is none."""
    for pod in _pods(paths):
        conditions = pod["status"].get("conditions", [])
        if any((each["type"], each["status"]) == ("Ready", "True") for each in conditions):
            return str(pod["metadata"]["name"])
    return None


def stop(paths: LabPaths) -> None:
    """As an administrator does: no replica. Returns when the pod is gone. Safe to repeat."""
    control_plane.kubectl(paths, ["scale", f"deployment/{RELEASE}", f"--namespace={NAMESPACE}", "--replicas=0"])
    deadline = time.monotonic() + GONE_SECONDS
    while _pods(paths):
        if time.monotonic() > deadline:
            raise LabError(f"the pod is still there after {GONE_SECONDS} s: kubectl -n {NAMESPACE} get pods")
        time.sleep(0.2)


def kill(paths: LabPaths) -> bool:
    """SIGKILL to all processes of its containers; the kubelet starts them anew. False if there is none."""
    killed = False
    for pod in _pods(paths):
        for container in pod["status"].get("containerStatuses", []):
            if "running" in container["state"]:
                name = container["containerID"].removeprefix("containerd://")
                argv = ["ctr", "--namespace=k8s.io", "tasks", "kill", "--all", "--signal=SIGKILL", name]
                subprocess.run(node.enter(paths, argv), check=True, capture_output=True)
                killed = True
    return killed


def log(paths: LabPaths) -> str:
    """Of all pods that are there, of each also what the container said that ran before the present one."""
    said = []
    for pod in _pods(paths):
        name = pod["metadata"]["name"]
        for which in ("--previous", "--previous=false"):
            try:
                said.append(control_plane.kubectl(paths, ["logs", name, f"--namespace={NAMESPACE}", which]))
            except LabError:  # there is none before the first, and none yet of the one that starts
                continue
    return "".join(said)


def log_command(paths: LabPaths, follow: bool) -> list[str]:
    """The words that print it."""
    words = [f"deployment/{RELEASE}", f"--namespace={NAMESPACE}", *(["--follow"] if follow else [])]
    return [str(paths.programs / "kubectl"), f"--kubeconfig={paths.kubeconfig}", "logs", *words]


def helm(paths: LabPaths, arguments: list[str], stdin: str = "") -> str:
    """helm as the lab's administrator. Raises LabError with its stderr."""
    argv = [str(paths.programs / "helm"), f"--kubeconfig={paths.kubeconfig}", *arguments]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"helm {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _nixpkgs_image(paths: LabPaths) -> str:
    name = f"localhost/nixpkgs:{debian.tree_digest(paths.nixpkgs)[:16]}"
    archive = paths.node / "images/nixpkgs.tar"
    if not node.has(paths, name):
        oci.write(archive, name, {".": paths.nixpkgs}, {})
        node.load(paths, archive)
    return name


def _bring(paths: LabPaths, name: str, archive: Path) -> None:
    if not node.has(paths, name):
        say("bringing the image to the node")
        node.load(paths, archive)


def _newest_pod(paths: LabPaths) -> str:
    """Of the Deployment's present template, once there is one: before, one of an earlier template may still end."""
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        wanted = _template(_get(paths, "deployment", RELEASE))
        sets = {each["metadata"]["name"] for each in _list(paths, "replicasets") if _template(each) == wanted}
        for pod in _pods(paths):
            is_ending = "deletionTimestamp" in pod["metadata"]
            if not is_ending and pod["metadata"]["ownerReferences"][0]["name"] in sets:
                return str(pod["metadata"]["name"])
        time.sleep(0.1)
    raise LabError(f"no pod was made: kubectl -n {NAMESPACE} describe replicasets\n{_refusals(paths)}")


def _template(thing: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Deployment's or ReplicaSet's pods, without the label by which the latter finds its own."""
    template = dict(thing["spec"]["template"])
    labels = {**template["metadata"]["labels"]}
    labels.pop("pod-template-hash", None)
    return {**template, "metadata": {**template["metadata"], "labels": labels}}


def _refusals(paths: LabPaths) -> str:
    return control_plane.kubectl(paths, ["get", "events", f"--namespace={NAMESPACE}", "--field-selector=type=Warning"])


def _pods(paths: LabPaths) -> list[dict[str, Any]]:
    return _list(paths, "pods")


def _list(paths: LabPaths, kind: str) -> list[dict[str, Any]]:
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    text = control_plane.kubectl(paths, ["get", kind, f"--namespace={NAMESPACE}", selector, "--output=json"])
    return list(json.loads(text)["items"])


def _get(paths: LabPaths, kind: str, name: str) -> dict[str, Any]:
    """Empty if there is none."""
    argv = ["get", kind, name, f"--namespace={NAMESPACE}", "--ignore-not-found", "--output=json"]
    return dict(json.loads(control_plane.kubectl(paths, argv) or "{}"))
