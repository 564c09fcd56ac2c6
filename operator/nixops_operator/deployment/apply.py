"""Carries out one step of a deployment's plan. No decisions here: each step stands with its thing."""

from __future__ import annotations

from nixops_operator import in_use
from nixops_operator.account import RecordAccount
from nixops_operator.deployment import account, creations, key_pairs, machines, retained, security_groups
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.facts.kube import Body
from nixops_operator.informers.cloud import CloudView
from nixops_operator.step import Step
from nixops_operator.world import World


async def apply(step: Step, given: Desired | Leaving, body: Body, world: World) -> Body:
    """Do it. Returns the newest body, which an intent may have changed. Raises what ports raise."""
    match step:
        case in_use.RecordHeld() | in_use.HoldSecret() | in_use.ReleaseSecret() | in_use.GiveUpSecret():
            return await in_use.apply(step, given, body, world)
        case RecordAccount(account_id):
            return await world.kube.write_intent(body, {"accountId": account_id})
        case creations.RecordCreation():
            return await creations.record(step, body, world)
        case creations.ForgetThing():
            return await creations.forget(step, body, world)
        case machines.SuspendMachine():
            await machines.suspend(step, world)
        case machines.PassOn():
            await machines.pass_on(step, world)
        case machines.RetainMachine():
            await machines.retain(step, world)
        case machines.DeleteMachine():
            await machines.delete(step, given, body, world)
        case key_pairs.KeepKey():
            await key_pairs.keep(step, given, world)
        case key_pairs.GenerateKey() | machines.CreateMachine() | machines.ReplaceMachineSpec():
            await _apply_as_declared(step, given, world)
        case _:
            await _apply_in_ec2(step, given, body, world)
    return body


async def _apply_as_declared(
    step: key_pairs.GenerateKey | machines.CreateMachine | machines.ReplaceMachineSpec,
    given: Desired | Leaving,
    world: World,
) -> None:
    """Nothing is made for a deployment in deletion: its namespace may be going, too."""
    assert isinstance(given, Desired)  # noqa: S101 - the way out has no such steps
    match step:
        case key_pairs.GenerateKey():
            await key_pairs.generate(step, given, world)
        case machines.CreateMachine():
            await machines.create(step, given, world)
        case machines.ReplaceMachineSpec():
            await machines.replace_spec(step, given, world)


async def _apply_in_ec2(step: Step, given: Desired | Leaving, body: Body, world: World) -> None:
    view = await account.look(given, world)
    try:
        await _call(step, given, body, view, world)
    finally:
        # Also after an error: a call whose reply was lost may have been carried out.
        is_making = isinstance(step, key_pairs.ImportKeyPair | security_groups.CreateGroup)
        view.note_write(given.uid, *(step.subject if is_making else ()))


async def _call(step: Step, given: Desired | Leaving, body: Body, view: CloudView, world: World) -> None:
    match step:
        case key_pairs.ImportKeyPair() if isinstance(given, Desired):
            await key_pairs.import_pair(step, given, view, world)
        case key_pairs.DeleteKeyPair():
            await key_pairs.delete(step, given, body, view, world)
        case security_groups.CreateGroup() if isinstance(given, Desired):
            await security_groups.create(step, given, view, world)
        case security_groups.AuthorizeRules():
            await security_groups.authorize(step, view)
        case security_groups.RevokeRules():
            await security_groups.revoke(step, view)
        case security_groups.DescribeRules():
            await security_groups.describe(step, view)
        case security_groups.DeleteGroup():
            await security_groups.delete(step, given, body, view, world)
        case retained.RetainThing():
            await retained.tag(step, view)
        case _:
            raise TypeError(f"no way to carry out {step}")
