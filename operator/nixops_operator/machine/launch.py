"""One RunInstances per machine, whatever reply was lost and whenever the operator died. Pure decisions, and the steps
that carry them out.

    RecordLaunch ─► (frozen request, status.launch) ─► Launch ─► RecordInstance
                          ▲            │
                          │            ├ refused, and every call answered  ─► CloseLaunch: the same parameters keep the
                          │            │                                      attempt, others are another attempt
                          │            └ refused after an unknown outcome  ─► doubted: no call until EC2 would show what
                          └── proven gone ◄──────────────────────────────── that one made (absence.py)

A refusal proves something about its own call alone. Only an attempt none of whose calls had an unknown outcome was
refused for good. Source: EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests" and "Eventual
consistency in the Amazon EC2 API".
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator import absence, names, written_answers
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import LaunchStatus, RestartsStatus, written
from nixops_operator.errors import Blocked, Lost, NotOffered, OperatorError, OutcomeUnknown, Retry
from nixops_operator.facts.cloud import LaunchRequest
from nixops_operator.facts.kube import Body, Kind, OwnerReference
from nixops_operator.machine import host_keys, observe_host, restarts, steps, subnets
from nixops_operator.machine.attributes import launch_request, to_remember
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.planning import SOON, Finding, found_error
from nixops_operator.ssh_keys import generate_ed25519
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

LAUNCH_SECRET_TYPE = "nixops.dev/launch"  # noqa: S105 - a type's name
REFUSAL_SHOWN = 256
"""Characters of EC2's words that a status holds."""
OLDER_SECRETS = 20
"""How many earlier attempts' Secrets a pass looks for; each attempt removes the one before it."""


