"""Carries out one step of a machine's plan. No decisions here: what a step means is written beside it in steps.py."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from nixops_operator import in_use, names
from nixops_operator.account import RecordAccount
from nixops_operator.api.machine_spec import AwsSettings, DeletionPolicy
from nixops_operator.api.parse import deletion_view
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import ActivationStatus, RestartsStatus, written
from nixops_operator.errors import Blocked, Conflict
from nixops_operator.facts.host import Mode
from nixops_operator.facts.kube import Body, Kind, OwnerReference, Secret
from nixops_operator.machine import (
    addresses,
    attributes,
    generations,
    host_key_rotation,
    host_keys,
    keys,
    launch,
    observe_host,
    power,
    replacement,
    silence,
    steps,
    termination,
    volumes,
)
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.jobs import start_disowning, start_job
from nixops_operator.step import Step
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

PINS_SECRET_TYPE = "nixops.dev/host-keys"  # noqa: S105 - a type's name


async def apply(step: Step, desired: Desired | Leaving, body: Body, world: World) -> Body:
    """Do it. Returns the newest body, which an intent may have changed. Raises what ports raise; a job's errors stay
    with the job."""
    if isinstance(desired, Leaving):
        return await _apply_leaving(step, desired, body, world)
    match step:
        case in_use.RecordHeld() | in_use.HoldSecret() | in_use.ReleaseSecret() | in_use.GiveUpSecret():
            return await in_use.apply(step, desired, body, world)
        case RecordAccount(account_id):
            return await world.kube.write_intent(body, {"accountId": account_id})
        case steps.RecordLaunch():
            return await replacement.record_launch(step, desired, body, world)
        case steps.RecordCall():
            return await launch.record_call(step, desired, body, world)
        case steps.Launch(intent):
            return await launch.launch(intent, desired, body, await _view(desired, world), world)
        case steps.CloseLaunch():
            return await launch.close_launch(desired, body, world)
        case steps.RecordInstance(instance_id, attempt):
            return await launch.record_instance(instance_id, attempt, desired, body, world)
        case steps.PinHostKey():
            await _pin_host_key(step, desired, world)
        case steps.RecordRestart(count):
            restarts = RestartsStatus(count=count, last_at=world.now(), generation=desired.generation)
            return await world.kube.write_intent(body, {"restarts": written(restarts)})
        case steps.ForgetRestarts():
            return await world.kube.write_intent(body, {"restarts": None})
        case steps.RecordTagKeys(tag_keys):
            return await world.kube.write_intent(body, {"appliedTagKeys": list(tag_keys)})
        case steps.RecordFields(noted):
            return await world.kube.write_intent(body, {"appliedFields": list(noted)})
        case steps.RecordActivation():
            fields = {"activation": written(_intent(step, world.now()))}
            reverts = {"reverts": written(step.reverts)} if step.reverts is not None else {}
            answered = {"lastHandledRebootAt": step.reboot_request} if step.reboot_request is not None else {}
            return await world.kube.write_intent(body, fields | reverts | answered)
        case steps.RecordRevisions(failed, result):
            told = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in failed]
            ended = {"activation": {"result": result}} if result is not None else {}
            return await world.kube.write_intent(body, {"failedRevisions": told or None} | ended)
        case steps.RecordStop(stop):
            return await world.kube.write_intent(body, {"stop": written(stop)})
        case steps.ForgetStop():
            return await world.kube.write_intent(body, {"stop": None})
        case steps.StopInstance():
            await power.stop(step, desired, await _view(desired, world), world)
        case steps.RecordSilence(silent):
            return await world.kube.write_intent(body, {"silence": written(silent) if silent is not None else None})
        case steps.RebootInstance():
            await silence.restart(step, desired, await _view(desired, world), world)
        case steps.ChangeStopped() | steps.StartChanged():
            await power.change(step, desired, body, await _view(desired, world), world)
        case generations.RemoveGenerations():
            generations.start(step, desired, world)
        case host_key_rotation.ReplaceHostKey():
            host_key_rotation.start(step, desired, world)
        case steps.GoBack():
            return await replacement.go_back(step, desired, body, world)
        case steps.RecordReplacement(recorded):
            stands = written(recorded) if recorded is not None else None
            return await world.kube.write_intent(body, {"replacement": stands})
        case steps.TerminateOther():
            await replacement.terminate(step, desired, await _view(desired, world), world)
        case addresses.AddressStep():
            return await addresses.apply(step, desired, body, await _view(desired, world), world)
        case keys.DeliverKeys():
            keys.start(step, desired, world)
        case steps.VolumeStep():
            return await volumes.apply(step, desired, body, await _view(desired, world), world)
        case (
            steps.StartInstance() | steps.SetAttribute() | steps.RemoveTags() | steps.TagVolume() | steps.ModifyVolume()
        ):
            await _change_instance(step, desired, world)
        case _:
            start_job(step, desired, world)
    return body


async def _apply_leaving(step: Step, leaving: Leaving, body: Body, world: World) -> Body:
    match step:
        case steps.TerminateInstance(instance_id):
            await _terminate(instance_id, leaving, world)
        case steps.RetainInstance(instance_id, root_volume_id):
            view = await _view(leaving, world)
            retained = [one for one in (instance_id, root_volume_id) if one]
            await view.cloud.create_tags(retained, {names.RETAINED_TAG: "true"})
            view.note_write(leaving.uid)
        case addresses.AddressStep():
            if isinstance(step, addresses.ReleaseAddress):
                await _proof_of_deletion(leaving, world)
            return await addresses.apply(step, leaving, body, await _view(leaving, world), world)
        case steps.VolumeStep():
            return await volumes.apply(step, leaving, body, await _view(leaving, world), world)
        case steps.DisownHost():
            start_disowning(step, leaving, world)
        case _:
            raise AssertionError(f"{step} is no step of the way out")
    return body


def _intent(step: steps.RecordActivation, now: datetime) -> ActivationStatus:
    request = step.request
    return ActivationStatus(
        id=request.id,
        unit=f"nixops-activate-{request.id}.service",
        toplevel=request.toplevel,
        attempt=request.attempt,
        started_at=now,
        boot_id=step.boot_id,
        repeated=step.is_repeat,
        restarts=request.mode is Mode.RESTART,
    )


async def _view(desired: Desired | Leaving, world: World) -> CloudView:
    if isinstance(desired, Leaving):
        return await world.cloud(desired.key, desired.uids, desired.aws or AwsSettings(), is_leaving=True)
    return await world.cloud(desired.key, desired.uids, desired.spec.aws)


async def _change_instance(
    step: steps.StartInstance | steps.SetAttribute | steps.RemoveTags | steps.TagVolume | steps.ModifyVolume,
    desired: Desired,
    world: World,
) -> None:
    view = await _view(desired, world)
    try:
        match step:
            case steps.StartInstance(instance_id):
                await view.cloud.start_instance(instance_id)
            case steps.SetAttribute():
                await attributes.carry_out(step, view.cloud)
            case steps.RemoveTags(resource_ids, keys):
                await view.cloud.delete_tags(resource_ids, keys)
            case steps.TagVolume(volume_id, tags):
                await view.cloud.create_tags([volume_id], dict(tags))
            case steps.ModifyVolume(volume_id, changes):
                await view.cloud.modify_volume(volume_id, changes)
    finally:
        # Also after an error: a call whose reply was lost may have been carried out.
        view.note_write(desired.uid)


async def _pin_host_key(step: steps.PinHostKey, desired: Desired, world: World) -> None:
    namespace, machine = desired.key.namespace, desired.key.name
    name = names.host_keys_secret(machine)
    secret = await world.kube.read_secret(namespace, name)
    host_keys.pins(secret, desired.uid)  # raises for a Secret that is not this machine's
    try:
        if not step.is_pinned:
            found = await _launched(step, desired, secret, world)
            client = found.client_key or await observe_host.known_client_key(desired, world)
            data = host_keys.pins_secret(step.instance_id, found.host_keys, client)
            if secret is not None:
                secret = await world.kube.update_secret(namespace, secret, data)
            elif not await world.kube.create_secret(
                namespace,
                name,
                data,
                owner=OwnerReference(Kind.MACHINE, machine, desired.uid),
                type_=PINS_SECRET_TYPE,
                immutable=False,
            ):
                raise Conflict(f"Secret {name} was made meanwhile")
            else:
                secret = await world.kube.read_secret(namespace, name)
        # Other attempts may have been left by a crash. The mark in the pins goes last: until then this is done again.
        for attempt in range(max(1, step.attempt - launch.OLDER_SECRETS), step.attempt + 1):
            await launch.drop_launch_secret(desired, attempt, world)
        if secret is not None:
            await world.kube.update_secret(namespace, secret, {host_keys.LAUNCHES_LEFT: b""})
    finally:
        world.reads.forget_secret(namespace, name)


async def _launched(step: steps.PinHostKey, desired: Desired, known: Secret | None, world: World) -> host_keys.Launched:
    """From the frozen request; where that is gone, from what is known of this very instance otherwise."""
    secret = await world.kube.read_secret(desired.key.namespace, names.launch_secret(desired.key.name, step.attempt))
    found = host_keys.launched(secret, desired.uid)
    if found is not None:
        return found
    given_up = desired.replacement
    if given_up is not None and given_up.refused and host_keys.are_of_another(known, step.instance_id):
        return host_keys.restored(known, step.instance_id, given_up.host_keys)
    told = tuple(desired.status.get("hostKeys") or ())
    if told and (desired.status.get("instance") or {}).get("id") == step.instance_id:
        return host_keys.restored(known, step.instance_id, told)
    message = (
        f"the host key of {step.instance_id} is not known: its launch Secret is gone. Delete the instance to get "
        "another one (with disruption.replace: WhenLost), or delete this machine"
    )
    raise Blocked(Reason.HOST_KEY_UNKNOWN, message)


async def _proof_of_deletion(leaving: Leaving, world: World) -> Body:
    """The object as it is now, in deletion, with things that are to go along. Raises Conflict."""
    fresh = await world.kube.get(leaving.key)
    if fresh is None or fresh["metadata"]["uid"] != leaving.uid or not fresh["metadata"].get("deletionTimestamp"):
        raise Conflict(f"{leaving.key} is not in deletion any more; nothing is destroyed")
    if deletion_view(fresh).policy is not DeletionPolicy.DELETE:
        raise Conflict(f"{leaving.key} is to be retained now; nothing is destroyed")
    return fresh


async def _terminate(instance_id: str, leaving: Leaving, world: World) -> None:
    """Destruction needs fresh proof: of the object, its policy, and the instance's tags."""
    fresh = await _proof_of_deletion(leaving, world)
    spec = deletion_view(fresh)
    if protected_by := [field for field, is_on in spec.protections.items() if is_on]:
        message = (
            f"{instance_id} is protected by spec.target.ec2.{protected_by[0]}: set it to false to have the instance "
            "terminated, or spec.deletionPolicy to Retain to let it live"
        )
        raise Blocked(Reason.CHANGE_FORBIDDEN, message)
    # What the spec says is off, and what it once had switched on.
    applied = (fresh.get("status") or {}).get("appliedFields") or ()
    lifted = {*spec.protections, *applied}
    await termination.terminate(instance_id, leaving, lifted, await _view(leaving, world), world)
