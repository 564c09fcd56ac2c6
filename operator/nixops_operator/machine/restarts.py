"""Lives that end soon: an instance that dies at once, or powers itself off while booting, must not be started again and
again at full speed. Pure.

Each start and each launch after the first life is counted in `status.restarts`; ten undisturbed minutes end the count.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from nixops_operator import waits
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.cloud import Instance
from nixops_operator.machine.desired import Desired
from nixops_operator.planning import Finding
from nixops_operator.verdict import Outcome

FIRST_WAIT = timedelta(seconds=30)
LONGEST_WAIT = timedelta(minutes=10)
STALLED_AFTER = 5
"""Lives in a row; then a person is asked, while slow tries go on."""
UNDISTURBED = timedelta(minutes=10)


def count(desired: Desired) -> int:
    """How often it was started of late, for this generation of the spec."""
    restarts = desired.restarts
    return restarts.count if restarts is not None and restarts.generation == desired.generation else 0


def waiting(desired: Desired, now: datetime, died_of: str) -> Finding | None:
    """Why the next start has to wait; None: it may be now. The first one never waits."""
    restarts, times = desired.restarts, count(desired)
    if restarts is None or times == 0:
        return None
    wait = min(FIRST_WAIT * 2 ** (times - 1), LONGEST_WAIT)
    left = waits.left(restarts.last_at, wait, now)
    if left is None:
        return None
    often = "once of late, and was" if times == 1 else f"{times} times of late, and each time it was"
    what = f"started {often} gone again soon: {died_of}"
    if times >= STALLED_AFTER:
        message = f"{what}; still tried every 10 min. Look at the instance's console and its system, or edit the spec"
        return _finding(Outcome.STALLED, message, left)
    return _finding(Outcome.RETRYING, f"{what}; waiting before the next start", left)


def _finding(outcome: Outcome, message: str, wait: timedelta) -> Finding:
    kind = ConditionType.INFRASTRUCTURE_READY
    return Finding(outcome, Reason.STOPPED, message, kind, look_again=max(wait, timedelta(seconds=1)))


def is_over(desired: Desired, now: datetime) -> bool:
    """Whether the count may end: the machine has been there for long enough since the last start."""
    return desired.restarts is not None and now - desired.restarts.last_at >= UNDISTURBED


def died_of(instance: Instance) -> str:
    """EC2's own reason, as far as it gives one. Its text mostly begins with the code."""
    code, text = instance.state_reason or "", instance.state_reason_message or ""
    both = text if text.startswith(code) else f"{code}: {text}".removesuffix(": ")
    return both or f"EC2 gives no reason ({instance.state.value})"
