"""How a built system becomes the running one: the next move, from what the host itself says. Pure.

The host carries the protocol: a claimed directory, a detached unit that runs `switch-to-configuration test`, a dead
man's timer that returns to the previous system unless a *new* connection confirms in time; profile and boot entry move
last. So every move can be found again after a crash of either side:

    (nothing) ─ copy ─ intent ─► claim, arm, run ─► switching ─► switched ─ confirm ─► confirmed ─ commit ─► committed
                                                        └────────────┴──► rollingback ─► rolledback

With health checks a switched host is first told to wait for them (health.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from nixops_operator import job_names, waits
from nixops_operator.api.machine_spec import ActivationMode, BuildOn, DriftPolicy, RollbackPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import RevertsStatus
from nixops_operator.errors import Blocked, OperatorError
from nixops_operator.facts.host import ActivationFacts, ActivationRequest, ActivationState, HostFacts, Mode
from nixops_operator.jobs import Done, Failed, Running
from nixops_operator.machine import bad_revisions, health, modes, reboot, steps
from nixops_operator.machine.bad_revisions import LOCK_HELD_EXIT
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.planning import Area, Finding, found_error
from nixops_operator.verdict import Outcome

HostStep = (
    steps.DryActivate
    | steps.Activate
    | steps.Hold
    | steps.Confirm
    | steps.Commit
    | steps.Restart
    | steps.RollBack
    | steps.Adopt
    | steps.Copy
)

FOLLOW_EVERY = timedelta(seconds=1)
LOCK_HELD_WAIT = timedelta(seconds=15)

MOST_REVERTS = 3
REVERTS_WITHIN = timedelta(hours=1)

_ENDED = (ActivationState.COMMITTED, ActivationState.ROLLED_BACK, ActivationState.FAILED)


def followed(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """An activation under way is brought to its end whatever is declared by now, and whether or not that can be
    evaluated and built: nobody else confirms it, and unconfirmed the machine goes back."""
    facts = observed.host.facts
    running = under_way(facts) if facts is not None else None
    if facts is None or running is None or refused_boot_entry(desired, observed) is not None:
        return None
    return _go_on(desired, observed, facts, running)


def boot_entry_again(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """A system that was confirmed, and that profile or boot loader refuse: tried again, and no reason to leave anything
    else undone. Another one that is declared by now takes its place: this one may never be accepted."""
    facts, toplevel = observed.host.facts, observed.toplevel
    running = under_way(facts) if facts is not None else None
    if facts is None or running is None or refused_boot_entry(desired, observed) is None:
        return None
    if toplevel not in (None, running.toplevel):
        return None
    return _alone(desired, observed, _go_on(desired, observed, facts, running))


def refused_boot_entry(desired: Desired, observed: Observed) -> Failed | Running | None:
    """The job that was to make what runs, and was confirmed, the boot entry, if profile or boot loader refused that
    when it was tried last."""
    facts, toplevel = observed.host.facts, observed.toplevel
    running = under_way(facts) if facts is not None else None
    if running is None:
        return _refused(observed, job_names.adopt(desired.host_id, toplevel)) if toplevel is not None else None
    is_confirmed = running.state is ActivationState.CONFIRMED
    return _refused(observed, _job(desired, running.id, "commit")) if is_confirmed else None


def _refused(observed: Observed, job: str) -> Failed | Running | None:
    match observed.jobs.get(job):
        case (Failed(error) | Running(last_error=OperatorError() as error)) as state:
            return state if error.reason is Reason.BOOT_ENTRY_FAILED else None
    return None


def _alone(desired: Desired, observed: Observed, found: Finding) -> Finding:
    """Without its steps while old generations go: two would write the boot menu at once."""
    of_generations = job_names.generations(desired.host_id, "")
    is_busy = any(name.startswith(of_generations) and isinstance(job, Running) for name, job in observed.jobs.items())
    return replace(found, steps=()) if is_busy else found


def next_move(desired: Desired, observed: Observed, now: datetime) -> Finding | Sequence[Finding] | None:
    """None when the desired system runs, is confirmed and is the profile."""
    facts, toplevel = observed.host.facts, observed.toplevel
    if facts is None or toplevel is None:
        return None  # the checks before have said why
    if (running := under_way(facts)) is not None and running.toplevel == toplevel:
        return None  # `boot_entry_again` has said it
    if facts.current_system == toplevel and not facts.lists_left and not bad_revisions.is_half_done(facts):
        kept = _keep(desired, observed, facts, toplevel)
        is_due = kept is None and reboot.is_due(desired, facts, toplevel)
        return _next_of_bringing(desired, observed, facts, toplevel, "", Mode.RESTART) if is_due else kept
    if desired.spec.activation.mode is ActivationMode.BOOT and modes.is_staged(facts, toplevel):
        if reboot.may_restart(desired, facts) or reboot.is_asked(desired, facts, toplevel):
            return _next_of_bringing(desired, observed, facts, toplevel, "", Mode.RESTART)
        return reboot.staged(desired, facts, observed.host.address)
    is_restarted = reboot.may_restart(desired, facts) or reboot.is_asked(desired, facts, toplevel)
    if bad_revisions.needs_restart(desired, observed, toplevel) and is_restarted:
        return _next_of_bringing(desired, observed, facts, toplevel, "", Mode.RESTART)
    if (refused := bad_revisions.refused(desired, observed, facts, toplevel)) is not None:
        return refused
    if (waiting := _lock_held(desired, observed, facts, now)) is not None:
        return waiting
    drift = drift_of(desired, facts, toplevel)
    if drift is not None and (conflict := _conflict(desired, drift[1], now)) is not None:
        return conflict
    found = _bring(desired, observed, facts, toplevel, drift)
    return _counted(found, desired, now) if drift is not None else found


def under_way(facts: HostFacts) -> ActivationFacts | None:
    """The activation that has not ended, of whatever system."""
    running = facts.activation
    if running is None or running.state in _ENDED or running.was_cut_by_boot(facts.boot_id):
        return None
    if running.state is ActivationState.CONFIRMED and running.boot_id != facts.boot_id:
        return running if running.mode is Mode.RESTART and running.toplevel == facts.current_system else None
    return running


def drift_of(desired: Desired, facts: HostFacts, toplevel: str) -> tuple[Reason, str] | None:
    """Why another system than `toplevel` runs although it ran before; None if it never did (then it is simply new)."""
    if not has_run_before(desired, toplevel) or facts.current_system == toplevel:
        return None
    is_test = desired.spec.activation.mode is ActivationMode.TEST
    last, runs_as_booted = facts.activation, facts.current_system == facts.booted_system
    has_booted = facts.profile_system == toplevel and (last is None or last.boot_id != facts.boot_id)
    if runs_as_booted and (has_booted or is_test):
        return Reason.BOOT_DRIFT, "the machine booted another system than the declared one"
    return Reason.SYSTEM_DRIFT, "another system than the declared one runs, switched by hand"


def has_run_before(desired: Desired, toplevel: str) -> bool:
    """Whether this very system was active and confirmed already, as the status remembers."""
    return desired.system.desired == toplevel and desired.system.activated_at is not None


def _conflict(desired: Desired, what: str, now: datetime) -> Finding | None:
    """Somebody else switches the machine again and again: that is a conflict to be told, not a war to be won."""
    reverts = desired.reverts
    wait = waits.left(reverts.since, REVERTS_WITHIN, now) if reverts is not None else None
    if reverts is None or reverts.count < MOST_REVERTS or wait is None:
        return None
    message = (
        f"{what}, as often as it was put back ({MOST_REVERTS} times within an hour); find who switches it (another "
        "NixMachine, a timer, auto-upgrade), or set activation.driftPolicy to Report. It is put back again later"
    )
    return Finding(
        Outcome.STALLED,
        Reason.SYSTEM_DRIFT,
        message,
        ConditionType.CONFIGURATION_ACTIVE,
        look_again=wait,
        differs=Area.HOST,
        is_drift=True,
        left_as=Outcome.DRIFT_REPORTED,
    )


def _counted(found: Finding, desired: Desired, now: datetime) -> Finding:
    """The intent that puts a system back counts it."""
    reverts = desired.reverts
    is_new = reverts is None or waits.left(reverts.since, REVERTS_WITHIN, now) is None
    since, count = (now, 1) if reverts is None or is_new else (reverts.since, reverts.count + 1)
    counted = RevertsStatus(count=count, since=since)
    steps_then = tuple(
        replace(step, reverts=counted) if isinstance(step, steps.RecordActivation) else step for step in found.steps
    )
    return replace(found, steps=steps_then)


def _go_on(desired: Desired, observed: Observed, facts: HostFacts, running: ActivationFacts) -> Finding:
    """An activation is under way, whoever started it: follow it to its end."""
    where, name = observed.host.address, running.id
    match running.state:
        case ActivationState.PREPARED if _is_to_be_called_off(desired, observed, running):
            working = _working(Reason.ACTIVATING, f"another system is declared for {where} by now", FOLLOW_EVERY)
            return _on_host(observed, steps.RollBack(_job(desired, name, "rollback"), name), working)
        case ActivationState.PREPARED:
            rules = desired.spec.activation
            request = ActivationRequest(
                running.toplevel,
                running.previous,
                running.attempt,
                rules.timeout,
                rules.confirm_timeout,
                running.mode,
                running.returns,
            )
            working = _working(Reason.ACTIVATING, f"activating on {where}", FOLLOW_EVERY)
            return _on_host(observed, steps.Activate(_job(desired, name, "activate"), "", request), working)
        case ActivationState.SWITCHING if running.is_unit_active:
            return _working(Reason.ACTIVATING, f"switching to the new system on {where}", FOLLOW_EVERY)
        case ActivationState.REBOOTING if running.boot_id == facts.boot_id:
            working = _working(Reason.REBOOTING, f"restarting {where}", FOLLOW_EVERY)
            return _on_host(observed, steps.Restart(_job(desired, name, "restart"), name), working)
        case ActivationState.REBOOTING if facts.current_system != running.toplevel:
            working = _working(Reason.ROLLING_BACK, f"{where} did not boot the new system", FOLLOW_EVERY)
            return _on_host(observed, steps.RollBack(_job(desired, name, "rollback"), name), working)
        case ActivationState.SWITCHED if _is_given_up(desired, observed, running):
            working = _working(Reason.ACTIVATING, f"another system is declared for {where} by now", FOLLOW_EVERY)
            return _on_host(observed, steps.RollBack(_job(desired, name, "rollback"), name), working)
        case ActivationState.SWITCHED | ActivationState.REBOOTING:
            if (found := _until_healthy(desired, observed, running)) is not None:
                return found
            working = _working(Reason.CONFIRMING, f"reaching {where} over a new connection", FOLLOW_EVERY)
            return _on_host(observed, steps.Confirm(_job(desired, name, "confirm"), name), working)
        case ActivationState.CONFIRMED:
            is_test = running.mode is Mode.TEST
            text = (
                f"ending the activation on {where}" if is_test else f"making the new system the boot default of {where}"
            )
            working = _working(Reason.CONFIRMING, text, FOLLOW_EVERY)
            return _on_host(observed, steps.Commit(_job(desired, name, "commit"), name), working)
        case ActivationState.ROLLING_BACK if running.is_unit_active:
            return _working(Reason.ROLLING_BACK, _returning(where, running), FOLLOW_EVERY)
        case ActivationState.SWITCHING | ActivationState.ROLLING_BACK:
            is_cut = running.state is ActivationState.SWITCHING
            text = _cut(where) if is_cut else _returning(where, running)
            working = _working(Reason.ROLLING_BACK, text, FOLLOW_EVERY)
            return _on_host(observed, steps.RollBack(_job(desired, name, "rollback"), name), working)
        case ActivationState.COMMITTED | ActivationState.ROLLED_BACK | ActivationState.FAILED:
            raise AssertionError("an activation that has ended is not followed")


def _is_to_be_called_off(desired: Desired, observed: Observed, running: ActivationFacts) -> bool:
    """Whether a system that is only to be booted, and that the boot loader refuses, is not wanted any more."""
    job = _job(desired, running.id, "activate")
    if running.mode not in (Mode.BOOT, Mode.RESTART) or _refused(observed, job) is None:
        return False
    is_other_mode = running.mode is Mode.BOOT and desired.spec.activation.mode is not ActivationMode.BOOT
    return is_other_mode or observed.toplevel not in (None, running.toplevel)


def _is_given_up(desired: Desired, observed: Observed, running: ActivationFacts) -> bool:
    """Whether a machine that must not return by itself runs what keeps new connections out, and is to run something
    else by now: over the connection that is held it can still be mended. Told to return, it ends the activation."""
    is_other = observed.toplevel not in (None, running.toplevel)
    match observed.jobs.get(_job(desired, running.id, "confirm")):
        case Failed() | Running(last_error=OperatorError()):
            return is_other and not running.returns
    return False


def _until_healthy(desired: Desired, observed: Observed, running: ActivationFacts) -> Finding | None:
    where, name = observed.host.address, running.id
    budget = health.budget(health.checks_of(desired.spec.health_checks))
    reaching = _working(Reason.CONFIRMING, f"reaching {where} over a new connection", FOLLOW_EVERY)
    hold = _on_host(observed, steps.Hold(_job(desired, name, "hold"), name, budget), reaching)
    returning = _working(Reason.ROLLING_BACK, _returning(where, running), FOLLOW_EVERY)
    back = _on_host(observed, steps.RollBack(_job(desired, name, "rollback"), name), returning)
    return health.gate(desired, observed, running, hold, back)


def _job(desired: Desired, activation_id: str, action: str) -> str:
    return job_names.on_host(desired.host_id, activation_id, action)


def _on_host(observed: Observed, step: HostStep, working: Finding) -> Finding:
    return _job_move(observed, step, working) or working


def _returning(where: str | None, running: ActivationFacts) -> str:
    """With what to do should that fail again and again: till it is confirmed, no other system is the boot entry."""
    told = f"{where} returns to its previous system; see /var/lib/nixops/activation/{running.id}/log there"
    return told if running.mode is Mode.RESTART else f"{told}, and if it does not get there, restart it"


def _cut(where: str | None) -> str:
    return f"the activation on {where} was cut; returning to the previous system"


def _keep(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> Finding | None:
    """The desired system runs. Profile and boot entry follow it, unless they are not to."""
    if desired.spec.activation.mode in (ActivationMode.TEST, ActivationMode.DRY_ACTIVATE):
        return None
    if facts.profile_system == toplevel and not facts.boot_entry_unsure:
        return None
    found = Finding(
        Outcome.REPAIRING,
        Reason.PROFILE_DRIFT,
        "the system profile points at another system than the declared one",
        ConditionType.UP_TO_DATE,
        differs=Area.HOST if has_run_before(desired, toplevel) else None,
        is_drift=True,
    )
    move = _job_move(observed, steps.Adopt(job_names.adopt(desired.host_id, toplevel), toplevel), found)
    return _alone(desired, observed, move) if move is not None else None


def _lock_held(desired: Desired, observed: Observed, facts: HostFacts, now: datetime) -> Finding | None:
    """The last attempt met somebody else's switch-to-configuration: let it end first."""
    last, intent = facts.activation, desired.activation
    if last is None or last.state is not ActivationState.FAILED or last.exit_status != LOCK_HELD_EXIT:
        return None
    if intent is None or intent.id != last.id or waits.left(intent.started_at, LOCK_HELD_WAIT, now) is None:
        return None
    message = f"somebody else's switch-to-configuration runs on {observed.host.address}; trying again after it"
    condition = ConditionType.CONFIGURATION_ACTIVE
    return Finding(Outcome.RETRYING, Reason.ACTIVATING, message, condition, look_again=LOCK_HELD_WAIT)


