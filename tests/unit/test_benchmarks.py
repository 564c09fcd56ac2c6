"""The benchmarks start, at their smallest: what they measure is judged by people, and only if it still runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from benchmarks import b07_framework, b16_neighbours, cpu_clock, fleet, lag, table

from nixops_operator.api.parse import parse_machine
from nixops_operator.errors import Blocked
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.ssh_keys import parse_private_key
from unit.fake_time import run


def test_a_fleet_in_memory_evaluates_each_configuration_once_and_rests(tmp_path: Path) -> None:
    rows = run(b07_framework.fleet_in_memory(10, tmp_path))

    assert rows["evaluations a configuration"] == 1
    assert rows["writes at rest"] == 0


@pytest.mark.parametrize("neighbour", b16_neighbours.NEIGHBOURS)
def test_a_neighbour_can_do_its_harm(tmp_path: Path, neighbour: str) -> None:
    async def life() -> set[Key]:
        there = b16_neighbours.hostile_fleet(tmp_path)
        there.add_host("198.51.1.1")
        there.kube.apply(fleet.given(b16_neighbours.GOOD, "web", "198.51.1.1"))
        async with there.running(), b16_neighbours.beside(there, [b16_neighbours.NEIGHBOURS[neighbour]]):
            await there.until_ready([Key(Kind.MACHINE, b16_neighbours.GOOD, "web")])
        return there.ready

    assert Key(Kind.MACHINE, b16_neighbours.GOOD, "web") in run(life())


def test_a_life_alone_and_beside_nobody_is_measured_on_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b16_neighbours, "SECONDS", 2.0)
    found = b16_neighbours.Found()

    cpu_clock.run(b16_neighbours.live([], found))

    assert min(len(found.alone), len(found.beside)) >= 2 * b16_neighbours.EDITS / 2
    assert min(found.alone + found.beside) >= b16_neighbours.ANSWERS_AFTER


def test_the_clock_of_a_processor_of_its_own_jumps_over_waits() -> None:
    async def test() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time() - began

    assert cpu_clock.run(test()) >= 3600


def test_it_does_not_jump_while_a_thread_works() -> None:
    async def test() -> bool:
        work = asyncio.create_task(asyncio.to_thread(sum, range(1_000_000)))
        wait = asyncio.create_task(asyncio.sleep(3600))
        done, _ = await asyncio.wait({work, wait}, return_when=asyncio.FIRST_COMPLETED)
        return work in done

    assert cpu_clock.run(test())


def test_the_great_key_is_taken_for_an_rsa_key_of_that_size() -> None:
    with pytest.raises(Blocked, match="16384"):
        parse_private_key(b16_neighbours.rsa_key(16_384, 1), "a Secret")


def test_a_given_machine_has_a_valid_spec() -> None:
    assert parse_machine(fleet.given("good", "web", "198.51.1.1")).target.host is not None


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([], 0.99, 0.0, id="nothing measured"),
        pytest.param([3.0, 1.0, 2.0], 0.5, 2.0, id="the middle one"),
        pytest.param([float(n) for n in range(100)], 0.99, 99.0, id="one in a hundred"),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert lag.percentile(values, share) == expected


def test_a_missed_goal_is_printed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    table.show("t", {"ms": table.AtMost(3), "a second": table.AtLeast(5)}, {"ours": {"ms": 4.0, "a second": 6.0}}, "")

    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[3:5]] == ["MISSED", "met"]
