"""When a machine has to be restarted, and whether the operator does it. Pure.

A restart is an activation of mode `restart` (activation.py): claimed, made the next boot, booted, confirmed over a new
connection, made the boot entry. A machine that nobody confirms restarts into its previous system (nixops-guard.service
of the guest module). Of a kernel that does not come up nothing of ours runs; where the boot loader is GRUB it was
chosen for one boot alone, and any reset brings the previous system: the kernel's own (`panic=1`, which NixOS' image for
EC2 has), that of silence.py, or a person's.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from nixops_operator.api.machine_spec import RebootPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.host import ActivationState, HostFacts, Mode
from nixops_operator.machine.bad_revisions import is_forgotten
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.planning import SOON, Area, Finding
from nixops_operator.verdict import Outcome

_SILENCE = (Reason.CONNECT_TIMEOUT, Reason.CONNECTION_REFUSED)
_GOING_DOWN = (*_SILENCE, Reason.PROGRESSING_WITH_RETRY)
"""systemd and the agent fail before sshd does."""
COMES_BACK_WITHIN = timedelta(minutes=10)
"""From the call to restart to sshd: shutting down may take the 90 s that systemd gives each unit."""

_REMEDY = "restart it when that suits you, or let the operator do it: disruption.reboot: WhenNeeded"
_FORGETS = (
    "the operator does not restart it, since /var/lib/nixops, by which it would come back from a restart that goes "
    "wrong, lies in memory there: keep that folder on a disk, or restart it yourself"
)


def is_allowed(desired: Desired) -> bool:
    """Whether it may be restarted without being asked for."""
    return desired.spec.disruption.reboot is RebootPolicy.WHEN_NEEDED


def may_restart(desired: Desired, facts: HostFacts) -> bool:
    """As `is_allowed`, of a machine that would come back from a restart that goes wrong."""
    return is_allowed(desired) and not facts.forgets


def is_due(desired: Desired, facts: HostFacts, toplevel: str) -> bool:
    """Whether the declared system, which runs, is to be booted now. Not twice for the same: what a restart did not
    bring, another one does not bring either."""
    if is_asked(desired, facts, toplevel):
        return True
    return bool(facts.restart_for) and may_restart(desired, facts) and not _was_restarted(desired, facts, toplevel)


def is_asked(desired: Desired, facts: HostFacts, toplevel: str) -> bool:
    """Whether somebody wants the machine restarted, whatever the policy, or it was written down that it will be."""
    intent = desired.activation
    is_begun = intent is not None and intent.restarts and intent.toplevel == toplevel and intent.result is None
    is_untold = intent is not None and intent.attempt > facts.highest_attempt and not is_forgotten(intent, facts)
    return desired.reboot_requested is not None or (is_begun and is_untold)


def told(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """What runs serves, and is not what was booted."""
    facts, toplevel = observed.host.facts, observed.toplevel
    if facts is None or facts.current_system != toplevel or not facts.restart_for:
        return None
    what = ", ".join(facts.restart_for)
    message = f"{what} of the running system differ from those that were booted; "
    if toplevel is not None and may_restart(desired, facts):
        was_restarted = _was_restarted(desired, facts, toplevel)
        message += "a restart did not change that" if was_restarted else "it is restarted for that"
    else:
        message += _remedy(desired, facts)
    kind = ConditionType.UP_TO_DATE
    return Finding(Outcome.REPORTED, Reason.REBOOT_REQUIRED, message, kind, differs=Area.HOST, is_drift=False)


def _remedy(desired: Desired, facts: HostFacts) -> str:
    return _FORGETS if is_allowed(desired) and facts.forgets else _REMEDY


def staged(desired: Desired, facts: HostFacts, where: str | None) -> list[Finding]:
    """The declared system is what the machine boots next, and somebody has to restart it."""
    message = (
        f"{where} boots the declared system when it is restarted (activation.mode is Boot); {_remedy(desired, facts)}"
    )
    active, differs = ConditionType.CONFIGURATION_ACTIVE, ConditionType.UP_TO_DATE
    return [
        Finding(Outcome.DRIFT_REPORTED, Reason.REBOOT_REQUIRED, message, active),
        Finding(Outcome.REPORTED, Reason.REBOOT_REQUIRED, message, differs, differs=Area.HOST, is_drift=False),
    ]


def coming_back(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """It does not answer because it was told to restart a moment ago."""
    away = _away_for(desired, observed, now, _GOING_DOWN)
    if away is None or away >= COMES_BACK_WITHIN:
        return None
    message = f"waiting for {observed.host.address} to come back from its restart"
    return Finding(Outcome.WORKING, Reason.REBOOTING, message, ConditionType.REACHABLE, look_again=SOON)


def did_not_come_back(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """A person has to look, where another restart is not allowed or not due: a kernel that hangs resets nothing by
    itself. Whenever it answers again, it goes on from there."""
    error = observed.host.error
    if error is None or _away_for(desired, observed, now, _SILENCE) is None:
        return None
    return Finding(Outcome.STALLED, error.reason, _lost(desired, observed.host.address), ConditionType.REACHABLE)


def _away_for(desired: Desired, observed: Observed, now: datetime, reasons: Collection[Reason]) -> timedelta | None:
    """Since it was told to restart; None if it was not, or if it is for none of these that it cannot be looked at."""
    intent, error = desired.activation, observed.host.error
    if error is None or intent is None or not intent.restarts or intent.result is not None:
        return None
    return now - intent.started_at if error.reason in reasons else None


def _lost(desired: Desired, where: str | None) -> str:
    """The serial console is there on Nitro instances once the account allows it (EC2 User Guide, "EC2 Serial Console
    for Linux instances")."""
    minutes = round(COMES_BACK_WITHIN.total_seconds() / 60)
    what = f"{where} has not come back from its restart for {minutes} min: its new kernel or initrd may not boot"
    if desired.instance_id is None:
        return (
            f"{what}; switch it off and on, after which GRUB boots the previous system. With another boot loader "
            "choose the previous generation in the boot menu on its console"
        )
    return (
        f"{what}; see `aws ec2 get-console-output --latest --instance-id {desired.instance_id}`, and reboot it, after "
        "which GRUB boots the previous system. With another boot loader choose the previous generation in the boot "
        "menu on the EC2 serial console, or in /boot of its root volume on another instance"
    )


def awaits_confirmation(facts: HostFacts) -> bool:
    """Whether the machine has booted what it was restarted into."""
    last = facts.activation
    if last is None or last.state is not ActivationState.REBOOTING:
        return False
    return last.boot_id != facts.boot_id and last.toplevel == facts.current_system


def way_back(facts: HostFacts, current: str, toplevel: str) -> str:
    """The system that is booted if the restart into `toplevel` goes wrong: `current`, which runs, or if that is
    `toplevel` itself what ran before. Each must have the kernel that was booted, which has shown that it comes up; else
    it is what was booted."""
    last, before = facts.activation, None
    if current != toplevel and not facts.restart_for:
        return current
    if last is not None and (last.state, last.toplevel) == (ActivationState.COMMITTED, current) and last.previous_boots:
        before = last.previous
    if before is None or before == toplevel:
        return facts.booted_system or current
    return before


def _was_restarted(desired: Desired, facts: HostFacts, toplevel: str) -> bool:
    """As the machine remembers; where it remembers nothing, as the status does."""
    last, intent = facts.activation, desired.activation
    if facts.booted_system != toplevel:
        return False
    if last is not None:
        is_committed = last.state is ActivationState.COMMITTED
        return last.toplevel == toplevel and last.mode is Mode.RESTART and is_committed
    if intent is None or not intent.restarts or intent.toplevel != toplevel:
        return False
    return intent.boot_id not in (None, facts.boot_id)
