"""When a machine has to be restarted: told always, done where that is allowed or asked for, with a way back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.host import ActivationRequest, ActivationState, Mode
from nixops_operator.machine import steps
from nixops_operator.verdict import Outcome
from unit.builders import (
    BOOT,
    NEW,
    NOON,
    OLD,
    UID,
    activation,
    activation_id,
    cloud,
    condition,
    ec2_machine,
    failed,
    host,
    host_machine,
    instance,
    launch,
    on_host,
    planned,
    ran,
    ready,
    seen,
    silent,
    status_of,
    trio_of,
)

A = ActivationState
IMAGE = "/nix/store/" + 32 * "7" + "-nixos-system-image"
WHEN_NEEDED = {"disruption": {"reboot": "WhenNeeded"}}
ASKED = {"nixops.dev/reboot-requested-at": "now"}
SERVED = activation(result="Succeeded") | ran() | ready()
SWITCHED_TO = on_host(A.COMMITTED)


def request(attempt: int = 2, previous: str = OLD) -> ActivationRequest:
    times = timedelta(minutes=30), timedelta(seconds=60)
    return ActivationRequest(NEW, previous, attempt, *times, Mode.RESTART)


def other_kernel(**fields: Any) -> Any:
    """The declared system runs; the old one's kernel was booted."""
    return host(NEW, NEW, OLD, activation=SWITCHED_TO, restart_for=("kernel", "initrd"), **fields)


# --- who is restarted, and who is only told of it -------------------------------------------------------------------


def test_without_leave_it_is_told_while_the_machine_serves():
    desired = host_machine(SERVED)

    assert planned(desired, seen(host=other_kernel())).steps == ()
    trio = trio_of(desired, seen(host=other_kernel()))
    assert (trio["Ready"], trio["UpToDate"]) == ("True/Succeeded", "False/RebootRequired")
    assert "Reconciling" not in trio


@pytest.mark.parametrize(
    ("desired", "found", "step"),
    [
        pytest.param(
            host_machine(SERVED, **WHEN_NEEDED),
            other_kernel(),
            steps.RecordActivation(request(), BOOT),
            id="another kernel; what was booted is the way back",
        ),
        pytest.param(
            host_machine(SERVED, **WHEN_NEEDED),
            host(NEW, NEW, IMAGE, activation=on_host(A.COMMITTED, previous_boots=True), restart_for=("kernel",)),
            steps.RecordActivation(request(), BOOT),
            id="another kernel; what ran before it, with the booted kernel, is the way back",
        ),
        pytest.param(
            host_machine(SERVED, **WHEN_NEEDED),
            host(NEW, NEW, IMAGE, activation=on_host(A.COMMITTED), restart_for=("kernel",)),
            steps.RecordActivation(request(previous=IMAGE), BOOT),
            id="another kernel; what ran before it has another one as well, and nobody knows whether that comes up",
        ),
        pytest.param(
            host_machine(
                activation(result="Failed") | failed(NEW, reason="RebootRequired", message="has to boot"), **WHEN_NEEDED
            ),
            host(OLD, OLD, IMAGE, activation=on_host(A.FAILED, exit_status=100), restart_for=("kernel",)),
            steps.RecordActivation(request(previous=IMAGE), BOOT),
            id="nobody knows whether what runs comes up",
        ),
        pytest.param(
            host_machine(SERVED, annotations=ASKED),
            host(NEW, NEW, NEW, activation=SWITCHED_TO),
            steps.RecordActivation(request(previous=NEW), BOOT, reboot_request="now"),
            id="asked for, whatever the policy",
        ),
        pytest.param(
            host_machine(activation(result="Succeeded"), activation={"mode": "Boot"}, **WHEN_NEEDED),
            host(OLD, NEW, activation=on_host(A.COMMITTED, mode=Mode.BOOT)),
            steps.RecordActivation(request(), BOOT),
            id="it was made the boot entry",
        ),
        pytest.param(
            host_machine(
                activation(result="Failed") | failed(NEW, reason="RebootRequired", message="has to boot"), **WHEN_NEEDED
            ),
            host(OLD, OLD, activation=on_host(A.FAILED, exit_status=100)),
            steps.RecordActivation(request(), BOOT),
            id="a running machine cannot switch to it",
        ),
    ],
)
def test_a_restart_is_written_down_first(desired, found, step):
    plan = planned(desired, seen(host=found))

    assert plan.steps == (step,)
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.WORKING, Reason.REBOOTING)