def unanswered(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """A launch is recorded, its instance is not: record the one that EC2 shows, else repeat the same call, never a new
    one."""
    launch = desired.launch
    if launch is not None and launch.instance_id is not None:
        return None
    if len(cloud.live) == 1:
        only = cloud.live[0]
        attempt = names.attempt_of(only.tags) or (launch.attempt if launch is not None else 1)
        return _provisioning(f"recording {only.id}", steps.RecordInstance(only.id, attempt))
    if len(cloud.live) > 1:
        message = f"{cloud.ids_of_live} all carry this machine's uid and none is recorded; terminate all but one"
        return Finding(Outcome.STALLED, Reason.LAUNCH_AMBIGUOUS, message, ConditionType.INFRASTRUCTURE_READY)
    if launch is None or launch.refused_generation is not None:
        return None
    if cloud.dead_of(launch.token) is not None:
        # The attempt's machine died before its id was written down; its token would only give it back.
        return _provisioning("the launched instance is gone again", steps.CloseLaunch(launch.attempt))
    if launch.doubted_at is None:
        text = "the launch is recorded; asking EC2 for the instance"
        return _provisioning(text, *_call(launch, now), steps.Launch(launch))
    if absence.is_gone(launch.last_call, cloud.looked_at, cloud.missing_for):
        return _provisioning("no call of the launch has made anything", steps.CloseLaunch(launch.attempt))
    text = (
        "EC2 refused the launch after a call whose answer was lost; waiting up to 6 min until it would show what that "
        "one made, so that no second instance is started"
    )
    kind = ConditionType.INFRASTRUCTURE_READY
    return Finding(Outcome.WORKING, Reason.LAUNCH_PENDING, text, kind, look_again=absence.LOOK_AGAIN)


def _call(launch: LaunchStatus, now: datetime) -> tuple[steps.RecordCall, ...]:
    """What has to be written down before the call."""
    is_noted = launch.refused_generation is None and absence.is_noted(launch.last_call, now)
    return () if is_noted else (steps.RecordCall(launch.attempt),)


def another(desired: Desired, cloud: ObservedCloud, now: datetime, message: str, died_of: str = "") -> Finding:
    """Launch an instance where there is none: with the attempt that EC2 refused, if nothing has changed since.

    `died_of`: why the last one is gone, if there was one; lives that end soon are counted and waited for.
    """
    if cloud.pins_error is not None:
        # Its host key could not be pinned, and nobody would get onto it.
        return found_error(cloud.pins_error, ConditionType.INFRASTRUCTURE_READY)
    if cloud.declared_error is not None:
        return _not_known(cloud.declared_error)
    launch = desired.launch
    if (
        launch is not None
        and launch.refused_generation is not None
        and launch.declared_hash == cloud.declared.digest
        and launch.account_id == cloud.account_id
        and cloud.dead_of(launch.token) is None
    ):
        return _provisioning(message, steps.RecordCall(launch.attempt), steps.Launch(launch))
    count = None
    if died_of and not _moves_on(launch, desired, cloud):
        waiting = restarts.waiting(desired, now, died_of)
        if waiting is not None:
            return waiting
        count = restarts.count(desired) + 1
    attempt = 1 + max(launch.attempt if launch is not None else 0, cloud.highest_attempt)
    return _provisioning(message, steps.RecordLaunch(attempt, cloud.account_id, cloud.declared, count))


def next_attempt(desired: Desired, cloud: ObservedCloud) -> int:
    """The number of the next launch beside an instance that lives."""
    known = (one.attempt for one in (desired.launch, desired.replacement) if one is not None)
    return 1 + max(*known, cloud.highest_attempt, 0)


def _moves_on(launch: LaunchStatus | None, desired: Desired, cloud: ObservedCloud) -> bool:
    """Whether this only goes on to the next subnet: what had no room lived no life that would have to be waited for."""
    return (
        launch is not None
        and launch.refused_generation is not None
        and launch.subnet_id != cloud.declared["subnetId"]
        and any(one.subnet_id == launch.subnet_id for one in desired.full_subnets)
    )


def _not_known(error: OperatorError) -> Finding:
    """What the launch needs cannot be resolved. What the deployment is about to make is waited for: nothing failed."""
    found = found_error(error, ConditionType.INFRASTRUCTURE_READY)
    if isinstance(error, Retry) and error.reason in _MENDED_BY_DEPLOYMENT:
        return replace(found, outcome=Outcome.WORKING, look_again=SOON)
    return found


def _provisioning(message: str, *found: Step) -> Finding:
    return Finding(Outcome.WORKING, Reason.PROVISIONING, message, ConditionType.INFRASTRUCTURE_READY, found)


# --- carried out --------------------------------------------------------------------------------------------------


async def record_launch(step: steps.RecordLaunch, desired: Desired, body: Body, world: World) -> Body:
    """Freeze the request, then write the intent."""
    ec2 = desired.spec.target.ec2
    host_key = generate_ed25519()
    client = await observe_host.known_client_key(desired, world)
    if step.replacement is not None:
        await _note_that_one_is_frozen(desired, world)
    for attempt in itertools.count(step.first_attempt):
        declared = step.declared.but(tags={**(step.declared["tags"] or {}), names.ATTEMPT_TAG: str(attempt)})
        text = launch_request(declared, host_keys.user_data(host_key.text, host_key.public)).as_json()
        # One that exists without an intent was frozen by a pass that never wrote it, here or in another operator: it is
        # left alone, because that pass may be about to write it.
        if await world.kube.create_secret(
            desired.key.namespace,
            names.launch_secret(desired.key.name, attempt),
            host_keys.launch_secret(text, client),
            owner=OwnerReference(Kind.MACHINE, desired.key.name, desired.uid),
            type_=LAUNCH_SECRET_TYPE,
            immutable=True,
        ):
            break
    now = world.now()
    token = names.client_token(world.cluster_id, desired.uid, attempt)
    intent = LaunchStatus(
        attempt=attempt,
        token=token,
        parameters_hash=_sha256(text),
        account_id=step.account_id,
        region=str(desired.spec.aws.region),
        subnet_id=str(step.declared["subnetId"]),
        requested_at=now,
        declared_hash=step.declared.digest,
    )
    fields: dict[str, object] = {
        "launch": written(intent),
        # What ran on an earlier instance says nothing about this one; the state version alone belongs to the machine.
        "system": {name: None for name in desired.status.get("system") or {} if name != "stateVersion"},
        "failedRevisions": None,
        "stop": None,
        "appliedFields": sorted(to_remember(step.declared)) or None,
        "appliedTagKeys": sorted(ec2.tags) if ec2 is not None else None,
    }
    if step.replacement is not None:
        # With the launch in one write: whoever finds it knows which of two instances is which. What the former one was
        # given counts again if it stays.
        given = {*desired.applied_fields, *to_remember(step.declared)}
        tag_keys = {*(desired.status.get("appliedTagKeys") or ()), *(ec2.tags if ec2 is not None else ())}
        fields |= {
            "replacement": written(step.replacement.model_copy(update={"attempt": attempt, "at": now})),
            "appliedFields": sorted(given) or None,
            "appliedTagKeys": sorted(tag_keys) or None,
        }
    if step.restarts is not None:
        fields["restarts"] = written(RestartsStatus(count=step.restarts, last_at=now, generation=desired.generation))
    body = await world.kube.write_intent(body, fields)
    world.answered_tokens.add(token)
    await _drop_older_secrets(desired, attempt, world)
    return body


async def _note_that_one_is_frozen(desired: Desired, world: World) -> None:
    """In the pins of the instance that serves, which outlive this process: it may die before the intent is written, and
    the edit be taken back. Then no launch comes that would remove what was frozen for this one."""
    namespace, name = desired.key.namespace, names.host_keys_secret(desired.key.name)
    secret = await world.kube.read_secret(namespace, name)
    if secret is not None and host_keys.pins(secret, desired.uid).instance_id == desired.instance_id:
        await world.kube.update_secret(namespace, secret, {host_keys.LAUNCHES_LEFT: b"true"})
        world.reads.forget_secret(namespace, name)


async def _drop_older_secrets(desired: Desired, attempt: int, world: World) -> None:
    """Attempts before this one made nothing that lives; their Secrets hold private keys for nobody."""
    launch = desired.launch
    oldest = launch.attempt if launch is not None else attempt
    for older in range(max(1, oldest, attempt - OLDER_SECRETS), attempt):
        await drop_launch_secret(desired, older, world)


async def drop_launch_secret(desired: Desired, attempt: int, world: World) -> None:
    """Remove an attempt's frozen request, if it is this machine's."""
    namespace = desired.key.namespace
    secret = await world.kube.read_secret(namespace, names.launch_secret(desired.key.name, attempt))
    if secret is not None and desired.uid in secret.owner_uids:
        await world.kube.remove_secret(namespace, secret)


_UNREFUSED = {"refusedGeneration": None, "doubtedAt": None, "refusedReason": None, "refusedMessage": None}


async def record_call(step: steps.RecordCall, desired: Desired, body: Body, world: World) -> Body:
    """Note when the attempt is asked for. One whose calls were all refused starts over: nothing of it is unknown."""
    launch = desired.launch
    if launch is not None and launch.refused_generation is not None:
        world.answered_tokens.add(launch.token)
    fields = {"attempt": step.attempt, "calledAt": _stamp(world.now()), **_UNREFUSED}
    return await world.kube.write_intent(body, {"launch": fields})


async def launch(intent: LaunchStatus, desired: Desired, body: Body, view: CloudView, world: World) -> Body:
    """Ask EC2 for the attempt's instance and write down its id, or what the refusal proves."""
    secret = await world.kube.read_secret(desired.key.namespace, names.launch_secret(desired.key.name, intent.attempt))
    text = secret.data.get(host_keys.REQUEST, b"").decode() if secret is not None else ""
    if _sha256(text) != intent.parameters_hash:
        await _refused(intent, desired, body, world)
        raise Retry(Reason.LAUNCH_PENDING, "the frozen launch request is lost; the next launch is another attempt")
    is_answered = intent.token in world.answered_tokens
    world.answered_tokens.discard(intent.token)  # until the answer is there, also if this pass is cancelled
    try:
        instance_id = await view.cloud.run_instances(request_of(text), intent.token)
    except OutcomeUnknown:
        raise
    except Lost as error:
        # The token's instance has died: the attempt is over. Or the token came with other parameters: look first.
        if error.reason is Reason.LAUNCH_AMBIGUOUS:
            return await _doubted(desired, body, world)
        return await close_launch(desired, body, world)
    except OperatorError as error:
        if is_answered and error.is_refusal:
            world.answered_tokens.add(intent.token)
        if error.is_refusal and error.reason is not Reason.THROTTLED:
            refused = await _refused(intent, desired, body, world, error)
            if error.reason is Reason.INSUFFICIENT_CAPACITY or isinstance(error, NotOffered):
                return await _elsewhere(error, intent, request_of(text), desired, refused, view, world)
        if isinstance(error, Blocked) and error.reason in _MENDED_BY_DEPLOYMENT and desired.deployment_uid is not None:
            raise Retry(error.reason, error.message) from error
        raise
    finally:
        view.note_write(desired.uid, intent.token)
    # From here on the id must not be lost, or the next pass has to find it by token: no cancellation may come between.
    return await asyncio.shield(record_instance(instance_id, intent.attempt, desired, body, world))


_MENDED_BY_DEPLOYMENT = frozenset({Reason.KEY_PAIR_NOT_READY, Reason.SECURITY_GROUP_NOT_READY})
"""EC2 does not know the key pair or group: not yet (EC2 Developer Guide, "Eventual consistency"), or until the
deployment puts back what was deleted by hand. The next attempt asks with what exists then."""


async def _refused(
    intent: LaunchStatus, desired: Desired, body: Body, world: World, error: OperatorError | None = None
) -> Body:
    if intent.token in world.answered_tokens:
        return await close_launch(desired, body, world, error)
    return await _doubted(desired, body, world)


async def _elsewhere(
    error: OperatorError,
    intent: LaunchStatus,
    request: LaunchRequest,
    desired: Desired,
    body: Body,
    view: CloudView,
    world: World,
) -> Body:
    """Note that this subnet has no room, or that EC2 does not offer the type in its zone. Where another one of the list
    may have some, the next attempt goes there at once; else the error stands, and its hold."""
    ec2 = desired.spec.target.ec2
    if ec2 is None or not ec2.subnet_ids or desired.is_replacing:
        raise error  # another instance beside one that lives is launched in its subnet
    is_bound = any(one.volume_id or desired.volume(one.name) is not None for one in ec2.volumes)
    now, refused_in = world.now(), view.subnet(request.subnet_id)
    if refused_in is None:
        raise error
    full = subnets.noted(desired.full_subnets, refused_in, request.instance_type, now, ec2.subnet_ids)
    fields: dict[str, object] = {"fullSubnets": [written(one) for one in full]}
    body = await written_answers.write(lambda _: fields, desired, body, world)
    possible = [one for one in ec2.subnet_ids if not is_bound or _zone(one, view) == refused_in.zone]
    if subnets.others_with_room(possible, request.subnet_id, request.instance_type, full, now):
        return body
    if is_bound:
        message = f"{error.message} Its data volumes keep the machine in {refused_in.zone}"
        raise Retry(Reason.INSUFFICIENT_CAPACITY, message, _after(error)) from error
    if len(set(ec2.subnet_ids)) == 1:
        raise error
    zones = ", ".join(sorted({one.zone for one in full}))
    message = f"{error.message} None of {FIELD_OF_SUBNETS} has room: {zones}"
    raise Retry(Reason.INSUFFICIENT_CAPACITY, message, _after(error)) from error


FIELD_OF_SUBNETS = "spec.target.ec2.subnetIds"


def _zone(subnet_id: str, view: CloudView) -> str | None:
    subnet = view.subnet(subnet_id)
    return subnet.zone if subnet is not None else None


def _after(error: OperatorError) -> timedelta | None:
    return error.after if isinstance(error, Retry) else None


async def close_launch(desired: Desired, body: Body, world: World, error: OperatorError | None = None) -> Body:
    """Write down that the attempt made nothing that lives, and what EC2 said."""
    fields: dict[str, object] = {
        "refusedGeneration": desired.generation,
        "doubtedAt": None,
        "refusedReason": error.reason.value if error is not None else None,
        "refusedMessage": error.message[:REFUSAL_SHOWN] if error is not None else None,
    }
    return await _write_launch(fields, desired, body, world)


async def _doubted(desired: Desired, body: Body, world: World) -> Body:
    return await _write_launch({"doubtedAt": _stamp(world.now())}, desired, body, world)


async def record_instance(instance_id: str, attempt: int, desired: Desired, body: Body, world: World) -> Body:
    """Write down the id; a write of its own, repeated until it stands."""
    fields: dict[str, object] = {"attempt": attempt, "instanceId": instance_id, **_UNREFUSED}
    if desired.launch is None:
        # The status was lost or copied from another life; the instance's own tags are what is left of the intent.
        fields |= {
            "token": names.client_token(world.cluster_id, desired.uid, attempt),
            "parametersHash": "unknown",
            "accountId": desired.account_id,
            "region": desired.spec.aws.region,
            "subnetId": "unknown",
            "requestedAt": _stamp(world.now()),
        }
    return await _write_launch(fields, desired, body, world)


async def _write_launch(fields: dict[str, object], desired: Desired, body: Body, world: World) -> Body:
    return await written_answers.write(lambda _: {"launch": fields}, desired, body, world)


def request_of(text: str) -> LaunchRequest:
    """The frozen request in a launch Secret."""
    return LaunchRequest.from_json(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
