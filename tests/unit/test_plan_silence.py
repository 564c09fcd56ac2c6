"""When an instance that runs and does not answer is restarted, and when that is given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import SilenceStatus, written
from nixops_operator.errors import Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.machine import steps
from nixops_operator.machine.silence import FORGOTTEN_AFTER, MOST_RESTARTS, RESTARTED_AFTER
from nixops_operator.verdict import Outcome
from unit.builders import (
    NOON,
    activation,
    cloud,
    condition,
    ec2_machine,
    host,
    host_machine,
    instance,
    launch,
    planned,
    ran,
    seen,
    silent,
)

ALLOWED: dict[str, Any] = {"disruption": {"reboot": "WhenNeeded"}}
WITH_STOP: dict[str, Any] = {"disruption": {"reboot": "WhenNeeded", "stop": "WhenNeeded"}}
NO_ANSWER = silent(Retry(Reason.CONNECT_TIMEOUT, "no answer"))
LONG = RESTARTED_AFTER


def unreachable(ago: timedelta = LONG, truth: str = "False") -> dict[str, Any]:
    told = [condition("Reachable", truth, "ConnectTimeout", since=NOON - ago)]
    return launch(instance="i-1") | ran() | {"conditions": told, "observedGeneration": 1}


def restarted(count: int, ago: timedelta = LONG, generation: int = 1) -> dict[str, Any]:
    last = SilenceStatus(instance_id="i-1", count=count, last_at=NOON - ago, generation=generation)
    return {"silence": written(last)}


def recorded(count: int) -> steps.RecordSilence:
    return steps.RecordSilence(SilenceStatus(instance_id="i-1", count=count, last_at=NOON, generation=1))


@pytest.mark.parametrize(
    ("status", "spec", "expected"),
    [
        pytest.param(unreachable(), ALLOWED, (recorded(1), steps.RebootInstance("i-1")), id="ten minutes"),
        pytest.param(unreachable(LONG - timedelta(seconds=1)), ALLOWED, (), id="not so long"),
        pytest.param(unreachable(truth="Unknown"), ALLOWED, (), id="not known to be silent"),
        pytest.param(unreachable(), {}, (), id="not allowed"),
        pytest.param(unreachable(), ALLOWED | {"suspend": True}, (), id="suspended"),
        pytest.param(unreachable() | restarted(1, LONG / 2), ALLOWED, (), id="rebooted a moment ago"),
        pytest.param(unreachable() | restarted(1), ALLOWED, (recorded(2), steps.RebootInstance("i-1")), id="once more"),
        pytest.param(
            unreachable() | restarted(1), WITH_STOP, (recorded(2), steps.StopInstance("i-1")), id="then by a stop"
        ),
        pytest.param(unreachable() | restarted(MOST_RESTARTS), ALLOWED, (), id="no more than that"),
        pytest.param(
            unreachable() | restarted(MOST_RESTARTS, generation=0),
            ALLOWED,
            (recorded(1), steps.RebootInstance("i-1")),
            id="an edit begins anew",
        ),
        pytest.param(unreachable() | activation(), ALLOWED, (), id="it is being activated, and returns by itself"),
    ],
)
def test_what_a_silent_instance_gets(status, spec, expected):
    assert planned(ec2_machine(status, **spec), seen(cloud(instance()), NO_ANSWER)).steps == expected


def test_a_request_begins_anew():
    desired = ec2_machine(
        unreachable() | restarted(MOST_RESTARTS),
        annotations={"nixops.dev/reconcile-requested-at": "now"},
        **ALLOWED,
    )

    assert planned(desired, seen(cloud(instance()), NO_ANSWER)).steps == (recorded(1), steps.RebootInstance("i-1"))


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(seen(cloud(instance(), admits_ssh=False), NO_ANSWER), id="its groups admit nobody"),
        pytest.param(
            seen(cloud(instance()), silent(Retry(Reason.HOST_KEY_MISMATCH, "another key"))), id="it answers, wrongly"
        ),
        pytest.param(seen(cloud(instance(state=InstanceState.STOPPING)), NO_ANSWER), id="it does not run"),
    ],
)
def test_what_a_restart_would_not_mend(observed):
    found = planned(ec2_machine(unreachable(), **ALLOWED), observed)

    assert not [step for step in found.steps if isinstance(step, steps.RebootInstance)]


def test_a_given_host_is_never_restarted():
    assert planned(host_machine(unreachable(), **ALLOWED), seen(None, NO_ANSWER)).steps == ()


def test_in_the_end_a_person_is_asked():
    desired = ec2_machine(unreachable() | restarted(MOST_RESTARTS), **ALLOWED)
    found = planned(desired, seen(cloud(instance()), NO_ANSWER))

    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.CONNECT_TIMEOUT)
    assert f"restarted {MOST_RESTARTS} times" in found.verdict.message


@pytest.mark.parametrize(
    ("ago", "is_forgotten"),
    [pytest.param(FORGOTTEN_AFTER, True, id="an hour"), pytest.param(FORGOTTEN_AFTER / 2, False, id="not yet")],
)
def test_a_machine_that_answers_for_an_hour_begins_anew(ago, is_forgotten):
    desired = ec2_machine(launch(instance="i-1") | ran() | restarted(2, ago), **ALLOWED)

    assert (steps.RecordSilence(None) in planned(desired, seen(cloud(instance()), host())).steps) is is_forgotten
