"""The elastic address of a machine: allocated or given, associated, and let go of. Decisions are pure; then the steps
that carry them out.

    nothing is known ─► AllocateAddress ─► (status.elasticIp, EC2's answer) ─► AssociateAddress ─► it is the machine's
                             │                                                       ▲
                             ├ refused: nothing was made, the intent is taken back   └ lost by hand, or with an instance
                             └ no answer: waited for by our tags; proven absent (absence.py), the next one is asked for

EC2 knows no token for AllocateAddress: a repeat gives a second address, which costs until somebody finds it. So it is
called once for each intent, its tags go into the call, and an unknown outcome is waited out. An association is never
moved while it stands (AllowReassociation=false): what is ours is disassociated first, what is others' is told.
Source: EC2 API Reference, "AllocateAddress", "AssociateAddress", "DisassociateAddress", "ReleaseAddress".
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar

from nixops_operator import absence, names, retain, written_answers
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import ElasticIpStatus, written
from nixops_operator.errors import Conflict, OperatorError
from nixops_operator.facts.cloud import Address, InstanceState
from nixops_operator.facts.kube import Body
from nixops_operator.machine.claims import holder
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.step import Identity, Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.api.machine_spec import ElasticIp
    from nixops_operator.informers.cloud import CloudView
    from nixops_operator.machine.desired import Desired, Leaving
    from nixops_operator.machine.observed import ObservedCloud

FIELD = "spec.target.ec2.elasticIp"
_TAKES_ADDRESSES = (InstanceState.RUNNING, InstanceState.STOPPED)


@dataclass(frozen=True)
class ObservedAddresses:
    """Elastic addresses, as far as they concern one machine."""

    error: OperatorError | None = None
    ours: tuple[Address, ...] = ()  # that carry this machine's tags, sorted by id
    given: Address | None = None  # that the spec names
    recorded: Address | None = None  # that the status names
    looked_at: datetime | None = None  # when the oldest of the looks that must show ours began
    missing_for: timedelta | None = None  # complete looks in a row have missed what was asked for; None: it is shown
    given_to: str = ""  # the other machine, in words, that wrote the given one down before this one did


class AddressStep(Step):
    """One of the following."""

    @property
    def of_field(self) -> str:
        return FIELD


@dataclass(frozen=True)
class AllocateAddress(AddressStep):
    """Write down that one is asked for, ask, and write down the answer: its id, or that EC2 refused. Between two
    intents there is one call."""


@dataclass(frozen=True)
class RecordAddress(AddressStep):
    """Write down which address the machine has before it is associated, so that it can be let go of again."""

    allocation_id: str
    is_given: bool


@dataclass(frozen=True)
class ForgetAddress(AddressStep):
    """Nothing of it is left to be done."""


@dataclass(frozen=True)
class AssociateAddress(AddressStep):
    allocation_id: str
    instance_id: str


@dataclass(frozen=True)
class DisassociateAddress(AddressStep):
    allocation_id: str
    association_id: str


@dataclass(frozen=True)
class ReleaseAddress(AddressStep):
    """Only after a fresh look that the address carries our tags; on the way out also after fresh proof of that."""

    allocation_id: str

    @property
    def subject(self) -> Identity:
        return (self.allocation_id,)


@dataclass(frozen=True)
class RetainAddress(AddressStep):
    """Tag it as let go; it is not ours any more."""

    allocation_id: str

    blocked_hold: ClassVar[timedelta | None] = retain.LOOK_AGAIN

    @property
    def subject(self) -> Identity:
        return (self.allocation_id,)


# --- seen ---------------------------------------------------------------------------------------------------------


def observe(
    machine: Desired | Leaving, wanted: ElasticIp | None, view: CloudView, world: World, *, is_declared: bool
) -> ObservedAddresses:
    """What EC2 shows of the machine's address; nothing is asked of EC2 where none is declared, or recorded. Raises what
    looking raises."""
    record = machine.elastic_ip
    if not is_declared and record is None:
        return ObservedAddresses()
    swept = view.addresses(machine.uids)
    begun, missing_for, recorded = swept.begun, None, None
    known = {one.id: one for one in swept.answer.of(machine.uid)}
    if record is not None and record.allocation_id is not None:
        recorded = known.get(record.allocation_id)
        if recorded is None:
            by_id = view.address_by_id(record.allocation_id)
            begun, missing_for = min(begun, by_id.begun), by_id.empty_for
            recorded = next(iter(by_id.answer), None)
        known |= {recorded.id: recorded} if recorded is not None else {}
    elif record is not None:
        by_owner = view.addresses_of(machine.uid)
        begun, missing_for = min(begun, by_owner.begun), by_owner.empty_for
        known |= {one.id: one for one in by_owner.answer}
    given_id = record.allocation_id if record is not None and record.given else None
    given = _given(wanted, known, view) if wanted is not None and not wanted.allocate else None
    return ObservedAddresses(
        ours=tuple(
            one
            for _, one in sorted(known.items())
            if names.is_ours(one.tags, world.cluster_id, machine.uid)
            and not names.is_retained(one.tags)
            and one.id != given_id  # whoever names one by its id means to keep it
        ),
        given=given,
        given_to=holder(given.id, machine.key, machine.uid, world.cache.claimants(given.id)) if given else "",
        recorded=recorded,
        looked_at=world.now() - view.since(begun),
        missing_for=missing_for,
    )


def _given(wanted: ElasticIp, known: dict[str, Address], view: CloudView) -> Address | None:
    if wanted.id is None:
        return next(iter(view.address_by_number(str(wanted.address)).answer), None)
    return known.get(wanted.id) or next(iter(view.address_by_id(wanted.id).answer), None)


# --- of a living machine ------------------------------------------------------------------------------------------


def kept(desired: Desired, cloud: ObservedCloud, now: datetime) -> Sequence[Finding]:
    """The machine has the address that the spec says, and no other one of ours."""
    ec2 = desired.spec.target.ec2
    wanted = ec2.elastic_ip if ec2 is not None else None
    if (wanted is None and desired.elastic_ip is None) or desired.is_replacing:
        return ()  # the former instance serves by it until it goes, or comes back
    if cloud.addresses.error is not None:
        return (found_error(cloud.addresses.error, ConditionType.UP_TO_DATE),)
    going = _to_go(desired, cloud, wanted)
    if going or wanted is None:
        return going
    return _allocated(desired, cloud) if wanted.allocate else _given_associated(desired, cloud, wanted)


def _to_go(desired: Desired, cloud: ObservedCloud, wanted: ElasticIp | None) -> Sequence[Finding]:
    """What has left the spec. It goes first: an instance has one address."""
    record, seen = desired.elastic_ip, cloud.addresses
    is_allocated = wanted is not None and wanted.allocate
    found = [_released(one, cloud) for one in seen.ours if not (is_allocated or _is_meant(one, wanted, seen))]
    if record is None or found:
        return found
    is_still_given = seen.given is not None and seen.given.id == record.allocation_id
    if is_still_given or (is_allocated and not record.given):
        return ()
    if not record.given and seen.recorded is None and not _is_absent(record, seen):
        return (_awaited(),)
    if record.given and seen.recorded is not None and _is_held_by_us(seen.recorded, cloud):
        message = f"taking {_named(seen.recorded)}, which is not declared any more, off"
        return (_repairing(message, _off(seen.recorded)),)
    return (_FORGOTTEN,)


def _is_meant(address: Address, wanted: ElasticIp | None, seen: ObservedAddresses) -> bool:
    """Whether the spec names it. By no more than its names: what two looks show of one address may differ, and what is
    released is lost."""
    if wanted is None:
        return False
    is_given = seen.given is not None and seen.given.id == address.id
    return is_given or address.id == wanted.id or address.public_address == wanted.address


def _released(address: Address, cloud: ObservedCloud) -> Finding:
    if address.association_id is None:
        return _repairing(f"releasing {_named(address)}, which is not declared any more", ReleaseAddress(address.id))
    if _is_held_by_us(address, cloud):
        return _repairing(f"taking {_named(address)}, which is not declared any more, off", _off(address))
    return _refused(Reason.ADOPTION_CONFLICT, _used_by_others(address))


def _allocated(desired: Desired, cloud: ObservedCloud) -> Sequence[Finding]:
    record, seen = desired.elastic_ip, cloud.addresses
    if not seen.ours:
        if seen.recorded is not None and not names.is_retained(seen.recorded.tags):
            return (_refused(Reason.ADOPTION_CONFLICT, _untagged(seen.recorded, desired)),)
        if record is not None and seen.recorded is None and not _is_absent(record, seen):
            return (_awaited(),)
        return (_repairing("allocating an elastic address", AllocateAddress()),)
    recorded_id = record.allocation_id if record is not None else None
    address = min(seen.ours, key=lambda one: (one.id != recorded_id, one.instance_id != desired.instance_id, one.id))
    found = _associated(address, desired, cloud, is_ours=True)
    if address.id != recorded_id:
        found = (_repairing(f"recording {_named(address)}", RecordAddress(address.id, is_given=False)), *found)
    others = [_named(one) for one in seen.ours if one != address]
    if others:
        message = (
            f"{', '.join(others)} also carry this machine's tags; release what nobody needs, or tag it "
            f"{names.RETAINED_TAG}=true"
        )
        kind = ConditionType.UP_TO_DATE
        found = (*found, Finding(Outcome.REPORTED, Reason.INSTANCE_DRIFT, message, kind, differs=Area.CLOUD))
    return found


def _given_associated(desired: Desired, cloud: ObservedCloud, wanted: ElasticIp) -> Sequence[Finding]:
    address, record = cloud.addresses.given, desired.elastic_ip
    if address is None:
        message = (
            f"{FIELD}: {wanted.id or wanted.address} is no elastic address of this account in "
            f"{desired.spec.aws.region}; name another, or have one allocated"
        )
        return (_refused(Reason.INVALID_SPEC, message),)
    owner = address.tags.get(names.UID_TAG)
    if owner not in (None, desired.uid) and not names.is_retained(address.tags):
        message = (
            f"{_named(address)} was allocated for another object ({names.UID_TAG} {owner}); name another, or have one "
            "allocated"
        )
        return (_refused(Reason.ADOPTION_CONFLICT, message),)
    if cloud.addresses.given_to and not _is_held_by_us(address, cloud):
        message = (
            f"{_named(address)} is that of {cloud.addresses.given_to}, until that machine is deleted or names another; "
            "name another here, or have one allocated"
        )
        return (_refused(Reason.ADOPTION_CONFLICT, message),)
    found = _associated(address, desired, cloud, is_ours=False)
    if record is not None and record.given and record.allocation_id == address.id:
        return found
    note = RecordAddress(address.id, is_given=True)
    if not found:
        return (Finding(Outcome.IN_SYNC, steps=(note,)),)
    return tuple(replace(one, steps=(note, *one.steps)) if one.steps else one for one in found)


def _associated(address: Address, desired: Desired, cloud: ObservedCloud, *, is_ours: bool) -> tuple[Finding, ...]:
    instance = cloud.instance(desired.instance_id)
    if instance is None or instance.state not in _TAKES_ADDRESSES or address.instance_id == instance.id:
        return ()
    associate = AssociateAddress(address.id, instance.id)
    if address.association_id is None:
        return (_repairing(f"associating {_named(address)} with {instance.id}", associate),)
    if is_ours or _is_held_by_us(address, cloud):
        return (_repairing(f"moving {_named(address)} to {instance.id}", _off(address), associate),)
    return (_refused(Reason.ADOPTION_CONFLICT, _used_by_others(address)),)


def _is_absent(record: ElasticIpStatus, seen: ObservedAddresses) -> bool:
    return absence.is_gone(record.called_at, seen.looked_at, seen.missing_for)


def _is_held_by_us(address: Address, cloud: ObservedCloud) -> bool:
    """By an instance of this machine, be it an earlier one."""
    other = cloud.other.id if cloud.other is not None else None
    return address.instance_id is not None and (
        cloud.instance(address.instance_id) is not None or address.instance_id == other
    )


def _off(address: Address) -> DisassociateAddress:
    return DisassociateAddress(address.id, str(address.association_id))


def _named(address: Address) -> str:
    return f"{address.public_address} ({address.id})"


def _used_by_others(address: Address) -> str:
    holder = address.instance_id or "a network interface that is no instance's"
    return (
        f"{_named(address)} is associated with {holder}, which is not this machine's; it is left there: disassociate "
        "it, or declare another address"
    )


def _untagged(address: Address, machine: Desired | Leaving) -> str:
    return (
        f"{_named(address)} is recorded as this machine's and does not carry its tags; nothing is done to it. Tag it "
        f"{names.CLUSTER_TAG} and {names.UID_TAG}={machine.uid} to give it back, or {names.RETAINED_TAG}=true to have "
        "it left alone"
    )


_FORGOTTEN = Finding(Outcome.IN_SYNC, steps=(ForgetAddress(),))
_AWAITED = (
    "an elastic address was asked for and EC2 does not show it yet; waiting up to 6 min for one to show, so that no "
    "second one is allocated"
)


def _awaited() -> Finding:
    kind = ConditionType.UP_TO_DATE
    pause = absence.LOOK_AGAIN
    return Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, _AWAITED, kind, look_again=pause, differs=Area.CLOUD)


def _repairing(message: str, *found: Step) -> Finding:
    kind = ConditionType.UP_TO_DATE
    return Finding(Outcome.REPAIRING, Reason.INSTANCE_DRIFT, message, kind, found, differs=Area.CLOUD)


def _refused(reason: Reason, message: str) -> Finding:
    # It stands until a person does something about it, which each resync sees.
    return Finding(Outcome.STALLED, reason, message, ConditionType.UP_TO_DATE, differs=Area.CLOUD)


# --- on the way out -----------------------------------------------------------------------------------------------


def retained(cloud: ObservedCloud) -> tuple[Address, ...]:
    """Those that are ours and still have to be tagged as let go."""
    return cloud.addresses.ours


def way_out(leaving: Leaving, cloud: ObservedCloud) -> Sequence[Finding]:
    """Once the instance is gone: what is ours is released, and what may have been made is waited for."""
    record, seen = leaving.elastic_ip, cloud.addresses
    found = [_going(one, cloud) for one in seen.ours]
    if found or record is None or record.given:
        return found
    if seen.recorded is None:
        return () if _is_absent(record, seen) else (replace(_deleting(_AWAITED), look_again=absence.LOOK_AGAIN),)
    is_untagged = not names.is_retained(seen.recorded.tags) and not seen.recorded.tags.get(names.UID_TAG)
    return (_wedged(_untagged(seen.recorded, leaving)),) if is_untagged else ()


def _going(address: Address, cloud: ObservedCloud) -> Finding:
    if address.association_id is None:
        return _deleting(f"releasing {_named(address)}", ReleaseAddress(address.id))
    if _is_held_by_us(address, cloud):
        return _deleting(f"disassociating {_named(address)}", _off(address))
    message = f"{_used_by_others(address)}; or tag it {names.RETAINED_TAG}=true to have it left to them"
    return _wedged(message)


def _wedged(message: str) -> Finding:
    return Finding(Outcome.WEDGED, Reason.ADOPTION_CONFLICT, message)


def _deleting(message: str, *found: Step) -> Finding:
    return Finding(Outcome.DELETING, Reason.DELETING, message, steps=found, look_again=SOON)


# --- carried out --------------------------------------------------------------------------------------------------


async def apply(step: AddressStep, machine: Desired | Leaving, body: Body, view: CloudView, world: World) -> Body:
    """Carry out one of the steps above. Raises what ports raise."""
    match step:
        case AllocateAddress():
            return await _allocate(machine, body, view, world)
        case RecordAddress(allocation_id, is_given):
            record = ElasticIpStatus(called_at=world.now(), allocation_id=allocation_id, given=is_given)
            return await world.kube.write_intent(body, {"elasticIp": written(record)})
        case ForgetAddress():
            return await world.kube.write_intent(body, {"elasticIp": None})
        case ReleaseAddress(allocation_id):
            return await _release(allocation_id, machine, body, view, world)
    try:
        match step:
            case AssociateAddress(allocation_id, instance_id):
                await view.cloud.associate_address(allocation_id, instance_id)
            case DisassociateAddress(_, association_id):
                await view.cloud.disassociate_address(association_id)
            case RetainAddress(allocation_id):
                await view.cloud.create_tags([allocation_id], {names.RETAINED_TAG: "true"})
            case _:
                raise AssertionError(f"{step} is no step of an address")
    finally:
        # Also after an error: a call whose reply was lost may have been carried out.
        view.note_write(machine.uid)
    return body


async def _allocate(machine: Desired | Leaving, body: Body, view: CloudView, world: World) -> Body:
    key = machine.key
    intent = ElasticIpStatus(called_at=world.now())
    body = await world.kube.write_intent(body, {"elasticIp": written(intent)})
    world.cache.put(key, body)
    tags = names.owner_tags(world.cluster_id, key.namespace, key.name, machine.uid)
    try:
        allocation_id = await view.cloud.allocate_address(tags)
    except OperatorError as error:
        if error.is_refusal:
            await written_answers.write(lambda _: {"elasticIp": None}, machine, body, world)
        raise
    finally:
        view.note_write(machine.uid, machine.uid)
    # From here on the id must not be lost, or minutes pass until the address is found by its tags.
    fields: dict[str, object] = {"elasticIp": {"allocationId": allocation_id}}
    return await asyncio.shield(written_answers.write(lambda _: fields, machine, body, world))


async def _release(allocation_id: str, machine: Desired | Leaving, body: Body, view: CloudView, world: World) -> Body:
    shown = await view.cloud.find_addresses(allocation_id=allocation_id)
    if any(not names.is_ours(one.tags, world.cluster_id, machine.uid) or names.is_retained(one.tags) for one in shown):
        raise Conflict(f"{allocation_id} does not carry the tags of {machine.key} any more; it is not released")
    try:
        await view.cloud.release_address(allocation_id)
    finally:
        view.note_write(machine.uid)
    record = machine.elastic_ip
    if record is None or record.allocation_id != allocation_id:
        return body
    return await world.kube.write_intent(body, {"elasticIp": None})
