"""The configuration: from its sources to a built system. Pure; observe_system.py reads the sources."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.machine_spec import BuildOn
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Waiting
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import build_on_target, steps
from nixops_operator.planning import Finding, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from nixops_operator.facts.nix import SystemInput
    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed

_BUILT = ConditionType.CONFIGURATION_BUILT


def input_hash(given: SystemInput) -> str:
    """One name for equal inputs: sha256 over sorted JSON, file contents by their own hash."""
    text = json.dumps(
        {
            **{name: getattr(given, name) for name in ("name", "deployment", "uuid", "system", "is_ec2")},
            "files": {path: hashlib.sha256(data).hexdigest() for path, data in (given.files or {}).items()},
            "archive": given.archive.identity if given.archive is not None else None,
            "nixpkgs": given.nixpkgs.identity if given.nixpkgs is not None else given.nixpkgs_path,
            "modules": [[module.label, module.text, module.path] for module in given.modules],
            "stateVersion": given.state_version,
            "arguments": dict(given.arguments),
            "keys": [asdict(key) for key in given.keys],
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def build_place(asked: BuildOn, default: BuildOn, obstacle: str | None) -> BuildOn:
    """Target or Operator. `asked`: by the machine's spec; `default`: the operator's setting; `obstacle`: why the
    operator cannot build it. Raises Blocked where it is to build it all the same."""
    chosen = default if asked is BuildOn.AUTO else asked
    if chosen is BuildOn.AUTO:
        return BuildOn.OPERATOR if obstacle is None else BuildOn.TARGET
    if chosen is BuildOn.OPERATOR and obstacle is not None:
        whose = "the operator's setting nix.build.on" if asked is BuildOn.AUTO else "spec.configuration.build.on"
        raise Blocked(Reason.BUILD_FAILED, f"{obstacle}; set {whose} to Target, or to Auto")
    return chosen


def ahead(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """Evaluation, and a build by the operator, need no machine: they go on while an instance boots or a host is
    silent."""
    system = observed.system
    if system.input is None:
        return None
    if missing := [step for step in fetch_steps(observed) if observed.jobs.get(step.job) is None]:
        return Finding(Outcome.IN_SYNC, steps=tuple(missing))
    if not all(isinstance(observed.jobs.get(step.job), Done) for step in fetch_steps(observed)):
        return None
    step: Step | None = None
    if observed.evaluating is None:
        step = steps.Evaluate(system.evaluate_job, system.input, system.is_outdated)
    elif system.build_on is BuildOn.OPERATOR:
        build = build_step(observed)
        step = build if build is not None and observed.jobs.get(build.job) is None else None
    return Finding(Outcome.IN_SYNC, steps=(step,)) if step is not None else None


def fetch_steps(observed: Observed) -> tuple[steps.Fetch, ...]:
    """Those of the trees that the configuration is made of."""
    given = observed.system.input
    trees = given.trees if given is not None else ()
    return tuple(steps.Fetch(job_names.fetch(tree.origin), tree) for tree in trees)


def build_step(observed: Observed) -> steps.Build | None:
    """The build of the evaluated system; None while there is none."""
    evaluation = observed.evaluation
    return steps.Build(job_names.build(evaluation.drv_path), evaluation.drv_path) if evaluation is not None else None


def source_gone(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The source of a system that was confirmed for this very generation is not there any more: hashed ConfigMaps are
    pruned as soon as nothing new names them. What was confirmed goes on being enforced."""
    system = observed.system
    if system.error is None or system.confirmed is None:
        return None
    message = f"{system.error.message}; the system that was confirmed stays in force"
    return Finding(Outcome.REPORTED, system.error.reason, message, _BUILT)


def resolved(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """All that the evaluation depends on is at hand."""
    system = observed.system
    if system.confirmed is not None:
        return None
    if system.error is not None:
        return found_error(system.error, _BUILT)
    if system.input is None:
        return _building(Reason.EVALUATING, f"waiting for {system.waits_for}")
    return None


def fetched(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The trees that the evaluation reads are in the operator's store."""
    working = _building(Reason.FETCHING, "fetching the configuration's sources")
    working = replace(working, is_first_look=_runs_as_recorded(desired, observed))
    answers = (_job_answer(observed.jobs.get(step.job), step, working) for step in fetch_steps(observed))
    return next((answer for answer in answers if answer is not None), None)


def evaluated(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The configuration is one derivation."""
    system = observed.system
    if system.input is None:
        return None
    if (awaiting := awaits_fact(desired, observed)) is not None:
        return awaiting
    step = steps.Evaluate(system.evaluate_job, system.input)
    working = _building(Reason.EVALUATING, "evaluating the configuration")
    working = replace(working, is_first_look=_runs_as_recorded(desired, observed))
    return _job_answer(observed.evaluating, step, working)


def awaits_fact(desired: Desired, observed: Observed) -> Finding | None:
    """The configuration reads what is not known yet; it is evaluated again by itself when it is."""
    job = observed.evaluating
    if not isinstance(job, Done) or not isinstance(job.result, Waiting):
        return None
    found = _building(Reason.WAITING_FOR_FACTS, f"waiting for {job.result.path}: {observed.system.awaited}")
    return replace(found, is_first_look=observed.system.is_unseen and _runs_as_recorded(desired, observed))


def built(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """The system is in the operator's store, signed; or in the machine's own, where that builds it."""
    step = build_step(observed)
    if step is None:
        return None
    if observed.system.build_on is BuildOn.TARGET:
        return build_on_target.built(desired, observed)
    working = _building(Reason.BUILDING, "building the system")
    is_known = observed.toplevel == desired.system.desired
    working = replace(working, is_first_look=is_known and _runs_as_recorded(desired, observed))
    return _job_answer(observed.jobs.get(step.job), step, working)


def is_on_machine(desired: Desired, observed: Observed) -> bool:
    """Whether the machine has the system, as far as this process knows: nothing is left to do but to activate it."""
    if observed.toplevel is None:
        return False
    is_copied = isinstance(observed.jobs.get(job_names.copy(desired.host_id, observed.toplevel)), Done)
    return observed.system.build_on is BuildOn.TARGET or is_copied


def _runs_as_recorded(desired: Desired, observed: Observed) -> bool:
    """Whether the machine runs what was confirmed; then a new process only has to find that out again."""
    facts = observed.host.facts
    return facts is None or (facts.current_system == desired.system.desired and not facts.lists_left)


def _job_answer(job: JobState | None, step: Step, working: Finding) -> Finding | None:
    """None when the job is done; else what it does, or why it failed; a failure whose time has come is tried again."""
    match job:
        case None:
            return working  # `ahead` starts it
        case Running(progress, None):
            return replace(working, message=progress) if progress else working
        case Running(_, error) if error is not None:
            return found_error(error, working.condition)
        case Failed(error, is_due):
            return replace(found_error(error, working.condition), steps=(step,) if is_due else ())
        case _:
            assert isinstance(job, Done)  # noqa: S101 - nothing else is left
            return None


def _building(reason: Reason, message: str) -> Finding:
    return Finding(Outcome.WORKING, reason, message, _BUILT)
