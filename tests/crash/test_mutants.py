"""A guard that is taken out turns plans red: what the matrix promises, it can also miss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from crash.bench import Broken, Cut
from crash.workloads import at_rest, play
from fakes.cloud import FakeCloud
from nixops_operator import names
from nixops_operator.controllers import MachineController
from nixops_operator.machine import apply
from nixops_operator.machine.plan import Plan
from nixops_operator.verdict import Outcome, Verdict


@contextmanager
def tags_after_the_launch() -> Iterator[None]:
    original = apply.launch_request

    def untagged(*arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in original(*arguments).items() if name != "TagSpecifications"}

    with mock.patch.object(apply, "launch_request", untagged):
        yield


@contextmanager
def another_token_for_each_call() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: Mapping[str, Any], token: str) -> str:
        return await original(self, request, f"{token}{next(numbers)}")

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def call_before_the_intent() -> Iterator[None]:
    original = apply._record_launch

    async def record_launch(step: Any, desired: Any, body: Any, world: Any) -> Any:
        look = await apply._look(desired, world)
        request = apply.launch_request(step, desired, world.cluster_id, 1, "")
        await look.cloud.run_instances(request, names.client_token(world.cluster_id, desired.uid, 1))
        return await original(step, desired, body, world)

    with mock.patch.object(apply, "_record_launch", record_launch):
        yield


@contextmanager
def spec_of_today_under_an_old_token() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: Mapping[str, Any], token: str) -> str:
        return await original(self, {**request, "UserData": f"{request['UserData']}\n# {next(numbers)}"}, token)

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def finalizer_off_at_the_reply_of_terminate() -> Iterator[None]:
    original = MachineController.plan

    def plan(self: MachineController, desired: Any, observed: Any, now: Any) -> Plan:
        found = original(self, desired, observed, now)
        is_asked_for = found.verdict.outcome is Outcome.DELETING and not found.steps
        return replace(found, verdict=Verdict(Outcome.GONE)) if is_asked_for else found

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
