"""What a refusal proves, which attempt follows it, and how fast an instance that keeps dying is started again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.holds import Holds
from nixops_operator.machine import steps
from nixops_operator.verdict import Outcome
from unit.builders import ACCOUNT, DECLARED, NOON, cloud, ec2_machine, host, instance, launch, planned, seen, stamp

SMALL, LARGE = DECLARED, DECLARED.but(instanceType="t3.large")
MISSING = timedelta(seconds=60)
STOPPED, TERMINATED = InstanceState.STOPPED, InstanceState.TERMINATED
FULL = Retry(Reason.INSUFFICIENT_CAPACITY, "no capacity for t3.small")


def ago(**span: float) -> str:
    return stamp(NOON - timedelta(**span))


def restarted(count: int, generation: int = 1, **span: float) -> dict[str, Any]:
    return {"restarts": {"count": count, "lastAt": ago(**span), "generation": generation}}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refused_attempt_is_repeated_as_it_is_while_nothing_has_changed():
    """A new attempt each time left a Secret with a private key behind: 144 a day under a quota."""
    desired = ec2_machine(launch(3, refused=1, declaredHash=SMALL.digest))

    found = planned(desired, seen(cloud(declared=SMALL)))

    assert found.steps == (steps.RecordCall(3), steps.Launch(desired.launch))


def test_what_was_edited_while_ec2_had_no_capacity_is_what_is_launched():
    """The old type started when capacity came back, and was kept."""
    desired = ec2_machine(launch(3, refused=1, declaredHash=SMALL.digest), generation=2)

    found = planned(desired, seen(cloud(declared=LARGE)))

    assert found.steps == (steps.RecordLaunch(4, ACCOUNT, LARGE),)


def test_a_refusal_after_a_lost_answer_proves_nothing_until_ec2_would_show_what_was_made():
    """The second answer says nothing of what the first call made."""
    doubted = launch(1, age=timedelta(minutes=2), doubtedAt=ago(minutes=1))

    early = planned(ec2_machine(doubted), seen(cloud(missing_for=MISSING)))
    late = planned(
        ec2_machine(launch(1, age=timedelta(minutes=6), doubtedAt=ago(minutes=1))), seen(cloud(missing_for=MISSING))
    )
    shown = planned(ec2_machine(doubted), seen(cloud(instance(state=InstanceState.PENDING))))

    assert (early.verdict.reason, early.steps) == (Reason.LAUNCH_PENDING, ())
    assert late.steps == (steps.CloseLaunch(1),)
    assert shown.steps == (steps.RecordInstance("i-1", 1),)


@pytest.mark.parametrize(
    ("status", "noted"),
    [
        pytest.param(launch(1, age=timedelta(seconds=59)), False, id="within a minute of the last note"),
        pytest.param(launch(1, age=timedelta(seconds=60)), True, id="later: the note would be too old"),
        pytest.param(launch(1, calledAt=ago(seconds=30)), False, id="an old request, asked for a moment ago"),
    ],
)
def test_a_call_is_noted_before_it_is_sent(status, noted):
    """Absence counts from the last call; capacity refused for six minutes, then launched, leaked an instance."""
    found = planned(ec2_machine(status), seen(cloud(missing_for=MISSING)))

    assert isinstance(found.steps[-1], steps.Launch)
    assert isinstance(found.steps[0], steps.RecordCall) == noted


def test_what_only_prepares_a_launch_waits_with_it():
    """A machine's group with a typo was launched every six seconds."""
    holds: Holds[str] = Holds()
    desired = ec2_machine(launch(1, refused=1, declaredHash=SMALL.digest))
    holds.failed("web", 1, steps.Launch(desired.launch), FULL, 0)
    holds.succeeded("web", 1, steps.RecordCall(1), 0)
    holds.succeeded("web", 1, steps.RecordLaunch(2, ACCOUNT, LARGE), 0)

    for step in (steps.RecordCall(1), steps.RecordLaunch(2, ACCOUNT, LARGE), steps.Launch(desired.launch)):
        assert (holds.held("web", 1, step, 1) or (None,))[0] == FULL
        assert holds.held("web", 2, step, 1) is None, "an edit is tried at once"


# --- lives that end soon ----------------------------------------------------------------------------------------------


def test_an_instance_that_was_stopped_is_started_at_once_and_counted():
    found = planned(ec2_machine(launch(1, instance="i-1")), seen(cloud(instance(state=STOPPED))))

    assert found.steps == (steps.RecordRestart(1), steps.StartInstance("i-1"))


