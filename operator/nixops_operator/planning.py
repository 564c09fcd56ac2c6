"""From checks to a plan, for both kinds. Pure: values in, values out.

    CHECKS ─► walk ─► findings ─► policy (suspended? Report? deadline?) ─► Plan(steps, verdict, differences)

A **gate** must hold before anything below it means something: the first one that answers ends the walk. A **repair**
concerns one thing beside others (a rule, a group, a tag): its findings are added and the walk goes on, so that one
refused rule keeps no machine from being made. A check says what is the case and what would put it right. Whether policy
lets it be put right is decided here, once: suspension, `driftPolicy: Report`, the progress deadline, and what a process
that has just started has not looked at yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import Generic, TypeVar

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, NotYet, OperatorError
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome, Verdict, verdict_of

D = TypeVar("D")
O = TypeVar("O")  # noqa: E741 - observed

SOON = timedelta(seconds=2)
"""When a change that EC2 works on by itself is looked at again; it takes 5 to 60 s for most."""

DIFFERENCES_SHOWN = 8
"""How many differences a message lists; a status message holds 1,024 characters."""


class Area(Enum):
    """Which policy governs a difference: `driftPolicy` the cloud, `activation.driftPolicy` the host."""

    CLOUD = "driftPolicy"
    HOST = "activation.driftPolicy"


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    `steps` are taken in order, and the first one that fails or is held ends them: what must be written down before an
    effect stands before it. Independent things are findings of their own.
    """

    outcome: Outcome
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    condition: ConditionType | None = None
    steps: tuple[Step, ...] = ()
    look_again: timedelta | None = None
    differs: Area | None = None
    """Set where the world differs from what was declared. With REPAIRING: what was reached before is being put back;
    if this generation was never reached, it is carried out for the first time."""
    is_drift: bool | None = None
    """Of a difference: whether it was otherwise before, so that it is none of the spec's doing. None: if this
    generation was reached once."""
    left_as: Outcome | None = None
    """How it stands when policy says to leave a difference; None: as DRIFT_REPORTED or REPORTED, by how it serves."""
    is_first_look: bool = False
    """Nothing is wrong: this process has not looked there yet."""
    awaits_answer: bool = False
    """A peer was asked a moment ago; what the status says stands until it has answered."""

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.outcome, self.reason, self.message, self.condition, self.look_again)


@dataclass(frozen=True)
class Rules:
    """What governs all findings of one object alike."""

    is_suspended: bool = False
    was_reached: bool = False  # this very generation was reached once: what differs now is drift
    reported: frozenset[Area] = frozenset()  # whose differences policy says to leave
    deadline_passed: bool = False
    was_told: bool = False
    """The status speaks of this generation already: it stands while something has not been looked at (again) since this
    process began, or since it changed something. Otherwise it would change with each try, and back."""


@dataclass(frozen=True)
class Plan:
    """What was found, under policy. The verdict is the worst of it."""

    findings: tuple[Finding, ...]
    rules: Rules = field(default_factory=Rules)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for finding in self.findings for step in finding.steps)

    @cached_property
    def verdict(self) -> Verdict:
        return _judge(self.findings, self.rules)

    @cached_property
    def differences(self) -> tuple[Finding, ...]:
        """Everything that differs between declaration and world, in the order of its messages."""
        return tuple(sorted((one for one in self.findings if one.differs is not None), key=lambda one: one.message))

    def worst(self, condition: ConditionType) -> Finding | None:
        """The finding that decides how that condition stands, if one says something about it."""
        about = [one for one in self.findings if one.condition is condition and one.outcome is not Outcome.IN_SYNC]
        return max(about, key=lambda one: one.outcome.severity, default=None)


Check = Callable[[D, O, datetime], Finding | Iterable[Finding] | None]
"""What the check finds; None or nothing: its question is settled. The time is aware UTC."""


@dataclass(frozen=True)
class Gate(Generic[D, O]):
    """The first one that answers ends the walk."""

    check: Check[D, O]


@dataclass(frozen=True)
class Repair(Generic[D, O]):
    """Its findings are added, and the walk goes on."""

    check: Check[D, O]


def walk(checks: Iterable[Gate[D, O] | Repair[D, O]], desired: D, observed: O, now: datetime, rules: Rules) -> Plan:
    """What all checks find, from top to bottom. With nothing found the plan is in sync."""
    found: list[Finding] = []
    for one in checks:
        answers = _listed(one.check(desired, observed, now))
        found += answers
        if answers and isinstance(one, Gate):
            break
    return planned(found, rules)


def planned(found: Iterable[Finding], rules: Rules) -> Plan:
    """These findings under policy."""
    return Plan(tuple(_under_policy(finding, rules) for finding in found), rules)


def _listed(answer: Finding | Iterable[Finding] | None) -> list[Finding]:
    if answer is None:
        return []
    return [answer] if isinstance(answer, Finding) else list(answer)


