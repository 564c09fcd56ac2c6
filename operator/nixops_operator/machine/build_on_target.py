"""The machine builds its own system: what it needs for that, and when a build of its is of no use. Pure.

    evaluated ─ derivations are copied ─► realised by a detached unit ─► valid and rooted there ─► activation

The machine's own Nix does it, with its sandbox and its binary caches. Derivations and sources are named by their
content, so they need nobody's signature; results never travel. The unit goes on when the operator dies and is found
again by the derivation's hash; where the machine restarts, it begins again with what its store has by then.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from nixops_operator import job_names
from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import activation, steps
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.planning import Finding, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome

LEAST_FREE_BYTES = 256 * 1024**2
"""In the machine's store, or nothing is begun: derivations alone take tens of MB, and a full disk hurts what runs."""

_BUILT = ConditionType.CONFIGURATION_BUILT


def built(desired: Desired, observed: Observed) -> Finding | None:
    """None when the system is in the machine's store."""
    facts, evaluation = observed.host.facts, observed.evaluation
    if facts is None or evaluation is None or is_there(observed):
        return None
    if facts.free_bytes < LEAST_FREE_BYTES:
        free, least = facts.free_bytes // 1024**2, LEAST_FREE_BYTES // 1024**2
        message = (
            f"{observed.host.address} has {free} MiB free in /nix/store, and nothing is built with less than {least} "
            "MiB: collect garbage there (nix-collect-garbage), or give it a larger disk"
        )
        return Finding(Outcome.RETRYING, Reason.BUILD_FAILED, message, _BUILT)
    copy, realise = _steps(desired, observed)
    building = Finding(Outcome.WORKING, Reason.BUILDING, f"building the system on {observed.host.address}", _BUILT)
    copying = replace(building, message=f"{building.message}: copying its derivations")
    job = observed.jobs.get(realise.job)
    if isinstance(job, Done):
        return None
    is_waiting = job is None or (isinstance(job, Failed) and job.is_due)
    copied = observed.jobs.get(copy.job)
    if is_waiting and not isinstance(copied, Done):
        return _answer(copied, copy, copying)
    return _answer(job, realise, building)


def is_there(observed: Observed) -> bool:
    """Whether the machine runs the evaluated system, or goes to it: then its store has it."""
    facts, toplevel = observed.host.facts, observed.toplevel
    if facts is None or toplevel is None:
        return False
    running = activation.under_way(facts)
    return facts.current_system == toplevel or (running is not None and running.toplevel == toplevel)


def state(desired: Desired, observed: Observed) -> JobState | None:
    """Of the build's job; before it begins, of a copy of the derivations that has not ended well."""
    if observed.evaluation is None:
        return None
    copy, realise = _steps(desired, observed)
    built, copied = observed.jobs.get(realise.job), observed.jobs.get(copy.job)
    return copied if built is None and not isinstance(copied, Done) else built


def wanted_jobs(desired: Desired, observed: Observed) -> frozenset[str]:
    """A suspended machine builds nothing."""
    if observed.evaluation is None or desired.is_paused:
        return frozenset()
    return frozenset(step.job for step in _steps(desired, observed))


def nothing_else_built(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """What the machine builds is what is wanted. While the newest configuration is not evaluated yet, an older build
    goes on: it may be the same one."""
    facts = observed.host.facts
    if facts is None or facts.building is None or not _is_useless(desired, observed, facts.building):
        return None
    step = steps.StopBuild(job_names.stop_build(desired.host_id))
    return Finding(Outcome.IN_SYNC, steps=(step,))


def _is_useless(desired: Desired, observed: Observed, drv_path: str) -> bool:
    system = observed.system
    if desired.is_paused:
        return True
    if system.build_on is BuildOn.OPERATOR and system.input is not None:
        return True
    if isinstance(observed.evaluating, Failed):
        return True
    return observed.evaluation is not None and observed.evaluation.drv_path != drv_path


def _steps(desired: Desired, observed: Observed) -> tuple[steps.CopyDerivations, steps.Realise]:
    evaluation = observed.evaluation
    assert evaluation is not None  # noqa: S101 - asked for by all callers
    copy_job = job_names.copy(desired.host_id, evaluation.drv_path)
    realise_job = job_names.realise(desired.host_id, evaluation.drv_path)
    return steps.CopyDerivations(copy_job, evaluation), steps.Realise(realise_job, copy_job, evaluation)


def _answer(job: JobState | None, step: Step, working: Finding) -> Finding:
    match job:
        case Running(progress, None):
            return replace(working, message=f"{working.message}: {progress}") if progress else working
        case Running(progress, error) if error is not None:
            # It stands until the end: taken back by each try, and found again, it would be told each time.
            found = found_error(error, _BUILT)
            return replace(found, message=f"trying again, {progress}; before: {error.message}") if progress else found
        case Failed(error, is_due):
            return replace(found_error(error, _BUILT), steps=(step,) if is_due else ())
        case _:
            return replace(working, steps=(step,))
