"""When an instance that lives is replaced by another one, which of the two goes, and what is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator import job_names
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import LaunchStatus, ReplacementStatus, read, written
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.jobs import Done
from nixops_operator.machine import steps
from nixops_operator.machine.replacement import ANSWERS_WITHIN, TRIED_AGAIN_AFTER
from nixops_operator.verdict import Outcome
from unit.builders import (
    ACCOUNT,
    BUILT,
    DECLARED,
    NEW,
    NOON,
    activation,
    cloud,
    ec2_machine,
    host,
    instance,
    launch,
    planned,
    ran,
    ready,
    seen,
    silent,
    status_of,
    told,
)

DEDICATED = DECLARED.but(tenancy="dedicated")
WANTED = '{"tenancy": "dedicated"}'
ALLOWED: dict[str, Any] = {"disruption": {"replace": "WhenNeeded"}}
RUNS = launch(instance="i-1") | ran() | ready()
FORMER = instance("i-1")
OTHER = instance("i-2", attempt=2, tenancy="dedicated")


COPIED_TO_OTHER = {**BUILT, job_names.copy("i-2", NEW): Done(None)}


def due(**fields: Any) -> Any:
    """The former instance alone, and what another one would be launched with."""
    return cloud(FORMER, declared=DEDICATED, next_declared=DEDICATED, **fields)


def recorded(other: str | None, attempt: int, **fields: Any) -> dict[str, Any]:
    """`status.replacement`; `other` is the instance that is not the machine's."""
    of_other = read(LaunchStatus, launch(attempt, instance=other)["launch"]) if other is not None else None
    return {"replacement": written(ReplacementStatus(wanted=WANTED, attempt=2, other=of_other, **fields))}


def replacing(instance_id: str | None = "i-2", **of_launch: Any) -> dict[str, Any]:
    return launch(2, instance=instance_id, **of_launch) | recorded("i-1", 1)


def given_up(ago: timedelta = timedelta(0), other: str | None = None) -> dict[str, Any]:
    return RUNS | recorded(other, 2, refused="no room", reason="InsufficientCapacity", at=NOON - ago)


def both(*, other: Any = FORMER, gone: bool = False, **fields: Any) -> Any:
    """The new instance, and the former one beside it."""
    return cloud(OTHER, declared=DEDICATED, other=None if gone else other, is_other_gone=gone, **fields)


# --- begun --------------------------------------------------------------------------------------------------------


def test_the_other_one_is_launched_beside_the_one_that_serves():
    (step,) = planned(ec2_machine(RUNS, **ALLOWED), seen(due(), host())).steps

    assert isinstance(step, steps.RecordLaunch)
    assert (step.first_attempt, step.account_id, step.declared) == (2, ACCOUNT, DEDICATED)
    assert step.replacement is not None
    assert (step.replacement.wanted, step.replacement.other and step.replacement.other.instance_id) == (WANTED, "i-1")
    assert step.replacement.host_keys == ("ssh-ed25519 AAAA",)


def test_one_machine_of_a_deployment_at_a_time():
    waits = due(goes_first="NixMachine/default/db, which is being replaced")
    found = planned(ec2_machine(RUNS, **ALLOWED), seen(waits, host()))

    assert not [step for step in found.steps if isinstance(step, steps.RecordLaunch)]
    assert "it is replaced after NixMachine/default/db, which is being replaced" in found.verdict.message
    assert found.verdict.outcome is Outcome.REPAIRING