def _under_policy(finding: Finding, rules: Rules) -> Finding:
    if finding.outcome in _WAY_OUT:
        return finding
    if finding.differs is not None:
        finding = _under_drift_policy(finding, finding.differs, rules)
    if rules.is_suspended:
        finding = replace(finding, steps=tuple(step for step in finding.steps if step.is_harmless))
    return finding


_WAY_OUT = (Outcome.DELETING, Outcome.WEDGED, Outcome.GONE)


def _under_drift_policy(finding: Finding, area: Area, rules: Rules) -> Finding:
    is_drift = rules.was_reached if finding.is_drift is None else finding.is_drift
    if is_drift and area in rules.reported:
        left_as = finding.left_as or (
            Outcome.DRIFT_REPORTED if finding.outcome is Outcome.WORKING else Outcome.REPORTED
        )
        message = f"{finding.message}; {area.value} is Report, so it stays"
        return replace(finding, outcome=left_as, message=message, steps=())
    if not is_drift and finding.outcome is Outcome.REPAIRING:
        return replace(finding, outcome=Outcome.WORKING)
    return finding


def _judge(findings: Sequence[Finding], rules: Rules) -> Verdict:
    worst = max(findings, key=lambda one: one.outcome.severity, default=Finding(Outcome.IN_SYNC))
    verdict = replace(worst.verdict, look_again=_soonest(findings))
    if rules.was_told and any(one.awaits_answer for one in findings):
        return replace(verdict, outcome=Outcome.LOOKING)
    if worst.outcome in _WAY_OUT:
        return verdict
    if rules.is_suspended:
        return _suspended(verdict)
    if worst.outcome in (Outcome.WORKING, Outcome.RETRYING) and rules.deadline_passed:
        message = f"no end within the progress deadline, still trying; {verdict.message}"
        return replace(verdict, outcome=Outcome.STALLED, reason=Reason.PROGRESS_DEADLINE_EXCEEDED, message=message)
    if worst.outcome is Outcome.WORKING and rules.was_reached:
        working = [one for one in findings if one.outcome is Outcome.WORKING]
        if all(one.is_first_look for one in working):
            return replace(verdict, outcome=Outcome.LOOKING)
    return verdict


def _soonest(findings: Sequence[Finding]) -> timedelta | None:
    return min((one.look_again for one in findings if one.look_again is not None), default=None)


def _suspended(would_be: Verdict) -> Verdict:
    """How a suspended object stands, from how it would stand otherwise."""
    if would_be.outcome is Outcome.IN_SYNC:
        return Verdict(Outcome.SUSPENDED, Reason.SUCCEEDED, would_be.message, is_settled=True)
    message = f"suspended, nothing is changed; otherwise: {would_be.reason}: {would_be.message}"
    return Verdict(Outcome.SUSPENDED, Reason.SUSPENDED, message, look_again=would_be.look_again)


# --- what failed --------------------------------------------------------------------------------------------------


def found_error(error: OperatorError, condition: ConditionType | None = None) -> Finding:
    """A part of the world that cannot be looked at, or used."""
    if isinstance(error, NotYet):
        found = Finding(Outcome.WORKING, error.reason, error.message, condition, look_again=SOON)
        return replace(found, is_first_look=True, awaits_answer=True)
    verdict = verdict_of(error, condition)
    return Finding(verdict.outcome, verdict.reason, verdict.message, condition)


def after_failure(finding: Finding, error: OperatorError) -> Finding:
    """The finding once a step of it failed, or is still held for having failed."""
    if isinstance(error, Blocked):
        finding = replace(finding, look_again=None)  # there was to be looked for what the step does
    if finding.outcome is Outcome.DELETING:
        outcome = Outcome.WEDGED if isinstance(error, Blocked) else Outcome.DELETING
        return replace(finding, outcome=outcome, reason=error.reason, message=error.message)
    if finding.outcome in (Outcome.REPAIRING, Outcome.IN_SYNC) and not isinstance(error, Blocked):
        # What serves goes on serving; it is told why the rest takes longer.
        return replace(finding, outcome=Outcome.REPAIRING, message=_joined(finding.message, error.message))
    if finding.outcome in (Outcome.STALLED, Outcome.RETRYING, Outcome.WEDGED):
        return finding  # what the check itself found stands; the step was work beside it
    verdict = verdict_of(error, finding.condition)
    return replace(finding, outcome=verdict.outcome, reason=verdict.reason, message=verdict.message)


def _joined(message: str, more: str) -> str:
    return f"{message}: {more}" if message else more


def listed(messages: Iterable[str]) -> str:
    """Several messages as one: sorted, without repeats, at most DIFFERENCES_SHOWN of them."""
    distinct = sorted(set(messages))
    more = len(distinct) - DIFFERENCES_SHOWN
    return "; ".join(distinct[:DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
