"""`kubectl nixops ssh` from end to end, with programs of the test in the place of kubectl and ssh."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nixops_operator.cli import main
from nixops_operator.ssh_keys import generate_ed25519

KEY = generate_ed25519().text
KUBECTL = """#!/bin/sh
folder=$(dirname "$0") # kubectl get KIND NAME …
cat "$folder/$2-$3.json" 2>/dev/null || cat "$folder/$2.json"
"""
SSH = """#!/bin/sh
folder=$(dirname "$0")
rm -f "$folder/key-seen"
while [ $# -gt 1 ]; do
    [ "$1" != -i ] || { cat "$2" >>"$folder/key-seen"; file=$2; }
    shift
done
set -- -i "$file"
stat -c %a "$2" >"$(dirname "$0")/mode-seen"
exit 7
"""
MACHINE = {
    "metadata": {"namespace": "shop", "name": "web"},
    "spec": {"ssh": {"privateKeySecretRef": {"name": "web-key"}}},
    "status": {"addresses": {"ssh": "198.51.100.7"}, "hostKeys": ["ssh-ed25519 AAAA"]},
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, script in (("kubectl", KUBECTL), ("ssh", SSH)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nixmachines.nixops.dev.json").write_text(json.dumps(MACHINE))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["kubectl-nixops", "ssh", "web"])
    return tmp_path


def secret(programs: Path, data: bytes) -> None:
    content: dict[str, Any] = {"data": {"ssh-privatekey": base64.b64encode(data).decode()}}
    (programs / "secret.json").write_text(json.dumps(content))


def exit_code() -> object:
    with pytest.raises(SystemExit) as caught:
        main.main()
    return caught.value.code


def test_ssh_gets_the_key_as_the_operator_reads_it(programs: Path):
    """ssh itself refuses a byte-order mark, Windows' line ends, and a last line that does not end."""
    secret(programs, b"\xef\xbb\xbf" + KEY.rstrip().replace("\n", "\r\n").encode())

    assert exit_code() == 7
    assert (programs / "key-seen").read_text() == KEY
    assert (programs / "mode-seen").read_text() == "600\n"


def test_what_is_no_private_key_is_named(programs: Path, capsys: pytest.CaptureFixture[str]):
    secret(programs, b"PuTTY-User-Key-File-3: ssh-ed25519\n")

    assert exit_code() == 1
    assert capsys.readouterr().err.startswith(
        "kubectl nixops: key ssh-privatekey of Secret web-key holds a key in PuTTY's"
    )
    assert not (programs / "key-seen").exists()


def on_ec2(programs: Path, **secrets: bytes) -> None:
    machine = {**MACHINE, "spec": {**MACHINE["spec"], "target": {"ec2": {"instanceType": "t3.small"}}}}
    (programs / "nixmachines.nixops.dev.json").write_text(json.dumps(machine))
    data = {name: base64.b64encode(content).decode() for name, content in secrets.items()}
    (programs / "secret-web-host-keys.json").write_text(json.dumps({"data": data}))


def test_the_key_that_an_instance_was_launched_with_is_offered_too(programs: Path):
    """A key pair that is renamed counts at the next launch: the operator went on, and people were refused."""
    launched_with = generate_ed25519().text
    secret(programs, KEY.encode())
    on_ec2(programs, clientKey=launched_with.encode())

    assert exit_code() == 7
    assert (programs / "key-seen").read_text() == KEY + launched_with


def test_it_is_enough_where_the_spec_s_secret_has_gone(programs: Path):
    launched_with = generate_ed25519().text
    (programs / "secret.json").write_text("{}")
    on_ec2(programs, clientKey=launched_with.encode())

    assert exit_code() == 7
    assert (programs / "key-seen").read_text() == launched_with


def test_a_key_that_is_still_the_same_is_offered_once(programs: Path):
    secret(programs, KEY.encode())
    on_ec2(programs, clientKey=KEY.encode())

    assert exit_code() == 7
    assert (programs / "key-seen").read_text() == KEY
