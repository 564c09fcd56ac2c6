"""A guard that is taken out turns plans red: what the matrix promises, it can also miss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from crash.bench import Cut
from crash.invariants import Broken
from crash.workloads import at_rest, play
from fakes.cloud import FakeCloud
from nixops_operator import names
from nixops_operator.controllers import MachineController
from nixops_operator.facts.cloud import LaunchRequest
from nixops_operator.machine import launch
from nixops_operator.planning import Finding, Plan
from nixops_operator.verdict import Outcome


@contextmanager
def tags_after_the_launch() -> Iterator[None]:
    original = launch.launch_request

    def untagged(*arguments: Any) -> LaunchRequest:
        return replace(original(*arguments), tags={})

    with mock.patch.object(launch, "launch_request", untagged):
        yield


@contextmanager
def another_token_for_each_call() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: LaunchRequest, token: str) -> str:
        return await original(self, request, f"{token}{next(numbers)}")

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def call_before_the_intent() -> Iterator[None]:
    original = launch.record_launch

    async def record_launch(step: Any, desired: Any, body: Any, world: Any) -> Any:
        view = await world.cloud(desired.key, desired.uids, desired.spec.aws)
        request = launch.launch_request(step.declared, "")
        await view.cloud.run_instances(request, names.client_token(world.cluster_id, desired.uid, 1))
        return await original(step, desired, body, world)

    with mock.patch.object(launch, "record_launch", record_launch):
        yield


@contextmanager
def spec_of_today_under_an_old_token() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: LaunchRequest, token: str) -> str:
        request = replace(request, user_data=f"{request.user_data}\n# {next(numbers)}")
        return await original(self, request, token)

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def finalizer_off_at_the_reply_of_terminate() -> Iterator[None]:
    original = MachineController.plan

    def plan(self: MachineController, desired: Any, observed: Any, now: Any) -> Plan:
        found = original(self, desired, observed, now)
        is_asked_for = found.verdict.outcome is Outcome.DELETING and not found.steps
        return replace(found, findings=(Finding(Outcome.GONE),)) if is_asked_for else found

    with mock.patch.object(MachineController, "plan", plan):
        yield


@pytest.mark.parametrize(
    ("mutant", "workload", "cut", "says"),
    [
        pytest.param(
            tags_after_the_launch,
            "create",
            Cut("ec2.run_instances", 1, "not recorded"),
            "carries no tags of ours",
            id="tags after the launch",
        ),
        pytest.param(
            another_token_for_each_call,
            "create",
            Cut("ec2.run_instances", 1, "reply lost"),
            "before its intent was written",
            id="another token for each call",
        ),
        pytest.param(
            call_before_the_intent,
            "create",
            Cut("kube.write_intent", 4, "before"),
            "before its intent was written",
            id="intent after the call",
        ),
        pytest.param(
            spec_of_today_under_an_old_token,
            "create",
            Cut("ec2.run_instances", 1, "reply lost"),
            "other parameters",
            id="new parameters under an old token",
        ),
        pytest.param(
            finalizer_off_at_the_reply_of_terminate,
            "delete",
            Cut("ec2.terminate_instance", 1, "not recorded"),
            "was let go while",
            id="finalizer off at the reply of terminate",
        ),
    ],
)
def test_a_mutant_turns_its_plan_red(mutant, workload, cut, says):
    at_rest()  # the beginning is sound
    with mutant(), pytest.raises(Broken, match=says):
        play(workload, cut)
