"""The host key of an EC2 machine is replaced at first contact, before anything else reaches it: user data, where the
first one is, can be read later by whoever may call ec2:DescribeInstanceAttribute, or reach the metadata service from
the machine (EC2 User Guide, "Run commands on your Linux instance at launch").

    accept the first ─► the machine makes another ─► both are pinned ─► it shows the other ─► seen, on a connection that
                                                                                              accepts no first one
                                                                                                    │
                                                                             only the other is pinned ◄┘

Both are accepted from before the exchange until it was seen: cut anywhere, on either side, the next try goes on with
what the machine has staged, or has installed. Nobody is ever locked out, and no key is ever taken on trust: the new one
comes over the connection that the old one vouches for, and its private half never leaves the machine.

What others gave a host key is theirs: a given host keeps its own, and so does an instance whose key was changed since.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nixops_operator import job_names, names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Conflict, OperatorError, Retry
from nixops_operator.jobs import Failed
from nixops_operator.machine import host_keys
from nixops_operator.planning import Finding, found_error
from nixops_operator.step import JobStep
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from nixops_operator.facts.host import HostTarget
    from nixops_operator.facts.kube import Secret
    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed
    from nixops_operator.world import World

SHOWN_WITHIN = 10.0
"""s, from the exchange until sshd has read it; then the try ends, and the next one asks again."""
_KNOCK_EVERY = 0.5  # s
_NOT_YET = (Reason.HOST_KEY_MISMATCH, Reason.CONNECTION_REFUSED)


@dataclass(frozen=True)
class ReplaceHostKey(JobStep):
    """Repeatable at any point: what was done is seen in the Secret, and on the machine."""


def replaced(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The key that the machine shows was never outside of it."""
    cloud, kind = observed.cloud, ConditionType.REACHABLE
    if cloud is None or not cloud.pins.is_known or cloud.pins.instance_id != desired.instance_id:
        return None
    step = ReplaceHostKey(job_names.host_key(desired.host_id))
    message = f"replacing the host key of {observed.host.address}, which its user data held"
    working = Finding(Outcome.WORKING, Reason.PROVISIONING, message, kind)
    match observed.jobs.get(step.job):
        case None:
            return replace(working, steps=(step,))
        case Failed(error, is_due):
            return replace(found_error(error, kind), steps=(step,) if is_due else ())
        case _:
            return working


# --- the step, carried out ----------------------------------------------------------------------------------------


def start(step: ReplaceHostKey, desired: Desired, world: World) -> None:
    """As a job: nothing in a pass waits for a host."""
    world.jobs.start(step.job, desired.key, lambda _: _replace(desired, world), keep=False)


async def _replace(desired: Desired, world: World) -> None:
    """Over connections of its own: the held one is made anew when the pins change."""
    secret, pins = await _pins(desired, world)
    if not pins.is_known or pins.instance_id != desired.instance_id:
        return
    target = replace(world.hosts.of(desired.key).target, host_keys=pins.keys)
    connection = await world.hosts.hosts.connect(target)
    try:
        new = pins.staged
        if new is None or not await connection.install_host_key(new):
            new = await connection.stage_host_key()
            secret = await _write(secret, host_keys.with_staged(pins.keys, new), desired, world)
            if not await connection.install_host_key(new):
                raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{target.address} has lost the host key that it staged")
    finally:
        await connection.close()
    await _seen(replace(target, host_keys=(new,)), world)
    await _write(secret, host_keys.replaced_by(new), desired, world)


async def _pins(desired: Desired, world: World) -> tuple[Secret, host_keys.Pins]:
    name = names.host_keys_secret(desired.key.name)
    secret = await world.kube.read_secret(desired.key.namespace, name)
    if secret is None:
        raise Conflict(f"Secret {name} was removed meanwhile")
    return secret, host_keys.pins(secret, desired.uid)


async def _write(secret: Secret, data: dict[str, bytes], desired: Desired, world: World) -> Secret:
    try:
        return await world.kube.update_secret(desired.key.namespace, secret, data)
    finally:
        world.reads.forget_secret(desired.key.namespace, secret.name)


async def _seen(target: HostTarget, world: World) -> None:
    """The machine shows the key to a connection that accepts no other. sshd may still be about to read it."""
    error: OperatorError | None = None
    try:
        async with asyncio.timeout(SHOWN_WITHIN):
            while True:
                try:
                    connection = await world.hosts.hosts.connect(target)
                except OperatorError as not_yet:
                    if not_yet.reason not in _NOT_YET:
                        raise
                    error = not_yet
                    await asyncio.sleep(_KNOCK_EVERY)
                else:
                    await connection.close()
                    return
    except TimeoutError:
        said = f": {error.message}" if error is not None else ""
        message = f"{target.address} does not show its new host key{said}"
        raise Retry(Reason.PROGRESSING_WITH_RETRY, message) from error
