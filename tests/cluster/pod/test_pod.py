"""The operator as its users have it: a pod that the chart makes with default values, from the image of the Dockerfile,
on a node with kubelet, containerd and runc, in a namespace that admits *restricted* pods only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually
from nixops_lab.control_plane import NODE
from nixops_lab.testing import CommandFailedError, Lab

SYSTEM = "nixops-system"
PODS = "--selector=app.kubernetes.io/name=nixops-operator"
SLOW_SWITCH = "test.stc.slow = 8;"
HTTP = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
Tell = Callable[[str], None]

# What of a pod's seccomp profile takes both boxes away: no Landlock, and no namespaces. 0x10000000: CLONE_NEWUSER;
# clone3 hides its flags in memory, and with ENOSYS programs fall back on clone.
NO_BOX = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
        },
        {"names": ["unshare", "mount", "setns"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ],
}


def pods(lab: Lab) -> list[dict[str, Any]]:
    text = lab.kubectl("get", "pods", f"--namespace={SYSTEM}", PODS, "--output=json").stdout
    return list(json.loads(text)["items"])


def is_ready(pod: dict[str, Any]) -> bool:
    return any((each["type"], each["status"]) == ("Ready", "True") for each in pod["status"].get("conditions", []))


def lose_pod(place: Place) -> None:
    """All its processes are killed at once, and it is gone, with its store. Its Lease goes as well, since nobody is
    left who could act under it: the next pod need not sit it out."""
    lab = place.lab
    lab.operator.kill()
    lab.kubectl("delete", "pods", f"--namespace={SYSTEM}", PODS, "--force", "--grace-period=0", "--wait=false")
    lab.kubectl("delete", "lease", "nixops-operator", f"--namespace={SYSTEM}", "--ignore-not-found")


def standing(place: Place, name: str) -> str:
    """The reason that the machine's conditions give for not being Ready; empty without one."""
    thing = place.find("nixmachine", name) or {}
    for kind in ("Stalled", "Reconciling", "Ready"):
        found = condition(thing, kind)
        if found and (kind != "Ready" or found["status"] != "True"):
            return str(found["reason"])
    return ""


def switches(place: Place, machine: str) -> bool:
    """Whether an activation is under way on it."""
    found = place.lab.machine_exec(
        machine, ["sh", "-c", "ls -d /var/lib/nixops/activation/*/state.switching"], check=False
    )
    return found.returncode == 0


def test_a_node_that_offers_no_box_is_refused_with_the_remedy(started_lab: Lab) -> None:
    profiles = started_lab.paths.node / "kubelet/seccomp/profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    (profiles / "no-box.json").write_text(json.dumps(NO_BOX))
    profile = {"type": "Localhost", "localhostProfile": "profiles/no-box.json"}

    with pytest.raises(CommandFailedError) as refused:
        started_lab.operator.start(is_pod=True, values={"podSecurityContext": {"seccompProfile": profile}})

    said = str(refused.value)
    assert "the operator ended with 14" in said
    assert "no safe evaluation, or no build, on this node" in said
    assert "Landlock" in said
    assert "seccomp profile" in said, "what would help"


def test_the_example_outlives_its_operators_pod_and_node(tmp_path: Path, place: Place, told: Tell) -> None:
    lab, example = place.lab, specs.example(tmp_path, place.lab)
    target = example / "targets/aws-security-groups"
    place.aws_secret()
    (pod,) = pods(lab)
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    namespace = json.loads(lab.kubectl("get", "namespace", SYSTEM, "--output=json").stdout)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    told("the pod runs")

    place.kubectl("apply", "--kustomize", str(target))
    place.wait_ready("nixdeployment/example")
    (instance,) = place.live_instances()
    machine, address = instance["InstanceId"], instance["PublicIpAddress"]
    assert "Valgrind" in place.title(address)
    told("the example is Ready")

    (group,) = [each for each in place.groups() if each["Description"] == "Anyone may read the site"]
    place.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[HTTP])
    eventually(lambda: "Valgrind" in place.title(address), "the rule is back")
    told("a rule that was revoked by hand is back")

    before = place.activations(machine)
    specs.edit_page(example, "Edited", SLOW_SWITCH)
    place.kubectl("apply", "--kustomize", str(target))
    eventually(lambda: switches(place, machine), "the machine switches")
    lab.kubectl("delete", "pods", f"--namespace={SYSTEM}", PODS)
    place.wait_ready("nixdeployment/example")
    assert place.title(address) == "Edited"
    (one,) = set(place.activations(machine)) - set(before)
    assert one
    told("an edit, its pod deleted in mid-activation")

    drain = ["--delete-emptydir-data", "--ignore-daemonsets", "--timeout=60s"]
    lab.kubectl("drain", NODE, *drain)
    specs.edit_page(example, "Edited while nobody was there", SLOW_SWITCH)
    place.kubectl("apply", "--kustomize", str(target))
    assert not [each for each in pods(lab) if is_ready(each)]
    assert place.title(address) == "Edited"
    told("the node is drained")
    lab.kubectl("uncordon", NODE)
    place.wait_ready("nixdeployment/example")
    assert place.title(address) == "Edited while nobody was there"
    assert [each["InstanceId"] for each in place.instances()] == [machine]
    told("the node is back, the edit done")

    place.kubectl("delete", "--kustomize", str(target), "--timeout=90s")
    assert place.left_in_ec2() == []
    told("deleted, nothing is left")


@pytest.mark.long(instead="cluster/pod/test_pod.py")
def test_a_pod_lost_at_each_step_of_the_life_makes_nothing_twice(place: Place, told: Tell) -> None:
    place.aws_secret()
    place.apply(specs.on_ec2(specs.page("Made once", SLOW_SWITCH)))
    lost: list[str] = []

    def lose_at_what_is_new() -> bool:
        reason = standing(place, "site-web")
        if reason and reason not in lost:
            lost.append(reason)
            lose_pod(place)
            told(f"lost at {reason}")
        return condition(place.find("nixdeployment", "site") or {}, "Ready").get("status") == "True"

    eventually(lose_at_what_is_new, "Ready", 150, lambda: lost)
    told("Ready")
    assert len(lost) >= 4, lost
    (instance,) = place.instances()
    machine = instance["InstanceId"]
    assert len(place.key_pairs()) == len(place.calls("ImportKeyPair")) == 1
    assert len(place.groups()) == len(place.calls("CreateSecurityGroup")) == 1
    assert len(place.activations(machine)) == 1
    assert place.title(instance["PublicIpAddress"]) == "Made once"

    place.kubectl("delete", "nixdeployment", "site", "--wait=false")
    eventually(lambda: not place.live_instances(), "the instance is being terminated")
    lose_pod(place)
    eventually(lambda: not place.objects(), "the objects are gone")
    assert place.left_in_ec2() == []
    told("lost while it is deleted, and gone")
