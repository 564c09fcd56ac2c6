"""How a call's answer is told apart from what the account's shell says of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nixops_operator.adapters.ssh.agent import Agent, Call

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed"))
    for shell in ("dash", "bash", "fish", "tcsh", "zsh")
]


def ran(call: Call, shell: str = "sh", before: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """As sshd has it done: the account's shell gets the line. `before` is what its own files make it do first."""
    return subprocess.run([shell, "-c", before + call.line], input=stdin, capture_output=True, check=False)


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_hands_a_call_on(shell: str) -> None:
    call = Call('x="a  b"; printf "%s\\n" "$x"; echo "no $x" >&2; cat; exit 3')
    done = ran(call, shell, stdin=b"in $put 'quoted'\n")
    assert call.answer(done.stdout.decode()) == "a  b\nin $put 'quoted'\n"
    assert call.complaints(done.stderr.decode()) == "no a  b\n"
    assert done.returncode == 3


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("echo welcome; ", id="a line"),
        pytest.param("printf 'no end'; ", id="a line without an end"),
        pytest.param("echo 'nixops-0123456789abcdef begin'; ", id="another call's mark"),
        pytest.param("set -vx; exec 2>&1; ", id="an echo of the commands"),
    ],
)
def test_what_comes_before_the_mark_is_no_part_of_the_answer(before: str) -> None:
    call = Call("printf 'yes\\n'".replace("'", '"'))
    assert call.answer(ran(call, before=before).stdout.decode()) == "yes\n"


def test_what_comes_after_the_mark_is_no_part_of_the_answer() -> None:
    call = Call('printf "no newline"')
    assert call.answer(ran(call).stdout.decode() + "logout\n") == "no newline"


def test_an_echo_of_the_command_alone_is_no_answer() -> None:
    call = Call("true")
    assert call.answer(f"$ {call.line}\n") is None


def test_a_cut_answer_is_none() -> None:
    call = Call("echo yes")
    assert call.answer(ran(call).stdout.decode()[:-2]) is None


def test_two_calls_have_different_marks() -> None:
    assert Call("true").begin != Call("true").begin


def test_a_stream_begins_at_its_mark_and_ends_with_its_program() -> None:
    call = Call("exec cat", is_stream=True)
    done = ran(call, before="echo welcome; ", stdin=b"\0\1binary\n")
    assert done.stdout.partition(call.begin.encode())[2] == b"\0\1binary\n"


def placed(script: bytes, home: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    call = Agent(script).placing()
    moved = Call(call.script.replace("/var/lib/nixops", str(home)).replace("$(id -u)", "${TEST_UID:-0}"))
    return ran(moved, stdin=script if stdin is None else stdin)


def test_the_agent_is_placed_whole(tmp_path: Path) -> None:
    script = b"#!/bin/sh\necho 'I am it'\n"
    for _ in range(2):
        assert placed(script, tmp_path / "nixops").returncode == 0
    assert [file.read_bytes() for file in (tmp_path / "nixops").iterdir()] == [script]
    assert (tmp_path / "nixops" / f"agent-{hashlib.sha256(script).hexdigest()}").exists()


def test_agents_with_which_nobody_has_connected_for_a_month_go(tmp_path: Path) -> None:
    home, month = tmp_path / "nixops", 31 * 24 * 3600
    for script in (b"#!/bin/sh\n# of today\n", b"#!/bin/sh\n# of an earlier release\n"):
        assert placed(script, home).returncode == 0
    for file in home.iterdir():
        os.utime(file, (time.time() - month, time.time() - month))
    (home / "machine").write_text("kept")
    os.utime(home / "machine", (0, 0))

    assert placed(b"#!/bin/sh\n# of today\n", home).returncode == 0  # it is there: and in use again
    assert placed(b"#!/bin/sh\n# of tomorrow\n", home).returncode == 0

    texts = {file.read_text().split("# ")[-1].strip() for file in home.iterdir()}
    assert texts == {"of today", "of tomorrow", "kept"}


def test_an_agent_of_which_a_part_was_taken_is_not_placed_and_the_cause_is_named(tmp_path: Path) -> None:
    done = placed(b"#!/bin/sh\nexit 0\n", tmp_path / "nixops", stdin=b"exit 0\n")
    assert done.returncode == 1
    assert b"did not arrive whole" in done.stderr
    assert list((tmp_path / "nixops").iterdir()) == []


def test_an_account_that_is_not_the_superuser_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_UID", "1000")
    done = placed(b"#!/bin/sh\n", tmp_path / "nixops")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (77, b"its uid is 1000")
