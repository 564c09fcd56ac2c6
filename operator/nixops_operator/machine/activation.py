"""How a built system becomes the running one: the next move, from what the host itself says. Pure.

The host carries the protocol: a claimed directory, a detached unit that runs `switch-to-configuration test`, a dead
man's timer that returns to the previous
system unless a *new* connection confirms in time; profile and boot entry move last. So every move can be found again
after a crash of either side:

    (nothing) ─ copy ─ intent ─► claim, arm, run ─► switching ─► switched ─ confirm ─► confirmed ─ commit ─► committed
                                                        └────────────┴──► rollingback ─► rolledback
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from nixops_operator.api.machine_spec import DriftPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, OperatorError
from nixops_operator.facts.host import ActivationFacts, ActivationRequest, ActivationState, HostFacts
from nixops_operator.jobs import Done, Failed, Running
from nixops_operator.machine import steps
from nixops_operator.machine.observed import Desired, Observed
from nixops_operator.verdict import Outcome, Verdict, verdict_of

FOLLOW_EVERY = timedelta(seconds=1)
LOCK_HELD_EXIT = 11
"""switch-to-configuration's exit while another one holds its lock: a person switches
(pkgs/by-name/sw/switch-to-configuration-ng)."""

UNITS_FAILED_EXIT = 4
"""Its exit when a unit is failed at the end; it can hide a failed activation script."""
LOCK_HELD_WAIT = timedelta(seconds=15)

_ENDED = (ActivationState.COMMITTED, ActivationState.ROLLED_BACK, ActivationState.FAILED)


@dataclass(frozen=True)
class Move:
    """What to do next about the running system."""

    verdict: Verdict
    steps: tuple[steps.Step, ...] = ()


def next_move(desired: Desired, observed: Observed, toplevel: str, now: datetime) -> Move | None:
    """None when `toplevel` runs, is confirmed and is the profile. Needs facts of the host."""
    facts = observed.host.facts
    assert facts is not None  # noqa: S101 - the caller checked that the host is reachable
    running = facts.activation
    if running is not None and running.state not in _ENDED and running.boot_id == facts.boot_id:
        return _go_on(desired, observed, running)
    if facts.current_system == toplevel and not facts.lists_left:
        return _keep(desired, observed, facts, toplevel)
    if (refused := _bad_revision(desired, observed, facts, toplevel)) is not None:
        return refused
    if (waiting := _lock_held(desired, observed, facts, now)) is not None:
        return waiting
    drift = drift_of(desired, facts, toplevel)
    if drift is not None and desired.spec.activation.drift_policy is DriftPolicy.REPORT:
        message = f"{drift[1]}; activation.driftPolicy is Report, so it stays"
        return Move(Verdict(Outcome.DRIFT_REPORTED, Reason.SYSTEM_DRIFT, message, ConditionType.CONFIGURATION_ACTIVE))
    return _bring(desired, observed, facts, toplevel, drift)


def copy_job_of(desired: Desired, toplevel: str) -> str:
    """The job that brings a system to this very machine."""
    return f"copy:{desired.host_id}:{toplevel}"


def drift_of(desired: Desired, facts: HostFacts, toplevel: str) -> tuple[Reason, str] | None:
    """Why another system than `toplevel` runs although it ran before; None if it never did (then it is simply new)."""
    if not has_run_before(desired, toplevel) or facts.current_system == toplevel:
        return None
    if facts.profile_system == toplevel and desired.system.get("booted") != facts.booted_system:
        return Reason.BOOT_DRIFT, "the machine booted another system than the declared one"
    return Reason.SYSTEM_DRIFT, "another system than the declared one runs, switched by hand"


def has_run_before(desired: Desired, toplevel: str) -> bool:
    """Whether this very system was active and confirmed already, as the status remembers."""
    return desired.system.get("desired") == toplevel and bool(desired.system.get("activatedAt"))


def _go_on(desired: Desired, observed: Observed, running: ActivationFacts) -> Move:
    """An activation is under way, whoever started it: follow it to its end."""
    where = observed.host.address
    match running.state:
        case ActivationState.PREPARED:
            request = _request(desired, running.toplevel, running.previous, running.attempt)
            return _on_host(
                desired, observed, "activate", running.id, Reason.ACTIVATING, f"activating on {where}", request
            )
        case ActivationState.SWITCHING if running.is_unit_active:
            return Move(_working(Reason.ACTIVATING, f"switching to the new system on {where}", FOLLOW_EVERY))
        case ActivationState.SWITCHING:
            return _on_host(desired, observed, "rollback", running.id, Reason.ROLLING_BACK, _cut(where))
        case ActivationState.SWITCHED:
            return _on_host(
                desired, observed, "confirm", running.id, Reason.CONFIRMING, f"reaching {where} over a new connection"
            )
        case ActivationState.CONFIRMED:
            text = f"making the new system the boot default of {where}"
            return _on_host(desired, observed, "commit", running.id, Reason.CONFIRMING, text)
        case _:
            if running.is_unit_active:
                return Move(_working(Reason.ROLLING_BACK, f"{where} returns to its previous system", FOLLOW_EVERY))
            text = f"{where} returns to its previous system"
            return _on_host(desired, observed, "rollback", running.id, Reason.ROLLING_BACK, text)


def _cut(where: str | None) -> str:
    return f"the activation on {where} was cut; returning to the previous system"


def _keep(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> Move | None:
    """The desired system runs. Profile and boot entry follow it."""
    if facts.profile_system == toplevel and not facts.boot_entry_unsure:
        return None
    is_drift = has_run_before(desired, toplevel)
    message = "the system profile points at another system than the declared one"
    if is_drift and desired.spec.activation.drift_policy is DriftPolicy.REPORT:
        text = f"{message}; activation.driftPolicy is Report, so it stays"
        return Move(Verdict(Outcome.IN_SYNC, Reason.PROFILE_DRIFT, text, ConditionType.UP_TO_DATE))
    job = f"host:{desired.host_id}:adopt:{toplevel}"
    verdict = Verdict(Outcome.REPAIRING, Reason.PROFILE_DRIFT, f"{message}; putting it back", ConditionType.UP_TO_DATE)
    return _job_move(observed, steps.Adopt(job, toplevel), job, verdict)


def _bad_revision(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> Move | None:
    """The newest activation was of this very system and ended badly: not again, until something changes."""
    last = facts.activation
    if last is None or last.toplevel != toplevel or desired.reconcile_request is not None:
        return None
    if last.state not in (ActivationState.ROLLED_BACK, ActivationState.FAILED):
        return None
    if last.state is ActivationState.FAILED and last.exit_status == LOCK_HELD_EXIT:
        return None
    if desired.activation is None or desired.activation.id != last.id:
        # Not our attempt, as far as the status remembers: an older life of this object may have made it.
        return None
    words = observed.host.telling_line
    how = _how_it_ended(last) + (f" ({words})" if words else "")
    back = "the previous system runs again" if last.state is ActivationState.ROLLED_BACK else "nothing was changed"
    message = (
        f"{how}; {back}. Change the configuration, or ask again with the annotation nixops.dev/reconcile-requested-at"
    )
    return Move(Verdict(Outcome.STALLED, Reason.ACTIVATION_FAILED, message, ConditionType.CONFIGURATION_ACTIVE))


def _lock_held(desired: Desired, observed: Observed, facts: HostFacts, now: datetime) -> Move | None:
    """The last attempt met somebody else's switch-to-configuration: let it end first."""
    last, intent = facts.activation, desired.activation
    if last is None or last.state is not ActivationState.FAILED or last.exit_status != LOCK_HELD_EXIT:
        return None
    if intent is None or intent.id != last.id or now - intent.started_at >= LOCK_HELD_WAIT:
        return None
    message = f"somebody else's switch-to-configuration runs on {observed.host.address}; trying again after it"
    condition = ConditionType.CONFIGURATION_ACTIVE
    return Move(Verdict(Outcome.RETRYING, Reason.ACTIVATING, message, condition, LOCK_HELD_WAIT))


