"""A namespace of the lab's cluster with what a test does in it, and what it sees there from outside the operator."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from botocore.exceptions import ClientError

from cluster.polling import LIMIT, eventually
from nixops_lab.testing import Lab

KINDS = "nixdeployments.nixops.dev,nixmachines.nixops.dev"
PLURALS = {"nixdeployment": "nixdeployments", "nixmachine": "nixmachines"}
GIVEN_HOST = "given-host"
OPERATOR = "system:serviceaccount:nixops-system:nixops-operator"
GONE = {"shutting-down", "terminated"}

Thing = dict[str, Any]


def condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of that type; empty if there is none."""
    found = [each for each in (thing.get("status") or {}).get("conditions") or [] if each["type"] == kind]
    return found[0] if found else {}


def is_ready(thing: Mapping[str, Any]) -> bool:
    """Ready for the newest generation."""
    ready = condition(thing, "Ready")
    return ready.get("status") == "True" and ready.get("observedGeneration") == thing["metadata"]["generation"]


def standing(thing: Mapping[str, Any]) -> str:
    """All conditions in one text, for a failed test."""
    conditions = (thing.get("status") or {}).get("conditions") or []
    return "; ".join(f"{each['type']}={each['status']}/{each['reason']}: {each['message']}" for each in conditions)


