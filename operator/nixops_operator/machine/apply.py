"""Carries out one step of a machine's plan. No decisions here: what a step means is written beside it in steps.py."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict, Lost, Retry
from nixops_operator.facts.kube import Body, Kind, OwnerReference
from nixops_operator.facts.nix import Evaluation, EvaluationRequest
from nixops_operator.informers.cloud import CloudInformer
from nixops_operator.machine import host_keys, steps
from nixops_operator.machine.observed import Desired, LaunchIntent, SystemInput
from nixops_operator.machine.steps import Step
from nixops_operator.world import World

Progress = Callable[[str], None]

LAUNCH_SECRET_TYPE = "nixops.dev/launch"  # noqa: S105 - a type's name
PINS_SECRET_TYPE = "nixops.dev/host-keys"  # noqa: S105 - a type's name
SECRET_LOST_AFTER = timedelta(minutes=5)
"""An attempt whose frozen request is lost is given up after this: by then EC2 shows what it started."""


async def apply(step: Step, desired: Desired, body: Body, world: World) -> Body:  # noqa: PLR0912 - one case a step
    """Do it. Returns the newest body, which an intent may have changed. Raises what ports raise; a job's errors stay
    with the job."""
    match step:
        case steps.RecordAccount(account_id):
            return await world.kube.write_intent(body, {"accountId": account_id})
        case steps.RecordLaunch():
            return await _record_launch(step, desired, body, world)
        case steps.Launch(intent):
            return await _launch(intent, desired, body, world)
        case steps.RecordInstance(instance_id, attempt):
            return await _record_instance(instance_id, attempt, desired, body, world)
        case steps.PinHostKey():
            await _pin_host_key(step, desired, world)
        case steps.StartInstance(instance_id):
            look = await _look(desired, world)
            await look.cloud.start_instance(instance_id)
            look.note_write(desired.uid)
        case steps.SetSecurityGroups(instance_id, group_ids):
            look = await _look(desired, world)
            await look.cloud.set_security_groups(instance_id, group_ids)
            look.note_write(desired.uid)
        case steps.TerminateInstance(instance_id):
            await _terminate(instance_id, desired, world)
        case steps.RetainInstance(instance_id):
            look = await _look(desired, world)
            await look.cloud.create_tags([instance_id], {names.RETAINED_TAG: "true"})
            look.note_write(desired.uid)
        case steps.Evaluate(job, given):
            world.jobs.start(job, desired.key, lambda _: _evaluate(given, world))
        case steps.Build(job, drv_path):
            world.jobs.start(job, desired.key, lambda progress: world.nix.build(drv_path, progress))
        case steps.Copy(job, toplevel):
            world.jobs.start(job, desired.key, lambda progress: _copy(toplevel, desired, world, progress))
        case steps.RecordActivation(request):
            activation = {
                "id": request.id,
                "unit": f"nixops-activate-{request.id}.service",
                "toplevel": request.toplevel,
                "attempt": request.attempt,
                "startedAt": _stamp(),
                "result": None,
            }
            return await world.kube.write_intent(body, {"activation": activation})
        case steps.Activate(job):
            world.jobs.start(job, desired.key, lambda _: _activate(step, desired, world), keep=False)
        case steps.Confirm(job, activation_id):
            world.jobs.start(job, desired.key, lambda _: _confirm(activation_id, desired, world), keep=False)
        case steps.Commit(job, activation_id):
            world.jobs.start(job, desired.key, lambda _: _commit(activation_id, desired, world), keep=False)
        case steps.Adopt(job, toplevel):
            world.jobs.start(job, desired.key, lambda _: _adopt(toplevel, desired, world), keep=False)
        case steps.RollBack(job, activation_id):
            world.jobs.start(job, desired.key, lambda _: _roll_back(activation_id, desired, world), keep=False)
        case _:
            assert_never(step)
    return body


# --- EC2 ----------------------------------------------------------------------------------------------------------


async def _look(desired: Desired, world: World) -> CloudInformer:
    uids = frozenset(filter(None, (desired.uid, desired.deployment_uid)))
    return await world.look_at_cloud(desired.key, uids, desired.spec.aws)


def _owner(desired: Desired) -> OwnerReference:
    return OwnerReference(Kind.MACHINE, desired.key.name, desired.uid)


async def _record_launch(step: steps.RecordLaunch, desired: Desired, body: Body, world: World) -> Body:
    private, public = host_keys.generate_key()
    for attempt in itertools.count(step.first_attempt):
        request = launch_request(step, desired, world.cluster_id, attempt, host_keys.user_data(private, public))
        text = json.dumps(request, sort_keys=True)
        secret = names.launch_secret(desired.key.name, attempt)
        # One that exists without an intent was frozen by a pass that never wrote it, here or in another operator: it is
        # left
        # alone, because that pass may be about to write it.
        if await world.kube.create_secret(
            desired.key.namespace,
            secret,
            {"request": text.encode()},
            owner=_owner(desired),
            type_=LAUNCH_SECRET_TYPE,
            immutable=True,
        ):
            break
    intent = {
        "attempt": attempt,
        "token": names.client_token(world.cluster_id, desired.uid, attempt),
        "parametersHash": hashlib.sha256(text.encode()).hexdigest(),
        "accountId": step.account_id,
        "region": desired.spec.aws.region,
        "subnetId": step.parameters.subnet.id,
        "requestedAt": _stamp(),
        "instanceId": None,
        "refusedGeneration": None,
    }
    # What ran on an earlier instance says nothing about this one; the state version alone belongs to the machine.
    forgotten = {name: None for name in desired.system if name != "stateVersion"}
    return await world.kube.write_intent(body, {"launch": intent, "system": forgotten})


def launch_request(
    step: steps.RecordLaunch, desired: Desired, cluster_id: str, attempt: int, user_data: str
) -> dict[str, Any]:
    """RunInstances' parameters as boto3 names them, without ClientToken, MinCount and MaxCount."""
    parameters = step.parameters
    tags = names.instance_tags(
        cluster_id, desired.key.namespace, desired.key.name, desired.uid, attempt, parameters.user_tags
    )
    listed = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
    request: dict[str, Any] = {
        "ImageId": parameters.image.id,
        "InstanceType": parameters.instance_type,
        "SubnetId": parameters.subnet.id,
        "UserData": user_data,
        "TagSpecifications": [{"ResourceType": kind, "Tags": listed} for kind in ("instance", "volume")],
        # User data holds the first host key: only the instance itself may read it, and only with a session token.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
    }
    if parameters.key_name is not None:
        request["KeyName"] = parameters.key_name
    if parameters.security_group_ids:
        request["SecurityGroupIds"] = list(parameters.security_group_ids)
    return request