@pytest.mark.parametrize(
    ("status", "spec", "observed", "reason", "words"),
    [
        pytest.param(RUNS, {}, due(), "ChangeForbidden", "replace to WhenNeeded", id="not allowed"),
        pytest.param(
            RUNS,
            {"disruption": {"replace": "WhenLost"}},
            due(),
            "ChangeForbidden",
            "replace to WhenNeeded",
            id="only what is lost is replaced",
        ),
        pytest.param(
            RUNS,
            ALLOWED | {"target": {"ec2": {"instanceType": "t3.small", "terminationProtection": True}}},
            due(),
            "ChangeForbidden",
            "protected by spec.target.ec2.terminationProtection",
            id="protected",
        ),
        pytest.param(
            given_up(TRIED_AGAIN_AFTER / 2), ALLOWED, due(), "InsufficientCapacity", "no room", id="refused just now"
        ),
        pytest.param(
            RUNS,
            ALLOWED,
            cloud(FORMER, declared=DEDICATED, next_error=Blocked(Reason.IMAGE_NOT_FOUND, "no image")),
            "ImageNotFound",
            "no image",
            id="what it needs is not known",
        ),
    ],
)
def test_what_cannot_be_replaced_serves_on_and_is_told(status, spec, observed, reason, words):
    found = planned(ec2_machine(status, **spec), seen(observed, host("/nix/store/old")))

    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, reason)
    assert words in found.verdict.message
    assert steps.Copy in [type(step) for step in found.steps], "the machine is looked after all the same"


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(given_up(TRIED_AGAIN_AFTER), id="ten minutes later"),
        pytest.param(
            RUNS | {"replacement": given_up()["replacement"] | {"wanted": "{}"}}, id="the spec says something else"
        ),
        pytest.param(
            RUNS | {"replacement": given_up()["replacement"] | {"refused": None}}, id="the refusal was forgotten"
        ),
    ],
)
def test_what_was_refused_is_tried_again(status):
    found = planned(ec2_machine(status, **ALLOWED), seen(due(), host()))

    (step,) = [step for step in found.steps if isinstance(step, steps.RecordLaunch)]
    assert step.first_attempt == 3, "an attempt's token is used once"


def test_a_request_is_kept_until_the_launch_has_no_more_to_wait():
    desired = ec2_machine(given_up(), annotations={"nixops.dev/reconcile-requested-at": "now"}, **ALLOWED)

    (step,) = [
        step for step in planned(desired, seen(due(), host())).steps if isinstance(step, steps.RecordReplacement)
    ]

    assert step.replacement is not None
    assert (step.replacement.refused, step.replacement.attempt) == (None, 2)


def test_no_third_instance_is_launched_while_the_second_one_goes():
    status = given_up(TRIED_AGAIN_AFTER, other="i-2")
    found = planned(ec2_machine(status, **ALLOWED), seen(due(other=OTHER, is_other_gone=False), host()))

    assert found.steps == (steps.TerminateOther("i-2"),)


def test_an_activation_is_not_cut():
    found = planned(ec2_machine(RUNS | activation(), **ALLOWED), seen(due(), host()))

    assert not [step for step in found.steps if isinstance(step, steps.RecordLaunch)]


def test_a_suspended_machine_is_not_replaced():
    assert planned(ec2_machine(RUNS, suspend=True, **ALLOWED), seen(due(), host())).steps == ()


# --- the other one takes over -------------------------------------------------------------------------------------


def test_the_former_one_goes_once_the_other_one_has_its_system():
    desired = ec2_machine(replacing(), **ALLOWED)
    has_it = seen(both(), host("/nix/store/base"), jobs=COPIED_TO_OTHER)

    assert planned(desired, has_it).steps == (steps.TerminateOther("i-1"),)


def test_until_then_it_is_brought_there_while_the_former_one_serves():
    found = planned(ec2_machine(replacing(), **ALLOWED), seen(both(), host("/nix/store/base")))

    assert [type(step) for step in found.steps] == [steps.Copy]


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        pytest.param(both(other=instance("i-1", InstanceState.SHUTTING_DOWN)), (), id="it is going: waited for"),
        pytest.param(both(gone=True), (steps.RecordReplacement(None),), id="gone"),
    ],
)
def test_nothing_is_activated_before_the_former_one_is_gone(observed, expected):
    found = planned(ec2_machine(replacing(), **ALLOWED), seen(observed, host("/nix/store/base"), jobs=COPIED_TO_OTHER))

    assert found.steps == expected