def _how_it_ended(last: ActivationFacts) -> str:
    if last.service_result == "timeout":
        return "switch-to-configuration did not end within activation.timeout"
    if last.exit_status == UNITS_FAILED_EXIT:
        return "units or activation scripts failed (exit code 4), and the new system was not confirmed"
    if last.exit_status == 0:
        return "the new system could not be reached over a new connection within activation.confirmTimeout"
    if last.exit_status is not None:
        return f"switch-to-configuration ended with exit code {last.exit_status}"
    return "switch-to-configuration did not end by itself"


def _bring(
    desired: Desired, observed: Observed, facts: HostFacts, toplevel: str, drift: tuple[Reason, str] | None
) -> Move:
    """Copy, then write the intent, then tell the host."""
    where = observed.host.address
    says = f"{drift[1]}; " if drift is not None else ""
    copy_job = copy_job_of(desired, toplevel)
    copying = _working(Reason.COPYING, f"{says}copying the system to {where}")
    if (move := _job_move(observed, steps.Copy(copy_job, toplevel), copy_job, copying)) is not None:
        return move
    if facts.current_system is None:
        message = f"{where} has no /run/current-system to return to; is NixOS booted there?"
        return Move(Verdict(Outcome.STALLED, Reason.ACTIVATION_FAILED, message, ConditionType.CONFIGURATION_ACTIVE))
    intent = desired.activation
    attempt = intent.attempt if intent is not None else 0
    if intent is not None and intent.toplevel == toplevel and intent.result is None and attempt > facts.highest_attempt:
        request = _request(desired, toplevel, facts.current_system, attempt)
        activating = f"{says}activating on {where}"
        return _on_host(desired, observed, "activate", intent.id, Reason.ACTIVATING, activating, request, copy_job)
    request = _request(desired, toplevel, facts.current_system, 1 + max(attempt, facts.highest_attempt))
    return Move(_working(Reason.ACTIVATING, f"{says}activating on {where}"), (steps.RecordActivation(request),))