@pytest.mark.parametrize(
    ("count", "since", "outcome"),
    [
        pytest.param(1, 29, Outcome.RETRYING, id="the second start waits half a minute"),
        pytest.param(1, 30, Outcome.WORKING, id="and then comes"),
        pytest.param(2, 59, Outcome.RETRYING, id="the third a minute"),
        pytest.param(4, 239, Outcome.RETRYING, id="the fifth four minutes"),
        pytest.param(5, 479, Outcome.STALLED, id="after five a person is asked"),
        pytest.param(5, 480, Outcome.WORKING, id="while slow tries go on"),
        pytest.param(30, 599, Outcome.STALLED, id="at most ten minutes apart"),
        pytest.param(30, 600, Outcome.WORKING, id="for ever"),
    ],
)
def test_an_instance_that_keeps_going_off_is_started_more_and_more_slowly(count, since, outcome):
    """430 starts in eleven minutes for 24 machines that powered themselves off while booting."""
    shown = instance(
        state=STOPPED,
        state_reason="Client.InstanceInitiatedShutdown",
        state_reason_message="Instance initiated shutdown",
    )
    desired = ec2_machine(launch(1, instance="i-1") | restarted(count, seconds=since))

    found = planned(desired, seen(cloud(shown)))

    assert found.verdict.outcome is outcome
    assert bool(found.steps) == (outcome is Outcome.WORKING)
    if outcome is not Outcome.WORKING:
        assert "Client.InstanceInitiatedShutdown: Instance initiated shutdown" in found.verdict.message


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        pytest.param(
            "Client.UserInitiatedShutdown",
            "Client.UserInitiatedShutdown: User initiated shutdown",
            "soon: Client.UserInitiatedShutdown: User initiated shutdown;",
            id="the code stands in the text",
        ),
        pytest.param("Client.InternalError", "the root volume is encrypted", "Error: the root volume", id="both"),
        pytest.param("Server.InternalError", None, "soon: Server.InternalError;", id="the code alone"),
        pytest.param(None, None, "EC2 gives no reason (stopped)", id="neither"),
    ],
)
def test_the_reason_why_it_is_gone_is_ec2s_own_and_told_once(code, text, words):
    shown = instance(state=STOPPED, state_reason=code, state_reason_message=text)

    found = planned(ec2_machine(launch(1, instance="i-1") | restarted(1, seconds=5)), seen(cloud(shown)))

    assert "started once of late, and was gone again soon" in found.verdict.message
    assert words in found.verdict.message


def test_an_edit_begins_the_count_anew():
    desired = ec2_machine(launch(1, instance="i-1") | restarted(5, seconds=1), generation=2)

    assert planned(desired, seen(cloud(instance(state=STOPPED)))).steps[0] == steps.RecordRestart(1)


@pytest.mark.parametrize(("minutes", "forgotten"), [(9, False), (10, True)])
def test_ten_undisturbed_minutes_end_the_count(minutes, forgotten):
    desired = ec2_machine(launch(1, instance="i-1") | restarted(3, minutes=minutes))

    found = planned(desired, seen(cloud(instance()), host()))

    assert (steps.ForgetRestarts() in found.steps) == forgotten


@pytest.mark.parametrize(
    ("reason", "replaced"),
    [
        pytest.param("Server.InternalError", True, id="it never came up: nothing was lost"),
        pytest.param("Client.VolumeLimitExceeded", True, id="its volume could not be made"),
        pytest.param("Client.UserInitiatedShutdown", False, id="somebody ended it: that is the policy's business"),
    ],
)
def test_a_launch_that_dies_by_itself_is_no_loss(reason, replaced):
    dead = instance(state=TERMINATED, state_reason=reason)

    found = planned(ec2_machine(launch(1, instance="i-1")), seen(cloud(dead)))

    assert (found.steps == (steps.RecordLaunch(2, ACCOUNT, DECLARED, 1),)) == replaced
    assert (found.verdict.reason is Reason.INSTANCE_LOST) != replaced


def test_launches_that_die_at_once_are_counted_like_starts():
    dead = instance(state=TERMINATED, state_reason="Server.InternalError", state_reason_message="Internal error")
    desired = ec2_machine(launch(6, instance="i-1") | restarted(5, seconds=10))

    found = planned(desired, seen(cloud(dead)))

    assert (found.verdict.outcome, found.steps) == (Outcome.STALLED, ())
    assert "Server.InternalError: Internal error" in found.verdict.message


# --- tags -------------------------------------------------------------------------------------------------------------


def test_tags_taken_off_by_hand_come_back_where_the_token_shows_that_the_instance_is_ours():
    lost = instance(tags={})
    desired = ec2_machine(launch(1, instance="i-1"))

    found = planned(desired, seen(cloud(untagged=lost, declared=DECLARED.but(tags={"a": "b"}))))

    assert found.steps == (steps.SetAttribute("i-1", "tags", (("a", "b"),)),)


def test_an_instance_of_another_life_is_left_alone():
    """An object that was moved to another cluster with its status names an instance that is not its own."""
    others = instance(tags={"nixops.dev:uid": "another"}, client_token="another")

    found = planned(ec2_machine(launch(1, instance="i-1")), seen(cloud(untagged=others)))

    assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.ADOPTION_CONFLICT)
    assert found.steps == ()