def _bring(
    desired: Desired, observed: Observed, facts: HostFacts, toplevel: str, drift: tuple[Reason, str] | None
) -> Finding:
    """Copy what the machine has not built itself, then write the intent, then tell the host."""
    found = _next_of_bringing(desired, observed, facts, toplevel, f"{drift[1]}; " if drift is not None else "")
    if drift is None:
        return found
    if desired.spec.activation.drift_policy is DriftPolicy.REPORT:
        # What putting it back would take does not matter then.
        found = replace(found, outcome=Outcome.WORKING, reason=Reason.SYSTEM_DRIFT, message=drift[1])
    return replace(found, differs=Area.HOST, is_drift=True)


def _next_of_bringing(
    desired: Desired, observed: Observed, facts: HostFacts, toplevel: str, says: str, mode: Mode | None = None
) -> Finding:
    """`mode`: where it is not what the spec says."""
    where = observed.host.address
    if observed.system.build_on is BuildOn.TARGET and observed.evaluation is not None:
        brought_by = job_names.realise(desired.host_id, observed.evaluation.drv_path)
    else:
        brought_by = job_names.copy(desired.host_id, toplevel)
        copying = _working(Reason.COPYING, f"{says}copying the system to {where}")
        if (move := _job_move(observed, steps.Copy(brought_by, toplevel), copying)) is not None:
            return move
    if mode is None and desired.spec.activation.mode is ActivationMode.DRY_ACTIVATE:
        return _dry_run(desired, observed, facts, toplevel)
    if facts.current_system is None:
        message = f"{where} has no /run/current-system to return to; is NixOS booted there?"
        return Finding(Outcome.STALLED, Reason.ACTIVATION_FAILED, message, ConditionType.CONFIGURATION_ACTIVE)
    is_restart = mode is Mode.RESTART
    previous = reboot.way_back(facts, facts.current_system, toplevel) if is_restart else facts.current_system
    reason, doing = (Reason.REBOOTING, "restarting") if is_restart else (Reason.ACTIVATING, "activating on")
    intent = desired.activation
    attempt = intent.attempt if intent is not None else 0
    is_open = intent is not None and intent.result is None and not bad_revisions.is_forgotten(intent, facts)
    if intent is not None and intent.toplevel == toplevel and is_open and attempt > facts.highest_attempt:
        request = _request(desired, toplevel, previous, attempt, mode)
        working = _working(reason, f"{says}{doing} {where}", FOLLOW_EVERY)
        return _on_host(observed, steps.Activate(_job(desired, intent.id, "activate"), brought_by, request), working)
    request = _request(desired, toplevel, previous, 1 + max(attempt, facts.highest_attempt), mode)
    is_repeat = bad_revisions.is_repeat(desired, observed, facts, toplevel)
    asked = desired.reboot_requested if mode is Mode.RESTART else None
    record = steps.RecordActivation(request, facts.boot_id, reboot_request=asked, is_repeat=is_repeat)
    return replace(_working(reason, f"{says}{doing} {where}"), steps=(record,))


