"""`make demo`: the life of examples/valgrind-docs on EC2, from apply to delete, broken by hand and healed in between.

Every step shows what it does and what it sees. The exit status is 0 only if all of it was really seen.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import boto3
import yaml

from nixops_lab.operator_process import NAMESPACE
from nixops_lab.paths import CHECKOUT, LabPaths
from nixops_lab.report import LabError
from nixops_lab.stage import NotSeenError, Stage, bring_up, evidence, indent, is_ready, is_up, take_down, write
from nixops_lab.testing import CommandFailedError, Lab

DEPLOYMENT, MACHINE = "example", "example-webserver"
TARGET = "targets/aws-security-groups"
FIRST_TITLE = "Valgrind"
EDITED_TITLE = "A changed page"
EDITED_ROOT = f"""pkgs.writeTextDir "index.html" "<html><head><title>{EDITED_TITLE}</title></head></html>\""""
# Changes by hand in EC2 are noticed within these; the defaults are 10 s and 30 s.
PERIODS = {"ec2.sweepPeriod": "5s", "ec2.networkPeriod": "5s"}


def life(stage: Stage, example: Path, keep: bool) -> list[tuple[str, float]]:
    """The whole life; with `keep`, up to its end. Returns what was done or healed, each with its seconds.

    Raises NotSeenError.
    """
    ec2 = _ec2(stage.lab)
    took: list[tuple[str, float]] = []

    prepare(stage, example)
    took.append(("from kubectl apply to Ready, on a new instance", deploy(stage, example)))
    look(stage)
    log_in(stage)
    first_generation = _system_generation(stage)
    took.append(("edited module: from kubectl apply to Ready", edit(stage, example)))
    took.append(("revoked rule put back", revoke_rule(stage, ec2)))
    took.append(("system switched by hand: put back", switch_by_hand(stage, first_generation)))
    took.append(("stopped instance: serving again", stop_instance(stage, ec2)))
    took.append(("terminated instance: a new one serving", terminate_instance(stage, ec2)))
    if not keep:
        took.append(("kubectl delete, until nothing is left", delete(stage, example, ec2)))
    return took