@dataclass(frozen=True)
class Place:
    """`ec2` is boto3's client as the account's owner: never the operator's identity."""

    lab: Lab
    namespace: str
    ec2: Any

    # --- Kubernetes ---------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Standard output, in this namespace unless another one is named."""
        if not any(word.startswith("--namespace=") for word in arguments):
            arguments = (f"--namespace={self.namespace}", *arguments)
        return self.lab.kubectl(*arguments, stdin=stdin, check=check).stdout

    def apply(self, *things: Mapping[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(things))

    def get(self, kind: str, name: str) -> Thing:
        """Fails the test if there is none."""
        found = self.find(kind, name)
        assert found is not None, f"no {kind} {name}"
        return found

    def find(self, kind: str, name: str) -> Thing | None:
        """None if there is none. Ours are asked for often, and so not by kubectl."""
        if kind in PLURALS:
            return self.lab.read(f"/apis/nixops.dev/v1alpha1/namespaces/{self.namespace}/{PLURALS[kind]}/{name}")
        text = self.kubectl("get", kind, name, "--output=json", "--ignore-not-found")
        return dict(json.loads(text)) if text else None

    def _is_declared(self, kind: str, name: str) -> bool:
        """Whether the object has what its deployment was given last: until the operator has seen an edit there, a
        machine is as before, and current in its own eyes."""
        owners = ((self.find(kind, name) or {}).get("metadata") or {}).get("ownerReferences") or []
        found = [self.find("nixdeployment", owner["name"]) for owner in owners if owner["kind"] == "NixDeployment"]
        return all(
            condition(owner, "Ready").get("observedGeneration") == owner["metadata"]["generation"]
            for owner in found
            if owner is not None
        )

    def objects(self) -> list[Thing]:
        return list(json.loads(self.kubectl("get", KINDS, "--output=json"))["items"])

    def patch(self, kind: str, name: str, *operations: Mapping[str, Any]) -> None:
        """A JSON patch (RFC 6902)."""
        self.kubectl("patch", kind, name, "--type=json", f"--patch={json.dumps(operations)}")

    def ask_to_look(self, *names: str) -> None:
        """As a person asks: what was remembered of Secrets is read anew."""
        asked = f"nixops.dev/reconcile-requested-at={self.mark()}"
        self.kubectl("annotate", "--overwrite", *names, asked)

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """(type, reason, message) of the Events about the object of that name."""
        items = json.loads(self.kubectl("get", "events", "--output=json"))["items"]
        about = [item for item in items if item["involvedObject"]["name"] == name]
        return [(item["type"], item["reason"], item["message"]) for item in about]

    def wait_ready(self, *names: str, limit: int = int(LIMIT)) -> None:
        """As a person waits: `kubectl wait`. Fails the test with the objects' conditions."""
        for name in names:
            kind, _, of = name.partition("/")
            eventually(lambda kind=kind, of=of: self._is_declared(kind, of), f"{name} is as declared", limit)  # type: ignore[misc]
        done = self.lab.kubectl(
            f"--namespace={self.namespace}",
            "wait",
            "--for=condition=Ready",
            f"--timeout={limit}s",
            *names,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n" + "\n".join(map(standing, self.objects()))

    def await_condition(self, kind: str, name: str, wanted: Mapping[str, str], limit: float = LIMIT) -> Thing:
        """Until each condition of `wanted` (type → "status/reason") stands for the newest generation; the object."""

        def look() -> Thing | None:
            thing = self.find(kind, name) if self._is_declared(kind, name) else None
            if thing is None:
                return None
            found = {each: condition(thing, each) for each in wanted}
            is_current = all(f.get("observedGeneration") == thing["metadata"]["generation"] for f in found.values())
            stand = {each: f"{f.get('status')}/{f.get('reason')}" for each, f in found.items()}
            return thing if is_current and stand == dict(wanted) else None

        return eventually(
            look, f"{kind} {name} shows {dict(wanted)}", limit, lambda: standing(self.find(kind, name) or {})
        )

    def secret(self, name: str, content: Mapping[str, str], kind: str = "Opaque") -> None:
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": kind,
                "metadata": {"name": name},
                # Not stringData, which would leave the keys of an earlier content where they are.
                "data": {key: base64.b64encode(text.encode()).decode() for key, text in content.items()},
            }
        )

    def aws_secret(self, name: str = "aws") -> None:
        """The operator's identity as a credentials file, with another profile that is of no use."""
        key, secret = self.operator_identity
        self.secret(
            name,
            {
                "credentials": "[default]\naws_access_key_id = AKIAOTHEROTHEROTHER1\naws_secret_access_key = other\n"
                f"[nixops-example]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
            },
        )

    def ssh_secret(self, name: str = "existing-host-ssh") -> None:
        """The key that root's login on the given host takes."""
        key = self.lab.paths.client_key.read_text()
        self.secret(name, {"ssh-privatekey": key}, "kubernetes.io/ssh-auth")

    @property
    def operator_identity(self) -> tuple[str, str]:
        """Access key id and secret access key."""
        env = self.lab.env
        return env["LAB_OPERATOR_AWS_ACCESS_KEY_ID"], env["LAB_OPERATOR_AWS_SECRET_ACCESS_KEY"]

    # --- what was done ------------------------------------------------------------------------------------------------

    def mark(self) -> int:
        """Where the audit log ends now."""
        return len(self.lab.audit_log())

    def writes(self, since: int = 0) -> list[Thing]:
        """The operator's writing requests to the API server about this namespace, from the audit log; `since`: entries
        of the whole log to leave out."""
        return [
            entry
            for entry in operator_writes(self.lab.audit_log()[since:])
            if (entry.get("objectRef") or {}).get("namespace") == self.namespace
        ]

    def statuses(self, name: str, since: int = 0) -> list[Thing]:
        """Each status with conditions that the operator wrote for the object, in order, as `{"status": …}`."""
        return [
            entry["requestObject"]
            for entry in self.writes(since)
            if (entry["objectRef"].get("name"), entry["objectRef"].get("subresource")) == (name, "status")
            and ((entry.get("requestObject") or {}).get("status") or {}).get("conditions")
        ]

    def told(self, name: str, kind: str, since: int = 0) -> list[tuple[str, str]]:
        """(status, reason) of a condition in each status that the operator wrote for the object, in order."""
        found = [condition(each, kind) for each in self.statuses(name, since)]
        return [(each["status"], each["reason"]) for each in found if each]

    def calls(self, operation: str) -> list[Thing]:
        """The operator's requests of that kind that took effect in EC2, as far as they carry this namespace's tag."""
        tag = {"Key": "nixops.dev:namespace", "Value": self.namespace}
        key, _ = self.operator_identity
        return [
            entry
            for entry in self.lab.ec2_log()
            if (entry["operation"], entry["caller"]) == (operation, key)
            and entry["committed"]
            and any(tag in part["Tags"] for part in entry["parameters"].get("TagSpecifications", []))
        ]

    # --- EC2 ----------------------------------------------------------------------------------------------------------

    def instances(self) -> list[Thing]:
        """Of this namespace, terminated ones as well, the oldest first."""
        found = self.ec2.describe_instances(Filters=self._ours())["Reservations"]
        instances = [dict(instance) for reservation in found for instance in reservation["Instances"]]
        return sorted(instances, key=lambda instance: instance["LaunchTime"])

    def live_instances(self) -> list[Thing]:
        return [instance for instance in self.instances() if instance["State"]["Name"] not in GONE]

    def groups(self) -> list[Thing]:
        return [dict(group) for group in self.ec2.describe_security_groups(Filters=self._ours())["SecurityGroups"]]

    def key_pairs(self) -> list[Thing]:
        return [dict(pair) for pair in self.ec2.describe_key_pairs(Filters=self._ours())["KeyPairs"]]

    def left_in_ec2(self) -> list[str]:
        """Ids and names of what is not gone."""
        return [
            *(instance["InstanceId"] for instance in self.live_instances()),
            *(group["GroupId"] for group in self.groups()),
            *(pair["KeyName"] for pair in self.key_pairs()),
        ]

    def _ours(self) -> list[Thing]:
        return [{"Name": "tag:nixops.dev:namespace", "Values": [self.namespace]}]

    # --- machines -----------------------------------------------------------------------------------------------------

    def title(self, address: str) -> str:
        """Of the page that is served there now; empty if none is."""
        if not address:
            return ""
        page = self.lab.run(["curl", "--silent", "--max-time", "3", f"http://{address}/"], check=False).stdout
        found = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
        return found[1].strip() if found else ""

    def on(self, machine: str, *command: str) -> str:
        """Standard output of a command in a machine, not through SSH."""
        return self.lab.machine_exec(machine, command).stdout.strip()

    def system_of(self, machine: str) -> str:
        """The store path of the running system."""
        return self.on(machine, "readlink", "/run/current-system")

    def leader(self, machine: str) -> int:
        """Pid of its init: another one after every boot."""
        (found,) = [each for each in self.lab.control.machines() if each["name"] == machine]
        return int(found["leader"])

    def activations(self, machine: str) -> list[str]:
        """The activation directories on the machine."""
        return self.on(
            machine,
            "find",
            "/var/lib/nixops/activation",
            *("-mindepth", "1", "-maxdepth", "1", "-type", "d", "-printf", "%f\\n"),
        ).split()

    def take_away(self) -> None:
        """As the account's owner: whatever of this namespace is left in EC2."""
        if ids := [instance["InstanceId"] for instance in self.live_instances()]:
            self.ec2.terminate_instances(InstanceIds=ids)
        for group in self.groups():
            group_id = group["GroupId"]
            eventually(lambda group_id=group_id: self._is_deleted(group_id), "the group is deleted")  # type: ignore[misc]
        for pair in self.key_pairs():
            self.ec2.delete_key_pair(KeyPairId=pair["KeyPairId"])

    def _is_deleted(self, group_id: str) -> bool:
        try:
            self.ec2.delete_security_group(GroupId=group_id)
        except ClientError as error:
            if error.response["Error"]["Code"] == "DependencyViolation":
                return False  # an instance still ends
            raise
        return True

    # --- the end ------------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Deletes all as a person does; what does not go by itself is taken away by force, and fails the test."""
        done = self.lab.kubectl(
            f"--namespace={self.namespace}", "delete", KINDS, "--all", "--timeout=60s", "--wait", check=False
        )
        left = self.left_in_ec2()
        problem = f"{done.stderr}\n" + "\n".join(map(standing, self.objects())) if done.returncode != 0 else ""
        self._force()
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")
        assert not problem, f"deletion did not end: {problem}"
        assert not left, f"left in EC2: {left}"

    def _force(self) -> None:
        for thing in self.objects():
            name = thing["metadata"]["name"]
            self.patch(thing["kind"], name, {"op": "replace", "path": "/metadata/finalizers", "value": []})
        if live := [instance["InstanceId"] for instance in self.live_instances()]:
            self.ec2.terminate_instances(InstanceIds=live)


def operator_writes(entries: Sequence[Mapping[str, Any]]) -> Iterator[Thing]:
    """Audit log entries of requests by which the operator wrote anything at all."""
    for entry in entries:
        if entry["user"]["username"] == OPERATOR and entry["verb"] not in {"get", "list", "watch"}:
            yield dict(entry)
