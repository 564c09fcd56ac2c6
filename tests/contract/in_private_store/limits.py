"""An evaluation that takes too much is ended, alone, with a message that names the limit; so is one that is not wanted
any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from contract.nix_bench import arguments_of, descendants, listing, runs, until
from nixops_operator.adapters.nix import evaluator as evaluator_module
from nixops_operator.adapters.nix.evaluator import EvaluationLimits, Evaluator
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry

GENEROUS = EvaluationLimits(memory=2 * 1024**3, timeout=timedelta(minutes=5), cpu=timedelta(minutes=4))
ENDLESS = (
    "builtins.foldl' (a: _: builtins.length (builtins.genList (x: x) 1000000) + a) 0 (builtins.genList (x: x) 1000000)"
)


async def failure(scratch: Path, limits: EvaluationLimits, expression: str) -> Blocked:
    evaluator = Evaluator(scratch, limits, 1)
    with pytest.raises(Blocked) as failed:
        await evaluator.value(expression)
    assert failed.value.reason is Reason.EVALUATION_FAILED
    # Its place is free again, and the next one is not harmed.
    assert await Evaluator(scratch, GENEROUS, 1).value("1 + 1") == "2"
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
    assert ended.message == (
        "the evaluation was killed by its limits: 2048 MiB of memory (setting nix.evaluation.memory), 1 s of CPU"
    )


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
    assert "No space left on device" in ended.message


async def test_messages_without_end_are_cut(scratch: Path) -> None:
    chatter = """builtins.foldl' (a: n: builtins.trace "0123456789012345678901234567890123456789" a) 7
      (builtins.genList (n: n) 100000)"""
    assert await Evaluator(scratch, GENEROUS, 1).value(chatter) == "7"


async def test_no_more_at_once_than_there_are_places(scratch: Path) -> None:
    evaluator = Evaluator(scratch, GENEROUS, 1)
    first = asyncio.create_task(evaluator.value(ENDLESS))
    await until(lambda: any(arguments_of(pid).startswith("nix-instantiate") for pid in descendants()))
    second = asyncio.create_task(evaluator.value("1 + 1"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len([pid for pid in descendants() if arguments_of(pid).startswith("bwrap")]) == 2  # it and its first process
    first.cancel()
    assert await second == "2"


async def test_cancelling_ends_every_process(scratch: Path) -> None:
    task = asyncio.create_task(Evaluator(scratch, GENEROUS, 1).value(ENDLESS))
    await until(lambda: any(arguments_of(pid).startswith("nix-instantiate") for pid in descendants()))
    started = descendants()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(runs(pid) for pid in started))
    assert descendants() == set()


async def test_nothing_of_an_evaluation_stays_on_disk(scratch: Path) -> None:
    before = listing(scratch)
    await Evaluator(scratch, GENEROUS, 1).value('builtins.toFile "x" "content"')
    assert listing(scratch) == before


async def test_a_sandbox_that_cannot_be_made_is_tried_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluator_module.evaluator

    def broken(**given: object) -> list[str]:
        argv = whole(**given)  # type: ignore[arg-type]
        return [*argv[: argv.index("bwrap") + 1], "--ro-bind", "/nowhere", "/x", *argv[argv.index("bwrap") + 1 :]]

    monkeypatch.setattr(evaluator_module, "evaluator", broken)
    with pytest.raises(Retry, match="the evaluator's sandbox could not be made: bwrap: ") as failed:
        await Evaluator(scratch, GENEROUS, 1).value("1")
    assert failed.value.reason is Reason.EVALUATING
