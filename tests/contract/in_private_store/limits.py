"""An evaluation that takes too much is ended, alone, with a message that names the limit; so is one that is not wanted
any more."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from contract.nix_bench import arguments_of, descendants, evaluator_in, listing, runs, until
from nixops_operator.adapters.nix import evaluator as evaluator_module
from nixops_operator.adapters.nix.disk import Disk
from nixops_operator.adapters.nix.evaluator import EvaluationLimits, Evaluator
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
    """Files that it makes lie in memory of bounded size, never on the operator's disk."""
    large = 'let more = n: text: if n == 0 then text else more (n - 1) (text + text); in more 22 "0123456789abcdef"'
    many = f'builtins.map (n: builtins.toFile "x" ({large} + toString n)) (builtins.genList (n: n) 8)'
    ended = await failure(scratch, GENEROUS, many)
    assert ended.message.startswith("the evaluation makes more than 256 MiB of files: ")


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        pytest.param("KILL", "was killed from outside: most likely the operator's pod or its node", id="by the kernel"),
        pytest.param("XFSZ", "writes a file of more than 256 MiB", id="too large a file"),
        pytest.param("SEGV", "ended with signal 11; perhaps it needs more than 2048 MiB", id="for unknown reasons"),
    ],
)
async def test_a_limit_is_blamed_only_if_it_was_one(scratch: Path, signal: str, message: str) -> None:
    with pytest.raises((Blocked, Retry)) as ended:
        await evaluator_in(scratch, GENEROUS).run(("sh", "-c", f"sh -c 'kill -{signal} $$'; exit $?"))
    assert ended.value.message.startswith(f"the evaluation {message}")


async def test_no_place_to_write_is_without_a_size(scratch: Path) -> None:
    """Every folder that can be written to is memory of the operator's pod."""
    script = """
      for folder in / /run /dev /etc /usr; do (: >$folder/x) 2>/dev/null && echo "can write to $folder"; done
      df --output=size,target -k /tmp /nix /homeless /dev/shm | sed 1d
    """
    sizes = await evaluator_in(scratch, GENEROUS).run(("sh", "-c", script))
    assert sizes.split() == ["262144", "/tmp", "262144", "/nix", "16384", "/homeless", "16384", "/dev/shm"]


async def test_its_processes(scratch: Path) -> None:
    """Counted inside of the sandbox alone; for root the kernel counts none."""
    script = "for n in $(seq 300); do sleep 100 & done; echo all"
    if os.geteuid() == 0:
        assert "all" in await evaluator_in(scratch, GENEROUS).run(("sh", "-c", script))
        return
    with pytest.raises(Blocked, match="Cannot fork"):
        await evaluator_in(scratch, GENEROUS).run(("sh", "-c", script))


async def test_the_operator_is_the_last_to_go(scratch: Path) -> None:
    """Where memory ends, the kernel looks for the process with the greatest score."""
    assert await evaluator_in(scratch, GENEROUS).run(("cat", "/proc/self/oom_score_adj")) == "1000\n"


async def test_nothing_begins_on_a_full_disk(scratch: Path) -> None:
    full = Evaluator(scratch, GENEROUS, 1, Disk((scratch,), 2**60))
    with pytest.raises(Retry, match=rf"the operator's disk is full: .* are free at {scratch}") as refused:
        await full.evaluate("1", (), Names({}))
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
    assert len([pid for pid in descendants() if arguments_of(pid).startswith("bwrap")]) == 2  # it and its first process
    first.cancel()
    assert await second == "2"


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


async def test_a_sandbox_that_cannot_be_made_is_tried_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluator_module.evaluator

    def broken(**given: object) -> list[str]:
        argv = whole(**given)  # type: ignore[arg-type]
        return [*argv[: argv.index("bwrap") + 1], "--ro-bind", "/nowhere", "/x", *argv[argv.index("bwrap") + 1 :]]

    monkeypatch.setattr(evaluator_module, "evaluator", broken)
    with pytest.raises(Retry, match="the evaluator's sandbox could not be made: bwrap: ") as failed:
        await evaluator_in(scratch, GENEROUS).value("1")
    assert failed.value.reason is Reason.EVALUATING
