"""An evaluation that takes too much is ended, alone, with a message that names the limit; so is one that is not wanted
any more."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from contract.nix_bench import (
    BOX,
    PYTHON,
    arguments_of,
    children,
    descendants,
    evaluator_in,
    evaluator_with,
    listing,
    runs,
    until,
)
from nixops_operator.adapters.nix.boxes import landlock, namespaces
from nixops_operator.adapters.nix.boxes.box import BoxKind, EvaluationLimits
from nixops_operator.adapters.nix.disk import Disk
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.nix.evaluation_errors import Names

GENEROUS = EvaluationLimits(memory=2 * 1024**3, timeout=timedelta(minutes=5), cpu=timedelta(minutes=4))
ENDLESS = (
    "builtins.foldl' (a: _: builtins.length (builtins.genList (x: x) 1000000) + a) 0 (builtins.genList (x: x) 1000000)"
)


async def failure(scratch: Path, limits: EvaluationLimits, expression: str) -> Blocked:
    evaluator = evaluator_in(scratch, limits)
    with pytest.raises(Blocked) as failed:
        await evaluator.value(expression)
    assert failed.value.reason is Reason.EVALUATION_FAILED
    # Its place is free again, and the next one is not harmed.
    assert await evaluator_in(scratch, GENEROUS).value("1 + 1") == "2"
    return failed.value


async def test_memory(scratch: Path) -> None:
    hungry = 'let more = n: text: if n == 0 then text else more (n - 1) (text + text); in more 40 "0123456789abcdef"'
    ended = await failure(scratch, replace(GENEROUS, memory=1024**3), hungry)
    assert ended.message == "the evaluation needs more than 1024 MiB of memory (setting nix.evaluation.memory)"


async def test_wall_time(scratch: Path) -> None:
    ended = await failure(scratch, replace(GENEROUS, timeout=timedelta(seconds=1)), ENDLESS)
    assert ended.message == "the evaluation took longer than 1 s (setting nix.evaluation.timeout)"


async def test_processor_time(scratch: Path) -> None:
    ended = await failure(scratch, replace(GENEROUS, cpu=timedelta(seconds=1)), ENDLESS)
    assert ended.message == "the evaluation took more than 1 s of CPU (setting nix.evaluation.timeout)"


async def test_endless_recursion(scratch: Path) -> None:
    ended = await failure(scratch, GENEROUS, "let f = n: 1 + f (n + 1); in f 1")
    assert ended.message == "stack overflow (possible infinite recursion)"


async def test_output(scratch: Path) -> None:
    five_mib = 'let more = n: text: if n == 0 then text else more (n - 1) (text + text); in more 20 "12345"'
    ended = await failure(scratch, GENEROUS, five_mib)
    assert ended.message == "the evaluation's result was refused: more than 4 MiB"


async def test_its_disk(scratch: Path) -> None:
    """Files that it makes lie in memory of bounded size, or in a folder that is watched."""
    large = 'let more = n: text: if n == 0 then text else more (n - 1) (text + text); in more 22 "0123456789abcdef"'
    many = f'builtins.map (n: builtins.toFile "x" ({large} + toString n)) (builtins.genList (n: n) 8)'
    ended = await failure(scratch, GENEROUS, many)
    assert ended.message.startswith("the evaluation makes more than 256 MiB of files (setting nix.evaluation.disk)")


HIDING = """
import os, time
os.chdir(os.environ["HOME"])
{hide}
time.sleep(100)
"""


@pytest.mark.parametrize(
    "hide",
    [
        pytest.param("os.mkdir('x', 0)", id="in a folder that cannot be read"),
        pytest.param("for _ in range(60):\n  os.mkdir('n' * 200); os.chdir('n' * 200)", id="where no path leads"),
    ],
)
async def test_what_hides_its_files_is_ended(scratch: Path, hide: str) -> None:
    """Else they would not be counted from then on, nor anything beside them."""
    if BOX is not BoxKind.LANDLOCK:
        return  # the other box' files lie in memory of bounded size, see test_its_disk
    with pytest.raises(Blocked, match="files that cannot be counted"):
        await evaluator_in(scratch, GENEROUS).run((PYTHON, "-c", HIDING.format(hide=hide)))
    assert [path for path in listing(Path("/nix/var/nixops/boxes")) if "home" in Path(path).parts] == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        pytest.param(signal.SIGKILL, "was killed from outside: most likely the operator's pod or its", id="the kernel"),
        pytest.param(signal.SIGXFSZ, "makes more than 256 MiB of files", id="too large a file"),
        pytest.param(signal.SIGSEGV, "ended with signal 11", id="unknown reasons"),
    ],
)
async def test_a_limit_is_blamed_only_if_it_was_one(scratch: Path, number: int, message: str) -> None:
    task = asyncio.create_task(evaluator_in(scratch, GENEROUS).run(("sleep", "100")))
    await until(lambda: any(arguments_of(pid) == "sleep 100 " for pid in descendants()))
    for pid in descendants():
        if arguments_of(pid) == "sleep 100 ":
            os.kill(pid, number)
    with pytest.raises((Blocked, Retry)) as ended:
        await task
    assert ended.value.message.startswith(f"the evaluation {message}")


WRITABLE = """
import os
for folder in ("/", "/run", "/dev", "/dev/shm", "/etc", "/usr", "/tmp", "/var/tmp", "/nix", "/nix/store", "/nix/var",
               os.environ["HOME"], os.environ["IN"], os.environ["OUT"]):
    try:
        with open(f"{folder}/x", "w"):
            disk = os.statvfs(folder)
            print(folder, disk.f_blocks * disk.f_frsize // 2**20)
    except OSError:
        pass
"""


async def test_no_place_to_write_is_without_a_size(scratch: Path) -> None:
    """Every folder that can be written to is memory of the operator's pod of a given size, or watched."""
    found = await evaluator_in(scratch, GENEROUS).run((PYTHON, "-c", WRITABLE))
    if BOX is BoxKind.LANDLOCK:
        [(folder, _)] = [line.split() for line in found.splitlines()]
        assert folder.startswith("/nix/var/nixops/boxes/")
        assert Path(folder).parts[-2:] == ("work", "home")
    else:
        sizes = ["/dev/shm 16", "/tmp 256", "/nix 256", "/homeless 16", "/tmp 256"]  # the last one is $OUT
        assert found.splitlines() == sizes


async def test_its_processes(scratch: Path) -> None:
    """With namespaces they are counted inside of the box alone; for root the kernel counts none."""
    many = """
import threading
threading.stack_size(65536)
end = threading.Event()
for _ in range(300):
    threading.Thread(target=end.wait, daemon=True).start()
print("all", flush=True)
end.wait(10)
"""
    if BOX is BoxKind.NAMESPACES and os.geteuid() == 0:
        assert "all" in await evaluator_in(scratch, GENEROUS).run((PYTHON, "-c", many))
        return
    with pytest.raises(Blocked, match=r"the evaluation has more than 256 processes|can't start new thread"):
        await evaluator_in(scratch, GENEROUS).run((PYTHON, "-c", many))


def oom_score_of(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text()


async def test_the_operator_is_the_last_to_go(scratch: Path) -> None:
    """Where memory ends, the kernel looks for the process with the greatest score."""
    task = asyncio.create_task(evaluator_in(scratch, GENEROUS).run(("sleep", "100")))
    await until(lambda: any(arguments_of(pid) == "sleep 100 " for pid in descendants()))
    scores = {oom_score_of(pid) for pid in descendants()}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):  # who does not wait leaves the process to the end of the loop, unreaped
        await task
    assert scores == {"1000\n"}


async def test_nothing_begins_on_a_full_disk(scratch: Path) -> None:
    full = evaluator_with(scratch, GENEROUS, Disk((scratch,), 2**60))
    with pytest.raises(Retry, match=rf"the operator's disk is full: .* is free at {scratch}; ") as refused:
        await full.evaluate("1", (), Names({}), None)
    assert refused.value.reason is Reason.EVALUATING


async def test_messages_without_end_are_cut(scratch: Path) -> None:
    chatter = """builtins.foldl' (a: n: builtins.trace "0123456789012345678901234567890123456789" a) 7
      (builtins.genList (n: n) 100000)"""
    assert await evaluator_in(scratch, GENEROUS).value(chatter) == "7"


async def test_no_more_at_once_than_there_are_places(scratch: Path) -> None:
    evaluator = evaluator_in(scratch, GENEROUS)
    first = asyncio.create_task(evaluator.value(ENDLESS))
    await until(lambda: any(arguments_of(pid).startswith("nix-instantiate") for pid in descendants()))
    second = asyncio.create_task(evaluator.value("1 + 1"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(children()) == 1
    first.cancel()
    assert await second == "2"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_cancelling_ends_every_process(scratch: Path) -> None:
    task = asyncio.create_task(evaluator_in(scratch, GENEROUS).value(ENDLESS))
    await until(lambda: any(arguments_of(pid).startswith("nix-instantiate") for pid in descendants()))
    started = descendants()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(runs(pid) for pid in started))
    assert descendants() == set()


async def test_nothing_of_an_evaluation_stays_on_disk(scratch: Path) -> None:
    before = listing(scratch)
    await evaluator_in(scratch, GENEROUS).value('builtins.toFile "x" "content"')
    assert listing(scratch) == before


async def test_a_box_that_cannot_be_made_is_tried_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_PROGRAMS", ("/nowhere",))
    monkeypatch.setattr(namespaces, "SHUT", ("--ro-bind", "/nowhere", "/x"))
    with pytest.raises(Retry, match=r"the evaluator's box could not be made: (bwrap|setpriv): ") as failed:
        await evaluator_in(scratch, GENEROUS).value("1")
    assert failed.value.reason is Reason.EVALUATING
