"""The NixMachines of a deployment: one for each machine, with exactly the spec that follows from the deployment's.

A machine is ours by place and uid: an object of this namespace that names this very deployment as its controller. Steps
carry the object's key and uid, and act on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from nixops_operator import names
from nixops_operator.api.conditions import Truth
from nixops_operator.api.group import API_VERSION
from nixops_operator.api.machine_of_deployment import ChildMachine
from nixops_operator.api.machine_spec import DeletionPolicy
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import OriginStatus, read
from nixops_operator.cache import resource_version
from nixops_operator.deployment import proof
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedMachine, Obstacle
from nixops_operator.errors import Conflict, InvalidSpec
from nixops_operator.facts.kube import Body, Key, Kind, controller_of, is_controlled_by
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.step import Identity, Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

# --- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateMachine(Step):
    child: ChildMachine

    @property
    def subject(self) -> Identity:
        return (self.child.name,)


@dataclass(frozen=True)
class ReplaceMachineSpec(Step):
    """Put back spec and labels of the machine of that uid."""

    key: Key
    uid: str
    child: ChildMachine

    @property
    def subject(self) -> Identity:
        return (self.key.name,)


@dataclass(frozen=True)
class SuspendMachine(Step):
    """Change this one field, whatever else differs: a suspended deployment changes nothing through its machines."""

    key: Key
    uid: str

    is_harmless: ClassVar[bool] = True

    @property
    def subject(self) -> Identity:
        return (self.key.name,)


@dataclass(frozen=True)
class PassOn(Step):
    """Pass a request to look now on to a machine, which looks and says so."""

    key: Key
    uid: str
    request: str

    is_harmless: ClassVar[bool] = True

    @property
    def subject(self) -> Identity:
        return (self.key.name,)


@dataclass(frozen=True)
class RetainMachine(Step):
    """Tell a machine before it goes that its instance is to stay."""

    key: Key
    uid: str

    @property
    def subject(self) -> Identity:
        return (self.key.name,)


@dataclass(frozen=True)
class DeleteMachine(Step):
    """Only after fresh quorum reads show that the deployment is as it was planned for, and that the machine of that uid
    is still its own: a machine that was orphaned meanwhile goes on living."""

    key: Key
    uid: str

    @property
    def subject(self) -> Identity:
        return (self.key.name,)


# --- what is there ------------------------------------------------------------------------------------------------


def observe_children(given: Desired | Leaving, world: World) -> tuple[ObservedMachine, ...]:
    return tuple(ObservedMachine(body) for body in world.cache.children(given.key, given.uid))


def observe_obstacles(desired: Desired, children: Iterable[ObservedMachine], world: World) -> dict[str, Obstacle]:
    """What stands where machines are to be made."""
    ours = {child.name for child in children}
    found = {}
    for child in desired.children:
        body = world.cache.get(Key(Kind.MACHINE, desired.key.namespace, child.name)) if child.name not in ours else None
        if body is not None:
            found[child.name] = _obstacle(body, world)
    return found


def _obstacle(body: Body, world: World) -> Obstacle:
    owner = controller_of(body)
    is_deleting = bool(body["metadata"].get("deletionTimestamp"))
    if owner is None:
        whose = "belongs to nobody" if not body["metadata"].get("ownerReferences") else "belongs to another object"
        return Obstacle(body["metadata"]["name"], is_deleting, whose)
    whose = f"belongs to {owner.kind.object_kind} {owner.name}"
    # What an owner of our kind left behind when it went, the garbage collector removes.
    is_left_behind = owner.kind is Kind.DEPLOYMENT and world.cache.owner_key(body) is None
    return Obstacle(body["metadata"]["name"], is_deleting or is_left_behind, whose)


def observe_orphans(leaving: Leaving, world: World) -> tuple[str, ...]:
    """Machines that were this deployment's and have no controller any more: they live on, and use what it made."""
    label = names.label_value(leaving.key.name)
    found = []
    for body in world.cache.in_namespace(Kind.MACHINE, leaving.key.namespace):
        if body["metadata"].get("ownerReferences") or body["metadata"].get("deletionTimestamp"):
            continue
        origin = read(OriginStatus, (body.get("status") or {}).get("origin"))
        labels = body["metadata"].get("labels") or {}
        if origin.uid == leaving.uid if origin is not None else labels.get(names.DEPLOYMENT_LABEL) == label:
            found.append(str(body["metadata"]["name"]))
    return tuple(found)


