"""Whether a machine is well: before a new system is confirmed, and ever after. Pure.

    switched ─ hold ─► held ─ all checks pass ─► confirm
                         └─ one fails, or units failed that had not before ─► remembered as bad, rolled back

Afterwards a machine that is not well says so, in Healthy and Ready, and is never activated again for it: another
activation of the same system would change nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from nixops_operator.api.conditions import Condition, Truth
from nixops_operator.api.health_check import HealthCheck
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import FailedRevisionStatus
from nixops_operator.facts.health import (
    Check,
    ExecProbe,
    HttpProbe,
    Probe,
    Standing,
    TcpProbe,
    UnitsProbe,
)
from nixops_operator.facts.host import UNCONFIRMED, ActivationFacts, ActivationState, HostFacts
from nixops_operator.machine import bad_revisions, steps
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.planning import Finding, listed
from nixops_operator.verdict import Outcome

BUDGET_MARGIN = timedelta(seconds=60)
"""Above what the checks take by themselves: answers that are late, and an operator that begins anew meanwhile."""
_UNSETTLED = (ActivationState.PREPARED, ActivationState.SWITCHING, ActivationState.ROLLING_BACK)

Trouble = tuple[Reason, str]


def checks_of(declared: tuple[HealthCheck, ...]) -> tuple[Check, ...]:
    """As they are asked."""
    return tuple(
        Check(
            name=one.name,
            probe=_probe(one),
            initial_delay=one.initial_delay or timedelta(),
            period=one.period,
            timeout=one.timeout,
            failure_threshold=one.failure_threshold,
        )
        for one in declared
    )


def _probe(declared: HealthCheck) -> Probe:
    if declared.http is not None:
        return HttpProbe(declared.http.port, declared.http.host, declared.http.path, declared.http.expect_status)
    if declared.tcp is not None:
        return TcpProbe(declared.tcp.port)
    if declared.units is not None:
        return UnitsProbe(declared.units)
    assert declared.exec is not None  # noqa: S101 - exactly one kind
    return ExecProbe(declared.exec.command)


def subject(facts: HostFacts) -> str | None:
    """What the checks are about, while it stands still; None while the machine is between two systems."""
    last = facts.activation
    if last is not None and last.boot_id == facts.boot_id and last.state in _UNSETTLED:
        return None
    return f"{facts.boot_id} {facts.current_system}"


def budget(checks: tuple[Check, ...]) -> timedelta:
    """How long a machine that was switched and reached may take until its health is known. The limits of the spec's
    fields keep it below the ten minutes that a machine grants (adapters/ssh/agent.sh)."""
    return max((check.decided_within for check in checks), default=timedelta()) + BUDGET_MARGIN


def gate(
    desired: Desired, observed: Observed, running: ActivationFacts, hold: Finding, back: Finding
) -> Finding | None:
    """Between the switch and its confirmation; None: it may be confirmed. `hold`, `back`: how the host is told to wait
    for the health, and to return."""
    facts = observed.host.facts
    if facts is None or not desired.spec.health_checks or not running.returns:
        return None
    if not running.is_held:
        return hold
    found = trouble(observed, facts)
    if found:
        message = listed(words for _, words in found)
        return _given_up(desired, observed, running, message, back)
    waiting = _unknown(desired, observed)
    if waiting:
        message = f"waiting for the health checks of the new system: {', '.join(waiting)}"
        kind = ConditionType.CONFIGURATION_ACTIVE
        return Finding(Outcome.WORKING, Reason.CONFIRMING, message, kind)
    return None


def _given_up(
    desired: Desired, observed: Observed, running: ActivationFacts, message: str, back: Finding
) -> Finding | None:
    """First remembered, then rolled back: once it is back nothing tells any more why."""
    failure = FailedRevisionStatus(
        toplevel=running.toplevel,
        reason=Reason.HEALTH_CHECK_FAILED,
        message=f"health checks failed: {message}"[:256],
        exit_status=running.exit_status,
    )
    known = bad_revisions.known(desired, observed)
    is_known = any((one.toplevel, one.reason) == (failure.toplevel, failure.reason) for one in known)
    remember = () if is_known else (steps.RecordRevisions(bad_revisions.with_one(known, failure)),)
    return Finding(
        Outcome.WORKING,
        Reason.ROLLING_BACK,
        f"{failure.message}; {back.message}",
        ConditionType.CONFIGURATION_ACTIVE,
        steps=(*remember, *back.steps),
        look_again=back.look_again,
    )


def kept(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """Ever after. Only of the declared system: of another one the activation speaks."""
    facts = observed.host.facts
    if facts is None or not desired.spec.health_checks or facts.current_system != observed.toplevel:
        return None
    found = trouble(observed, facts)
    if found:
        reason = found[0][0]
        return Finding(Outcome.UNHEALTHY, reason, listed(words for _, words in found), ConditionType.HEALTHY)
    waiting = _unknown(desired, observed)
    if waiting:
        message = f"waiting for the health checks: {', '.join(waiting)}"
        kind = ConditionType.HEALTHY
        return Finding(Outcome.WORKING, Reason.CONFIRMING, message, kind, is_first_look=True)
    return None


def trouble(observed: Observed, facts: HostFacts) -> list[Trouble]:
    """What is wrong: checks first, then units."""
    found = [
        (Reason.CHECK_FAILED, f"{one.name}: {one.words}")
        for one in observed.host.health
        if one.standing is Standing.FAILS
    ]
    if units := newly_failed(facts):
        what = f"units failed that had not before the last activation: {listed(units)}"
        found.append((Reason.UNITS_FAILED, what))
    return found


def note(desired: Desired, observed: Observed) -> str:
    """What nothing is done about where no health checks are declared: that units failed while the system that runs was
    activated. Empty if none did, or if they are well by now."""
    facts = observed.host.facts
    last = facts.activation if facts is not None else None
    if facts is None or last is None or desired.spec.health_checks:
        return ""
    is_of_it = last.boot_id == facts.boot_id and last.toplevel == facts.current_system == observed.toplevel
    units = newly_failed(facts)
    if not is_of_it or last.exit_status != bad_revisions.UNITS_FAILED_EXIT or not units:
        return ""
    return (
        f"units failed when it was activated: {listed(units)}. See `systemctl status` there; with healthChecks the "
        "machine would have returned to its previous system"
    )


def newly_failed(facts: HostFacts) -> tuple[str, ...]:
    """Units that were not failed already before the last activation."""
    before = facts.activation.failed_before if facts.activation is not None else ()
    return tuple(unit for unit in facts.failed_units if unit not in before)


def condition(desired: Desired, observed: Observed) -> Condition | None:
    """Healthy; None where nothing is declared that could say so."""
    if not desired.spec.health_checks:
        return None

    def told(truth: Truth, reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.HEALTHY, truth, reason, message, desired.generation)

    facts = observed.host.facts
    if facts is None:
        return told(Truth.UNKNOWN, Reason.WAITING_FOR_SSH, "the machine cannot be looked at now")
    last = facts.activation
    if last is not None and last.boot_id == facts.boot_id and last.state in UNCONFIRMED:
        return told(Truth.UNKNOWN, Reason.ACTIVATING, "another system is being activated")
    found = trouble(observed, facts)
    if found:
        return told(Truth.FALSE, found[0][0], listed(words for _, words in found))
    if waiting := _unknown(desired, observed):
        return told(Truth.UNKNOWN, Reason.CONFIRMING, f"waiting for the health checks: {', '.join(waiting)}")
    return told(Truth.TRUE, Reason.SUCCEEDED, "")


def _unknown(desired: Desired, observed: Observed) -> list[str]:
    decided = {one.name for one in observed.host.health if one.standing is not Standing.UNKNOWN}
    return [one.name for one in desired.spec.health_checks if one.name not in decided]
