"""What `activation.mode` makes of a system that is in the machine's store. Pure.

Switch and Test go the whole way (activation.py); here are the two that leave what runs alone.
"""

from __future__ import annotations

from nixops_operator.api.machine_spec import ActivationMode
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.host import DryRun, HostFacts, Mode
from nixops_operator.machine.activation_log import telling_line
from nixops_operator.planning import Finding
from nixops_operator.verdict import Outcome

OF_HOST = {ActivationMode.SWITCH: Mode.SWITCH, ActivationMode.TEST: Mode.TEST, ActivationMode.BOOT: Mode.BOOT}

_LONGEST = 800  # characters of what a dry run says; a message holds 1,024


def is_staged(facts: HostFacts, toplevel: str) -> bool:
    """Whether the machine boots this system next."""
    return facts.profile_system == toplevel and not facts.boot_entry_unsure


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