# --- what is wanted, and what differs -----------------------------------------------------------------------------


def _wanted_spec(desired: Desired, child: ChildMachine) -> Mapping[str, Any]:
    return {**child.spec, "suspend": True} if desired.is_paused else child.spec


def _applied(labels: Mapping[str, str]) -> str:
    return ",".join(sorted(labels))


def label_changes(child: ChildMachine, seen: ObservedMachine) -> dict[str, str | None]:
    """Label → what it is to be, None for one that is to go; empty when there is nothing to do."""
    before = seen.annotations.get(names.APPLIED_LABELS_ANNOTATION, "").split(",")
    gone = {key: None for key in before if key in seen.labels and key not in child.labels}
    return {**gone, **{key: value for key, value in child.labels.items() if seen.labels.get(key) != value}}


def is_as_written(desired: Desired, child: ChildMachine, seen: ObservedMachine) -> bool:
    """Whether the machine's spec is what the deployment wants it to be."""
    return bool(seen.body["spec"] == _wanted_spec(desired, child))


def _is_written(desired: Desired, child: ChildMachine, seen: ObservedMachine) -> bool:
    is_noted = seen.annotations.get(names.APPLIED_LABELS_ANNOTATION) == _applied(child.labels)
    return is_as_written(desired, child, seen) and is_noted and not label_changes(child, seen)


