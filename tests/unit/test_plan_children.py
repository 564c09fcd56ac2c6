"""Machines of a deployment: by place and uid, whole specs, what stands in their way, and what is passed on to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.deployment.machines import (
    CreateMachine,
    PassOn,
    ReplaceMachineSpec,
    SuspendMachine,
    label_changes,
)
from nixops_operator.deployment.observed import Obstacle
from nixops_operator.names import APPLIED_LABELS_ANNOTATION
from nixops_operator.verdict import Outcome
from unit.builders import condition, ready
from unit.builders_deployment import (
    child,
    child_uid,
    conditions_told,
    deployment,
    fields_of,
    kinds,
    network,
    plan,
    sees,
    wanted_child,
)

SERVING = deployment(ready())
WEB = child(SERVING)

# --- what stands in the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obstacle", "outcome", "reason", "words"),
    [
        pytest.param(
            Obstacle("shop-web", False, "belongs to NixDeployment other"),
            Outcome.STALLED,
            Reason.ADOPTION_CONFLICT,
            "delete it, or rename the machine",
            id="another's",
        ),
        pytest.param(
            Obstacle("shop-web", True, "belongs to NixDeployment shop"),
            Outcome.WORKING,
            Reason.ROLLING_OUT,
            "waiting for NixMachine shop-web",
            id="of an earlier life",
        ),
    ],
)
def test_a_name_that_is_taken_is_told(obstacle, outcome, reason, words):
    """Conflict, backoff, a line at debug level, no condition for an hour: so it was."""
    observed = sees(SERVING, network=network(), children=(), obstacles={"shop-web": obstacle})
    found = plan(SERVING, observed)

    assert found.steps == ()
    assert (found.verdict.outcome, found.verdict.reason) == (outcome, reason)
    assert words in found.verdict.message
    assert "shop-web" in found.verdict.message


def test_what_stands_in_one_machines_way_keeps_no_other_from_being_made():
    two = deployment(machines=("web", "db"))
    observed = sees(
        two, network=network(), children=(), obstacles={"shop-web": Obstacle("shop-web", False, "belongs to nobody")}
    )

    assert plan(two, observed).steps == (CreateMachine(wanted_child(two, "db")),)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "applied", "expected"),
    [
        pytest.param({"tier": "front"}, "", {}, id="others' labels stay"),
        pytest.param({"tier": "front"}, "tier", {"tier": None}, id="one that was ours and is declared no more goes"),
        pytest.param({}, "tier", {}, id="one that is gone already"),
        pytest.param({names.MACHINE_LABEL: "x"}, "", {names.MACHINE_LABEL: "web"}, id="an edited one is put back"),
    ],
)
def test_labels_of_a_machine(labels, applied, expected):
    seen = child(SERVING, labels=labels, annotations={APPLIED_LABELS_ANNOTATION: applied})

    assert label_changes(wanted_child(SERVING), seen) == expected


def test_a_label_that_leaves_the_spec_is_a_difference():
    seen = child(SERVING, labels={"tier": "front"}, annotations={APPLIED_LABELS_ANNOTATION: "tier"})

    assert kinds(plan(SERVING, sees(SERVING, network=network(), children=(seen,))).steps) == ["ReplaceMachineSpec"]


# --- suspension -------------------------------------------------------------------------------------------------------

SUSPENDED = deployment({**ready(), "observedGeneration": 1}, suspend=True)
PAUSED = deployment({**ready(), "observedGeneration": 1}, annotations={names.PAUSED_ANNOTATION: "true"})


def without_suspension(desired, **spec):
    wanted = {key: value for key, value in wanted_child(desired).spec.items() if key != "suspend"}
    return {**wanted, **spec}


@pytest.mark.parametrize("desired", [pytest.param(SUSPENDED, id="suspend"), pytest.param(PAUSED, id="paused")])
def test_a_suspended_deployment_suspends_its_machines(desired):
    """They went on healing: an instance stopped by hand ran again."""
    running = child(desired, spec=without_suspension(desired))

    found = plan(desired, sees(desired, network=network(), children=(running,)))

    assert found.steps == (SuspendMachine(running.key, running.uid),)
    assert found.verdict.outcome is Outcome.SUSPENDED


@pytest.mark.parametrize(
    ("desired", "spec", "status", "settled"),
    [
        pytest.param(SUSPENDED, {}, ready(), True, id="suspend: nothing else would be done"),
        pytest.param(PAUSED, {}, ready(), True, id="paused: nothing else would be done"),
        pytest.param(PAUSED, {"target": {}}, ready(), False, id="a spec that differs"),
        pytest.param(PAUSED, {}, {"observedGeneration": 0}, False, id="a machine that has not looked yet"),
    ],
)
def test_a_suspended_deployment_settles_when_nothing_else_would_be_done(desired, spec, status, settled):
    suspended = child(desired, spec=without_suspension(desired, suspend=True, **spec), status=status)
    observed = sees(desired, network=network(), children=(suspended,))

    assert plan(desired, observed).verdict.is_settled is settled
    assert plan(desired, observed).steps == ()
    assert ("observedGeneration" in fields_of(desired, observed)) is settled


def test_suspension_changes_one_field_and_no_other():
    """The new spec waits, however much of it there is."""
    edited = deployment(ready(), generation=2, suspend=True, deletionPolicy="Retain")
    before = child(edited, spec=without_suspension(SERVING))

    assert kinds(plan(edited, sees(edited, network=network(), children=(before,))).steps) == ["SuspendMachine"]


def test_on_resumption_the_machines_go_on():
    suspended = child(SERVING, spec=without_suspension(SERVING, suspend=True))

    found = plan(SERVING, sees(SERVING, network=network(), children=(suspended,)))

    assert found.steps == (ReplaceMachineSpec(suspended.key, suspended.uid, wanted_child(SERVING)),)


def test_suspended_from_its_first_apply_there_is_a_ready_to_wait_for():
    fresh = deployment(suspend=True)

    assert conditions_told(fresh, sees(fresh, network=network(), children=()))["Ready"] == "Unknown/Suspended"


# --- requests ---------------------------------------------------------------------------------------------------------

FLUX, OURS = names.FLUX_RECONCILE_ANNOTATION, names.RECONCILE_ANNOTATION


@pytest.mark.parametrize(
    ("annotations", "handled", "passed_on"),
    [
        pytest.param({OURS: "now"}, {}, "now", id="ours"),
        pytest.param({FLUX: "now"}, {}, "now", id="Flux'"),
        pytest.param(
            {OURS: "before", FLUX: "now"},
            {"lastHandledReconcileAt": "before", "handledRequests": ["before"]},
            "now",
            id="Flux', beside an old one of ours",
        ),
        pytest.param({OURS: "before"}, {"lastHandledReconcileAt": "before"}, None, id="answered"),
    ],
)
def test_a_request_reaches_the_machines_before_it_is_answered(annotations, handled, passed_on):
    desired = deployment({**ready(), **handled}, annotations=annotations)
    asked = child(desired, annotations={OURS: str(passed_on)})

    first = sees(desired, network=network())
    then = sees(desired, network=network(), children=(asked,))

    expected = (PassOn(asked.key, child_uid("shop-web"), passed_on),) if passed_on else ()
    assert plan(desired, first).steps == expected
    assert plan(desired, first).verdict.outcome is Outcome.IN_SYNC
    assert plan(desired, first).verdict.message == "1 of 1 machines ready"
    assert fields_of(desired, then).get("lastHandledReconcileAt") == passed_on
    if passed_on is not None:
        assert "lastHandledReconcileAt" not in fields_of(desired, first)
        assert plan(desired, then).steps == ()


def test_a_request_on_a_suspended_deployment_reaches_its_machines():
    desired = deployment(ready(), suspend=True, annotations={OURS: "now"})

    assert kinds(plan(desired, sees(desired, network=network())).steps) == ["PassOn"]


# --- regions ----------------------------------------------------------------------------------------------------------

ELSEWHERE = {"name": "far", "aws": {"region": "eu-west-1"}}
FAR = {**ELSEWHERE, "target": {"ec2": {"instanceType": "t3.small", "securityGroups": ["sg-0123456789abcdef0"]}}}
CLIENT = {"ssh": {"privateKeySecretRef": {"name": "client"}}}


@pytest.mark.parametrize(
    ("entry", "made"),
    [
        pytest.param(ELSEWHERE, False, id="that uses its groups and key pair"),
        pytest.param({**FAR, **CLIENT}, True, id="that uses what exists there"),
    ],
)
def test_a_machine_of_another_region_than_the_deployments_groups(entry, made):
    """It waited for ever: `security group http does not exist yet`."""
    desired = deployment(machines=("web", entry))
    found = plan(desired, sees(desired, network=network(), children=(child(desired),)))

    assert (found.steps == (CreateMachine(wanted_child(desired, "far")),)) is made
    if not made:
        assert (found.verdict.outcome, found.verdict.reason) == (Outcome.STALLED, Reason.INVALID_SPEC)
        assert "us-west-2" in found.verdict.message
        assert "eu-west-1" in found.verdict.message


# --- readiness --------------------------------------------------------------------------------------------------------


def test_what_a_machine_says_counts_only_of_the_spec_that_it_has_now():
    stale = child(SERVING, status={**ready(), "observedGeneration": 0})
    told = plan(SERVING, sees(SERVING, network=network(), children=(stale,))).verdict

    assert (told.outcome, told.message) == (Outcome.WORKING, "web: not looked at yet")


def test_the_worst_machine_is_named():
    two = deployment(ready(), machines=("web", "db"))
    failed = {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "False", "BuildFailed"), condition("Stalled", "True", "BuildFailed")],
    }
    observed = sees(two, network=network(), children=(child(two, "web", "Unknown"), child(two, "db", status=failed)))

    told = plan(two, observed).verdict

    assert (told.outcome, told.reason) == (Outcome.STALLED, Reason.BUILD_FAILED)
    assert told.message.startswith("db: ")


def test_a_machine_that_is_not_there_is_not_ready():
    assert plan(SERVING, replace(sees(SERVING, network=network()), children=())).verdict.outcome is not Outcome.IN_SYNC
