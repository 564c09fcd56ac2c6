"""What a machine's jobs do: evaluate, build, copy, and each step of an activation on the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import EvaluationFailed, Retry, UnknownFact
from nixops_operator.facts.host import Mode
from nixops_operator.facts.nix import (
    Evaluation,
    EvaluationRequest,
    Facts,
    Peer,
    Source,
    SystemInput,
    Told,
    Waiting,
    configuration_path,
)
from nixops_operator.machine import build_on_target_job, steps, volumes
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observe_host import owner_of
from nixops_operator.machine.observe_system import reader_of
from nixops_operator.shared_facts import Known
from nixops_operator.step import Step
from nixops_operator.world import World

Progress = Callable[[str], None]


def start_job(step: Step, desired: Desired, world: World) -> None:
    """Start what the step asks for, unless it runs or is known already."""
    start, key = world.jobs.start, desired.key
    match step:
        case steps.Fetch(job, tree):
            start(job, key, lambda progress: world.tree(tree, progress))
        case steps.Evaluate(job, given, is_outdated):
            if is_outdated:
                world.jobs.forget(job)
            start(job, key, lambda _: _evaluate(given, desired, world))
        case steps.Build(job, drv_path):
            start(job, key, lambda progress: world.nix.build(drv_path, progress))
        case steps.Copy(job, toplevel):
            start(job, key, lambda progress: _copy(toplevel, desired, world, progress))
        case steps.CopyDerivations(job):
            start(job, key, lambda progress: build_on_target_job.copy_derivations(step, desired, world, progress))
        case steps.Realise(job):
            start(job, key, lambda progress: build_on_target_job.realise(step, desired, world, progress))
        case steps.StopBuild(job):
            start(job, key, lambda _: build_on_target_job.stop(desired, world), keep=False)
        case steps.OwnHost(job):
            start(job, key, lambda _: _own(step, desired, world), keep=False)
        case steps.DetachVolume(job):
            start(job, key, lambda _: volumes.detach(step, desired, world), keep=False)
        case steps.GrowRoot(job):
            start(job, key, lambda _: world.hosts.of(key).host().grow_root())
        case steps.GrowVolume(job, volume_id, device):
            start(job, key, lambda _: world.hosts.of(key).host().grow_volume(volume_id, device))
        case steps.DryActivate(job, toplevel):
            start(job, key, lambda _: world.hosts.of(key).host().dry_activate(toplevel))
        case steps.Activate(job):
            start(job, key, lambda _: _activate(step, desired, world), keep=False)
        case steps.Hold(job):
            start(job, key, lambda _: _hold(step, desired, world), keep=False)
        case steps.Confirm(job, activation_id):
            start(job, key, lambda _: _confirm(activation_id, desired, world), keep=False)
        case steps.Commit(job, activation_id):
            start(job, key, lambda _: _commit(activation_id, desired, world), keep=False)
        case steps.Adopt(job, toplevel):
            start(job, key, lambda _: _adopt(toplevel, desired, world), keep=False)
        case steps.Restart(job, activation_id):
            start(job, key, lambda _: _restart(activation_id, desired, world), keep=False)
        case steps.RollBack(job, activation_id):
            start(job, key, lambda _: _roll_back(activation_id, desired, world), keep=False)
        case _:
            raise AssertionError(f"{step} is no step of a machine")


def start_disowning(step: steps.DisownHost, leaving: Leaving, world: World) -> None:
    """As start_job, for one in deletion."""
    world.jobs.start(step.job, leaving.key, lambda _: _disown(leaving, world), keep=False)


async def _own(step: steps.OwnHost, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().own(step.owner, step.instead_of)
    await informer.refresh()


async def _disown(leaving: Leaving, world: World) -> None:
    informer = world.hosts.of(leaving.key)
    await informer.host().disown(owner_of(leaving, world))
    await informer.refresh()


async def _evaluate(given: SystemInput, desired: Desired, world: World) -> Evaluation | Waiting:
    """What it reads of other machines is seen when it reads it: most configurations read nothing, and whatever is given
    to an evaluation costs it something."""
    known, tenant = world.facts.known_to(reader_of(desired, world)), desired.key.namespace
    peers = _mentioned(given, known.configurations)
    while True:
        request = await _request(given, tenant, world)
        request = replace(request, facts=await _facts(known, peers, tenant, world))
        told: Told
        try:
            evaluation: Evaluation | Waiting = await world.nix.evaluate(request)
            told = evaluation.told
        except UnknownFact as error:
            evaluation, told = Waiting(error.path, error.told), error.told
        except EvaluationFailed as error:
            if not _lacking(known, peers, error.told):
                raise
            told = error.told
        if not _lacking(known, peers, told):
            return evaluation
        peers = frozenset(known.configurations)


_MENTION = re.compile(r"\b(?:nodes|machines)\.([a-z0-9-]+)")


def _mentioned(given: SystemInput, configurations: Iterable[str]) -> frozenset[str]:
    """Machines that the configuration's texts name as NixOps' networks do. A guess that saves an evaluation."""
    texts = [module.text for module in given.modules if module.text is not None]
    texts += [content.decode(errors="replace") for content in (given.files or {}).values()]
    return frozenset(name for text in texts for name in _MENTION.findall(text)) & frozenset(configurations)


def _lacking(known: Known, peers: frozenset[str], told: Told) -> bool:
    """Whether another machine's configuration was read that is known, and was not given."""
    return any(configuration_path(name) in told for name in known.configurations.keys() - peers)


