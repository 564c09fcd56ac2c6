"""How many generations a machine keeps: no more than declared, once the declared system is what it boots."""

from __future__ import annotations

from typing import Any

import pytest

from nixops_operator import job_names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.host import Generation
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine.generations import RemoveGenerations
from unit.builders import COPIED, NEW, OLD, UID, activation, host, host_machine, planned, ran, ready, seen, trio_of

TWELVE = tuple(Generation(number, is_used=number in (3, 12)) for number in range(1, 13))


def machine(generations: tuple[Generation, ...] = TWELVE, keep: int | None = None, **more: Any) -> tuple[Any, Any]:
    rules = {"activation": {"keepGenerations": keep}} if keep is not None else {}
    found = seen(host=host(generations=generations, **more.get("host", {})), jobs=COPIED | more.get("jobs", {}))
    return host_machine(activation(result="Succeeded") | ran() | ready(), **rules), found


def removed(*given: Any, **more: Any) -> list[tuple[int, ...]]:
    return [step.numbers for step in planned(*machine(*given, **more)).steps if isinstance(step, RemoveGenerations)]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        pytest.param(None, [(1, 2)], id="ten by default"),
        pytest.param(12, [], id="as many as there are"),
        pytest.param(11, [(1,)], id="one too many"),
        pytest.param(8, [(1, 2, 4)], id="one among them is in use"),
        pytest.param(1, [(1, 2, 4, 5, 6, 7, 8, 9, 10, 11)], id="the newest alone"),
        pytest.param(1000, [], id="more than there are"),
    ],
)
def test_the_newest_stay_and_what_is_in_use(keep: int | None, gone: list[tuple[int, ...]]):
    assert removed(keep=keep) == gone


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"profile": OLD}, id="the profile is another system"),
        pytest.param({"current": OLD}, id="another system runs"),
        pytest.param({"boot_entry_unsure": True}, id="the boot entry is being written"),
    ],
)
def test_nothing_goes_before_the_declared_system_is_what_is_booted(state: dict[str, Any]):
    assert removed(host=state) == []


def test_what_runs_is_not_asked_for_twice_and_what_failed_is_told():
    job = job_names.generations(UID, "1-2")
    assert removed(jobs={job: Running()}) == []
    failed = Failed(Retry(Reason.BOOT_ENTRY_FAILED, "no space"), is_due=True)
    assert removed(jobs={job: failed}) == [(1, 2)]
    told = trio_of(*machine(jobs={job: failed}))
    assert (told["Ready"], told["UpToDate"]) == ("True/Succeeded", "False/BootEntryFailed")


def test_a_machine_that_has_no_more_than_that_is_ready_as_ever():
    assert trio_of(*machine(TWELVE[2:]))["UpToDate"] == "True/Succeeded"


def test_they_go_where_the_boot_loader_refuses_the_declared_system_and_nothing_else_writes_the_menu_meanwhile():
    adopt, going = f"host:{UID}:adopt:{NEW}", job_names.generations(UID, "1-2")
    no_room = Retry(Reason.BOOT_ENTRY_FAILED, "no space")

    def steps_with(**jobs: Any) -> list[str]:
        found = planned(*machine(host={"boot_entry_unsure": True}, jobs=jobs))
        return [type(step).__name__ for step in found.steps]

    assert steps_with(**{adopt: Failed(no_room)}) == ["RemoveGenerations"]
    assert steps_with(**{adopt: Failed(no_room, is_due=True)}) == ["Adopt"]
    assert steps_with(**{adopt: Running(last_error=no_room)}) == []
    assert steps_with(**{adopt: Failed(no_room, is_due=True), going: Running()}) == []
