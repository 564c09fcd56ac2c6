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
KUBECTL = '#!/bin/sh\ncat "$(dirname "$0")/$2.json"\n'  # kubectl get KIND NAME …
SSH = """#!/bin/sh
while [ "$1" != -i ]; do shift; done
cat "$2" >"$(dirname "$0")/key-seen"
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
