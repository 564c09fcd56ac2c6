"""How many generations of the system profile a machine keeps. Pure decisions, and the step that carries them out.

Each generation protects a whole system from the garbage collector and has its boot entry: where nobody removes any,
/nix fills up, and /boot sooner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.reasons import ConditionType
from nixops_operator.jobs import Failed
from nixops_operator.machine import activation
from nixops_operator.planning import Area, Finding
from nixops_operator.step import Identity, JobStep
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from nixops_operator.facts.host import HostFacts
    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed
    from nixops_operator.world import World


@dataclass(frozen=True)
class RemoveGenerations(JobStep):
    """Repeatable: what has gone is gone, and what is in use the machine keeps."""

    numbers: tuple[int, ...]

    @property
    def subject(self) -> Identity:
        return (self.job,)


def surplus(facts: HostFacts, keep: int) -> tuple[int, ...]:
    """Numbers of those that are not among the newest, and that nothing needs."""
    return tuple(one.number for one in facts.generations[:-keep] if not one.is_used)


def kept(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """No more than are to be kept, once the declared system runs and is what the machine boots, or was refused as that:
    their boot entries may be what leaves no room for its own."""
    facts, toplevel = observed.host.facts, observed.toplevel
    if facts is None or toplevel is None:
        return None
    refused = activation.refused_boot_entry(desired, observed)
    if facts.boot_entry_unsure and not (isinstance(refused, Failed) and not refused.is_due):
        return None
    if not facts.current_system == facts.profile_system == toplevel:
        return None
    numbers = surplus(facts, desired.spec.activation.keep_generations)
    if not numbers:
        return None
    step = RemoveGenerations(job_names.generations(desired.host_id, f"{numbers[0]}-{numbers[-1]}"), numbers)
    match observed.jobs.get(step.job):
        case None:
            return Finding(Outcome.IN_SYNC, steps=(step,))
        case Failed(error, is_due):
            message = f"{len(numbers)} generations more than activation.keepGenerations: {error.message}"
            told = Finding(Outcome.REPORTED, error.reason, message, ConditionType.UP_TO_DATE, is_drift=False)
            return replace(told, differs=Area.HOST, steps=(step,) if is_due else ())
        case _:
            return None


def start(step: RemoveGenerations, desired: Desired, world: World) -> None:
    """As a job: nothing in a pass waits for a host."""
    world.jobs.start(step.job, desired.key, lambda _: _remove(step, desired, world), keep=False)


async def _remove(step: RemoveGenerations, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    await informer.host().remove_generations(step.numbers)
    await informer.refresh()