async def _launch(intent: LaunchIntent, desired: Desired, body: Body, world: World) -> Body:
    look = await _look(desired, world)
    secret = await world.kube.get_secret(desired.key.namespace, names.launch_secret(desired.key.name, intent.attempt))
    text = secret["request"] if secret is not None else b""
    if hashlib.sha256(text).hexdigest() != intent.parameters_hash:
        if datetime.now(UTC) - intent.requested_at < SECRET_LOST_AFTER:
            message = "the frozen launch request is lost; waiting until EC2 would show what it may have started"
            raise Retry(Reason.LAUNCH_PENDING, message)
        return await _refuse(desired, body, world)
    try:
        instance_id = await look.cloud.run_instances(json.loads(text), intent.token)
    except Blocked as error:
        await _refuse(desired, body, world)
        if error.reason in _MENDED_BY_DEPLOYMENT and desired.deployment_uid is not None:
            raise Retry(error.reason, error.message) from error
        raise
    except Lost as error:
        if error.reason is Reason.LAUNCH_AMBIGUOUS:
            raise
        return await _refuse(desired, body, world)
    finally:
        look.note_write(desired.uid)
    # From here on the id must not be lost, or the next pass has to find it by token: no cancellation may come between.
    return await asyncio.shield(_record_instance(instance_id, intent.attempt, desired, body, world))


_MENDED_BY_DEPLOYMENT = frozenset({Reason.KEY_PAIR_NOT_READY, Reason.SECURITY_GROUP_NOT_READY})
"""EC2 does not know the key pair or group: not yet (EC2 Developer Guide, "Eventual consistency"), or until the
deployment puts back what was deleted by hand. The next attempt asks with what exists then."""


async def _refuse(desired: Desired, body: Body, world: World) -> Body:
    """EC2 made nothing of this attempt and never will: the next launch is another attempt."""
    return await world.kube.write_intent(body, {"launch": {"refusedGeneration": desired.generation}})


async def _record_instance(instance_id: str, attempt: int, desired: Desired, body: Body, world: World) -> Body:
    intent = {"launch": {"attempt": attempt, "instanceId": instance_id, "refusedGeneration": None}}
    if desired.launch is None:
        # The status was lost or copied from another life; the instance's own tags are what is left of the intent.
        intent["launch"] |= {
            "token": names.client_token(world.cluster_id, desired.uid, attempt),
            "parametersHash": "unknown",
            "accountId": desired.account_id,
            "region": desired.spec.aws.region,
            "subnetId": "unknown",
            "requestedAt": _stamp(),
        }
    while True:
        try:
            return await world.kube.write_intent(body, intent)
        except Conflict:
            fresh = await world.kube.get(desired.key)
            if fresh is None or fresh["metadata"]["uid"] != desired.uid:
                raise
            body = fresh


