"""What was asked of EC2 and is not shown by it yet: written down before each call, kept until EC2 shows the thing or it
is proven that there is none.

A security group or key pair has no token by which a lost reply is asked for again, and EC2 may show what it made only
minutes later, by tags later than by id. On the way out nothing may be left behind, so each name on this list is waited
for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nixops_operator import absence
from nixops_operator.api.status import CreationStatus, written
from nixops_operator.deployment.desired import Desired, Leaving, creations_of
from nixops_operator.deployment.observed import ObservedNetwork
from nixops_operator.facts.kube import Body
from nixops_operator.step import Identity, Step
from nixops_operator.world import World

Thing = Literal["SecurityGroup", "KeyPair"]


@dataclass(frozen=True)
class RecordCreation(Step):
    """Write down that EC2 is about to be asked (again) for this. It waits with the call for which it stands."""

    name: str
    thing: Thing
    call: Identity

    @property
    def subject(self) -> Identity:
        return (self.name,)

    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (self.call,)


@dataclass(frozen=True)
class ForgetThing(Step):
    """EC2 has answered its deletion: it needs not be waited for."""

    name: str
    thing_id: str

    @property
    def subject(self) -> Identity:
        return (self.name,)


def unshown(given: Desired | Leaving, network: ObservedNetwork) -> tuple[CreationStatus, ...]:
    """The creations that EC2 does not show and that are not proven to have made nothing."""
    return tuple(
        one
        for one in given.creations
        if not network.shows(one.name)
        and not absence.is_gone(one.called_at, network.looked_at, network.missing_for.get(one.name))
    )


def unseen(leaving: Leaving, network: ObservedNetwork) -> tuple[str, ...]:
    """Names or ids of what may exist though the newest look does not show it: creations, and what was shown before."""
    asked_for = [one.name for one in unshown(leaving, network)]
    return tuple(sorted({*asked_for, *(name for name in _recorded(leaving) if is_missed(name, network))}))


def is_missed(name: str, network: ObservedNetwork) -> bool:
    """Whether the newest look misses something that was shown before, and only a faulty look may be why."""
    missing_for = network.missing_for.get(name)
    return not network.shows(name) and (missing_for is None or missing_for < absence.SPAN)


def watched(given: Desired | Leaving) -> Iterable[str]:
    """Names and ids whose absence counts."""
    return (*(one.name for one in given.creations), *_recorded(given))


def _recorded(given: Desired | Leaving) -> tuple[str, ...]:
    return (*(pair.key_name for pair in given.key_pairs), *(group.group_id for group in given.security_groups))


async def record(step: RecordCreation, body: Body, world: World) -> Body:
    newest = {one.name: one for one in creations_of(body.get("status") or {})}
    newest[step.name] = CreationStatus(name=step.name, kind=step.thing, called_at=world.now())
    return await world.kube.write_intent(body, {"creations": [written(one) for _, one in sorted(newest.items())]})


async def forget(step: ForgetThing, body: Body, world: World) -> Body:
    """Leaves the status as it is where nothing there names the thing."""
    status = body.get("status") or {}
    fields = {
        "creations": [one for one in status.get("creations") or () if one["name"] != step.name],
        "keyPairs": [one for one in status.get("keyPairs") or () if one["keyName"] != step.name],
        "securityGroups": [one for one in status.get("securityGroups") or () if one["groupId"] != step.thing_id],
    }
    changed = {name: left for name, left in fields.items() if len(left) != len(status.get(name) or ())}
    return await world.kube.write_intent(body, changed) if changed else body