def _request(desired: Desired, toplevel: str, previous: str, attempt: int) -> ActivationRequest:
    rules = desired.spec.activation
    return ActivationRequest(toplevel, previous, attempt, rules.timeout, rules.confirm_timeout)


def _on_host(
    desired: Desired,
    observed: Observed,
    action: str,
    activation_id: str,
    reason: Reason,
    message: str,
    request: ActivationRequest | None = None,
    copy_job: str = "",
) -> Move:
    job = f"host:{desired.host_id}:{activation_id}:{action}"
    step: steps.Step
    match action:
        case "activate":
            assert request is not None  # noqa: S101 - both callers give one
            step = steps.Activate(job, copy_job, request)
        case "confirm":
            step = steps.Confirm(job, activation_id)
        case "commit":
            step = steps.Commit(job, activation_id)
        case _:
            step = steps.RollBack(job, activation_id)
    verdict = _working(reason, message, FOLLOW_EVERY)
    return _job_move(observed, step, job, verdict) or Move(verdict)


def _job_move(observed: Observed, step: steps.Step, job: str, verdict: Verdict) -> Move | None:
    match observed.jobs.get(job):
        case None:
            return Move(verdict, (step,))
        case Running(progress, error):
            if error is not None:
                return Move(_failing(error, verdict))
            return Move(replace(verdict, message=f"{verdict.message}: {progress}") if progress else verdict)
        case Failed(error, is_due):
            return Move(_failing(error, verdict), (step,) if is_due else ())
        case Done():
            return None


def _failing(error: OperatorError, verdict: Verdict) -> Verdict:
    found = verdict_of(error, ConditionType.CONFIGURATION_ACTIVE)
    # A machine that serves goes on serving while its profile refuses to follow.
    if verdict.outcome is Outcome.REPAIRING and not isinstance(error, Blocked):
        return replace(verdict, message=f"{verdict.message}: {error.message}")
    return found


def _working(reason: Reason, message: str, look_again: timedelta | None = None) -> Verdict:
    return Verdict(Outcome.WORKING, reason, message, ConditionType.CONFIGURATION_ACTIVE, look_again)
