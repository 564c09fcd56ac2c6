"""Secret bytes stay in Secrets: during a whole life they show up nowhere else."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import yaml

from cluster import specs
from cluster.leaks import ProcessWatch, found_in, marks_of, operators_first_process, runs_in, sinks, watched
from cluster.place import GIVEN_HOST, Place, is_ready, standing
from cluster.polling import eventually

WHERE_THE_OPERATOR_KEEPS_ITS_OWN = "nixops-system"
NO_SECRETS = {"pinned", "staged", "instanceId", "launchesLeft", "isKnown"}
"""Of <machine>-host-keys: public keys, which the status tells as well, whose they are, and how far their change is."""
TOKEN = {"name": "token", "secretRef": {"name": "tokens", "key": "token"}, "restartUnits": ["httpd.service"]}
FIRST_HOST_KEY = "site-web-launch-1/request"
IN_USER_DATA = {f"{FIRST_HOST_KEY} in EC2's user data", f"{FIRST_HOST_KEY} in machines' disks"}
"""The one exception: the first host key travels in user data, which EC2 shows and images keep on the disk. It is given
up at first contact, before anything secret is brought (test_host_keys.py)."""


def secrets_of(place: Place, namespace: str) -> dict[str, set[bytes]]:
    """`<Secret>/<key>` → its marks."""
    items = json.loads(place.kubectl("get", "secrets", f"--namespace={namespace}", "--output=json"))["items"]
    return {
        f"{item['metadata']['name']}/{key}": marks_of(base64.b64decode(value))
        for item in items
        for key, value in (item.get("data") or {}).items()
        if key not in NO_SECRETS
    }


def operators_token(place: Place) -> bytes:
    """Its signature: the rest is no secret."""
    kubeconfig = yaml.safe_load((place.lab.paths.operator / "kubeconfig").read_text())
    return str(kubeconfig["users"][0]["user"]["token"]).rpartition(".")[2].encode()


def canary() -> str:
    """Of 32 characters, with those that the forms differ in."""
    return f"{secrets.token_hex(15)}+/"


def test_secret_bytes_are_nowhere_but_in_secrets(place: Place) -> None:
    lab, since = place.lab, place.mark()
    place.aws_secret()
    place.ssh_secret()
    place.secret("tokens", {"token": canary()})
    # The Secret with the host key of a launch goes once the launch is answered: long enough to be read here.
    lab.fault(match={"op": "RunInstances"}, do="delay", seconds=5)
    with watched(place) as watch:
        place.apply(
            specs.on_ec2(specs.page("Of a life"), keys=[TOKEN]),
            specs.on_host(lab, specs.page("Of a host"), keys=[TOKEN]),
        )
        marks: dict[str, set[bytes]] = {}

        def are_ready() -> bool:
            marks.update(secrets_of(place, place.namespace))
            watch.look_at_machines(place)
            return all(is_ready(thing) for thing in place.objects())

        eventually(are_ready, "all is ready", last=lambda: "\n".join(map(standing, place.objects())))
        marks |= secrets_of(place, WHERE_THE_OPERATOR_KEEPS_ITS_OWN)
        _, aws_secret = place.operator_identity
        marks["the AWS secret access key"] = marks_of(aws_secret.encode())
        marks["the operator's token"] = marks_of(operators_token(place))
        assert {"existing-host-ssh/ssh-privatekey", "site-key-ssh/ssh-privatekey", "tokens/token"} <= marks.keys()
        assert any(name.startswith("nixops-digest-key/") for name in marks)
        assert any(name.startswith("nixops-signing-key/") for name in marks)
        assert FIRST_HOST_KEY in marks
        assert [name for name, found in marks.items() if not found] == []

        # Mistakes make errors, and errors make texts.
        place.secret("aws", {"accessKeyId": "AKIAWRONG", "secretAccessKey": aws_secret[:-1] + " "})
        place.secret("existing-host-ssh", {"ssh-privatekey": "no key, " + aws_secret}, "kubernetes.io/ssh-auth")
        marks |= {f"{name}, wrong": found for name, found in secrets_of(place, place.namespace).items() if found}
        place.on(GIVEN_HOST, "sh", "-c", "rm /run/keys/token && mkdir -p /run/keys/token/in-the-way")
        eventually(lambda: "keys: mv: " in standing(place.get("nixmachine", "host")), "a key cannot be put back")
        place.on(GIVEN_HOST, "rm", "-r", "/run/keys/token")
        place.secret("tokens", {"other": "of no use"})
        place.await_condition("nixmachine", "host", {"KeysPresent": "False/SecretNotFound"})
        place.ask_to_look("nixdeployment/site", "nixmachine/host")
        place.await_condition("nixdeployment", "site", {"CredentialsReady": "False/AuthFailure"})
        place.await_condition("nixmachine", "host", {"Ready": "False/SecretNotFound"})
        machines = GIVEN_HOST, place.live_instances()[0]["InstanceId"]
        with_errors = sinks(place, since, watch, machines)
        place.aws_secret()
        place.ssh_secret()
        place.secret("tokens", {"token": canary()})
        marks |= {f"{name}, rotated": found for name, found in secrets_of(place, place.namespace).items()}
        place.wait_ready("nixdeployment/site", "nixmachine/host")

    at_last = sinks(place, since, watch, machines)
    assert [sink for sink, content in at_last.items() if not content] == []
    assert {"bwrap", "nix", "systemd-journald"} <= watch.programs, watch.programs  # of the operator, and of machines
    assert b"-nixos-system-web" in at_last["the operator's Nix store"]
    assert b"-nixos-system-web" in at_last["machines' Nix stores"]
    # The exception also shows that all of this is found where it is.
    assert found_in(with_errors, marks) == found_in(at_last, marks) == IN_USER_DATA


@pytest.mark.parametrize(
    "written",
    [
        str,
        lambda secret: base64.b64encode(f"x{secret}".encode()).decode(),
        lambda secret: secret.encode().hex(),
        lambda secret: secret.encode().hex().upper(),
        quote_plus,
        lambda secret: json.dumps({"key": f"\n{secret}\n"}),
    ],
    ids=["plain", "base64", "hex", "hex-in-capitals", "url", "json"],
)
def test_the_search_itself_finds_a_secret(written: Callable[[str], str]) -> None:
    secret, other = canary(), canary()
    marks = {"aws": marks_of(f"[default]\nsecret = {secret}\n".encode()), "other": marks_of(other.encode())}
    log = {"log": runs_in([f"before {written(secret)} after"]), "metrics": runs_in(["nothing"])}
    assert found_in(log, marks) == {"aws in log"}


def test_a_leak_in_any_sink_is_found(place: Place) -> None:
    """Put there as a careless line would. Two sinks cannot be written to from outside: what the operator serves, and
    user data, for which the test above has the exception."""
    lab, since, planted = place.lab, place.mark(), dict[str, str]()

    def leak(sink: str) -> str:
        return planted.setdefault(sink, canary())

    host = specs.on_host(lab, specs.page("Of no interest"), suspend=True)
    host["metadata"]["annotations"] = {"example.org/note": leak("objects")}
    about = {"kind": "NixMachine", "name": "host", "namespace": place.namespace}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a-leak"}, "involvedObject": about}
    place.apply(host, event | {"message": f"refused: {leak('Events')}"})
    status = json.dumps({"status": {"lastHandledReconcileAt": leak("requests to the API server")}})
    place.kubectl("patch", "nixmachine", "host", "--subresource=status", "--type=merge", f"--patch={status}")

    operator = Path(f"/proc/{operators_first_process(place)}")
    with (operator / "fd/1").open("a") as output:
        print(leak("the operator's output"), file=output)
    left_over = operator / "root/nix/a-leak", operator / "root/tmp/core"
    left_over[0].write_text(leak("the operator's Nix store"))
    left_over[1].write_text(leak("the operator's other files"))

    write = 'echo "$0" > "$1"'
    place.on(GIVEN_HOST, "sh", "-c", write, leak("machines' disks"), "/var/tmp/a-leak")
    place.on(GIVEN_HOST, "sh", "-c", f"{write} && nix-store --add $1", leak("machines' Nix stores"), "/run/a-leak")
    place.on(GIVEN_HOST, "sh", "-c", write, leak("consoles"), "/dev/console")
    place.on(GIVEN_HOST, "logger", leak("machines' journals"))
    careless = "--unit=a-leak", "--property=Type=exec", f"--setenv=KEY={leak('environments')}"
    place.on(GIVEN_HOST, "systemd-run", *careless, "sh", "-c", "sleep 600; exit", leak("arguments"))
    watch = ProcessWatch(())
    watch.look_at_machines(place)
    watch.look()

    place.ec2.describe_tags(Filters=[{"Name": "value", "Values": [leak("EC2's calls")]}])
    group = place.ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    tagged = {"Resources": [group], "Tags": [{"Key": "note", "Value": leak("EC2's tags")}]}
    place.ec2.create_tags(**tagged)

    seen = sinks(place, since, watch, [GIVEN_HOST])
    assert planted.keys() == seen.keys() - {"metrics and probes", "EC2's user data"}
    found = found_in(seen, {sink: marks_of(text.encode()) for sink, text in planted.items()})
    assert [sink for sink in planted if f"{sink} in {sink}" not in found] == []

    place.ec2.delete_tags(**tagged)
    place.on(GIVEN_HOST, "systemctl", "stop", "a-leak")
    place.on(GIVEN_HOST, "rm", "/var/tmp/a-leak", "/run/a-leak")
    for path in left_over:
        path.unlink()
