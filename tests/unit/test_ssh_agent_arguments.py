"""How arguments reach the agent: whole or not at all. The script itself runs; it refuses before it touches anything."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixops_operator.adapters.ssh.agent import frame, load_agent

MALFORMED = 64
TOPLEVEL = "/nix/store/v1z67m3mh5pwhdq0sp9gflybmpnka11q-nixos-system-web-25.11"
AGENT = load_agent()


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(AGENT.script)
    return path


def refused(agent: Path, *words: str, stdin: bytes = b"") -> tuple[int, str]:
    done = subprocess.run(["/bin/sh", str(agent), *words], input=stdin, capture_output=True, check=False)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode().strip()


def test_each_argument_is_its_length_and_its_bytes() -> None:
    assert frame("abc", "ü", "") == b"3\nabc\n2\n\xc3\xbc\n0\n\n"


@given(st.lists(st.text()))
def test_arguments_cannot_run_into_each_other(arguments: list[str]) -> None:
    framed, found = frame(*arguments), []
    while framed:
        length, _, framed = framed.partition(b"\n")
        found.append(framed[: int(length)].decode())
        framed = framed[int(length) + 1 :]
    assert found == arguments


@pytest.mark.parametrize(
    ("stdin", "why"),
    [
        pytest.param(b"", "no argument on stdin", id="nothing came"),
        pytest.param(b"70\n" + TOPLEVEL[:40].encode(), "stdin was cut", id="cut in the argument"),
        pytest.param(frame(TOPLEVEL)[:-1], "stdin was cut", id="cut before the last newline"),
        pytest.param(b"10\n" + TOPLEVEL.encode() + b"\n", "argument longer than its length", id="a length too short"),
        pytest.param(b"-1\n\n", "malformed length", id="a negative length"),
        pytest.param(b"1234567\n", "malformed length", id="a length without end"),
        pytest.param(frame("/etc/passwd"), "not a store path", id="outside the store"),
        pytest.param(frame(TOPLEVEL + "/../../../etc"), "not a store path", id="a path that leaves the store"),
        pytest.param(frame(TOPLEVEL + "\nx"), "not a store path", id="two lines"),
        pytest.param(frame(TOPLEVEL + ";reboot"), "not a store path", id="a second command"),
        pytest.param(frame(TOPLEVEL + "$(reboot)"), "not a store path", id="a substitution"),
        pytest.param(frame("--help"), "not a store path", id="an option"),
    ],
)
def test_a_malformed_argument_is_refused(agent: Path, stdin: bytes, why: str) -> None:
    assert refused(agent, "root-next", stdin=stdin) == (MALFORMED, why)


@pytest.mark.parametrize(
    "activation_id",
    [
        "",
        "v1z67m3m",
        "v1z67m3m-",
        "v1z67m3m-x",
        "v1z67m3m-1/..",
        "../../etc-1",
        "v1z67m3m-1 x",
        "V1Z67M3M-1",
        "a-1",
        "v1z67m3m-1-2",
    ],
)
@pytest.mark.parametrize("command", ["claim", "activate", "confirm", "commit", "rollback", "log", "finish", "expire"])
def test_a_malformed_id_is_refused(agent: Path, command: str, activation_id: str) -> None:
    assert refused(agent, command, activation_id) == (MALFORMED, "malformed id")


@pytest.mark.parametrize("seconds", ["", "-1", "1h", "9999999", "$(reboot)"])
def test_a_malformed_time_is_refused(agent: Path, seconds: str) -> None:
    stdin = frame(TOPLEVEL, TOPLEVEL, seconds, "60")
    assert refused(agent, "claim", "v1z67m3m-1", stdin=stdin) == (MALFORMED, "not a number of seconds")


@pytest.mark.parametrize("key", ["", "a b", "name:key\nsubstituters = http://evil", "name:key;x"])
def test_a_key_that_would_be_more_than_a_setting_of_nix_is_refused(agent: Path, key: str) -> None:
    assert refused(agent, "daemon", stdin=frame(key)) == (MALFORMED, "malformed public key")


@pytest.mark.parametrize("word", ["", "a b", "a\nb", "$(reboot)", "<script>", "ü", "x" * 321])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("command", ["own", "disown"])
def test_an_owner_that_would_not_be_one_line_of_three_words_is_refused(
    agent: Path, command: str, place: int, word: str
) -> None:
    words = ["cluster", "uid", "shop/web"]
    words[place] = word
    code, why = refused(agent, command, stdin=frame(*words, "", ""))
    assert code == MALFORMED
    assert why in {"malformed owner", "malformed length", "stdin was cut", "argument longer than its length"}


def test_an_unknown_command_is_refused(agent: Path) -> None:
    assert refused(agent, "format-disk") == (MALFORMED, "unknown command")
    assert refused(agent) == (MALFORMED, "unknown command")


def test_the_command_line_names_the_script_by_its_hash() -> None:
    *words, script = shlex.split(AGENT.call("confirm", "v1z67m3m-1").line)
    assert words == ["exec", "sh", "-c"]
    assert f"(exec sh /var/lib/nixops/agent-{AGENT.digest} confirm v1z67m3m-1)" in script
