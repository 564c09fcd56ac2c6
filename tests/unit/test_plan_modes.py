"""What `activation.mode` and `activation.rollback` make of a built system."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.facts.host import ActivationRequest, ActivationState, DryRun, Mode
from nixops_operator.jobs import Done, Running
from nixops_operator.machine import steps
from nixops_operator.verdict import Outcome
from unit.builders import (
    BOOT,
    BY_HAND,
    COPIED,
    COPY,
    NEW,
    NOON,
    OLD,
    UID,
    activation,
    activation_id,
    host,
    host_machine,
    on_host,
    planned,
    ran,
    ready,
    seen,
    status_of,
    trio_of,
)

A = ActivationState
ID = activation_id(NEW, 1)
DRY = f"dry-activate:{UID}:{NEW}:{OLD}"


def mode(name: str, **more: Any) -> dict[str, Any]:
    return {"activation": {"mode": name, **more}}


def request(mode: Mode, returns: bool = True) -> ActivationRequest:
    return ActivationRequest(NEW, OLD, 1, timedelta(minutes=30), timedelta(seconds=60), mode, returns)


FRESH = host(OLD, OLD, highest_attempt=0)


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        pytest.param({}, request(Mode.SWITCH), id="Switch is the default, and returns"),
        pytest.param(mode("Test"), request(Mode.TEST), id="Test"),
        pytest.param(mode("Boot"), request(Mode.BOOT), id="Boot"),
        pytest.param(mode("Switch", rollback="Never"), request(Mode.SWITCH, returns=False), id="Never"),
    ],
)
def test_the_host_is_told_the_mode(spec, asked):
    assert planned(host_machine(**spec), seen(host=FRESH)).steps == (steps.RecordActivation(asked, BOOT),)
    told = planned(host_machine(activation(), **spec), seen(host=FRESH)).steps
    assert told == (steps.Activate(f"host:{UID}:{ID}:activate", COPY, asked),)


def test_an_activation_goes_on_in_the_mode_in_which_it_began():
    """Edited meanwhile, it would be committed without having been confirmed, or the other way round."""
    found = host(OLD, OLD, activation=on_host(A.PREPARED, mode=Mode.BOOT, returns=False))

    (step,) = planned(host_machine(activation(), **mode("Switch")), seen(host=found)).steps

    assert isinstance(step, steps.Activate)
    assert (step.request.mode, step.request.returns) == (Mode.BOOT, False)


# --- Boot -----------------------------------------------------------------------------------------------------------


def test_what_is_staged_waits_for_a_restart():
    staged = host(OLD, NEW, activation=on_host(A.COMMITTED, mode=Mode.BOOT))
    desired = host_machine(activation(result="Succeeded"), **mode("Boot"))

    assert planned(desired, seen(host=staged)).steps == ()
    trio = trio_of(desired, seen(host=staged))
    assert (trio["Ready"], trio["ConfigurationActive"]) == ("False/RebootRequired", "False/RebootRequired")
    assert trio["UpToDate"] == "False/RebootRequired"
    assert not {"Reconciling", "Stalled"} & trio.keys()


def test_a_boot_entry_that_was_cut_is_written_again():
    cut = host(OLD, NEW, activation=on_host(A.PREPARED, mode=Mode.BOOT), boot_entry_unsure=True)

    (step,) = planned(host_machine(activation(), **mode("Boot")), seen(host=cut)).steps

    assert isinstance(step, steps.Activate)


def test_after_the_restart_it_is_ready():
    booted = host(NEW, NEW, NEW, activation=on_host(A.COMMITTED, mode=Mode.BOOT, boot="boot-0"))

    assert trio_of(host_machine(activation(result="Succeeded"), **mode("Boot")), seen(host=booted))["Ready"] == (
        "True/Succeeded"
    )


# --- Test -----------------------------------------------------------------------------------------------------------


def test_a_test_is_ready_and_the_profile_stays():
    desired = host_machine(activation(), **mode("Test"))
    tested = seen(host=host(NEW, OLD, activation=on_host(A.COMMITTED, mode=Mode.TEST)))

    assert planned(desired, tested).steps == ()
    assert trio_of(desired, tested)["Ready"] == "True/Succeeded"
    assert status_of(desired, tested)["system"]["activatedAt"] == NOON.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_test_that_a_restart_has_ended_is_drift():
    gone = host(OLD, OLD, OLD, activation=on_host(A.COMMITTED, mode=Mode.TEST, boot="boot-0"))
    served = activation(result="Succeeded") | ran() | ready()

    found = planned(host_machine(served, **mode("Test")), seen(host=gone))

    assert [type(step) for step in found.steps] == [steps.RecordActivation]
    assert trio_of(host_machine(served, **mode("Test")), seen(host=gone))["UpToDate"] == "False/BootDrift"


def test_a_test_that_is_meant_after_all_becomes_the_profile():
    tested = seen(host=host(NEW, OLD, activation=on_host(A.COMMITTED, mode=Mode.TEST)))

    (step,) = planned(host_machine(activation(result="Succeeded") | ran() | ready(), **mode("Switch")), tested).steps

    assert isinstance(step, steps.Adopt)


# --- DryActivate ----------------------------------------------------------------------------------------------------


def test_a_dry_run_is_asked_for_and_told_and_nothing_is_written_down():
    desired, output = host_machine(**mode("DryActivate")), "would restart the following units: httpd.service\n"

    asking = planned(desired, seen(host=FRESH))
    waiting = planned(desired, seen(host=FRESH, jobs={**COPIED, DRY: Running()}))
    told = planned(desired, seen(host=FRESH, jobs={**COPIED, DRY: Done(DryRun(0, output))}))

    assert asking.steps == (steps.DryActivate(DRY, NEW),)
    assert (waiting.steps, waiting.verdict.outcome) == ((), Outcome.WORKING)
    assert (told.steps, told.verdict.reason) == ((), Reason.DRY_ACTIVATED)
    assert told.verdict.message.endswith("nothing is changed; would restart the following units: httpd.service")
    assert trio_of(desired, seen(host=FRESH, jobs={**COPIED, DRY: Done(DryRun(0, output))}))["Ready"] == (
        "False/DryActivated"
    )


@pytest.mark.parametrize(
    ("run", "says"),
    [
        pytest.param(DryRun(0, ""), "it would do nothing", id="nothing"),
        pytest.param(DryRun(1, "error: no\n"), "dry-activate ends with 1 (error: no)", id="refused"),
        pytest.param(DryRun(0, "x" * 5000), "…", id="long"),
    ],
)
def test_what_a_dry_run_says_fits_into_a_message(run, says):
    found = planned(host_machine(**mode("DryActivate")), seen(host=FRESH, jobs={**COPIED, DRY: Done(run)}))

    assert says in found.verdict.message
    assert len(found.verdict.message) <= 1024


def test_where_the_declared_system_runs_a_dry_run_has_nothing_to_ask():
    found = planned(host_machine(activation() | ran(), **mode("DryActivate")), seen(host=host(NEW, OLD)))

    assert (found.steps, found.verdict.outcome) == ((), Outcome.IN_SYNC)


def test_a_machine_switched_by_hand_is_not_switched_back_dry():
    found = planned(
        host_machine(activation(result="Succeeded") | ran() | ready(), **mode("DryActivate")),
        seen(host=host(BY_HAND, BY_HAND)),
    )

    assert [type(step) for step in found.steps] == [steps.DryActivate]


# --- rollback: Never ------------------------------------------------------------------------------------------------


def test_what_went_wrong_stays_and_is_neither_kept_nor_tried_again():
    last = on_host(A.FAILED, exit_status=2, result="exit-code", returns=False)
    desired, found = host_machine(activation(), **mode("Switch", rollback="Never")), seen(host=host(activation=last))

    plan = planned(desired, found)

    assert [type(step) for step in plan.steps] == [steps.RecordRevisions]
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.ACTIVATION_FAILED)
    assert "exit code 2; it stays as it is, because activation.rollback is Never" in plan.verdict.message
    assert trio_of(desired, found)["Ready"] == "False/ActivationFailed"


def test_health_is_no_gate_where_nobody_may_return():
    last = on_host(A.SWITCHED, exit_status=0, result="success", returns=False)
    checks = {"healthChecks": [{"name": "page", "http": {"port": 80}}]}

    (step,) = planned(host_machine(activation(), **checks), seen(host=host(NEW, OLD, activation=last))).steps

    assert isinstance(step, steps.Confirm)
