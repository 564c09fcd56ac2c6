"""Deletions, edits and second lives begin in the middle of a creation, or of what comes later, with a death at the same
moment or without."""

from __future__ import annotations

import pytest

from crash.changes import CHANGES
from crash.forks import failures
from crash.plans import chosen, interruptions, read

COUNT = 1
"""Plans of each change and way to die, the same ones in every run; the whole matrix is `make crash`."""

ONCE_RED = (
    "create+key@ec2.run_instances.1~4-8",  # launched with one key, looked for with the other
    "create+delete@ec2.run_instances.1/not-recorded~60-300",
    "create+delete_and_apply@ec2.run_instances.2/not-recorded~4-8",
    "substitute+take_back@kube.write_intent.1/before~4-8",  # the frozen request stayed, with a private host key in it
    "settle+retain@ec2.allocate_address.1/not-recorded~4-8",  # tagged as let go, and then waited for without end
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_middle_of_a_creation_ends_as_it_should(change):
    plans = [
        plan
        for workload in CHANGES[change].within
        for how in CHANGES[change].hows
        for plan in chosen(interruptions(change, how, workload), COUNT)
    ]
    wrong = failures(plans)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("plan", ONCE_RED)
def test_what_was_found_once_stays_mended(plan):
    read(plan).run()


def test_a_plan_is_named_by_what_runs_it():
    plan = interruptions("delete", "not recorded")[0]
    assert read(str(plan)) == plan