def test_a_request_that_was_written_down_is_carried_out():
    """The annotation counts as answered by then."""
    begun = activation(attempt=2)
    begun["activation"]["restarts"] = True
    status = SERVED | begun | {"lastHandledRebootAt": "now"}

    (step,) = planned(
        host_machine(status, annotations=ASKED), seen(host=host(NEW, NEW, NEW, activation=SWITCHED_TO))
    ).steps

    assert isinstance(step, steps.Activate)
    assert step.request == request(previous=NEW)


def test_a_request_that_is_as_old_as_the_object_restarts_nothing():
    """A backup brings the annotation back, and not the status that says that it was answered."""
    restored = host_machine(annotations=ASKED)
    found = seen(host=host(NEW, NEW, NEW, activation=SWITCHED_TO))

    assert planned(restored, found).steps == ()
    assert status_of(restored, found)["lastHandledRebootAt"] == "now"


def test_an_answered_request_restarts_nothing():
    desired = host_machine(SERVED | {"lastHandledRebootAt": "now"}, annotations=ASKED)

    assert planned(desired, seen(host=host(NEW, NEW, NEW, activation=SWITCHED_TO))).steps == ()


def test_what_a_restart_did_not_bring_is_told_and_not_tried_again():
    came = on_host(A.COMMITTED, mode=Mode.RESTART, boot="boot-0")
    found = seen(host=host(NEW, NEW, NEW, activation=came, restart_for=("kernel",)))

    assert planned(host_machine(SERVED, **WHEN_NEEDED), found).steps == ()
    assert trio_of(host_machine(SERVED, **WHEN_NEEDED), found)["UpToDate"] == "False/RebootRequired"


FORGOTTEN = SERVED | activation(attempt=2, restarts=True, boot="boot-0") | {"lastHandledRebootAt": "now"}
"""A machine that was told to restart. Where /var/lib lies in memory, or is put back at each boot, its folder goes with
the boot."""


@pytest.mark.parametrize("annotations", [{}, ASKED])
def test_a_restart_that_the_machine_forgot_is_not_made_again(annotations):
    """It was restarted for ever: nothing on it said that it had been."""
    desired = host_machine(FORGOTTEN, annotations=annotations)
    found = seen(host=host(NEW, NEW, NEW, activation=None, highest_attempt=0))

    assert planned(desired, found).steps == ()
    assert status_of(desired, found)["activation"]["result"] == "Forgotten"
    assert trio_of(desired, found)["Ready"] == "True/Succeeded"


def test_nor_for_what_it_did_not_bring():
    desired = host_machine(FORGOTTEN, **WHEN_NEEDED)
    found = seen(host=host(NEW, NEW, NEW, activation=None, highest_attempt=0, restart_for=("kernel",)))

    assert planned(desired, found).steps == ()
    assert "a restart did not change that" in planned(desired, found).differences[0].message


def test_a_system_that_takes_the_machine_down_twice_is_not_tried_a_third_time_by_one_that_forgets():
    desired = host_machine(activation(attempt=2, boot="boot-0", repeated=True))
    found = seen(host=host(OLD, OLD, activation=None, highest_attempt=0))

    (step,) = planned(desired, found).steps

    assert isinstance(step, steps.RecordRevisions)
    assert (step.failed[0].toplevel, step.result) == (NEW, "Forgotten")


def test_a_machine_that_would_not_know_its_way_back_is_restarted_only_if_somebody_asks_for_it():
    kept = host_machine(SERVED, **WHEN_NEEDED)
    found = seen(host=other_kernel(forgets=True))

    assert planned(kept, found).steps == ()
    assert "/var/lib/nixops" in planned(kept, found).differences[0].message
    (step,) = planned(host_machine(SERVED, annotations=ASKED, **WHEN_NEEDED), found).steps
    assert isinstance(step, steps.RecordActivation)