def prepare(stage: Stage, example: Path) -> None:
    stage.step("An AWS account for the operator, and the example")
    write("   The operator's access key goes into a Secret, as a credentials file with a profile:")
    key, secret = (stage.lab.env[f"LAB_OPERATOR_AWS_{part}"] for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    with tempfile.NamedTemporaryFile("w", prefix="nixops-demo-") as credentials:
        credentials.write(f"[nixops-example]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        credentials.flush()
        stage.kubectl("create", "secret", "generic", "aws", f"--from-file=credentials={credentials.name}")

    shutil.rmtree(example, ignore_errors=True)
    shutil.copytree(CHECKOUT / "examples" / "valgrind-docs", example)
    patch = example / TARGET / "target.yaml"
    operations = yaml.safe_load(patch.read_text())
    operations.append({"op": "add", "path": "/spec/machines/0/disruption", "value": {"replace": "WhenLost"}})
    patch.write_text(yaml.safe_dump(operations, sort_keys=False))
    write(f"   A copy of examples/valgrind-docs lies in {example};")
    write("   its machine may be replaced if it is lost: disruption: {replace: WhenLost}.")


def deploy(stage: Stage, example: Path) -> float:
    stage.step("Apply it, and wait until it is ready")
    taken = _apply_and_wait(stage, example)
    stage.kubectl("get", "nixd,nixm")
    return taken


def look(stage: Stage) -> None:
    stage.step("Fetch the page through the machine's address")
    _expect_title(stage, FIRST_TITLE)


def log_in(stage: Stage) -> None:
    stage.step("Log in over SSH, with the generated key and the pinned host key")
    said = stage.show(["kubectl", "nixops", "ssh", MACHINE, "--", "readlink", "/run/current-system"], inside=True)
    running = stage.machine()["status"]["system"]["current"]
    if said.strip() != running:
        raise NotSeenError(f"the machine runs {said.strip()}, its status says {running}")
    write("   The same system as in the machine's status.")


def edit(stage: Stage, example: Path) -> float:
    stage.step("Edit the module: another page")
    module = example / "machine" / "configuration.nix"
    text, count = re.subn(r"(documentRoot = ).*;", lambda found: f"{found[1]}{EDITED_ROOT};", module.read_text())
    if count != 1:
        raise NotSeenError(f"{module} has no documentRoot to edit")
    module.write_text(text)
    indent("\n".join(f"> {line.strip()}" for line in text.splitlines() if "documentRoot" in line))
    taken = _apply_and_wait(stage, example)
    _expect_title(stage, EDITED_TITLE)
    return taken


def revoke_rule(stage: Stage, ec2: Any) -> float:
    stage.step("By hand: revoke the rule that lets HTTP in")
    group = next(found for found in _groups(ec2) if _admits(found, 80))
    revoked = [rule for rule in group["IpPermissions"] if rule.get("FromPort") == 80]
    write(f"   boto3: ec2.revoke_security_group_ingress(GroupId={group['GroupId']!r}, IpPermissions=[port 80])")
    began = time.monotonic()
    put_back_before = _operator_calls(stage, "AuthorizeSecurityGroupIngress")
    ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=revoked)

    def is_back() -> bool:
        # The operator may be quicker than a look at the rules: its own call is the proof that one was missing.
        was_missing = _operator_calls(stage, "AuthorizeSecurityGroupIngress") > put_back_before
        return was_missing and any(_admits(found, 80) for found in _groups(ec2)) and _title(stage) == EDITED_TITLE

    return _healed(stage, began, is_back, "the operator put the rule back, and the page is served")


def switch_by_hand(stage: Stage, generation: int) -> float:
    stage.step("By hand: switch the machine to its earlier system")
    switch = f"/nix/var/nix/profiles/system-{generation}-link/bin/switch-to-configuration"
    activations_before = _activations(stage)
    began = time.monotonic()
    stage.show(["lab", "machine", "exec", MACHINE, "--", switch, "test"])
    write(f"   The page is now: {_title(stage)!r}")

    def is_back() -> bool:
        # The operator may have begun before the switch by hand had ended: its own activation is the proof that one was
        # needed.
        return _activations(stage) > activations_before and _title(stage) == EDITED_TITLE

    return _healed(stage, began, is_back, "the operator activated the declared system again, and its page is served")


def stop_instance(stage: Stage, ec2: Any) -> float:
    stage.step("By hand: stop the instance")
    instance = _instance_id(stage)
    write(f"   boto3: ec2.stop_instances(InstanceIds=[{instance!r}])")
    began = time.monotonic()
    ec2.stop_instances(InstanceIds=[instance])
    if (state := _state(ec2, instance)) not in {"stopping", "stopped"}:
        raise NotSeenError(f"{instance} is {state} after StopInstances")
    write(f"   EC2 says: {_state(ec2, instance)}")
    taken = _healed(
        stage,
        began,
        lambda: _state(ec2, instance) == "running" and _title(stage) == EDITED_TITLE,
        "the same instance runs and serves the page",
    )
    stage.kubectl("get", "nixd,nixm")
    return taken


def terminate_instance(stage: Stage, ec2: Any) -> float:
    stage.step("By hand: terminate the instance")
    lost = _instance_id(stage)
    write(f"   boto3: ec2.terminate_instances(InstanceIds=[{lost!r}])")
    began = time.monotonic()
    ec2.terminate_instances(InstanceIds=[lost])
    taken = _healed(
        stage,
        began,
        lambda: _instance_id(stage) not in {lost, ""} and _title(stage) == EDITED_TITLE,
        "a new instance runs and serves the page",
    )
    stage.kubectl("get", "nixd,nixm", "--output=wide")
    return taken


def delete(stage: Stage, example: Path, ec2: Any) -> float:
    stage.step("Delete it")
    began = time.monotonic()
    stage.kubectl("delete", "--kustomize", str(example / TARGET), limit=180)
    taken = time.monotonic() - began
    left = [found["GroupId"] for found in _groups(ec2) if found["GroupName"] != "default"]
    left += [found["KeyName"] for found in ec2.describe_key_pairs()["KeyPairs"]]
    instances = _instances(ec2)
    left += [found["InstanceId"] for found in instances if found["State"]["Name"] != "terminated"]
    left += [thing["metadata"]["name"] for thing in stage.objects()]
    if left:
        raise NotSeenError(f"left behind: {', '.join(left)}")
    write(f"   EC2 has no key pair, no security group but `default`, and {len(instances)} instances, all terminated.")
    if len(instances) != 2:
        raise NotSeenError(f"two instances were needed, EC2 shows {len(instances)}")
    write("   Two instances in all: the first one, and the one that took its place.")
    return taken


def _apply_and_wait(stage: Stage, example: Path) -> float:
    began = time.monotonic()
    stage.kubectl("apply", "--kustomize", str(example / TARGET))
    stage.kubectl("wait", "--for=condition=Ready", "--timeout=5m", f"nixdeployment/{DEPLOYMENT}", limit=310)
    return time.monotonic() - began


def _healed(stage: Stage, since: float, served: Callable[[], bool], what: str) -> float:
    """Until the world is as declared, and all status says so. Seconds from `since`, when it was broken."""
    return stage.until(lambda: served() and all(is_ready(thing) for thing in stage.objects()), what, since)


def _expect_title(stage: Stage, title: str) -> None:
    page = stage.show(["curl", "--silent", "--show-error", "--max-time", "10", f"http://{_address(stage)}/"], True)
    write(f"   The page's title: {_title_of(page)!r}")
    if title not in _title_of(page):
        raise NotSeenError(f"the page's title is {_title_of(page)!r}, not {title!r}")


def _title(stage: Stage) -> str:
    """Empty if nothing is served."""
    address = _address(stage)
    return _title_of(stage.quietly("curl", "--silent", "--max-time", "2", f"http://{address}/")) if address else ""


def _title_of(page: str) -> str:
    found = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    return found[1].strip() if found else ""


def _address(stage: Stage) -> str:
    return str((stage.machine()["status"].get("addresses") or {}).get("public", ""))


def _instance_id(stage: Stage) -> str:
    return str((stage.machine()["status"].get("instance") or {}).get("id", ""))


def _system_generation(stage: Stage) -> int:
    return int(stage.machine()["status"]["system"]["generation"])


def _activations(stage: Stage) -> int:
    """How many the operator has started, by its log."""
    lines = (json.loads(line) for line in stage.lab.operator.log().splitlines() if line.startswith("{"))
    return sum(line.get("effect") == "host.activate" and line.get("result") == "ok" for line in lines)


def _groups(ec2: Any) -> list[dict[str, Any]]:
    return list(ec2.describe_security_groups()["SecurityGroups"])


def _admits(group: dict[str, Any], port: int) -> bool:
    return any(rule.get("FromPort") == port for rule in group["IpPermissions"])


def _operator_calls(stage: Stage, operation: str) -> int:
    """How often EC2 did what the operator asked for."""
    operator = stage.lab.env["LAB_OPERATOR_AWS_ACCESS_KEY_ID"]
    wanted = (operator, operation, "ok")
    return sum((call["caller"], call["operation"], call["result"]) == wanted for call in stage.lab.ec2_log())


def _instances(ec2: Any) -> list[dict[str, Any]]:
    reservations = ec2.describe_instances()["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def _state(ec2: Any, instance: str) -> str:
    return next(str(found["State"]["Name"]) for found in _instances(ec2) if found["InstanceId"] == instance)


def _ec2(lab: Lab) -> Any:
    """As the account's owner: whoever breaks things by hand is not the operator."""
    return cast("Any", boto3).client(
        "ec2",
        endpoint_url=lab.env["AWS_ENDPOINT_URL"],
        region_name=lab.env["AWS_DEFAULT_REGION"],
        aws_access_key_id=lab.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=lab.env["AWS_SECRET_ACCESS_KEY"],
    )


def start_operator(stage: Stage, as_pod: bool) -> None:
    given = ", ".join(f"{key}={PERIODS[key]}" for key in PERIODS)
    if not as_pod:
        write(f"The lab is up; the operator starts in it ({given}).")
        stage.lab.operator.start(settings=PERIODS)
        return
    write(f"The lab is up; the operator is installed on its node with the chart's default values ({given}).")
    stage.lab.operator.start(settings=PERIODS, is_pod=True)
    stage.kubectl("get", "namespace", NAMESPACE, "--label-columns=pod-security.kubernetes.io/enforce")
    stage.kubectl("get", "pods", f"--namespace={NAMESPACE}")


def run(paths: LabPaths, keep: bool, as_pod: bool) -> int:
    """Brings a fresh lab up, lives the life in it, takes it down. `as_pod`: the operator runs as a pod on a real node.
    The exit status."""
    began = time.monotonic()
    if is_up(paths):
        write(f"The lab of an earlier demo in {paths.folder} is taken down first.")
        take_down(paths)
    lab = None
    try:
        lab = bring_up(paths, with_node=as_pod)
        stage = Stage(lab, began)
        start_operator(stage, as_pod)
        took = life(stage, paths.folder / "example", keep)
    except (NotSeenError, CommandFailedError, LabError) as error:
        write(f"\nFAILED: {error}")
        if lab is not None:
            evidence(lab)
        return 1
    except KeyboardInterrupt:
        write("\nInterrupted.")
        return 130
    finally:
        if not keep or lab is None:
            take_down(paths)
    write("\n== All of it was seen.")
    for what, seconds in took:
        write(f"   {seconds:6.1f} s  {what}")
    write(f"   {time.monotonic() - began:6.1f} s  in all, the lab's start and end included")
    if keep:
        go_on(paths)
    return 0


def go_on(paths: LabPaths) -> None:
    """How a person goes on from here."""
    lab = f"tests/lab/lab {{}} --dir {paths.folder}"
    write("\nEverything runs on, the web server included. To go on by hand:")
    write(f'   eval "$({lab.format("env")})"        # KUBECONFIG, AWS_…, LAB_…; kubectl, helm and lab on PATH')
    write("   kubectl get nixd,nixm")
    write(f"   kubectl apply -k {paths.folder / 'example' / TARGET}        # after an edit in machine/")
    write(f"   lab run -- kubectl nixops ssh {MACHINE}")
    write("   lab operator log -f")
    write(f"   kubectl delete -k {paths.folder / 'example' / TARGET}")
    write("   lab down        # ends it all")


def main(argv: Sequence[str]) -> int:
    given = argparse.ArgumentParser(description="The life of the example on EC2, told.")
    given.add_argument("--dir", default="/var/lib/nixops-lab/demo", help="the folder of the demo's own lab")
    given.add_argument("--keep", action="store_true", help="do not delete at the end; leave everything running")
    given.add_argument("--pod", action="store_true", help="the operator as a pod on a node with kubelet and containerd")
    options = given.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return run(LabPaths.of(options.dir), options.keep, options.pod)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
