"""What the jobs of a build on a machine do: bring the derivations, start its unit, follow it to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from nixops_operator.api.durations import format_duration
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.facts.host import BuildLook, BuildRequest, BuildState
from nixops_operator.machine import steps
from nixops_operator.machine.desired import Desired
from nixops_operator.nix.realisation import Realisation, gib
from nixops_operator.nix.store_paths import name_of
from nixops_operator.ports.host import Host
from nixops_operator.world import World

Progress = Callable[[str], None]

LOOK_EVERY = timedelta(seconds=1)
SILENCE_MARGIN = timedelta(minutes=1)
"""Above the silence limit, with which the machine's own Nix ends a builder and says which one it was."""


async def copy_derivations(step: steps.CopyDerivations, desired: Desired, world: World, progress: Progress) -> None:
    """Nothing is sent if the system is there already."""
    host = world.hosts.of(desired.key).host()
    if await host.root_next(step.evaluation.toplevel):
        return
    async with host.nix_daemon(world.nix.public_key) as socket:
        await world.nix.copy_derivations(step.evaluation.drv_path, socket, progress)


async def realise(step: steps.Realise, desired: Desired, world: World, progress: Progress) -> str:
    """The toplevel, valid and rooted on the machine. Raises Blocked (`BuildFailed`), and Retry (`BuildFailed`,
    `Building`) where another time may do."""
    informer = world.hosts.of(desired.key)
    evaluation, policy = step.evaluation, world.policy
    request = BuildRequest(evaluation.drv_path, evaluation.toplevel, policy.build_timeout, policy.build_silent)
    host = informer.host()
    match await host.build(request):
        case BuildState.BUILT:
            return evaluation.toplevel
        case None:
            world.jobs.forget(step.copy_job)
            raise Retry(Reason.BUILDING, "the derivations are gone from the machine's store; copying them again")
    informer.hurry()  # the next look at the host shows that it builds
    await _followed(host, request, progress)
    return evaluation.toplevel


async def stop(desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().stop_build()
    await informer.refresh()


async def _followed(host: Host, request: BuildRequest, progress: Progress) -> None:
    realisation, offset = Realisation(), 0
    while True:
        look = await host.build_look(request.drv_path, offset)
        if look is None:
            raise Retry(Reason.BUILDING, "the build is gone from the machine; building again")
        realisation.read(look.log)
        offset = look.offset
        if look.has_more:
            continue
        if (error := trouble(look, realisation, request)) is not None:
            await host.stop_build()
            raise error
        if not (look.is_unit_active and look.state is BuildState.BUILDING):
            judge_end(look, realisation, request)
            return
        if text := realisation.text:
            progress(text)
        await asyncio.sleep(LOOK_EVERY.total_seconds())


def trouble(look: BuildLook, realisation: Realisation, request: BuildRequest) -> OperatorError | None:
    """Why a build that still runs is to be ended."""
    if look.state is not BuildState.BUILDING:
        return None
    if (why := realisation.should_wait) is not None:
        return Retry(Reason.BUILD_FAILED, why)
    if realisation.bytes_to_unpack > look.free_bytes:
        message = (
            f"the system needs {gib(realisation.bytes_to_unpack)} more in the machine's /nix/store, and "
            f"{gib(look.free_bytes)} are free: collect garbage there (nix-collect-garbage), or give it a larger disk"
        )
        return Retry(Reason.BUILD_FAILED, message)
    if look.is_unit_active and look.quiet > request.silent + SILENCE_MARGIN:
        silent = format_duration(request.silent)
        message = f"the build on the machine made no progress for {silent} (setting nix.build.silent)"
        return Blocked(Reason.BUILD_FAILED, f"{message}; {realisation.text}" if realisation.text else message)
    return None


def judge_end(look: BuildLook, realisation: Realisation, request: BuildRequest) -> None:
    """Raises what a build is to be told of that did not end well."""
    failure = realisation.failure()
    match look.state:
        case BuildState.BUILT:
            return
        case BuildState.BUILDING:
            raise Retry(Reason.BUILDING, "the build on the machine was cut, perhaps by a restart; going on with it")
        case BuildState.STOPPED:
            raise Retry(Reason.BUILDING, "the build on the machine was ended; something else was to be built there")
    match look.service_result:
        case "timeout":
            limit = format_duration(request.timeout)
            message = f"the build on the machine took longer than {limit} (setting nix.build.timeout)"
            raise Blocked(Reason.BUILD_FAILED, message)
        case "success":
            made = name_of(look.output) if look.output else "nothing"
            wanted = name_of(request.toplevel)
            message = f"the machine built {made}, where the evaluation says {wanted}; nothing of it is activated"
            raise Blocked(Reason.BUILD_FAILED, message)
    if (why := realisation.should_wait) is not None:
        raise Retry(Reason.BUILD_FAILED, why)
    if failure.message and not failure.is_passing:
        raise Blocked(Reason.BUILD_FAILED, failure.message)
    how = look.service_result or "an unknown result"
    raise Retry(Reason.BUILD_FAILED, failure.message or f"the build on the machine ended with {how}")