def test_the_former_one_s_pins_stay_until_the_other_one_boots():
    pending = instance("i-2", InstanceState.PENDING, attempt=2, tenancy="dedicated")
    observed = cloud(pending, declared=DEDICATED, other=FORMER, is_other_gone=False, pins=cloud(FORMER).pins)

    assert planned(ec2_machine(replacing(), **ALLOWED), seen(observed)).steps == ()


# --- it cannot, or is not to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "spec", "observed", "reason"),
    [
        pytest.param(
            replacing(None, refused=1, refusedReason="QuotaExceeded", refusedMessage="VcpuLimitExceeded"),
            ALLOWED,
            cloud(declared=DEDICATED, other=FORMER, is_other_gone=False),
            Reason.QUOTA_EXCEEDED,
            id="refused",
        ),
        pytest.param(
            replacing(),
            ALLOWED,
            cloud(instance("i-2", InstanceState.TERMINATED, 2), other=FORMER, is_other_gone=False),
            Reason.TERMINATED,
            id="died",
        ),
        pytest.param(replacing(), {}, both(), Reason.CHANGE_FORBIDDEN, id="not allowed any more"),
        pytest.param(
            replacing(),
            ALLOWED,
            cloud(OTHER, declared=DECLARED.but(tenancy="default"), other=FORMER, is_other_gone=False),
            Reason.INSTANCE_DRIFT,
            id="the old value is back",
        ),
        pytest.param(
            replacing(),
            ALLOWED,
            cloud(OTHER, declared=DECLARED, other=FORMER, is_other_gone=False),
            Reason.INSTANCE_DRIFT,
            id="the spec says nothing of it any more",
        ),
    ],
)
def test_the_former_one_stays(status, spec, observed, reason):
    (step,) = planned(ec2_machine(status, **spec), seen(observed, host())).steps

    assert isinstance(step, steps.GoBack)
    assert (step.instance_id, step.reason) == ("i-1", reason)


@pytest.mark.parametrize(
    ("age", "is_given_up"),
    [
        pytest.param(ANSWERS_WITHIN - timedelta(seconds=1), False, id="it may be booting"),
        pytest.param(ANSWERS_WITHIN, True, id="ten minutes"),
    ],
)
def test_one_that_does_not_answer_is_waited_for_ten_minutes(age, is_given_up):
    young = instance("i-2", attempt=2, tenancy="dedicated", launch_time=NOON - age)
    observed = cloud(young, declared=DEDICATED, other=FORMER, is_other_gone=False)
    found = planned(
        ec2_machine(replacing(), **ALLOWED), seen(observed, silent(Retry(Reason.CONNECT_TIMEOUT, "no answer")))
    )

    assert any(isinstance(step, steps.GoBack) for step in found.steps) is is_given_up


def test_with_the_former_one_gone_there_is_no_way_back():
    dead = instance("i-1", InstanceState.TERMINATED)
    found = planned(ec2_machine(replacing(), **ALLOWED), seen(both(other=dead, gone=False), host()))

    assert not [step for step in found.steps if isinstance(step, steps.GoBack)]


def test_what_did_not_take_over_is_terminated_and_the_refusal_stays_on_record():
    status = given_up(other="i-2")
    live = seen(due(other=OTHER, is_other_gone=False), host())
    gone = seen(due(), host())

    assert steps.TerminateOther("i-2") in planned(ec2_machine(status, **ALLOWED), live).steps
    (step,) = planned(ec2_machine(status, **ALLOWED), gone).steps
    assert isinstance(step, steps.RecordReplacement)
    assert step.replacement is not None
    assert (step.replacement.other, step.replacement.refused) == (None, "no room")


def test_a_machine_that_is_being_replaced_is_at_work():
    fields = told(status_of(ec2_machine(replacing(), **ALLOWED), seen(both(), host("/nix/store/base"))))

    assert (fields["Ready"].split("/")[0], fields["Reconciling"].split("/")[0]) == ("Unknown", "True")
