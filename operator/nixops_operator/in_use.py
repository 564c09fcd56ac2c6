"""The Secret with AWS credentials stays while something may exist that was made with them.

`kubectl delete namespace` takes Secrets and our objects at once, and a dying namespace takes no new Secret. So the
Secret that an object with `status.accountId` names carries our finalizer, until the last of these objects is gone:

    RecordHeld ─► HoldSecret ─► … in use … ─► nothing is left in EC2 ─► leave() ─► the object's own finalizer goes

`status.heldSecrets` says what may have to be released again: of Secrets that the spec has ceased to name, too. Whether
another object needs a Secret follows from the objects alone, so that there is no count that could be wrong. Both kinds
use this.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Protocol

from nixops_operator.api.machine_spec import AwsSettings
from nixops_operator.api.reasons import ConditionType
from nixops_operator.api.status import HELD_SECRETS
from nixops_operator.errors import Conflict, OperatorError
from nixops_operator.facts.kube import Body, Key
from nixops_operator.names import IN_USE_FINALIZER
from nixops_operator.objects import LeavingObject, ReconciledObject
from nixops_operator.planning import Finding
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

RECREATED_AFTER = timedelta(minutes=1)
"""The objects of a namespace that is deleted follow its Secrets within seconds. A Secret that goes alone goes to be
made anew: `kubectl delete secret` must come to its end then, so that `kubectl create` can follow."""


# --- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordHeld(Step):
    """Write down which Secrets may carry the finalizer on this object's behalf, before they do."""

    names: tuple[str, ...]

    is_harmless: ClassVar[bool] = True

    @property
    def subject(self) -> tuple[str, ...]:
        return self.names


@dataclass(frozen=True)
class _OfOneSecret(Step):
    name: str

    is_harmless: ClassVar[bool] = True

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.name,)


class HoldSecret(_OfOneSecret):
    """Put the finalizer on; one that is there already is left."""


class ReleaseSecret(_OfOneSecret):
    """Take the finalizer off, unless another object needs it."""


class GiveUpSecret(_OfOneSecret):
    """Take the finalizer off a Secret that somebody is waiting to see gone."""


OfSecrets = RecordHeld | HoldSecret | ReleaseSecret | GiveUpSecret


# --- what is there ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenSecret:
    """The Secret that an object's spec names now."""

    name: str
    is_held: bool = False
    deleted_at: datetime | None = None
    is_needed_to_leave: bool = False  # another object that names it is in deletion


class Seeing(Protocol):
    """What a pass over an object of either kind saw."""

    @property
    def secret(self) -> SeenSecret | None: ...


async def observe(using: ReconciledObject, aws: AwsSettings, world: World) -> SeenSecret | None:
    """The Secret, at most five minutes old. None: nothing is in any account, or there is no Secret to hold."""
    name = _named(aws)
    if name is None or using.account_id is None:
        return None
    namespace = using.key.namespace
    try:
        secret = await world.reads.secret(namespace, name)
    except OperatorError:
        return None  # the pass tells of it where it needs the Secret
    if secret is None:
        return None
    needed = False
    if secret.is_deleting:
        world.reads.forget_secret(namespace, name)
        users = world.cache.users_of_secret(namespace, name)
        needed = any(body["metadata"].get("deletionTimestamp") for body in users)
    return SeenSecret(name, IN_USE_FINALIZER in secret.finalizers, secret.deleted_at, needed)


def _named(aws: AwsSettings | None) -> str | None:
    reference = aws.credentials.secret_ref if aws is not None and aws.credentials is not None else None
    return reference.name if reference is not None else None


def held_of(status: Body) -> tuple[str, ...]:
    """Names of Secrets that may carry the finalizer on behalf of the object with this status."""
    return tuple(str(name) for name in status.get("heldSecrets") or ())


# --- what is to be done -------------------------------------------------------------------------------------------


