"""Secret bytes stay in Secrets: during a whole life they show up nowhere else."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, KINDS, Place, is_ready, standing
from cluster.polling import eventually
from nixops_lab import operator_process

WHERE_THE_OPERATOR_KEEPS_ITS_OWN = "nixops-system"
NO_SECRETS = {"pinned", "instanceId"}  # of <machine>-host-keys: public keys, and whose they are; the status tells both


TOKEN = {"name": "token", "secretRef": {"name": "tokens", "key": "token"}, "restartUnits": ["httpd.service"]}
KEPT = ("/var/lib/nixops", "/etc/systemd", "/nix/var/nix/gcroots", "/tmp", "/var/tmp")
"""Of a machine: what is left of us on its disk, and where somebody could have put something down."""


def marks_of(text: str) -> set[str]:
    """What gives a secret away: each long line of it, as it is and in base64 from each of the three offsets."""
    whole = (line.strip() for line in text.replace("\\n", "\n").splitlines())  # JSON keeps keys on one line
    lines = {line for line in whole if len(line) >= 24 and "-----" not in line}
    found = set(lines)
    for line in lines:
        for offset in range(3):
            encoded = base64.b64encode(b"\0" * offset + line.encode()).decode()
            found.add(encoded[4 : len(encoded) - 4])  # without what its neighbours have a part in
    return found


def secrets_of(place: Place, namespace: str) -> dict[str, set[str]]:
    """`<Secret>/<key>` → its marks."""
    items = json.loads(place.kubectl("get", "secrets", f"--namespace={namespace}", "--output=json"))["items"]
    return {
        f"{item['metadata']['name']}/{key}": marks_of(base64.b64decode(value).decode(errors="replace"))
        for item in items
        for key, value in (item.get("data") or {}).items()
        if key not in NO_SECRETS
    }


class ProcessWatch:
    """Command lines and environments of everything below the operator's first process, looked at over and over."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.seen: set[str] = set()
        self.programs: set[str] = set()

    def look(self) -> None:
        waiting = [self._first]
        while waiting:
            folder = Path(f"/proc/{waiting.pop()}")
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
                variables = (folder / "environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
                below = [(task / "children").read_text() for task in (folder / "task").iterdir()]
            except OSError:
                continue  # it ended meanwhile
            self.seen |= {command, variables}
            self.programs.add(Path(command.split("\n", 1)[0]).name)
            waiting += [int(pid) for text in below for pid in text.split()]


@contextmanager
def watched(place: Place) -> Iterator[ProcessWatch]:
    first = operator_process.running(place.lab.paths)
    assert first is not None
    watch, over = ProcessWatch(first.pid), threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def test_secret_bytes_are_nowhere_but_in_secrets(place: Place) -> None:
    lab, since = place.lab, place.mark()
    place.aws_secret()
    place.ssh_secret()
    place.secret("tokens", {"token": secrets.token_hex(32)})
    # The Secret with the host key of a launch goes once the launch is answered: long enough to be read here.
    lab.fault(match={"op": "RunInstances"}, do="delay", seconds=5)
    with watched(place) as watch:
        place.apply(
            specs.on_ec2(specs.page("Of a life"), keys=[TOKEN]),
            specs.on_host(lab, specs.page("Of a host"), keys=[TOKEN]),
        )
        marks: dict[str, set[str]] = {}

        def are_ready() -> bool:
            marks.update(secrets_of(place, place.namespace))
            return all(is_ready(thing) for thing in place.objects())

        eventually(are_ready, "all is ready", last=lambda: "\n".join(map(standing, place.objects())))
        marks |= secrets_of(place, WHERE_THE_OPERATOR_KEEPS_ITS_OWN)
        _, aws_secret = place.operator_identity
        marks["the AWS secret access key"] = marks_of(aws_secret)
        assert {"existing-host-ssh/ssh-privatekey", "site-key-ssh/ssh-privatekey", "tokens/token"} <= marks.keys()
        assert any(name.startswith("nixops-digest-key/") for name in marks)
        assert any(name.startswith("site-web-launch-1/") for name in marks)
        assert any(name.startswith("nixops-signing-key/") for name in marks)
        marks = {name: {mark for mark in found if "aws_access_key_id" not in mark} for name, found in marks.items()}

        # Mistakes make errors, and errors make texts.
        place.secret("aws", {"accessKeyId": "AKIAWRONG", "secretAccessKey": aws_secret[:-1] + " "})
        place.secret("existing-host-ssh", {"ssh-privatekey": "no key, " + aws_secret}, "kubernetes.io/ssh-auth")
        place.on(GIVEN_HOST, "sh", "-c", "rm /run/keys/token && mkdir -p /run/keys/token/in-the-way")
        eventually(lambda: "keys: mv: " in standing(place.get("nixmachine", "host")), "a key cannot be put back")
        place.on(GIVEN_HOST, "rm", "-r", "/run/keys/token")
        place.secret("tokens", {"other": "of no use"})
        place.await_condition("nixmachine", "host", {"KeysPresent": "False/SecretNotFound"})
        place.ask_to_look("nixdeployment/site", "nixmachine/host")
        place.await_condition("nixdeployment", "site", {"CredentialsReady": "False/AuthFailure"})
        place.await_condition("nixmachine", "host", {"Ready": "False/SecretNotFound"})
        events = place.kubectl("get", "events", "--all-namespaces", "--output=json")
        objects = place.kubectl("get", KINDS, "--all-namespaces", "--output=json")
        maps = place.kubectl("get", "configmaps", "--all-namespaces", "--output=json")
        place.aws_secret()
        place.ssh_secret()
        place.secret("tokens", {"token": secrets.token_hex(32)})
        marks |= {f"{name}, rotated": found for name, found in secrets_of(place, place.namespace).items()}
        place.wait_ready("nixdeployment/site", "nixmachine/host")
        (instance,) = place.live_instances()

    metrics = lab.run(["curl", "--silent", "--fail", f"{lab.env['LAB_OPERATOR_URL']}/metrics"]).stdout
    machines = GIVEN_HOST, instance["InstanceId"]
    journals = [place.on(name, "journalctl", "--no-pager") for name in machines]
    kept = [place.on(name, "sh", "-c", f"grep -rs '' {' '.join(KEPT)}") for name in machines]
    sinks = {
        "Events": events + place.kubectl("get", "events", "--all-namespaces", "--output=json"),
        "objects": objects + place.kubectl("get", KINDS, "--all-namespaces", "--output=json"),
        "ConfigMaps": maps,
        "log": lab.operator.log(),
        "metrics": metrics,
        "processes": "\n".join(watch.seen),
        "EC2 calls": lab.paths.ec2_log.read_text(),
        # Those of the test: in another one a person writes a key into a module.
        "audited requests": json.dumps(lab.audit_log()[since:]),
        "machines' journals": "\n".join(journals),
        "machines' disks": "\n".join(kept),
    }
    assert all(sinks.values())
    assert {"bwrap", "nix"} <= watch.programs, watch.programs
    assert found_in(sinks, marks) == []

    store = {path: content.decode(errors="replace") for path, content in files_below(lab.paths.operator / "nix")}
    assert any("nixos-system-web" in path for path in store)
    assert found_in(store, marks) == []


def found_in(sinks: dict[str, str], marks: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} in {sink}"
        for name, found in marks.items()
        for sink, text in sinks.items()
        if any(m in text for m in found)
    ]


@pytest.mark.parametrize("wrapped", [lambda mark: mark, lambda mark: base64.b64encode(b"x" + mark.encode()).decode()])
def test_the_search_itself_finds_a_secret(wrapped: object) -> None:
    assert callable(wrapped)
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert found_in({"log": f"before {wrapped(secret)} after"}, {"aws": marks_of(secret)}) == ["aws in log"]
