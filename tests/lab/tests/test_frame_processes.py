"""A process is its pid, its start time and the boot: nobody else is ever signalled."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixops_lab import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


def recorded_of(running: subprocess.Popen[bytes]) -> processes.Recorded:
    found = processes.record(running.pid)
    assert found is not None
    return found


def test_a_running_process_is_alive(sleeper: subprocess.Popen[bytes]) -> None:
    assert processes.is_alive(recorded_of(sleeper))


@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param({"start_time": 1}, id="another start time: the pid was given again"),
        pytest.param({"boot": "another"}, id="another boot"),
    ],
)
def test_a_stranger_under_the_same_pid_is_neither_alive_nor_signalled(
    sleeper: subprocess.Popen[bytes], stranger: dict[str, object]
) -> None:
    recorded = replace(recorded_of(sleeper), **stranger)  # type: ignore[arg-type]
    assert not processes.is_alive(recorded)
    assert not processes.send(recorded, signal.SIGKILL)
    processes.end([recorded], grace=0)
    assert sleeper.poll() is None


def test_one_that_ended_but_was_not_waited_for_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    recorded = recorded_of(sleeper)
    sleeper.kill()
    assert processes.wait_gone([recorded], 10) == []
    assert Path(f"/proc/{sleeper.pid}").exists()


def test_end_kills_what_does_not_listen(tmp_path: Path) -> None:
    deaf = processes.start(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], tmp_path / "log")
    while "deaf" not in (tmp_path / "log").read_text():
        os.sched_yield()
    processes.end([deaf], grace=0.1)
    assert not processes.is_alive(deaf)
    os.waitpid(deaf.pid, 0)


def test_a_started_process_leads_its_own_session_and_writes_to_its_log(tmp_path: Path) -> None:
    started = processes.start(["sh", "-c", "ps -o sid= -p $$; echo oops >&2"], tmp_path / "folder" / "log")
    os.waitpid(started.pid, 0)
    session, words = (tmp_path / "folder" / "log").read_text().split()
    assert int(session) == started.pid
    assert words == "oops"


def test_the_name_of_a_program_may_look_like_the_fields_after_it() -> None:
    text = "42 (a) R 1 (b)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 20\n"
    assert processes.parse_stat(text) == processes.Stat(state="S", parent=7, start_time=123456)


def test_children_are_those_that_live(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.pid in processes.children(os.getpid())
    sleeper.kill()
    processes.wait_gone([processes.Recorded(sleeper.pid, 0, "")], 10)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert sleeper.pid not in processes.children(os.getpid())


def test_a_pid_that_nobody_has_is_no_process(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert processes.record(sleeper.pid) is None
    assert processes.children(sleeper.pid) == []