def test_a_suspended_machine_is_not_restarted():
    assert planned(host_machine(SERVED, suspend=True, **WHEN_NEEDED), seen(host=other_kernel())).steps == ()


def test_the_profile_follows_before_the_machine_is_restarted():
    found = seen(host=host(NEW, OLD, OLD, activation=SWITCHED_TO, restart_for=("kernel",)))

    (step,) = planned(host_machine(SERVED, **WHEN_NEEDED), found).steps

    assert isinstance(step, steps.Adopt)


# --- what a running machine cannot switch to ------------------------------------------------------------------------


def test_a_system_that_has_to_be_booted_says_so_and_what_helps():
    last = on_host(A.FAILED, exit_status=100, result="exit-code", needs_restart=True)

    plan = planned(host_machine(activation()), seen(host=host(OLD, OLD, activation=last)))

    (step,) = plan.steps
    assert isinstance(step, steps.RecordRevisions)
    assert step.failed[0].reason == Reason.REBOOT_REQUIRED
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.REBOOT_REQUIRED)
    assert "set disruption.reboot to WhenNeeded, or activation.mode to Boot" in plan.verdict.message


def test_it_can_be_staged_by_hand_then():
    status = activation(result="Failed") | failed(NEW, reason="RebootRequired", message="has to boot")
    last = on_host(A.FAILED, exit_status=100)

    (step,) = planned(
        host_machine(status, activation={"mode": "Boot"}), seen(host=host(OLD, OLD, activation=last))
    ).steps

    assert isinstance(step, steps.RecordActivation)
    assert step.request.mode is Mode.BOOT


# --- under way ------------------------------------------------------------------------------------------------------

ID = activation_id(NEW, 2)
BEGUN = activation(attempt=2)
BEGUN["activation"]["restarts"] = True


def rebooting(boot: str = "boot-0", **more: Any) -> Any:
    return on_host(A.REBOOTING, attempt=2, mode=Mode.RESTART, boot=boot, **more)


def returning(**more: Any) -> Any:
    return on_host(A.ROLLING_BACK, attempt=2, mode=Mode.RESTART, boot="boot-0", **more)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        pytest.param(
            host(OLD, NEW, OLD, activation=rebooting("boot-1")),
            steps.Restart(f"host:{UID}:{ID}:restart", ID),
            id="still up: told again",
        ),
        pytest.param(
            host(NEW, NEW, NEW, activation=rebooting()),
            steps.Confirm(f"host:{UID}:{ID}:confirm", ID),
            id="up again with the new system: confirmed",
        ),
        pytest.param(
            host(OLD, NEW, OLD, activation=rebooting()),
            steps.RollBack(f"host:{UID}:{ID}:rollback", ID),
            id="up again with another one: the boot entry goes back, too",
        ),
        pytest.param(
            host(NEW, NEW, NEW, activation=on_host(A.CONFIRMED, attempt=2, mode=Mode.RESTART, boot="boot-0")),
            steps.Commit(f"host:{UID}:{ID}:commit", ID),
            id="confirmed: made the boot entry",
        ),
        pytest.param(
            host(OLD, NEW, OLD, activation=returning()),
            steps.RollBack(f"host:{UID}:{ID}:rollback", ID),
            id="on its way back, and cut there: goes on",
        ),
    ],
)
def test_a_restart_is_followed_to_its_end(found, step):
    assert planned(host_machine(BEGUN, **WHEN_NEEDED), seen(host=found)).steps == (step,)


@pytest.mark.parametrize("system", [pytest.param(OLD, id="it did not come up"), pytest.param(NEW, id="it is left")])
@pytest.mark.parametrize("repeated", [False, True])
def test_while_a_machine_returns_from_a_restart_nothing_is_begun_and_nothing_is_said_against_its_system(
    system, repeated
):
    """It was restarted for the kernel of what ran already: to bring that again would restart it again and again."""
    begun = SERVED | activation(attempt=2)
    begun["activation"] |= {"restarts": True, "repeated": repeated}
    found = host(system, OLD, system, activation=returning(unit=True))

    plan = planned(host_machine(begun, **WHEN_NEEDED), seen(host=found))

    assert plan.steps == ()
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.WORKING, Reason.ROLLING_BACK)


