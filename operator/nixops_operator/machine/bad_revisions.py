"""Systems that were activated and went wrong. Pure.

They stand in `status.failedRevisions`, and are not tried again until somebody asks for it, however often another one is
declared in between. What says nothing about a system is no failure of it: the lock of somebody else's switch, and once
for each system an end for which no operator was there, or before which the machine restarted.
"""

from __future__ import annotations

from datetime import datetime

from nixops_operator import job_names
from nixops_operator.api.machine_spec import ActivationMode
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import MOST_FAILED_REVISIONS, ActivationStatus, FailedRevisionStatus
from nixops_operator.errors import OperatorError
from nixops_operator.facts.host import ActivationFacts, ActivationState, HostFacts, Mode
from nixops_operator.host_policy import SSH_PORT
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import steps
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.planning import Finding
from nixops_operator.verdict import Outcome

LOCK_HELD_EXIT = 11
"""switch-to-configuration's exit while another one holds its lock: a person switches
(pkgs/by-name/sw/switch-to-configuration-ng)."""

UNITS_FAILED_EXIT = 4
"""Its exit when a unit is failed at the end; it can hide a failed activation script."""

_RESULTS = {
    ActivationState.COMMITTED: "Succeeded",
    ActivationState.ROLLED_BACK: "RolledBack",
    ActivationState.FAILED: "Failed",
}

_CALLED_OFF = (ActivationState.ROLLED_BACK, ActivationState.FAILED)
_FORGOTTEN = "Forgotten"
_ALONE = (
    "twice nobody confirmed the new system within activation.confirmTimeout: the operator did not run then, or heard "
    "nothing from the machine"
)
_RESTARTED = "twice the machine restarted before the new system was confirmed"
_ASK = "Change the configuration, or ask again with the annotation nixops.dev/reconcile-requested-at"


