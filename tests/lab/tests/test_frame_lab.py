"""A whole lab, as a person uses it: up, looked at from outside and inside, the operator's place, down, nothing left."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from nixops_lab import debian, network, processes, state
from nixops_lab.ec2.testing import client_of
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError
from nixops_lab.testing import CommandFailedError, Lab

pytestmark = pytest.mark.lab

# Of this run alone: programs of other tests sleep, too.
SLEEP = f"sleep {1_000_000 + os.getpid()}"
# Says what it may do and where it is, then stays until it is asked to go.
STAND_IN = """
import json, os, pathlib, signal, socket, sys
seen = {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups()}
seen["capabilities"] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
seen["environment"] = sorted(os.environ)
for place in ("/nix", "/tmp", os.environ["HOME"]):
    pathlib.Path(place, "probe").touch()
try:
    pathlib.Path("/usr/probe").touch()
except OSError as error:
    seen["/usr"] = error.strerror
import nixops_operator
seen["package"] = nixops_operator.__name__
print(json.dumps(seen), flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.pause()
"""
BUILD = """
set -eu
cd /tmp
echo 'derivation { name = "it"; system = "x"; builder = "/bin/sh"; args = ["-c" "echo built > $out"]; }' > it.nix
nix-build --option substitute false --option build-users-group "" --option sandbox false --option system x it.nix
bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp -- sh -c 'echo in the sandbox as $(id -u)'
kubectl auth whoami -o jsonpath='{.status.userInfo.username}'
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.up(tmp_path_factory.mktemp("frame") / "lab") as running:
        yield running


@pytest.fixture
def stopped_operator(lab: Lab) -> Iterator[None]:
    yield
    lab.operator.kill()


def test_the_api_answers_under_one_kubeconfig_outside_and_inside(lab: Lab) -> None:
    outside = lab.kubectl("get", "namespaces", "--output=name").stdout
    assert "namespace/nixops-system" in outside.split()
    assert lab.run(["kubectl", "get", "namespaces", "--output=name"]).stdout == outside


def test_a_second_up_keeps_the_running_lab(lab: Lab) -> None:
    again = Lab.up(lab.paths.folder)
    assert again.state == lab.state


def test_the_environment_answers_for_aws_and_names_three_identities(lab: Lab) -> None:
    names = ("AWS_ACCESS_KEY_ID", "LAB_OPERATOR_AWS_ACCESS_KEY_ID", "LAB_NEIGHBOUR_AWS_ACCESS_KEY_ID")
    assert len({lab.env[name] for name in names}) == 3
    asked = [
        "python3",
        "-c",
        f"import urllib.request as u; print(u.urlopen('{lab.env['LAB_CONTROL_URL']}/health').status)",
    ]
    assert lab.run(asked).stdout == "200\n"
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "200\n"


def test_knobs_are_turned_from_the_shell_and_meet_one_caller_only(lab: Lab) -> None:
    def identity(prefix: str, read_timeout: float) -> Any:
        client = client_of(
            lab.env["AWS_ENDPOINT_URL"],
            "sts",
            access_key=lab.env[f"{prefix}AWS_ACCESS_KEY_ID"],
            secret_key=lab.env[f"{prefix}AWS_SECRET_ACCESS_KEY"],
            read_timeout=read_timeout,
        )
        return client.get_caller_identity()["Account"]

    knobs = lab.command("ec2", "set", "silent.neighbour=*", "visibility.tags=60").stdout
    assert (json.loads(knobs)["silent.neighbour"], json.loads(knobs)["visibility.tags"]) == ("*", 60)
    with pytest.raises(ReadTimeoutError):
        identity("LAB_NEIGHBOUR_", 0.3)
    assert identity("LAB_OPERATOR_", 60) == "123456789012"
    lab.command("ec2", "reset")
    assert "silent.neighbour" not in lab.control.set_knobs({})
    with pytest.raises(CommandFailedError, match=r"did you mean visibility\.tags\?"):
        lab.command("ec2", "set", "visibility.tag=60")


def test_the_given_host_lets_the_labs_key_in_and_shows_the_labs_host_key(lab: Lab, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"{lab.env['LAB_HOST_ADDRESS']} {lab.env['LAB_HOST_KEY']}\n")
    options = ["-oStrictHostKeyChecking=yes", f"-oUserKnownHostsFile={known}", "-oBatchMode=yes"]
    login = ["ssh", *options, f"-i{lab.env['LAB_SSH_KEY']}", f"-p{lab.env['LAB_HOST_PORT']}"]
    told = lab.run([*login, f"root@{lab.env['LAB_HOST_ADDRESS']}", "hostname"])
    assert told.stdout == lab.machine_exec("given-host", ["hostname"]).stdout == "given-host\n"


def test_a_command_inside_keeps_its_exit_status(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert lab.machine_exec("given-host", ["sh", "-c", "exit 4"], check=False).returncode == 4


def test_a_person_comes_inside_as_tests_do(lab: Lab) -> None:
    show = ["sh", "-c", "hostname; readlink /proc/self/ns/net; echo $PATH $KUBECONFIG; exec cat"]
    machine = ["machine", "exec", "given-host", "--"]
    assert lab.command("run", "--", *show).stdout == lab.run(show).stdout
    assert lab.command(*machine, *show).stdout == lab.machine_exec("given-host", show).stdout
    assert lab.run(["cat"], "told\n").stdout == lab.machine_exec("given-host", ["cat"], "told\n").stdout == "told\n"
    with pytest.raises(CommandFailedError, match="ended with 3"):
        lab.command("run", "--", "sh", "-c", "exit 3")
    with pytest.raises(CommandFailedError, match="ended with 4"):
        lab.command(*machine, "sh", "-c", "exit 4")
    with pytest.raises(CommandFailedError, match="no machine nobody; there are: given-host"):
        lab.command("machine", "exec", "nobody", "--", "true")
    with pytest.raises(CommandFailedError, match="no machine nobody; there are: given-host"):
        lab.machine_exec("nobody", ["true"])


def test_objects_are_read_as_kubectl_reads_them(lab: Lab) -> None:
    by_kubectl = json.loads(lab.kubectl("get", "namespace", "default", "--output=json").stdout)
    assert lab.read("/api/v1/namespaces/default") == by_kubectl
    assert lab.read("/api/v1/namespaces/nobodys") is None
    with pytest.raises(LabError, match="405"):
        lab.read("/api/v1/namespaces/default/finalize")


def test_a_given_host_without_power_is_switched_on_again_with_its_disk(lab: Lab) -> None:
    lab.machine_exec("given-host", ["touch", "/root/kept"])
    lab.control.cut_power("given-host")
    assert lab.machine_exec("given-host", ["true"], check=False).returncode == 1
    lab.control.switch_on("given-host")
    lab.machine_exec("given-host", ["test", "-e", "/root/kept"])


def test_one_more_given_host_has_the_same_keys_and_an_address_of_its_own(lab: Lab, tmp_path: Path) -> None:
    address = lab.command("machine", "add", "another", f"--debian={debian.own_suite()}").stdout.strip()
    known = tmp_path / "known_hosts"
    known.write_text(f"{address} {lab.env['LAB_HOST_KEY']}\n")
    options = ["-oStrictHostKeyChecking=yes", f"-oUserKnownHostsFile={known}", "-oBatchMode=yes"]
    assert address != lab.env["LAB_HOST_ADDRESS"]
    login = ["ssh", *options, f"-i{lab.env['LAB_SSH_KEY']}", f"root@{address}"]
    assert f" {address}/32 " in lab.run([*login, "ip", "-brief", "address", "show", "eth0"]).stdout
    with pytest.raises(CommandFailedError, match="there is a machine another already"):
        lab.command("machine", "add", "another", f"--debian={debian.own_suite()}")
    with pytest.raises(LabError, match="none of an instance"):
        lab.control.add_host("i-0123456789abcdef0", tmp_path)


@pytest.mark.usefixtures("stopped_operator")
def test_the_operators_process_has_a_pods_rights_and_places(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the caller's")
    lab.operator.start(command=["python", "-c", STAND_IN], environment={"EXTRA": "1"})
    seen = first_line_of(lab, '"package"')
    assert '"uid": 65532, "gid": 65532, "groups": []' in seen
    assert seen.count('"0000000000000000"') == 5
    assert '"/usr": "Read-only file system"' in seen
    assert '"EXTRA"' in seen
    assert "AWS" not in seen


@pytest.mark.usefixtures("stopped_operator")
def test_the_operators_process_can_build_and_use_a_sandbox_and_is_its_service_account(lab: Lab) -> None:
    kubectl = (lab.paths.programs / "kubectl").resolve().read_bytes()
    (lab.paths.operator / "home" / "kubectl").write_bytes(kubectl)
    (lab.paths.operator / "home" / "kubectl").chmod(0o755)
    lab.operator.start(command=["sh", "-c", BUILD.replace("kubectl", "/home/nixops/kubectl") + "echo; sleep 600"])
    seen = first_line_of(lab, "system:serviceaccount:nixops-system:nixops-operator", "cannot", "error")
    assert "error" not in seen
    assert "in the sandbox as 65532" in lab.operator.log()
    assert "/nix/store/" in lab.operator.log()


def test_stop_asks_and_kill_takes_everything_at_once(lab: Lab) -> None:
    command = ["sh", "-c", f"trap 'echo asked; exit 0' TERM; sh -c 'setsid {SLEEP}' & echo started; wait"]
    lab.operator.start(command=command)
    first_line_of(lab, "started")
    lab.operator.stop()
    assert lab.operator.log().splitlines()[-1] == "asked"
    assert not sleepers()
    lab.operator.restart()
    while not sleepers():
        os.sched_yield()
    lab.operator.kill()
    assert not lab.operator.is_running
    assert not sleepers()


def test_an_operator_that_ends_at_once_is_reported_with_its_log(lab: Lab) -> None:
    with pytest.raises(CommandFailedError, match="the operator did not start"):
        lab.operator.start(command=["/no/such/program"])


def test_down_leaves_no_process_no_mount_and_no_namespace_even_after_a_crash(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path / "lab")
    lab = Lab.up(paths.folder)
    inside = [found for pid in network.pids(paths.namespace) if (found := processes.record(pid)) is not None]
    assert inside
    daemon = state.read(paths.state).processes["daemon"]
    os.kill(daemon.pid, 9)
    os.kill(lab.state.processes["etcd"].pid, 9)
    lab.down()
    assert network.pids(paths.namespace) == []
    assert not network.exists(paths.namespace)
    assert [process for process in inside if processes.is_alive(process)] == []
    assert str(paths.folder) not in Path("/proc/self/mounts").read_text()
    assert list(Path("/sys/fs/cgroup").glob(f"**/{paths.namespace}*")) == []
    lab.down()


def first_line_of(lab: Lab, *words: str) -> str:
    """The first line of the operator's log with one of `words`; pytest's time limit ends a wait in vain."""
    while True:
        for line in lab.operator.log().splitlines():
            if any(word in line for word in words):
                return line
        if not lab.operator.is_running:
            raise AssertionError(lab.operator.log())


def sleepers() -> list[int]:
    found = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if line.endswith(SLEEP)]