def test_what_was_confirmed_and_then_left_by_another_reset_is_not_made_the_boot_entry():
    confirmed = on_host(A.CONFIRMED, attempt=2, mode=Mode.RESTART, boot="boot-0")

    found = planned(host_machine(BEGUN, **WHEN_NEEDED), seen(host=host(OLD, NEW, OLD, activation=confirmed)))

    assert not any(isinstance(step, steps.Commit) for step in found.steps)


def test_after_a_restart_health_is_waited_for_as_after_a_switch():
    checks = {"healthChecks": [{"name": "page", "http": {"port": 80}}]}

    (step,) = planned(host_machine(BEGUN, **checks), seen(host=host(NEW, NEW, NEW, activation=rebooting()))).steps

    assert isinstance(step, steps.Hold)


def test_what_was_booted_and_left_again_is_bad_and_not_booted_again():
    status = BEGUN | failed(NEW, reason="RebootRequired", message="has to boot")
    back = on_host(A.ROLLED_BACK, attempt=2, mode=Mode.RESTART, boot="boot-0")

    plan = planned(host_machine(status, **WHEN_NEEDED), seen(host=host(OLD, OLD, OLD, activation=back)))

    assert [type(step) for step in plan.steps] == [steps.RecordRevisions]
    assert (plan.verdict.outcome, plan.verdict.reason) == (Outcome.STALLED, Reason.ACTIVATION_FAILED)
    assert plan.verdict.message.startswith(
        "the machine was restarted, and the new system did not come up, or could not"
    )


DOWN = Retry(Reason.CONNECT_TIMEOUT, "silent")
GOING_DOWN = Retry(Reason.PROGRESSING_WITH_RETRY, "facts: systemd does not answer")


@pytest.mark.parametrize(
    ("error", "minutes", "reason"),
    [
        pytest.param(DOWN, 9, Reason.REBOOTING, id="ten minutes are its own"),
        pytest.param(DOWN, 10, Reason.CONNECT_TIMEOUT, id="then it is silent"),
        pytest.param(GOING_DOWN, 0, Reason.REBOOTING, id="systemd has gone, and sshd has not"),
        pytest.param(GOING_DOWN, 10, Reason.PROGRESSING_WITH_RETRY, id="and does not go"),
        pytest.param(Blocked(Reason.HOST_KEY_MISMATCH, "other"), 1, Reason.HOST_KEY_MISMATCH, id="another machine"),
    ],
)
def test_a_machine_that_restarts_is_waited_for(error, minutes, reason):
    found = planned(host_machine(BEGUN), seen(host=silent(error)), NOON + timedelta(minutes=minutes))

    assert found.verdict.reason is reason


@pytest.mark.parametrize(
    ("desired", "cloud_seen", "said"),
    [
        pytest.param(host_machine(BEGUN), None, "choose the previous generation in the boot menu", id="a given host"),
        pytest.param(
            ec2_machine(BEGUN | launch(instance="i-1")),
            cloud(instance("i-1")),
            "get-console-output --latest --instance-id i-1",
            id="on EC2",
        ),
    ],
)
def test_a_machine_whose_kernel_does_not_boot_needs_a_person_who_is_told_what_to_do(desired, cloud_seen, said):
    found = planned(desired, seen(cloud_seen, silent(DOWN)), NOON + timedelta(minutes=10)).verdict

    assert found.outcome is Outcome.STALLED
    assert "its new kernel or initrd may not boot" in found.message
    assert said in found.message


def test_where_it_may_be_restarted_that_is_tried_once_its_own_way_back_had_its_time():
    silent_since = {"conditions": [condition("Reachable", "False", "ConnectTimeout", since=NOON)]}
    desired = ec2_machine(BEGUN | launch(instance="i-1") | silent_since, **WHEN_NEEDED)

    found = planned(desired, seen(cloud(instance("i-1")), silent(DOWN)), NOON + timedelta(minutes=13))
    assert steps.RebootInstance("i-1") in found.steps
