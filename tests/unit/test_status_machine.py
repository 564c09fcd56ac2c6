"""What a NixMachine's status says in each situation that a user may meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, InvalidSpec, NotYet, Retry
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.host import ActivationState
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import steps
from nixops_operator.machine.observed import ObservedSystem
from nixops_operator.machine.status import status
from nixops_operator.verdict import Outcome
from unit.builders import (
    BUILD,
    BUILT,
    BY_HAND,
    COPIED,
    DECLARED,
    EVALUATE,
    EVALUATED,
    NEW,
    NOON,
    OLD,
    UID,
    activation,
    activation_id,
    cloud,
    condition,
    ec2_machine,
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
    stamp,
    status_of,
    trio_of,
)

A = ActivationState
SERVED = activation(result="Succeeded") | ran() | ready()
REPORT = {"activation": {"driftPolicy": "Report"}}
EC2 = launch(instance="i-1") | SERVED

IN_OTHER_GROUPS = DECLARED.but(securityGroups=("sg-2",))

UNKNOWN, TRUE, FALSE = "Unknown", "True", "False"


def three(conditions: dict[str, str]) -> tuple[str, str, str]:
    return tuple(conditions.get(kind, "-").partition("/")[0] for kind in ("Ready", "Reconciling", "Stalled"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("desired", "observed", "expected"),
    [
        pytest.param(ec2_machine(), seen(cloud(), jobs={}), (UNKNOWN, TRUE, "-"), id="provisioning"),
        pytest.param(
            ec2_machine(launch(instance="i-1")),
            seen(cloud(instance()), host(OLD, OLD), jobs={EVALUATE: Running()}),
            (UNKNOWN, TRUE, "-"),
            id="evaluating",
        ),
        pytest.param(
            host_machine(),
            seen(host=host(OLD, OLD), jobs={**EVALUATED, BUILD: Running()}),
            (UNKNOWN, TRUE, "-"),
            id="building",
        ),
        pytest.param(
            host_machine(activation()),
            seen(host=host(OLD, OLD, activation=on_host(A.SWITCHING, unit=True))),
            (UNKNOWN, TRUE, "-"),
            id="activating",
        ),
        pytest.param(
            host_machine(activation()),
            seen(host=host(NEW, OLD, activation=on_host(A.SWITCHED))),
            (UNKNOWN, TRUE, "-"),
            id="the new system runs, but is not confirmed",
        ),
        pytest.param(
            host_machine(activation(OLD) | ran(OLD) | ready(1), generation=2),
            seen(host=host(OLD, OLD), jobs={}),
            (UNKNOWN, TRUE, "-"),
            id="new spec on a serving machine: Unknown from the first look",
        ),
        pytest.param(
            ec2_machine(EC2),
            seen(cloud(error=Retry(Reason.THROTTLED, "slow down"))),
            (FALSE, TRUE, "-"),
            id="throttled",
        ),
        pytest.param(
            ec2_machine(EC2),
            seen(cloud(instance()), silent(Retry(Reason.CONNECT_TIMEOUT, "silent"))),
            (FALSE, TRUE, "-"),
            id="SSH down: retrying",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Blocked(Reason.AUTHENTICATION_FAILED, "wrong key"))),
            (FALSE, "-", TRUE),
            id="wrong private key",
        ),
        pytest.param(
            host_machine(),
            seen(host=host(OLD, OLD), jobs={EVALUATE: Failed(Blocked(Reason.EVALUATION_FAILED, "web.nix:3:5"))}),
            (FALSE, "-", TRUE),
            id="syntax error",
        ),
        pytest.param(
            host_machine(),
            seen(host=host(OLD, OLD), system=ObservedSystem(error=Blocked(Reason.SOURCE_NOT_FOUND, "no ConfigMap"))),
            (FALSE, "-", TRUE),
            id="ConfigMap missing",
        ),
        pytest.param(
            ec2_machine(),
            seen(cloud(declared_error=InvalidSpec("spec.target.ec2.instanceType", "no such type"))),
            (FALSE, "-", TRUE),
            id="unknown instance type",
        ),
        pytest.param(
            host_machine(activation()),
            seen(host=host(OLD, OLD, activation=on_host(A.ROLLED_BACK, exit_status=2, result="exit-code"))),
            (FALSE, "-", TRUE),
            id="activation failed, rolled back",
        ),
        pytest.param(
            host_machine(SERVED),
            seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))),
            (UNKNOWN, TRUE, "-"),
            id="switched by hand, Enforce",
        ),
        pytest.param(
            host_machine(SERVED, **REPORT),
            seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))),
            (FALSE, "-", "-"),
            id="switched by hand, Report",
        ),
        pytest.param(
            host_machine(SERVED),
            seen(host=host(BY_HAND, NEW, booted=BY_HAND, activation=on_host(A.COMMITTED))),
            (UNKNOWN, TRUE, "-"),
            id="booted another generation, Enforce",
        ),
        pytest.param(
            host_machine(SERVED), seen(host=host(NEW, BY_HAND)), (TRUE, TRUE, "-"), id="profile drift, Enforce"
        ),
        pytest.param(
            host_machine(SERVED, **REPORT), seen(host=host(NEW, BY_HAND)), (TRUE, "-", "-"), id="profile drift, Report"
        ),
        pytest.param(
            ec2_machine(EC2),
            seen(cloud(instance(), declared=IN_OTHER_GROUPS), host()),
            (TRUE, TRUE, "-"),
            id="other security groups, Enforce",
        ),
        pytest.param(
            ec2_machine(EC2, driftPolicy="Report"),
            seen(cloud(instance(), declared=IN_OTHER_GROUPS), host()),
            (TRUE, "-", "-"),
            id="other security groups, Report",
        ),
        pytest.param(
            ec2_machine(EC2),
            seen(cloud(instance(instance_type="t3.nano")), host()),
            (FALSE, "-", TRUE),
            id="another instance type than declared: the promise does not hold",
        ),
        pytest.param(host_machine(SERVED), seen(host=host()), (TRUE, "-", "-"), id="in sync"),
        pytest.param(
            host_machine(ran(OLD) | ready(truth="Unknown", reason="Copying"), suspend=True),
            seen(host=host(OLD, OLD)),
            (UNKNOWN, "-", "-"),
            id="suspended with work left: as it was",
        ),
        pytest.param(
            host_machine(SERVED, suspend=True), seen(host=host()), (TRUE, "-", "-"), id="suspended, nothing differs"
        ),
        pytest.param(
            ec2_machine(EC2, deleting=True), seen(cloud(instance()), jobs={}), (FALSE, TRUE, "-"), id="deleting"
        ),
        pytest.param(
            ec2_machine(EC2, deleting=True),
            seen(cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "no Secret")), jobs={}),
            (FALSE, "-", TRUE),
            id="deletion wedged",
        ),
    ],
)
def test_ready_reconciling_and_stalled_by_situation(desired, observed, expected):
    assert three(trio_of(desired, observed)) == expected


@pytest.mark.parametrize(
    ("desired", "observed", "expected"),
    [
        pytest.param(
            ec2_machine(),
            seen(cloud(error=Blocked(Reason.SECRET_NOT_FOUND, "Secret aws does not exist"))),
            {"CredentialsReady": "False/SecretNotFound", "InfrastructureReady": "Unknown/SecretNotFound"},
            id="AWS Secret missing",
        ),
        pytest.param(
            ec2_machine(),
            seen(cloud(error=Blocked(Reason.AUTH_FAILURE, "wrong"))),
            {"CredentialsReady": "False/AuthFailure", "Ready": "False/AuthFailure"},
            id="wrong AWS secret",
        ),
        pytest.param(
            ec2_machine(),
            seen(cloud(error=Retry(Reason.THROTTLED, "slow down"))),
            {"CredentialsReady": "Unknown/Throttled", "Ready": "False/Throttled"},
            id="throttled: that says nothing of the credentials",
        ),
        pytest.param(
            host_machine(SERVED),
            seen(host=host(), system=ObservedSystem(error=Blocked(Reason.SOURCE_NOT_FOUND, "gone")), jobs={}),
            {"ConfigurationBuilt": "False/SourceNotFound", "ConfigurationActive": "Unknown/Evaluating"},
            id="a source is missing: nothing is said of another system that runs",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Blocked(Reason.SECRET_NOT_FOUND, "Secret client does not exist"))),
            {"CredentialsReady": "False/SecretNotFound", "Reachable": "Unknown/WaitingForSSH"},
            id="SSH Secret missing",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Blocked(Reason.AUTHENTICATION_FAILED, "wrong key"))),
            {"Reachable": "False/AuthenticationFailed", "Stalled": "True/AuthenticationFailed"},
            id="wrong private key",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Blocked(Reason.HOST_KEY_MISMATCH, "another key"))),
            {"Reachable": "False/HostKeyMismatch", "Stalled": "True/HostKeyMismatch"},
            id="another host key",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Blocked(Reason.HOST_FORBIDDEN, "outside"))),
            {"Stalled": "True/HostForbidden"},
            id="host outside the allowed networks",
        ),
        pytest.param(
            host_machine(),
            seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "silent"))),
            {"Reachable": "False/ConnectTimeout", "Reconciling": "True/ConnectTimeout"},
            id="host that does not answer",
        ),
        pytest.param(
            host_machine(),
            seen(host=host(OLD, OLD), jobs={**EVALUATED, BUILD: Failed(Blocked(Reason.BUILD_FAILED, "unit httpd"))}),
            {"ConfigurationBuilt": "False/BuildFailed", "ConfigurationActive": "False/Activating"},
            id="build failed",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1")),
            seen(cloud(instance(state=InstanceState.TERMINATED))),
            {"InfrastructureReady": "False/InstanceLost", "Stalled": "True/InstanceLost"},
            id="terminated by hand",
        ),
        pytest.param(
            ec2_machine(launch(instance="i-1")),
            seen(cloud(instance(state=InstanceState.PENDING))),
            {"InfrastructureReady": "False/WaitingForInstance", "Reachable": "Unknown/WaitingForSSH"},
            id="booting",
        ),
        pytest.param(
            host_machine(activation()),
            seen(host=host(OLD, OLD, activation=on_host(A.ROLLED_BACK, exit_status=0, result="success"))),
            {"Ready": "False/ActivationFailed", "ConfigurationActive": "False/RolledBack"},
            id="rolled back",
        ),
        pytest.param(
            host_machine(activation()),
            seen(host=host(OLD, OLD, activation=on_host(A.FAILED, exit_status=1, result="exit-code"))),
            {"Ready": "False/ActivationFailed", "ConfigurationActive": "False/ActivationFailed"},
            id="refused by switch-to-configuration",
        ),
        pytest.param(
            host_machine(SERVED),
            seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))),
            {"UpToDate": "False/SystemDrift", "Reachable": "True/Succeeded"},
            id="switched by hand",
        ),
        pytest.param(
            host_machine(SERVED, **REPORT),
            seen(host=host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))),
            {"Ready": "False/SystemDrift", "ConfigurationActive": "False/SystemDrift", "UpToDate": "False/SystemDrift"},
            id="switched by hand, Report",
        ),
        pytest.param(
            host_machine(SERVED),
            seen(host=host(NEW, BY_HAND)),
            {"UpToDate": "False/ProfileDrift", "ConfigurationActive": "True/Succeeded"},
            id="profile drift",
        ),
        pytest.param(
            ec2_machine(EC2),
            seen(cloud(instance(instance_type="t3.nano")), host()),
            {"UpToDate": "False/ChangeForbidden", "InfrastructureReady": "True/Succeeded"},
            id="another instance type than declared",
        ),
        pytest.param(host_machine(suspend=True), seen(host=host()), {"Paused": "True/Suspended"}, id="suspended"),
    ],
)
def test_the_condition_that_fails_names_the_cause(desired, observed, expected):
    conditions = trio_of(desired, observed)

    assert {kind: conditions.get(kind) for kind in expected} == expected


@pytest.mark.parametrize(
    ("admits", "said"),
    [
        pytest.param(False, True, id="no rule admits SSH"),
        pytest.param(True, False, id="one does"),
        pytest.param(None, False, id="not all groups are known"),
    ],
)
def test_a_silent_instance_that_no_rule_lets_us_reach_is_told_as_such(admits, said):
    """It was only said that the machine did not answer."""
    observed = seen(cloud(instance(), admits_ssh=admits), silent(Retry(Reason.CONNECT_TIMEOUT, "silent")))
    (told,) = [one for one in status_of(ec2_machine(EC2), observed)["conditions"] if one["type"] == "Ready"]

    assert ("no rule of the instance's security groups admits SSH" in told["message"]) == said


def test_an_error_with_a_running_instance_behind_it_keeps_that_instance_in_sight():
    """Throttling tells nothing about the instance: what the status knows of it stays."""
    desired = ec2_machine(EC2 | {"instance": {"id": "i-1"}, "addresses": {"ssh": "198.51.100.7"}})
    observed = seen(cloud(error=Retry(Reason.THROTTLED, "slow down")))

    fields = status(desired, observed, planned(desired, observed), NOON)

    assert not {"instance", "addresses", "providerID"} & fields.keys()


# --- the generation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        pytest.param(host_machine(ready(), generation=2), seen(host=host(OLD, OLD), jobs={}), id="work"),
        pytest.param(
            host_machine(ready(), generation=2),
            seen(host=host(), jobs={EVALUATE: Failed(Blocked(Reason.EVALUATION_FAILED, "no"))}),
            id="failure",
        ),
        pytest.param(host_machine(ready(), generation=2), seen(host=host()), id="in sync"),
    ],
)
def test_every_verdict_is_about_its_generation(desired, observed):
    fields = status(desired, observed, planned(desired, observed), NOON)

    assert fields["observedGeneration"] == 2
    assert {entry["observedGeneration"] for entry in fields["conditions"]} == {2}


def test_a_suspended_object_counts_as_observed_only_where_nothing_is_left_to_do():
    desired = host_machine(SERVED, generation=2, suspend=True)
    behind, level = seen(host=host(OLD, OLD)), seen(host=host())

    assert "observedGeneration" not in status(desired, behind, planned(desired, behind), NOON)
    assert status(desired, level, planned(desired, level), NOON)["observedGeneration"] == 2


def test_a_suspended_object_writes_no_status_for_a_look_at_ec2():
    """Ready speaks of the generation before; Paused says what is to be said of this one."""
    told = {"conditions": [condition("Ready"), condition("Paused", generation=2)]}
    desired = ec2_machine(launch(instance="i-1") | told, generation=2, suspend=True)

    looking = planned(desired, seen(cloud(error=NotYet("EC2 is being looked at"))))

    assert looking.verdict.outcome is Outcome.LOOKING  # which is never written


def test_a_suspended_machine_is_still_evaluated():
    """So that its status can say whether resuming would change anything."""
    desired = host_machine(SERVED, suspend=True)

    assert [type(step) for step in planned(desired, seen(host=host(OLD, OLD), jobs={})).steps] == [steps.Evaluate]
    assert planned(desired, seen(host=host(OLD, OLD))).steps == ()


def test_a_request_is_answered_by_its_own_text():
    desired = host_machine(annotations={"nixops.dev/reconcile-requested-at": "at noon"})

    fields = status(desired, seen(host=host()), planned(desired, seen(host=host())), NOON)

    assert fields["lastHandledReconcileAt"] == "at noon"


def test_the_same_sight_gives_the_same_status_later():
    desired = host_machine(SERVED)
    first = status(desired, seen(host=host()), planned(desired, seen(host=host())), NOON)
    again = host_machine({**SERVED, **first})
    later = NOON + timedelta(hours=1)

    second = status(again, seen(host=host()), planned(again, seen(host=host()), later), later)

    assert second == first


# --- after a restart --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(seen(cloud(instance()), silent(), jobs={}), id="neither connected nor evaluated"),
        pytest.param(seen(cloud(instance()), host(), jobs={}), id="connected, not evaluated"),
        pytest.param(seen(cloud(instance()), silent(), jobs=COPIED), id="evaluated, not connected"),
        pytest.param(seen(cloud(instance()), host(), jobs={EVALUATE: Running()}), id="evaluating"),
        pytest.param(seen(cloud(instance()), host(), jobs=EVALUATED), id="not built"),
    ],
)
def test_merely_looking_again_after_a_restart_is_no_work(observed):
    assert planned(ec2_machine(EC2), observed).verdict.outcome is Outcome.LOOKING


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        pytest.param(ec2_machine(EC2, generation=2), seen(cloud(instance()), host(), jobs={}), id="another generation"),
        pytest.param(ec2_machine(EC2), seen(cloud(instance()), host(BY_HAND), jobs={}), id="another system runs"),
        pytest.param(
            ec2_machine(EC2), seen(cloud(instance(state=InstanceState.STOPPED)), silent(), jobs={}), id="stopped"
        ),
        pytest.param(ec2_machine(EC2), seen(cloud(missing_for=None), silent(), jobs={}), id="instance not shown"),
        pytest.param(
            ec2_machine(launch(instance="i-1") | ran(OLD) | ready()),
            seen(cloud(instance()), host(OLD, OLD)),
            id="a moved ConfigMap gives another system",
        ),
        pytest.param(
            ec2_machine(EC2), seen(cloud(instance()), host(lists_left=True), jobs={}), id="a switch by hand was cut"
        ),
    ],
)
def test_what_has_happened_meanwhile_is_work(desired, observed):
    assert planned(desired, observed).verdict.outcome is Outcome.WORKING


# --- the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        pytest.param(29, (FALSE, TRUE, "-"), id="within the deadline: still retrying"),
        pytest.param(30, (FALSE, "-", TRUE), id="at the deadline: a person is told"),
    ],
)
def test_work_without_an_end_stalls(minutes, expected):
    since = NOON - timedelta(minutes=minutes)
    desired = host_machine({"conditions": [condition("Reconciling", since=since)]})

    assert three(trio_of(desired, seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "silent"))))) == expected


def test_work_for_an_earlier_generation_does_not_count():
    desired = host_machine({"conditions": [condition("Reconciling", since=NOON - timedelta(hours=1))]}, generation=2)

    assert "Stalled" not in trio_of(desired, seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "silent"))))


def test_past_the_deadline_work_goes_on():
    stalled = condition("Stalled", reason="ProgressDeadlineExceeded")

    found = planned(ec2_machine({"conditions": [stalled]}), seen(cloud()))

    assert found.verdict.reason is Reason.PROGRESS_DEADLINE_EXCEEDED
    assert found.steps


def test_a_stall_past_the_deadline_stays_one():
    """Otherwise it would fall back to Reconciling at the next pass and start the deadline anew, for ever."""
    before = ready(truth="False", reason="ProgressDeadlineExceeded")
    before["conditions"].append(condition("Stalled", reason="ProgressDeadlineExceeded"))
    observed = seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "silent")))

    assert trio_of(host_machine(before), observed)["Stalled"] == "True/ProgressDeadlineExceeded"


# --- fields -----------------------------------------------------------------------------------------------------------


def test_the_result_of_an_activation_is_written_beside_its_intent():
    desired = host_machine(activation() | {"system": {"desired": NEW}})
    observed = seen(host=host(activation=on_host(A.COMMITTED)))

    fields = status(desired, observed, planned(desired, observed), NOON)

    assert fields["activation"]["result"] == "Succeeded"
    assert fields["activation"]["id"] == activation_id(NEW, 1)


def test_the_time_of_activation_is_that_of_the_confirmed_system():
    new = host_machine()
    known = host_machine(ran())
    other = host_machine(ran(OLD))
    for desired, expected in ((new, NOON), (known, NOON), (other, NOON + timedelta(hours=1))):
        now = NOON + timedelta(hours=1) if desired is not new else NOON
        system = status(desired, seen(host=host()), planned(desired, seen(host=host()), now), now)["system"]
        assert (system["desired"], system["activatedAt"]) == (NEW, stamp(expected))


def test_a_system_that_is_not_the_profile_yet_has_no_time_of_activation():
    observed = seen(host=host(NEW, OLD, activation=on_host(A.CONFIRMED)))

    assert (
        "activatedAt"
        not in status(host_machine(activation()), observed, planned(host_machine(activation()), observed), NOON)[
            "system"
        ]
    )


def test_the_release_of_first_contact_is_kept():
    desired = host_machine({"system": {"stateVersion": "24.05"}})

    fields = status(desired, seen(host=host()), planned(desired, seen(host=host())), NOON)

    assert fields["system"]["stateVersion"] == "24.05"


def test_the_release_that_a_given_host_runs_is_not_recorded_as_its_first():
    fields = status(host_machine(), seen(host=host()), planned(host_machine(), seen(host=host())), NOON)

    assert "stateVersion" not in fields["system"]


def test_unresolved_input_is_no_finished_build():
    waiting = ObservedSystem(waits_for="the machine, to learn its NixOS release (system.stateVersion)")

    conditions = trio_of(host_machine(), seen(host=silent(), system=waiting, jobs=BUILT))

    assert conditions["ConfigurationBuilt"] == "Unknown/Evaluating"


# --- a source that has gone -------------------------------------------------------------------------------------------

PRUNED = ObservedSystem(error=Blocked(Reason.SOURCE_NOT_FOUND, "ConfigMap web-5d7f does not exist"), confirmed=NEW)


def test_what_was_confirmed_stays_in_force_when_its_source_is_pruned():
    """Flux and Argo prune a hashed ConfigMap while the machine still names it; healing stopped."""
    switched = host(BY_HAND, BY_HAND, activation=on_host(A.COMMITTED))

    found = planned(host_machine(SERVED), seen(host=switched, system=PRUNED))

    assert [type(step) for step in found.steps] == [steps.RecordActivation]


def test_a_pruned_source_is_told_and_says_nothing_false_of_what_runs():
    """The status said that another system runs."""
    conditions = trio_of(host_machine(SERVED), seen(host=host(), system=PRUNED))

    assert (conditions["Ready"], conditions["ConfigurationActive"]) == ("True/Succeeded", "True/Succeeded")
    assert conditions["ConfigurationBuilt"] == "False/SourceNotFound"
    assert "Stalled" not in conditions


def test_a_source_that_never_was_there_is_a_persons_business():
    missing = replace(PRUNED, confirmed=None)

    conditions = trio_of(host_machine(SERVED), seen(host=host(), system=missing))

    assert conditions["Stalled"] == "True/SourceNotFound"
    assert conditions["ConfigurationActive"] == "Unknown/Evaluating"


# --- what was reached once --------------------------------------------------------------------------------------------

SILENT = silent(Retry(Reason.CONNECT_TIMEOUT, "silent"))


def test_a_generation_that_was_ready_once_is_remembered():
    assert status_of(host_machine(SERVED), seen(host=host()))["reachedGeneration"] == 1
    assert "reachedGeneration" not in status_of(host_machine(SERVED, generation=2), seen(host=host(OLD, OLD)))


def test_under_report_what_a_person_changed_stays_while_the_host_is_silent():
    """Ready is False then, and the difference was taken for an edit of the spec."""
    status = launch(instance="i-1") | ran() | ready(truth="False", reason="ConnectTimeout") | {"reachedGeneration": 1}
    desired = ec2_machine(status, driftPolicy="Report")

    found = planned(desired, seen(cloud(instance(), declared=IN_OTHER_GROUPS), SILENT))

    assert found.steps == ()


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        pytest.param(timedelta(seconds=119), "Unknown/WaitingForSSH", id="started just now: nothing is wrong yet"),
        pytest.param(timedelta(minutes=2), "False/ConnectTimeout", id="later: it does not answer"),
    ],
)
def test_an_instance_that_boots_need_not_answer_yet(started, expected):
    shown = cloud(instance(launch_time=NOON - started))

    assert trio_of(ec2_machine(launch(instance="i-1")), seen(shown, SILENT))["Reachable"] == expected


def test_what_keeps_ssh_out_is_told_where_it_is_asked_for():
    fields = status_of(ec2_machine(EC2), seen(cloud(instance(), admits_ssh=False), SILENT))

    messages = {one["type"]: one["message"] for one in fields["conditions"]}
    assert "no rule of the instance's security groups admits SSH" in messages["Reachable"]


@pytest.mark.parametrize(
    ("found", "awaited"),
    [
        pytest.param(seen(host=host(NEW, OLD, activation=on_host(A.SWITCHED))), False, id="switched: not asked yet"),
        pytest.param(
            seen(
                host=host(NEW, OLD, activation=on_host(A.SWITCHED)),
                jobs={f"host:{UID}:{activation_id(NEW, 1)}:confirm": Running()},
            ),
            True,
            id="asked",
        ),
        pytest.param(seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "no answer"))), True, id="cut off"),
    ],
)
def test_an_operator_that_is_there_for_the_end_of_an_activation_says_so(found, awaited):
    written = status_of(host_machine(activation(awaited=False)), found)

    assert written.get("activation", {}).get("awaited", False) is awaited