async def _facts(known: Known, peers: frozenset[str], tenant: str, world: World) -> Facts:
    given = {name: known.configurations[name] for name in sorted(peers)}
    return Facts(
        known.values, {name: Peer(await _request(one, tenant, world), why) for name, (one, why) in given.items()}
    )


async def _request(given: SystemInput, tenant: str, world: World) -> EvaluationRequest:
    source = await _source(given, world)
    if given.nixpkgs is not None:
        nixpkgs, folder = await world.tree(given.nixpkgs), ""
    else:
        assert source is not None and given.nixpkgs_path is not None  # noqa: S101, PT018 - shown by the spec
        nixpkgs, folder = source, given.nixpkgs_path.strip("/")
    return EvaluationRequest(
        name=given.name,
        deployment=given.deployment,
        uuid=given.uuid,
        system=given.system,
        is_ec2=given.is_ec2,
        nixpkgs=nixpkgs,
        nixpkgs_folder=folder,
        source=source,
        modules=given.modules,
        state_version=given.state_version,
        trusted_public_key=world.nix.public_key,
        tenant=tenant,
        arguments=given.arguments,
        keys=given.keys,
    )


async def _source(given: SystemInput, world: World) -> Source | None:
    if given.archive is not None:
        return await world.tree(given.archive)
    return await world.nix.add_tree(given.files) if given.files is not None else None


async def _copy(toplevel: str, desired: Desired, world: World, progress: Progress) -> None:
    host = world.hosts.of(desired.key).host()
    async with host.nix_daemon(world.nix.public_key) as socket:
        await world.nix.copy(toplevel, socket, progress)
    if not await host.root_next(toplevel):
        raise Retry(Reason.COPY_FAILED, "the copied system is not complete on the machine; copying again")


async def _activate(step: steps.Activate, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    host = informer.host()
    if step.brought_by and not await host.root_next(step.request.toplevel):
        world.jobs.forget(step.brought_by)
        raise Retry(Reason.COPY_FAILED, "the system is gone from the machine's store; bringing it there again")
    if not await host.claim(step.request):
        await informer.refresh()
        raise Retry(Reason.ACTIVATING, "another activation holds the machine; following it")
    match step.request.mode:
        case Mode.BOOT:
            await host.commit(step.request.id)
        case Mode.RESTART:
            await host.restart(step.request.id)
        case _:
            await host.activate(step.request)
    informer.hurry()
    await informer.refresh()


async def _hold(step: steps.Hold, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    fresh = await informer.connect_anew()
    try:
        await fresh.hold(step.activation_id, step.budget)
    finally:
        await fresh.close()
    await informer.refresh()


async def _confirm(activation_id: str, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    # The held connection proves nothing: it may outlive a closed firewall or a stopped sshd.
    fresh = await informer.connect_anew()
    try:
        await fresh.confirm(activation_id)
    finally:
        await fresh.close()
    informer.hurry()
    await informer.refresh()


async def _commit(activation_id: str, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().commit(activation_id)
    await informer.refresh()


async def _adopt(toplevel: str, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().adopt(toplevel)
    await informer.refresh()


async def _restart(activation_id: str, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().restart(activation_id)
    informer.hurry()
    await informer.refresh()


async def _roll_back(activation_id: str, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().rollback(activation_id)
    informer.hurry()
    await informer.refresh()
