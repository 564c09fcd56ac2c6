"""What a plan says in a copy of the process, it says alone, too."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

from crash.forks import failures
from crash.plans import read
from crash.test_mutants import spec_of_today_under_an_old_token

SOUND = (
    "create/ec2.run_instances.1/reply-lost~4-8",
    "create+key@ec2.run_instances.1~4-8",
    "delete/ec2.terminate_instance.1/not-recorded~4-8",
)
REPEATED, SENT_ONCE = SOUND[0], "create/ec2.run_instances.1/before~4-8"


def test_plans_of_several_lives_end_well():
    assert failures(map(read, SOUND)) == []


def test_the_one_that_a_mutant_breaks_is_told_and_no_other():
    with spec_of_today_under_an_old_token():
        told = failures(map(read, (REPEATED, SENT_ONCE)))
    assert len(told) == 1
    assert told[0].startswith(f"{REPEATED}\n")
    assert "other parameters" in told[0]


def test_a_place_that_the_life_never_reaches_is_a_failure():
    never = replace(read(SOUND[0]), number=99)
    assert failures([never]) == [f"{never}\n    the place was not met"]


def test_a_copy_that_ends_by_itself_is_a_failure():
    with mock.patch("crash.plans.Course.judge", side_effect=SystemExit(3)):
        assert failures([read(SOUND[0])]) == [f"{read(SOUND[0])}\n    its process ended with 1"]
