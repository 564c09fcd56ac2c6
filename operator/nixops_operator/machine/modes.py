"""What `activation.mode` makes of a system that is in the machine's store. Pure.

Switch and Test go the whole way (activation.py); here are the two that leave what runs alone.
"""

from __future__ import annotations

from nixops_operator.api.machine_spec import ActivationMode
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.host import DryRun, HostFacts, Mode
from nixops_operator.machine.activation_log import telling_line
from nixops_operator.planning import Area, Finding
from nixops_operator.verdict import Outcome

OF_HOST = {ActivationMode.SWITCH: Mode.SWITCH, ActivationMode.TEST: Mode.TEST, ActivationMode.BOOT: Mode.BOOT}

_LONGEST = 800  # characters of what a dry run says; a message holds 1,024


def is_staged(facts: HostFacts, toplevel: str) -> bool:
    """Whether the machine boots this system next."""
    return facts.profile_system == toplevel and not facts.boot_entry_unsure


def staged(where: str | None) -> list[Finding]:
    """It is what the machine boots next, and somebody has to restart it."""
    message = f"{where} boots the declared system when it is restarted (activation.mode is Boot)"
    active, differs = ConditionType.CONFIGURATION_ACTIVE, ConditionType.UP_TO_DATE
    return [
        Finding(Outcome.DRIFT_REPORTED, Reason.REBOOT_REQUIRED, message, active),
        Finding(Outcome.REPORTED, Reason.REBOOT_REQUIRED, message, differs, differs=Area.HOST, is_drift=False),
    ]


def would(run: DryRun) -> Finding:
    """What a dry run says."""
    if run.exit_status != 0:
        said = telling_line(run.output)
        text = f"switch-to-configuration dry-activate ends with {run.exit_status}" + (f" ({said})" if said else "")
    else:
        text = "; ".join(line.strip() for line in run.output.splitlines() if line.strip()) or "it would do nothing"
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    message = f"activation.mode is DryActivate, so nothing is changed; {text}"
    return Finding(Outcome.DRIFT_REPORTED, Reason.DRY_ACTIVATED, message, ConditionType.CONFIGURATION_ACTIVE)