def remembered(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """What went wrong is written down before the intent of another activation takes its place; a request to look
    forgets it all."""
    facts = observed.host.facts
    if facts is None:
        return None
    failed, failure = known(desired, observed), _failure(desired, observed, facts)
    if failed == desired.failed_revisions and failure is None:
        return None
    result = _end(desired, facts) if failure is not None else None
    return Finding(Outcome.IN_SYNC, steps=(steps.RecordRevisions(failed, result),))


def _end(desired: Desired, facts: HostFacts) -> str | None:
    """How an activation has ended that says something against its system."""
    last, intent = facts.activation, desired.activation
    if intent is not None and is_forgotten(intent, facts):
        return _FORGOTTEN
    return _RESULTS.get(last.state, "Restarted") if last is not None else None


def known(desired: Desired, observed: Observed) -> tuple[FailedRevisionStatus, ...]:
    """All that went wrong of late, the newest last; what is seen in this pass included, and what runs after all
    excluded."""
    facts = observed.host.facts
    if desired.requests.new is not None:
        return ()
    if facts is None:
        return desired.failed_revisions
    runs = facts.current_system if facts.current_system == facts.profile_system else None
    failure = _failure(desired, observed, facts)
    kept = tuple(one for one in desired.failed_revisions if one.toplevel != runs)
    return with_one(kept, failure) if failure is not None else kept


def with_one(
    failed: tuple[FailedRevisionStatus, ...], failure: FailedRevisionStatus
) -> tuple[FailedRevisionStatus, ...]:
    """With this one as the newest."""
    others = tuple(one for one in failed if one.toplevel != failure.toplevel)
    return (*others, failure)[-MOST_FAILED_REVISIONS:]


def refused(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> Finding | None:
    """The declared system went wrong: not again, until something changes."""
    found = _known_of(desired, observed, toplevel)
    if found is None:
        return None
    if found.reason == Reason.REBOOT_REQUIRED and desired.spec.activation.mode is ActivationMode.BOOT:
        return None
    last = facts.activation
    if last is None or last.toplevel != toplevel:
        message = f"it went wrong before: {found.message}; it is not tried again"
    else:
        words = f" ({observed.host.telling_line})" if observed.host.telling_line else ""
        message = f"{found.message}{words}; {_what_runs(facts, last)}"
    condition = ConditionType.CONFIGURATION_ACTIVE
    return Finding(Outcome.STALLED, Reason(found.reason), f"{message}. {_ASK}", condition)


def needs_restart(desired: Desired, observed: Observed, toplevel: str) -> bool:
    """Whether a running machine cannot switch to this system."""
    found = _known_of(desired, observed, toplevel)
    return found is not None and found.reason == Reason.REBOOT_REQUIRED


def _known_of(desired: Desired, observed: Observed, toplevel: str) -> FailedRevisionStatus | None:
    return next((one for one in known(desired, observed) if one.toplevel == toplevel), None)


def is_half_done(facts: HostFacts) -> bool:
    """Whether what runs was not activated whole, and nobody may go back: activation.rollback is Never."""
    last = facts.activation
    if last is None or last.boot_id != facts.boot_id or last.returns:
        return False
    return last.state is ActivationState.FAILED and facts.current_system == last.toplevel


def _what_runs(facts: HostFacts, last: ActivationFacts) -> str:
    if is_half_done(facts):
        return "it stays as it is, because activation.rollback is Never"
    return "nothing was changed" if last.state is ActivationState.FAILED else "the previous system runs again"


def is_repeat(desired: Desired, observed: Observed, facts: HostFacts, toplevel: str) -> bool:
    """Whether the next activation of this system repeats one that says nothing about it."""
    intent = desired.activation
    says_nothing = _went_back_alone(desired, observed, facts) or _was_cut_by_restart(desired, facts)
    return intent is not None and intent.toplevel == toplevel and says_nothing


def result(desired: Desired, observed: Observed) -> str | None:
    """How the activation that the status tells of has ended; None while it has not, or while what its end says against
    its system is not written down."""
    facts, intent = observed.host.facts, desired.activation
    last = facts.activation if facts is not None else None
    if facts is None or intent is None or _failure(desired, observed, facts) is not None:
        return None
    if is_forgotten(intent, facts):
        return _FORGOTTEN
    return _RESULTS.get(last.state) if last is not None and last.id == intent.id else None


def is_forgotten(intent: ActivationStatus, facts: HostFacts) -> bool:
    """Whether it belongs to a boot that is over, and the machine knows nothing of it: /var/lib lies in memory there, or
    is put back at each boot, or the machine was restarted before it was told. To tell it now would do it once more."""
    is_unknown = intent.result is None and intent.attempt > facts.highest_attempt
    return is_unknown and intent.boot_id not in (None, facts.boot_id)


def is_awaited(desired: Desired, observed: Observed) -> bool:
    """Whether an operator was there for the end of the activation that the status tells of: it could not reach the
    machine, or asked it for the confirmation."""
    intent = desired.activation
    if intent is None:
        return False
    is_asked = job_names.on_host(desired.host_id, intent.id, "confirm") in observed.jobs
    return intent.awaited or is_asked or observed.host.error is not None


def kept_out_by(desired: Desired, observed: Observed) -> OperatorError | None:
    """What the operator meets where it wants to confirm: a connection that was there before may still be held."""
    if observed.host.error is not None or desired.activation is None:
        return observed.host.error
    match observed.jobs.get(job_names.on_host(desired.host_id, desired.activation.id, "confirm")):
        case Failed(error) | Running(last_error=error):
            return error
    return None


def _failure(desired: Desired, observed: Observed, facts: HostFacts) -> FailedRevisionStatus | None:
    """What the end of the newest activation says against its system. Only of our own: an older life of this object may
    have made another. And only once: what is written down has a result."""
    last, intent = facts.activation, desired.activation
    if intent is None or intent.result is not None:
        return None
    if is_forgotten(intent, facts):
        is_known = intent.repeated and _was_cut_by_restart(desired, facts)
        reason = Reason.ACTIVATION_FAILED
        return FailedRevisionStatus(toplevel=intent.toplevel, reason=reason, message=_RESTARTED) if is_known else None
    if last is None or last.id != intent.id:
        return None
    if last.state is ActivationState.ROLLED_BACK:
        # What was written down before the way back says why it was taken.
        known_before = next((one for one in desired.failed_revisions if one.toplevel == last.toplevel), None)
        if known_before is not None and known_before.reason == Reason.HEALTH_CHECK_FAILED:
            return known_before
    if _was_called_off(last, facts):
        message = None
    elif _was_cut_by_restart(desired, facts):
        message = _RESTARTED if intent.repeated else None
    elif _went_back_alone(desired, observed, facts):
        message = _ALONE if intent.repeated else None
    elif last.state is ActivationState.FAILED:
        message = _how_it_ended(desired, last) if last.exit_status != LOCK_HELD_EXIT else None
    else:
        message = _how_it_ended(desired, last) if last.state is ActivationState.ROLLED_BACK else None
    if message is None:
        return None
    is_to_boot = last.needs_restart and last.state is ActivationState.FAILED
    reason = Reason.REBOOT_REQUIRED if is_to_boot else Reason.ACTIVATION_FAILED
    return FailedRevisionStatus(toplevel=last.toplevel, reason=reason, message=message, exit_status=last.exit_status)


def _how_it_ended(desired: Desired, last: ActivationFacts) -> str:
    if last.mode is Mode.RESTART:
        return "the machine was restarted, and the new system did not come up, or could not be reached"
    if last.needs_restart:
        return (
            "a running machine cannot switch to this system, it has to boot it: set disruption.reboot to WhenNeeded, "
            "or activation.mode to Boot and restart it"
        )
    if last.service_result == "timeout":
        return "switch-to-configuration did not end within activation.timeout"
    if last.is_held:
        return "the new system's health was not known within ten minutes"
    if last.exit_status == UNITS_FAILED_EXIT:
        return "units or activation scripts failed (exit code 4), and the new system was not confirmed"
    if last.exit_status == 0:
        return (
            f"the new system could not be reached over a new connection within activation.confirmTimeout{_why(desired)}"
        )
    if last.exit_status is not None:
        return f"switch-to-configuration ended with exit code {last.exit_status}"
    return "switch-to-configuration did not end by itself"


def _why(desired: Desired) -> str:
    """What the operator met there, and what it needs: a configuration that says otherwise may be meant so."""
    why = desired.activation.unreached if desired.activation is not None else None
    if why is None:
        return ""
    given = desired.spec.target.host
    port = given.port if given is not None else SSH_PORT
    return f": {why}. It has to let {desired.spec.ssh.user} in on port {port}"


def _was_called_off(last: ActivationFacts, facts: HostFacts) -> bool:
    """Whether it was only to be booted, and ended before the machine was restarted for it."""
    is_for_boot = last.mode in (Mode.BOOT, Mode.RESTART)
    return is_for_boot and last.boot_id == facts.boot_id and last.state in _CALLED_OFF


def _went_back_alone(desired: Desired, observed: Observed, facts: HostFacts) -> bool:
    """No operator was there to confirm it, because it did not run, or was suspended: the machine may carry the operator
    itself."""
    last, intent = facts.activation, desired.activation
    if last is None or intent is None or last.id != intent.id:
        return False
    is_confirmable = last.state is ActivationState.ROLLED_BACK and last.exit_status in (0, UNITS_FAILED_EXIT)
    return is_confirmable and not is_awaited(desired, observed)


def _was_cut_by_restart(desired: Desired, facts: HostFacts) -> bool:
    """Somebody restarted the machine, or the new system made it do so."""
    last, intent = facts.activation, desired.activation
    if intent is not None and is_forgotten(intent, facts):
        return facts.current_system != intent.toplevel
    if last is None or intent is None or last.id != intent.id:
        return False
    return last.was_cut_by_boot(facts.boot_id)