async def _pin_host_key(step: steps.PinHostKey, desired: Desired, world: World) -> None:
    namespace, machine = desired.key.namespace, desired.key.name
    secret = names.host_keys_secret(machine)
    if not step.is_pinned:
        data = host_keys.pins_secret(step.instance_id, (await _launched_host_key(step, desired, world),))
        if not await world.kube.create_secret(
            namespace, secret, data, owner=_owner(desired), type_=PINS_SECRET_TYPE, immutable=False
        ):
            await world.kube.patch_secret(namespace, secret, data)
    # Lower attempts may have been left by a crash. The mark in the pins goes last: until then this is done again.
    for attempt in range(1, step.attempt + 1):
        await world.kube.delete_secret(namespace, names.launch_secret(machine, attempt))
    await world.kube.patch_secret(namespace, secret, {host_keys.LAUNCHES_LEFT: b""})


async def _launched_host_key(step: steps.PinHostKey, desired: Desired, world: World) -> str:
    launch = await world.kube.get_secret(desired.key.namespace, names.launch_secret(desired.key.name, step.attempt))
    if launch is None:
        message = (
            f"the host key of {step.instance_id} is not known: its launch Secret is gone. Delete the instance to get "
            "another one (with disruption.replace: WhenLost), or delete this machine"
        )
        raise Blocked(Reason.HOST_KEY_UNKNOWN, message)
    return host_keys.public_key_of(json.loads(launch["request"])["UserData"])


async def _terminate(instance_id: str, desired: Desired, world: World) -> None:
    # The cache may be old, and a termination cannot be taken back: only what the API server says now counts.
    fresh = await world.kube.get(desired.key)
    if fresh is None or fresh["metadata"]["uid"] != desired.uid or not fresh["metadata"].get("deletionTimestamp"):
        raise Conflict(f"{desired.key} is not in deletion any more; nothing is terminated")
    look = await _look(desired, world)
    await look.cloud.terminate_instance(instance_id)
    look.note_write(desired.uid)


# --- the system ---------------------------------------------------------------------------------------------------


async def _evaluate(given: SystemInput, world: World) -> Evaluation:
    files = given.files or {}
    if given.nixpkgs_path is not None:
        prefix = given.nixpkgs_path.rstrip("/") + "/"
        nixpkgs = await world.nix.add_tree(
            {path.removeprefix(prefix): data for path, data in files.items() if path.startswith(prefix)}
        )
    else:
        nixpkgs = await world.default_nixpkgs()
    return await world.nix.evaluate(
        EvaluationRequest(
            name=given.name,
            deployment=given.deployment,
            uuid=given.uuid,
            system=given.system,
            is_ec2=given.is_ec2,
            nixpkgs=nixpkgs,
            source=await world.nix.add_tree(files) if given.files is not None else None,
            modules=given.modules,
            state_version=given.state_version,
            trusted_public_key=world.nix.public_key,
            arguments=given.arguments,
        )
    )


async def _copy(toplevel: str, desired: Desired, world: World, progress: Progress) -> None:
    host = world.hosts.of(desired.key).host()
    async with host.nix_daemon(world.nix.public_key) as socket:
        await world.nix.copy(toplevel, socket, progress)
    if not await host.root_next(toplevel):
        raise Retry(Reason.COPY_FAILED, "the copied system is not complete on the machine; copying again")


async def _activate(step: steps.Activate, desired: Desired, world: World) -> None:
    look = world.hosts.of(desired.key)
    host = look.host()
    if step.copy_job and not await host.root_next(step.request.toplevel):
        world.jobs.forget(step.copy_job)
        raise Retry(Reason.COPY_FAILED, "the copied system is gone from the machine; copying again")
    if not await host.claim(step.request):
        await look.refresh()
        raise Retry(Reason.ACTIVATING, "another activation holds the machine; following it")
    await host.activate(step.request)
    look.hurry()
    await look.refresh()


async def _confirm(activation_id: str, desired: Desired, world: World) -> None:
    look = world.hosts.of(desired.key)
    # The held connection proves nothing: it may outlive a closed firewall or a stopped sshd.
    fresh = await look.connect_anew()
    try:
        await fresh.confirm(activation_id)
    finally:
        await fresh.close()
    look.hurry()
    await look.refresh()


async def _commit(activation_id: str, desired: Desired, world: World) -> None:
    look = world.hosts.of(desired.key)
    await look.host().commit(activation_id)
    await look.refresh()


async def _adopt(toplevel: str, desired: Desired, world: World) -> None:
    look = world.hosts.of(desired.key)
    await look.host().adopt(toplevel)
    await look.refresh()


async def _roll_back(activation_id: str, desired: Desired, world: World) -> None:
    look = world.hosts.of(desired.key)
    await look.host().rollback(activation_id)
    look.hurry()
    await look.refresh()


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