def _dry_run(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> Finding:
    job = job_names.dry_activate(desired.host_id, toplevel, facts.current_system or "nothing")
    known = observed.jobs.get(job)
    if isinstance(known, Done):
        return modes.would(known.result)
    asking = _working(Reason.ACTIVATING, f"asking {observed.host.address} what activating it would do")
    return _on_host(observed, steps.DryActivate(job, toplevel), asking)


def _request(desired: Desired, toplevel: str, previous: str, attempt: int, mode: Mode | None) -> ActivationRequest:
    rules = desired.spec.activation
    returns = rules.rollback is RollbackPolicy.AUTOMATIC
    mode = modes.OF_HOST[rules.mode] if mode is None else mode
    return ActivationRequest(toplevel, previous, attempt, rules.timeout, rules.confirm_timeout, mode, returns)


def _job_move(observed: Observed, step: HostStep, working: Finding) -> Finding | None:
    match observed.jobs.get(step.job):
        case None:
            return replace(working, steps=(step,))
        case Running(progress, error):
            if error is not None:
                return _failing(error, working)
            return replace(working, message=f"{working.message}: {progress}") if progress else working
        case Failed(error, is_due):
            return replace(_failing(error, working), steps=(step,) if is_due else ())
        case Done():
            return None


def _failing(error: OperatorError, working: Finding) -> Finding:
    # A machine that serves goes on serving while its profile refuses to follow.
    if working.outcome is Outcome.REPAIRING and not isinstance(error, Blocked):
        reason = error.reason if error.reason is Reason.BOOT_ENTRY_FAILED else working.reason
        return replace(working, reason=reason, message=f"{working.message}: {error.message}")
    return replace(found_error(error, ConditionType.CONFIGURATION_ACTIVE), differs=working.differs)


def _working(reason: Reason, message: str, look_again: timedelta | None = None) -> Finding:
    return Finding(Outcome.WORKING, reason, message, ConditionType.CONFIGURATION_ACTIVE, look_again=look_again)
