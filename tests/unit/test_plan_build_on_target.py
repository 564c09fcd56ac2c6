"""Where a system is built, and the life of a build on the machine: plans, conditions, words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.facts.host import ActivationState, BuildLook, BuildRequest, BuildState
from nixops_operator.facts.nix import Evaluation
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import steps
from nixops_operator.machine.build_on_target_job import judge_end, trouble
from nixops_operator.machine.observed import ObservedHost
from nixops_operator.machine.plan import wanted_jobs
from nixops_operator.machine.system import build_place
from nixops_operator.nix.realisation import Realisation
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from unit.builders import (
    ADDRESS,
    DRV,
    EVALUATE,
    EVALUATED,
    NEW,
    OLD,
    RESOLVED,
    UID,
    activation,
    host,
    host_machine,
    on_host,
    planned,
    seen,
    silent,
    status_of,
    told,
)

COPY = f"copy:{UID}:{DRV}"
REALISE = f"realise:{UID}:{DRV}"
OTHER_DRV = DRV.replace("33333", "44444")
ON_TARGET = replace(RESOLVED, build_on=BuildOn.TARGET)
OBSTACLE = "the operator's node is another one"
WAITS = Retry(Reason.BUILD_FAILED, "the cache is down")
FAILS = Blocked(Reason.BUILD_FAILED, "build of httpd failed")

COPY_STEP = steps.CopyDerivations(COPY, Evaluation(DRV, NEW))
REALISE_STEP = steps.Realise(REALISE, COPY, Evaluation(DRV, NEW))
STOP_STEP = steps.StopBuild(f"host:{UID}:stop-build")


@pytest.mark.parametrize(
    ("asked", "default", "obstacle", "place"),
    [
        pytest.param("Auto", "Auto", None, "Operator", id="Auto: the operator where it can"),
        pytest.param("Auto", "Auto", OBSTACLE, "Target", id="Auto: else the machine"),
        pytest.param("Auto", "Target", None, "Target", id="the administrator's choice"),
        pytest.param("Operator", "Target", None, "Operator", id="the spec's, over it"),
        pytest.param("Target", "Operator", OBSTACLE, "Target", id="the machine can always"),
    ],
)
def test_where_a_system_is_built(asked: str, default: str, obstacle: str | None, place: str) -> None:
    assert build_place(BuildOn(asked), BuildOn(default), obstacle) is BuildOn(place)


@pytest.mark.parametrize(
    ("asked", "default", "named"),
    [("Operator", "Auto", "spec.configuration.build.on"), ("Auto", "Operator", "the operator's setting nix.build.on")],
)
def test_a_choice_that_cannot_be_is_named(asked: str, default: str, named: str) -> None:
    with pytest.raises(Blocked, match=f"{OBSTACLE}; set {named} to Target") as caught:
        build_place(BuildOn(asked), BuildOn(default), OBSTACLE)
    assert caught.value.reason is Reason.BUILD_FAILED


def machine(free_bytes: int = 50 << 30, current: str = OLD, **fields: Any) -> ObservedHost:
    return host(current, current, free_bytes=free_bytes, **fields)


def steps_with(jobs: Mapping[str, JobState], found: ObservedHost, **spec: Any) -> tuple[Step, ...]:
    return planned(host_machine(**spec), seen(host=found, system=ON_TARGET, jobs={**EVALUATED, **jobs})).steps


@pytest.mark.parametrize(
    ("jobs", "step"),
    [
        pytest.param({}, COPY_STEP, id="first the derivations"),
        pytest.param({COPY: Running()}, None, id="which takes a while"),
        pytest.param({COPY: Failed(WAITS, is_due=True)}, COPY_STEP, id="tried again"),
        pytest.param({COPY: Done(None)}, REALISE_STEP, id="then the build"),
        pytest.param({COPY: Done(None), REALISE: Running()}, None, id="which takes longer"),
        pytest.param({REALISE: Running()}, None, id="the build of another life, found again"),
        pytest.param({COPY: Done(None), REALISE: Failed(WAITS)}, None, id="failed: waited for"),
        pytest.param({COPY: Done(None), REALISE: Failed(FAILS, is_due=True)}, REALISE_STEP, id="and tried again"),
        pytest.param({REALISE: Failed(WAITS, is_due=True)}, COPY_STEP, id="the derivations had gone"),
    ],
)
def test_the_life_of_a_build(jobs: Mapping[str, JobState], step: Step | None) -> None:
    assert steps_with(jobs, machine()) == (() if step is None else (step,))


def test_a_machine_that_is_not_reached_builds_nothing() -> None:
    observed = seen(host=silent(), system=ON_TARGET, jobs=EVALUATED)
    assert planned(host_machine(), observed).steps == ()


def test_what_was_built_there_is_activated_without_a_copy() -> None:
    (record,) = steps_with({COPY: Done(None), REALISE: Done(NEW)}, machine(highest_attempt=0))
    assert isinstance(record, steps.RecordActivation)
    intended = host_machine(activation(attempt=1))
    jobs = {**EVALUATED, COPY: Done(None), REALISE: Done(NEW)}
    (activate,) = planned(intended, seen(host=machine(highest_attempt=0), system=ON_TARGET, jobs=jobs)).steps
    assert isinstance(activate, steps.Activate)
    assert activate.brought_by == REALISE


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(machine(current=NEW), id="it runs"),
        pytest.param(machine(activation=on_host(ActivationState.SWITCHED)), id="it is being switched to"),
    ],
)
def test_what_is_there_is_not_built_again(found: ObservedHost) -> None:
    assert not {type(step) for step in steps_with({}, found)} & {steps.CopyDerivations, steps.Realise}
    observed = seen(host=found, system=ON_TARGET, jobs=EVALUATED)
    assert told(status_of(host_machine(), observed))["ConfigurationBuilt"] == "True/Succeeded"


def test_an_activation_of_an_older_system_is_followed_before_the_newest_is_built() -> None:
    older = "/nix/store/55555555555555555555555555555555-nixos-system-web-25.11"
    (step,) = steps_with({}, machine(activation=on_host(ActivationState.SWITCHED, older)))
    assert isinstance(step, steps.Confirm)


def test_a_full_disk_is_told_before_anything_is_sent() -> None:
    found = planned(host_machine(), seen(host=machine(200 << 20), system=ON_TARGET, jobs=EVALUATED))
    assert found.steps == ()
    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.RETRYING, Reason.BUILD_FAILED)
    assert found.verdict.message == (
        f"{ADDRESS} has 200 MiB free in /nix/store, and nothing is built with less than 256 MiB: collect garbage there "
        "(nix-collect-garbage), or give it a larger disk"
    )


@pytest.mark.parametrize(
    ("building", "jobs", "spec", "steps_then"),
    [
        pytest.param(DRV, {COPY: Done(None), REALISE: Running()}, {}, (), id="what is wanted goes on"),
        pytest.param(OTHER_DRV, {COPY: Running()}, {}, (STOP_STEP,), id="the spec has moved on"),
        pytest.param(DRV, {}, {"suspend": True}, (STOP_STEP,), id="suspended"),
    ],
)
def test_a_build_that_is_of_no_use_is_ended(
    building: str, jobs: Mapping[str, JobState], spec: dict[str, Any], steps_then: tuple[Step, ...]
) -> None:
    assert steps_with(jobs, machine(building=building), **spec) == steps_then


def test_a_build_is_ended_where_the_operator_builds_now() -> None:
    observed = seen(host=machine(building=DRV), jobs=EVALUATED)
    assert STOP_STEP in planned(host_machine(), observed).steps


def test_an_older_build_goes_on_while_the_newest_configuration_is_evaluated() -> None:
    for state, stops in ((Running(), False), (Failed(Blocked(Reason.EVALUATION_FAILED, "no")), True)):
        observed = seen(host=machine(building=DRV), system=ON_TARGET, jobs={EVALUATE: state})
        assert (STOP_STEP in planned(host_machine(), observed).steps) is stops


def test_jobs_that_are_of_use() -> None:
    observed = seen(host=machine(), system=ON_TARGET, jobs=EVALUATED)
    assert wanted_jobs(host_machine(), observed) == {EVALUATE, COPY, REALISE}
    assert wanted_jobs(host_machine(suspend=True), observed) == {EVALUATE}


@pytest.mark.parametrize(
    ("jobs", "condition", "message"),
    [
        pytest.param(
            {COPY: Running("34 of 2200 copied")},
            "Unknown/Building",
            f"building the system on {ADDRESS}: copying its derivations: 34 of 2200 copied",
            id="on the way",
        ),
        pytest.param(
            {COPY: Done(None), REALISE: Running("34 of 120 fetched (57 of 340 MiB), 2 of 5 built")},
            "Unknown/Building",
            f"building the system on {ADDRESS}: 34 of 120 fetched (57 of 340 MiB), 2 of 5 built",
            id="under way",
        ),
        pytest.param({REALISE: Failed(FAILS)}, "False/BuildFailed", FAILS.message, id="failed"),
        pytest.param({REALISE: Failed(WAITS)}, "False/BuildFailed", WAITS.message, id="failed for now"),
        pytest.param({REALISE: Running("", WAITS)}, "False/BuildFailed", WAITS.message, id="tried again meanwhile"),
        pytest.param(
            {REALISE: Running("34 of 120 fetched", WAITS)},
            "False/BuildFailed",
            "trying again, 34 of 120 fetched; before: the cache is down",
            id="and how far it is",
        ),
        pytest.param({REALISE: Done(NEW)}, "True/Succeeded", "built by the machine itself", id="built"),
    ],
)
def test_what_a_person_reads(jobs: Mapping[str, JobState], condition: str, message: str) -> None:
    fields = status_of(host_machine(), seen(host=machine(), system=ON_TARGET, jobs={**EVALUATED, **jobs}))
    assert told(fields)[ConditionType.CONFIGURATION_BUILT] == condition
    (shown,) = (each for each in fields["conditions"] if each["type"] == ConditionType.CONFIGURATION_BUILT)
    assert shown["message"] == message
    assert fields["configuration"]["buildOn"] == "Target"


# --- following ------------------------------------------------------------------------------------------------------

REQUEST = BuildRequest(DRV, NEW, timedelta(hours=2), timedelta(minutes=30))
RUNS = BuildLook(BuildState.BUILDING, True, timedelta(), 50 << 30, "", None, "", 0, False)


def heard(*messages: str) -> Realisation:
    realisation = Realisation()
    for text in messages:
        realisation.read(f"@nix {json.dumps({'action': 'msg', 'level': 0, 'msg': f'error: {text}'})}\n")
    return realisation


TO_FETCH = "these 120 paths will be fetched (340.00 MiB download, 4096.00 MiB unpacked):"


@pytest.mark.parametrize(
    ("look", "said", "error"),
    [
        pytest.param(RUNS, (TO_FETCH,), None, id="it goes well"),
        pytest.param(
            replace(RUNS, free_bytes=2 << 30),
            (TO_FETCH,),
            Retry(
                Reason.BUILD_FAILED,
                "the system needs 4.0 GiB more in the machine's /nix/store, and 2.0 GiB are free: collect garbage "
                "there (nix-collect-garbage), or give it a larger disk",
            ),
            id="it will not fit",
        ),
        pytest.param(replace(RUNS, quiet=timedelta(minutes=31)), (), None, id="the machine's own Nix is to end it"),
        pytest.param(
            replace(RUNS, quiet=timedelta(minutes=32)),
            ("this derivation will be built:",),
            Blocked(
                Reason.BUILD_FAILED,
                "the build on the machine made no progress for 30m (setting nix.build.silent); 0 of 1 built",
            ),
            id="nothing moves",
        ),
        pytest.param(
            replace(RUNS, state=BuildState.BUILT, is_unit_active=False, quiet=timedelta(hours=9)), (), None, id="over"
        ),
    ],
)
def test_what_ends_a_build_before_its_time(look: BuildLook, said: tuple[str, ...], error: OperatorError | None) -> None:
    found = trouble(look, heard(*said), REQUEST)
    assert (type(found), str(found)) == (type(error), str(error))


FAILED = replace(RUNS, state=BuildState.FAILED, is_unit_active=False, service_result="exit-code")


@pytest.mark.parametrize(
    ("look", "said", "kind", "words"),
    [
        pytest.param(FAILED, ("no such attribute",), Blocked, "^no such attribute$", id="Nix refused"),
        pytest.param(FAILED, ("unable to download 'http://c'",), Retry, "^unable to download", id="a cache failed"),
        pytest.param(FAILED, (), Retry, "ended with exit-code$", id="nothing was said"),
        pytest.param(replace(FAILED, service_result="oom-kill"), (), Retry, "ended with oom-kill$", id="killed"),
        pytest.param(
            replace(FAILED, service_result="timeout"), ("x",), Blocked, r"longer than 2h \(setting", id="too long"
        ),
        pytest.param(
            replace(FAILED, service_result="success", output=OLD),
            (),
            Blocked,
            "the machine built nixos-system-web-25.11, where the evaluation says nixos-system-web-25.11",
            id="something else",
        ),
        pytest.param(replace(FAILED, state=BuildState.BUILDING), (), Retry, "was cut", id="the machine restarted"),
        pytest.param(replace(FAILED, state=BuildState.STOPPED), (), Retry, "was ended", id="somebody ended it"),
    ],
)
def test_how_a_build_ended(look: BuildLook, said: tuple[str, ...], kind: type[OperatorError], words: str) -> None:
    with pytest.raises(kind, match=words):
        judge_end(look, heard(*said), REQUEST)


def test_a_build_that_ended_well_raises_nothing() -> None:
    judge_end(replace(FAILED, state=BuildState.BUILT, service_result="success", output=NEW), heard(), REQUEST)