def misplaced(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Machines that name key pairs or groups of this deployment from another region, where they do not exist."""
    for child in desired.children:
        if (error := _misplacement(desired, child)) is not None:
            yield found_error(error)


def _misplacement(desired: Desired, child: ChildMachine) -> InvalidSpec | None:
    ec2, region = child.settings.target.ec2, child.settings.aws.region
    if ec2 is None or region == desired.spec.aws.region:
        return None
    shared = [f"security group {name}" for name in ec2.security_groups if not name.startswith("sg-")]
    if any(pair.name == ec2.key_pair for pair in desired.spec.key_pairs):
        shared.append(f"key pair {ec2.key_pair}")
    if not shared:
        return None
    message = (
        f"{child.machine} is in {region} and uses {', '.join(shared)} of this deployment, whose EC2 resources are in "
        f"{desired.spec.aws.region or 'no region'}; make a deployment for each region, or name what exists in {region}"
    )
    return InvalidSpec(f"spec.machines[{child.machine}].aws.region", message)


def as_declared(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """A NixMachine for each, with exactly the spec that follows from this one; edits by hand are put back."""
    for child in desired.children:
        seen = observed.child(child.name)
        if _misplacement(desired, child) is not None:
            continue
        if seen is None and child.name in observed.obstacles:
            yield _in_the_way(child, observed.obstacles[child.name])
        elif seen is None:
            yield _writing(f"{child.machine} does not exist yet", CreateMachine(child))
        elif not seen.is_deleting and not _is_written(desired, child, seen):
            yield from _rewriting(desired, child, seen)


def _rewriting(desired: Desired, child: ChildMachine, seen: ObservedMachine) -> Iterator[Finding]:
    if desired.is_paused and not seen.body["spec"].get("suspend"):
        step = SuspendMachine(seen.key, seen.uid)
        yield _writing(f"suspending {child.machine}", step)
        others_differ = {**seen.body["spec"], "suspend": True} != _wanted_spec(desired, child)
        if not others_differ and not label_changes(child, seen):
            return
    yield _writing(f"{child.machine} differs from the spec", ReplaceMachineSpec(seen.key, seen.uid, child))


def _writing(message: str, step: Step) -> Finding:
    return Finding(Outcome.WORKING, Reason.ROLLING_OUT, message, steps=(step,))


def _in_the_way(child: ChildMachine, obstacle: Obstacle) -> Finding:
    if obstacle.is_going:
        message = f"{child.machine}: waiting for NixMachine {obstacle.name}, which {obstacle.whose}, to go"
        return Finding(Outcome.WORKING, Reason.ROLLING_OUT, message, look_again=SOON)
    message = (
        f"{child.machine}: NixMachine {obstacle.name} exists and {obstacle.whose}, not to this deployment; nothing is "
        "done to it: delete it, or rename the machine"
    )
    return Finding(Outcome.STALLED, Reason.ADOPTION_CONFLICT, message)


def requests_passed_on(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """A request to look now reaches every machine; it is answered once all have it."""
    for child in lacking_request(desired, observed):
        step = PassOn(child.key, child.uid, str(desired.requests.new))
        yield Finding(Outcome.IN_SYNC, message=f"asking {child.machine} to look", steps=(step,))


def lacking_request(desired: Desired, observed: Observed) -> list[ObservedMachine]:
    """The machines that the newest request has not reached."""
    new = desired.requests.new
    if new is None:
        return []
    return [
        child
        for child in observed.children
        if not child.is_deleting and child.annotations.get(names.RECONCILE_ANNOTATION) != new
    ]


def ready(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """The deployment is as ready as its machines. What a machine says counts only of the spec that it has now."""
    wanted = {child.name: child for child in desired.children}
    for seen in observed.children:
        child = wanted.get(seen.name)
        if child is None or seen.is_ready:
            continue
        if seen.is_deleting:
            yield Finding(Outcome.WORKING, Reason.ROLLING_OUT, f"{child.machine}: waiting for its deletion")
        elif is_as_written(desired, child, seen):
            yield _not_ready(child, seen)


def summary(desired: Desired, observed: Observed, now: datetime) -> Finding:
    """What is said when nothing else is."""
    count = len(desired.children)
    return Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, f"{count} of {count} machines ready")


def _not_ready(child: ChildMachine, seen: ObservedMachine) -> Finding:
    told = seen.ready if seen.is_observed else None
    reason = told.reason if told is not None else Reason.ROLLING_OUT
    what = told.message if told is not None else "suspended" if seen.is_paused else "not looked at yet"
    message = f"{child.machine}: {what}"
    if seen.is_stalled:
        return Finding(Outcome.STALLED, reason, message)
    if told is None or told.status is not Truth.FALSE:
        return Finding(Outcome.WORKING, reason, message)
    # False without being worked on is what driftPolicy Report leaves.
    return Finding(Outcome.RETRYING if seen.is_reconciling else Outcome.DRIFT_REPORTED, reason, message)


def serve(desired: Desired, observed: Observed) -> bool:
    """Whether every machine is there, has its newest spec, and is ready."""
    found = [(child, observed.child(child.name)) for child in desired.children]
    return all(seen is not None and seen.is_ready and is_as_written(desired, child, seen) for child, seen in found)


def surplus(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Machines that the spec does not name any more."""
    wanted = {child.name for child in desired.children}
    for seen in observed.children:
        if seen.name not in wanted:
            going = (DeleteMachine(seen.key, seen.uid),) if not seen.is_deleting else ()
            message = f"removing {seen.name}"
            yield Finding(Outcome.REPAIRING, Reason.ROLLING_OUT, message, steps=going, look_again=SOON)


def waiting_to_go(desired: Desired, observed: Observed) -> Iterator[Finding]:
    """The same, while one of those that stay is not ready: nobody can tell whose place it takes."""
    wanted = {child.name for child in desired.children}
    for seen in observed.children:
        if seen.name not in wanted and not seen.is_deleting:
            message = (
                f"{seen.machine} is not declared any more, and goes once all machines are ready; or at once by: "
                f"kubectl delete nixmachine {seen.name}"
            )
            yield Finding(Outcome.IN_SYNC, Reason.ROLLING_OUT, message, differs=Area.CLOUD, is_drift=False)


def is_to_be_retained(leaving: Leaving, seen: ObservedMachine) -> bool:
    """Whether a machine has yet to hear that its instance stays: it reads its own spec when it goes, and Retain that
    came just before the deletion, or after it, counts too. Never the other way: one that was told so stays so."""
    entry, _, number = seen.machine.rpartition("-")
    # `web-1` may be an entry of its own beside `web`, whose policy is not its.
    is_numbered = number.isdigit() and seen.machine not in leaving.single_machines
    entries = {seen.machine, entry} if is_numbered else {seen.machine}
    says_delete, says_retain = entries & leaving.ended_machines, entries & leaving.kept_machines
    retains = bool(says_retain) or (leaving.retains and not says_delete)
    return retains and seen.body["spec"].get("deletionPolicy") != DeletionPolicy.RETAIN


# --- the steps, carried out ---------------------------------------------------------------------------------------


async def create(step: CreateMachine, desired: Desired, world: World) -> None:
    """Raises Conflict where an object of that name exists: it is read, so that the next pass sees what it is."""
    key = Key(Kind.MACHINE, desired.key.namespace, step.child.name)
    metadata = {
        "name": step.child.name,
        "namespace": desired.key.namespace,
        "labels": dict(step.child.labels),
        "annotations": {names.APPLIED_LABELS_ANNOTATION: _applied(step.child.labels)},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": Kind.DEPLOYMENT.object_kind,
                "name": desired.key.name,
                "uid": desired.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    body = {
        "apiVersion": API_VERSION,
        "kind": Kind.MACHINE.object_kind,
        "metadata": metadata,
        "spec": dict(_wanted_spec(desired, step.child)),
    }
    try:
        _keep(key, await world.kube.create_machine(body), world)
    except Conflict:
        await _read_anew(key, world)
        raise


async def replace_spec(step: ReplaceMachineSpec, desired: Desired, world: World) -> None:
    noted = {names.APPLIED_LABELS_ANNOTATION: _applied(step.child.labels)}
    spec = _wanted_spec(desired, step.child)
    await _change(
        step.key, step.uid, world, lambda known: (spec, label_changes(step.child, ObservedMachine(known)), noted)
    )


async def suspend(step: SuspendMachine, world: World) -> None:
    await _change(step.key, step.uid, world, lambda known: ({**known["spec"], "suspend": True}, {}, {}))


async def pass_on(step: PassOn, world: World) -> None:
    asked = {names.RECONCILE_ANNOTATION: step.request}
    await _change(step.key, step.uid, world, lambda known: (known["spec"], {}, asked))


async def retain(step: RetainMachine, world: World) -> None:
    told = {"deletionPolicy": DeletionPolicy.RETAIN.value}
    await _change(step.key, step.uid, world, lambda known: ({**known["spec"], **told}, {}, {}))


async def delete(step: DeleteMachine, given: Desired | Leaving, body: Body, world: World) -> None:
    await proof.still_stands(given.key, given.uid, body, world)
    fresh = await _read_anew(step.key, world)
    if fresh is None or fresh["metadata"]["uid"] != step.uid:
        return
    if not is_controlled_by(fresh, body):
        raise Conflict(f"{step.key} was let go of")
    await world.kube.delete_machine(fresh)


_Change = Callable[[Body], tuple[Mapping[str, Any], Mapping[str, str | None], Mapping[str, str | None]]]
"""From a machine's body to its new spec, labels and annotations."""


async def _change(key: Key, uid: str, world: World, change: _Change) -> None:
    """Write to the object of that uid alone. Its own passes write to it all the time, so one conflict is overcome."""
    known = world.cache.get(key)
    if known is None or known["metadata"]["uid"] != uid:
        return
    try:
        changed = await _write(known, change, world)
    except Conflict:
        fresh = await _read_anew(key, world)
        if fresh is None or fresh["metadata"]["uid"] != uid:
            return
        changed = await _write(fresh, change, world)
    _keep(key, changed, world)


async def _write(body: Body, change: _Change, world: World) -> Body:
    spec, labels, annotations = change(body)
    return await world.kube.replace_machine_spec(body, dict(spec), labels, annotations)


async def _read_anew(key: Key, world: World) -> Body | None:
    """What the API server holds now, which the cache hears of at once."""
    fresh = await world.kube.get(key)
    known = world.cache.get(key)
    if fresh is not None:
        world.cache.put(key, fresh)
    elif known is not None:
        world.cache.drop(key, resource_version(known))
    return fresh


def _keep(key: Key, body: Body, world: World) -> None:
    """The reply is newer than the watch; the machine's own pass must hear of it all the same."""
    world.cache.put(key, body)
    world.wake(key)
