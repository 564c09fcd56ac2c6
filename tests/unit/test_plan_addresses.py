"""What happens to a machine's elastic address: allocated once, associated, let go of, and never somebody else's."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, NotYet
from nixops_operator.facts.cloud import Address, Instance, InstanceState
from nixops_operator.machine.addresses import (
    AllocateAddress,
    AssociateAddress,
    DisassociateAddress,
    ForgetAddress,
    ObservedAddresses,
    RecordAddress,
    ReleaseAddress,
    RetainAddress,
    kept,
)
from nixops_operator.planning import Finding
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from unit.builders import NOON, UID, cloud, ec2_machine, instance, launch, planned, seen, stamp

OURS = Address("eipalloc-1", "198.51.100.9", {names.CLUSTER_TAG: "cluster", names.UID_TAG: UID})
GIVEN = Address("eipalloc-2", "198.51.100.10", {"team": "web"})
ALLOCATE, BY_ID = {"allocate": True}, {"id": "eipalloc-0123456789abcdef0"}
RUNS = launch(instance="i-1")
ASSOCIATE, RELEASE = AssociateAddress("eipalloc-1", "i-1"), ReleaseAddress("eipalloc-1")


def on(address: Address, instance_id: str | None = "i-1") -> Address:
    return replace(address, association_id=f"eipassoc-{address.id}", instance_id=instance_id)


def off(address: Address) -> DisassociateAddress:
    return DisassociateAddress(address.id, f"eipassoc-{address.id}")


def recorded(address: Address | None = OURS, *, given: bool = False, age: timedelta = timedelta(0)) -> dict[str, Any]:
    """status.elasticIp; without an address, of an allocation that nobody has heard of."""
    fields = {"calledAt": stamp(NOON - age), "given": given}
    return {"elasticIp": fields | ({"allocationId": address.id} if address is not None else {})}


def found(
    spec: dict[str, Any] | None,
    seen: ObservedAddresses,
    status: dict[str, Any] | None = None,
    *instances: Instance,
) -> list[Finding]:
    target = {"ec2": {"instanceType": "t3.small"} | ({"elasticIp": spec} if spec is not None else {})}
    desired = ec2_machine(RUNS | (status or {}), target=target)
    return list(kept(desired, cloud(*(instances or (instance(),)), addresses=seen), NOON))


def steps_of(findings: list[Finding]) -> list[Step]:
    return [step for finding in findings for step in finding.steps]


LONG_AGO = timedelta(minutes=6)
MISSED = {"looked_at": NOON, "missing_for": timedelta(seconds=60)}


@pytest.mark.parametrize(
    ("spec", "observed", "status", "steps"),
    [
        pytest.param(None, ObservedAddresses(), {}, [], id="none is declared, and none known"),
        pytest.param(ALLOCATE, ObservedAddresses(), {}, [AllocateAddress()], id="the first one"),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(**MISSED),
            recorded(None, age=LONG_AGO - timedelta(seconds=1)),
            [],
            id="asked for, and EC2 may still show it",
        ),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(looked_at=NOON, missing_for=timedelta(seconds=59)),
            recorded(None, age=LONG_AGO),
            [],
            id="asked for, and not looked for long enough",
        ),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(**MISSED),
            recorded(None, age=LONG_AGO),
            [AllocateAddress()],
            id="asked for, and proven never to have been made",
        ),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(**MISSED),
            recorded(age=LONG_AGO),
            [AllocateAddress()],
            id="released by hand",
        ),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(ours=(OURS,)),
            recorded(None),
            [RecordAddress("eipalloc-1", is_given=False), ASSOCIATE],
            id="found by its tags after a lost reply",
        ),
        pytest.param(ALLOCATE, ObservedAddresses(ours=(OURS,)), recorded(), [ASSOCIATE], id="there, not associated"),
        pytest.param(ALLOCATE, ObservedAddresses(ours=(on(OURS),)), recorded(), [], id="associated"),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(ours=(on(OURS, "i-others"),)),
            recorded(),
            [off(OURS), ASSOCIATE],
            id="ours, moved away by hand",
        ),
        pytest.param(None, ObservedAddresses(ours=(on(OURS),)), recorded(), [off(OURS)], id="left the spec"),
        pytest.param(None, ObservedAddresses(ours=(OURS,)), recorded(), [RELEASE], id="left the spec, and is off"),
        pytest.param(
            None, ObservedAddresses(ours=(on(OURS, "i-others"),)), recorded(), [], id="left the spec, and others use it"
        ),
        pytest.param(
            None, ObservedAddresses(**MISSED), recorded(age=LONG_AGO), [ForgetAddress()], id="left the spec, released"
        ),
        pytest.param(None, ObservedAddresses(**MISSED), recorded(None), [], id="left the spec before EC2 has shown it"),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=GIVEN),
            {},
            [RecordAddress("eipalloc-2", is_given=True), AssociateAddress("eipalloc-2", "i-1")],
            id="given",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=on(GIVEN), recorded=on(GIVEN)),
            recorded(GIVEN, given=True),
            [],
            id="given, associated",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=on(GIVEN)),
            {},
            [RecordAddress("eipalloc-2", is_given=True)],
            id="given, associated by hand before",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=GIVEN, given_to="NixMachine/default/db"),
            recorded(GIVEN, given=True),
            [],
            id="given to another machine first, and free while that one is replaced",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=on(GIVEN), given_to="NixMachine/default/db"),
            recorded(GIVEN, given=True),
            [],
            id="given to two at once, and this one has it",
        ),
        pytest.param(BY_ID, ObservedAddresses(given=on(GIVEN, "i-others")), {}, [], id="given, and others use it"),
        pytest.param(BY_ID, ObservedAddresses(given=on(GIVEN, None)), {}, [], id="given, and a NAT gateway uses it"),
        pytest.param(BY_ID, ObservedAddresses(), {}, [], id="given, and unknown to EC2"),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=replace(GIVEN, tags={names.UID_TAG: "uid-others"})),
            {},
            [],
            id="given, and made for another machine",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(given=replace(GIVEN, tags={names.UID_TAG: "uid-old", names.RETAINED_TAG: "true"})),
            {},
            [RecordAddress("eipalloc-2", is_given=True), AssociateAddress("eipalloc-2", "i-1")],
            id="given, and retained by a machine that has gone",
        ),
        pytest.param(
            None,
            ObservedAddresses(recorded=on(GIVEN)),
            recorded(GIVEN, given=True),
            [off(GIVEN)],
            id="given, left the spec",
        ),
        pytest.param(
            None,
            ObservedAddresses(recorded=on(GIVEN, "i-others")),
            recorded(GIVEN, given=True),
            [ForgetAddress()],
            id="given, left the spec, and others use it",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(ours=(on(OURS),), given=GIVEN, recorded=on(OURS)),
            recorded(),
            [off(OURS)],
            id="a given one in place of ours: ours goes first",
        ),
        pytest.param(
            BY_ID,
            ObservedAddresses(ours=(on(OURS),), given=on(OURS), recorded=on(OURS)),
            recorded(),
            [RecordAddress("eipalloc-1", is_given=True)],
            id="ours, named by its id: it is kept from now on",
        ),
        pytest.param(
            ALLOCATE,
            ObservedAddresses(recorded=on(GIVEN)),
            recorded(GIVEN, given=True),
            [off(GIVEN)],
            id="one of ours in place of a given one",
        ),
    ],
)
def test_steps(spec, observed, status, steps):
    assert steps_of(found(spec, observed, status)) == steps


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        pytest.param(ObservedAddresses(given=on(GIVEN, "i-others")), "is associated with i-others", id="used"),
        pytest.param(ObservedAddresses(given=on(GIVEN, None)), "a network interface", id="by no instance"),
        pytest.param(ObservedAddresses(), "is no elastic address of this account", id="unknown"),
        pytest.param(
            ObservedAddresses(given=replace(GIVEN, tags={names.UID_TAG: "uid-others"})),
            "another object",
            id="another's",
        ),
    ],
)
def test_what_is_not_ours_to_take_is_told(observed, words):
    (told,) = found(BY_ID, observed)

    assert (told.outcome, told.condition) == (Outcome.STALLED, ConditionType.UP_TO_DATE)
    assert words in told.message


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(on(OURS), id="associated meanwhile"),
        pytest.param(replace(OURS, tags={**OURS.tags, "keep": "yes"}), id="tagged meanwhile"),
        pytest.param(None, id="not shown by the look that asks for its number"),
    ],
)
def test_an_allocated_address_that_is_declared_by_its_number_from_now_on_is_never_released(given):
    """Two looks showed it, one of them before something else had changed: it was taken for another one."""
    seen = ObservedAddresses(ours=(OURS,), given=given, recorded=OURS)
    findings = found({"address": OURS.public_address}, seen, recorded())

    assert not [one for one in steps_of(findings) if isinstance(one, ReleaseAddress | DisassociateAddress)]


def test_an_address_of_ours_without_its_tags_is_neither_used_nor_doubled():
    (told,) = found(ALLOCATE, ObservedAddresses(recorded=replace(OURS, tags={})), recorded())

    assert (told.outcome, told.reason, told.steps) == (Outcome.STALLED, Reason.ADOPTION_CONFLICT, ())


def test_a_second_address_with_our_tags_is_told_and_kept():
    other = replace(OURS, id="eipalloc-0")

    findings = found(ALLOCATE, ObservedAddresses(ours=(other, on(OURS))), recorded())

    assert [(one.outcome, one.steps) for one in findings] == [(Outcome.REPORTED, ())]
    assert "eipalloc-0" in findings[0].message


def test_an_address_is_allocated_while_the_instance_starts_and_associated_once_it_runs():
    pending = instance(state=InstanceState.PENDING)

    assert steps_of(found(ALLOCATE, ObservedAddresses(), {}, pending)) == [AllocateAddress()]
    assert steps_of(found(ALLOCATE, ObservedAddresses(ours=(OURS,)), recorded(), pending)) == []
    stopped = instance(state=InstanceState.STOPPED)
    assert steps_of(found(ALLOCATE, ObservedAddresses(ours=(OURS,)), recorded(), stopped)) == [ASSOCIATE]


@pytest.mark.parametrize("held_by", ["i-0", "i-others"])
def test_a_given_address_moves_from_an_earlier_instance_of_the_machine_alone(held_by):
    before = instance("i-0", InstanceState.SHUTTING_DOWN)

    taken = steps_of(
        found(BY_ID, ObservedAddresses(given=on(GIVEN, held_by)), recorded(GIVEN, given=True), instance(), before)
    )

    moved: list[Step] = [off(GIVEN), AssociateAddress("eipalloc-2", "i-1")]
    assert taken == (moved if held_by == "i-0" else [])


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Blocked(Reason.ACCESS_DENIED, "DescribeAddresses: denied"), Outcome.STALLED),
        (NotYet("EC2 is being looked at"), Outcome.WORKING),
    ],
)
def test_without_a_look_nothing_is_done(error, outcome):
    (told,) = found(ALLOCATE, ObservedAddresses(error=error))

    assert (told.outcome, told.steps) == (outcome, ())


# --- on the way out -----------------------------------------------------------------------------------------------

TERMINATED = instance(state=InstanceState.TERMINATED)


@pytest.mark.parametrize(
    ("observed", "status", "expected", "outcome"),
    [
        pytest.param(ObservedAddresses(ours=(OURS,)), recorded(), [RELEASE], Outcome.DELETING, id="ours"),
        pytest.param(
            ObservedAddresses(ours=(on(OURS),)), recorded(), [off(OURS)], Outcome.DELETING, id="still associated"
        ),
        pytest.param(
            ObservedAddresses(ours=(on(OURS, "i-others"),)), recorded(), [], Outcome.WEDGED, id="others use it"
        ),
        pytest.param(
            ObservedAddresses(**MISSED), recorded(None), [], Outcome.DELETING, id="asked for, and not shown yet"
        ),
        pytest.param(
            ObservedAddresses(**MISSED), recorded(None, age=LONG_AGO), [], Outcome.GONE, id="proven never to be made"
        ),
        pytest.param(
            ObservedAddresses(recorded=GIVEN), recorded(GIVEN, given=True), [], Outcome.GONE, id="given: it stays"
        ),
        pytest.param(
            ObservedAddresses(recorded=replace(OURS, tags={})), recorded(), [], Outcome.WEDGED, id="tags taken off"
        ),
    ],
)
def test_the_way_out(observed, status, expected, outcome):
    gone = cloud(TERMINATED, addresses=observed)

    plan = planned(ec2_machine(RUNS | status, deleting=True), seen(gone))

    assert (list(plan.steps), plan.verdict.outcome) == (expected, outcome)


def test_an_address_goes_after_its_instance():
    observed = seen(cloud(instance(), addresses=ObservedAddresses(ours=(OURS,))))

    plan = planned(ec2_machine(RUNS | recorded(), deleting=True), observed)

    assert RELEASE not in plan.steps


def test_retain_tags_the_address_too():
    observed = seen(cloud(TERMINATED, addresses=ObservedAddresses(ours=(OURS,))))

    plan = planned(ec2_machine(RUNS | recorded(), deleting=True, deletionPolicy="Retain"), observed)

    assert plan.steps == (RetainAddress("eipalloc-1"),)