def kept(using: ReconciledObject, seen: Seeing, now: datetime) -> Finding | None:
    """The Secret that the spec names is held, before anything is made with it."""
    secret = seen.secret
    if secret is None:
        return None
    if secret.deleted_at is not None:
        return _going(secret, secret.deleted_at, now)
    held, taken = held_of(using.status), []
    if secret.name not in held:
        if len(held) >= HELD_SECRETS - 1:
            return None  # one place is for the way out; `others_released` makes room
        taken.append(RecordHeld((*held, secret.name)))
    return _beside(*taken, HoldSecret(secret.name)) if taken or not secret.is_held else None


def _going(secret: SeenSecret, deleted_at: datetime, now: datetime) -> Finding | None:
    """It takes no new finalizer; one that it has is needed by objects that are on their way out."""
    if not secret.is_held or secret.is_needed_to_leave:
        return None
    wait = deleted_at + RECREATED_AFTER - now
    if wait > timedelta(0):
        return Finding(Outcome.IN_SYNC, look_again=wait)
    return _beside(GiveUpSecret(secret.name))


def others_released(using: ReconciledObject, seen: Seeing, now: datetime) -> Finding | None:  # noqa: ARG001 - as all checks
    """Secrets that the spec has ceased to name are let go of, once EC2 has taken what it names now."""
    if seen.secret is None:
        return None
    held = held_of(using.status)
    surplus = [name for name in held if name != seen.secret.name]
    if not surplus:
        return None
    left = tuple(name for name in held if name == seen.secret.name)
    return _beside(*(ReleaseSecret(name) for name in surplus), RecordHeld(left))


def _beside(*taken: Step) -> Finding:
    return Finding(Outcome.IN_SYNC, condition=ConditionType.CREDENTIALS_READY, steps=taken)


# --- the steps, carried out ---------------------------------------------------------------------------------------


async def apply(step: OfSecrets, using: ReconciledObject, body: Body, world: World) -> Body:
    """One step; returns the newest body."""
    namespace = using.key.namespace
    match step:
        case RecordHeld(names):
            return await world.kube.write_intent(body, {"heldSecrets": list(names)})
        case HoldSecret(name):
            await _hold(namespace, name, world)
        case ReleaseSecret(name):
            await _release_unless_used(namespace, name, using.key, world)
        case GiveUpSecret(name):
            await _release(namespace, name, world)
    return body


async def leave(leaving: LeavingObject, body: Body, world: World) -> Body:
    """Nothing is left of an object in deletion: release what it alone still needed. Returns the newest body.

    That it needs no credentials any more is written down first. Of several that go at once, the last to write it sees
    that no other is left; and one whose pass is cut after the release must not look into EC2 once more, for which the
    Secret has gone.
    """
    held, name = held_of(leaving.status), _named(leaving.aws)
    if leaving.account_id is not None:
        held = held if name is None or name in held else (*held, name)
        body = await world.kube.write_intent(body, {"accountId": None, "heldSecrets": list(held)})
        world.cache.put(leaving.key, body)
    for one in held:
        await _release_unless_used(leaving.key.namespace, one, leaving.key, world)
    return body


async def _hold(namespace: str, name: str, world: World) -> None:
    secret = await world.kube.read_secret(namespace, name)
    try:
        if secret is not None and not secret.is_deleting:
            await world.kube.hold_secret(namespace, secret)
    except Conflict:
        """Somebody else wrote it, another object's pass perhaps; the next look says whether it is held."""
    finally:
        world.reads.forget_secret(namespace, name)


async def _release_unless_used(namespace: str, name: str, by: Key, world: World) -> None:
    if not any(True for _ in world.cache.users_of_secret(namespace, name, besides=by)):
        await _release(namespace, name, world)


async def _release(namespace: str, name: str, world: World) -> None:
    secret = await world.kube.read_secret(namespace, name)
    if secret is None:
        return
    try:
        await world.kube.release_secret(namespace, secret)
    finally:
        world.reads.forget_secret(namespace, name)
