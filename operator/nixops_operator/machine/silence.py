"""An instance that EC2 calls running, and that has not answered for long: it is restarted where that is allowed. Pure
decisions, and the step that carries them out.

    silent for 10 min ─► RebootInstances ─► 10 min ─► stopped and started, if disruption.stop allows it ─► 10 min ─► …

Each restart is counted in `status.silence` before it is asked for. After the third one a person is asked, and nothing
is restarted any more until the spec is edited, somebody asks to reconcile, or the machine has answered for an hour.

EC2 reboots an instance that ignores the request to shut down after a few minutes by force; a stop moves it to other
hardware (EC2 User Guide, "Reboot your instance", "Stop and start Amazon EC2 instances").
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nixops_operator.api.conditions import changed_at
from nixops_operator.api.machine_spec import StopPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import SilenceStatus
from nixops_operator.machine import power, reboot, steps
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed, running_instance
from nixops_operator.planning import SOON, Finding, found_error
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

if TYPE_CHECKING:
    from nixops_operator.informers.cloud import CloudView

RESTARTED_AFTER = timedelta(minutes=10)
"""Of silence; EC2's own forced reboot takes four of them, and a boot another two."""
MOST_RESTARTS = 3
FORGOTTEN_AFTER = timedelta(hours=1)
_SILENCE = (Reason.CONNECT_TIMEOUT, Reason.CONNECTION_REFUSED)


def broken(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """Restart what has been silent for too long."""
    error, cloud = observed.host.error, observed.cloud
    instance = running_instance(cloud, desired.instance_id)
    if instance is None or cloud is None or error is None or error.reason not in _SILENCE:
        return None
    # A group that admits nobody is no fault of the machine; and one that is activated returns by itself.
    if cloud.admits_ssh is False or desired.is_replacing or power.is_activating(desired, now):
        return None
    last = _counted(desired)
    since = _silent_since(desired)
    if since is None:
        return None
    due = max(since, last.last_at if last is not None else since) + RESTARTED_AFTER
    count = last.count if last is not None else 0
    found = found_error(error, ConditionType.REACHABLE)
    if count >= MOST_RESTARTS:
        message = (
            f"{found.message}; {instance.id} was restarted {count} times for that, and does not stay. Look at its "
            "console; it is restarted again when you edit the spec or ask to reconcile"
        )
        return Finding(Outcome.STALLED, error.reason, message, ConditionType.REACHABLE)
    if now < due:
        return None
    if not reboot.is_allowed(desired):
        message = f"{found.message}; disruption.reboot: WhenNeeded would have {instance.id} rebooted"
        return Finding(found.outcome, found.reason, message, ConditionType.REACHABLE)
    is_stop = count > 0 and desired.spec.disruption.stop is StopPolicy.WHEN_NEEDED
    record = steps.RecordSilence(
        SilenceStatus(instance_id=instance.id, count=count + 1, last_at=now, generation=desired.generation)
    )
    step = steps.StopInstance(instance.id) if is_stop else steps.RebootInstance(instance.id)
    how = "stopping it, to start it again" if is_stop else "rebooting it"
    message = f"{found.message}; {how} (restart {count + 1} of {MOST_RESTARTS})"
    return Finding(Outcome.RETRYING, error.reason, message, ConditionType.REACHABLE, (record, step), SOON)


def over(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """It has answered for long enough; or it is another instance."""
    last = desired.silence
    if last is None or observed.host.facts is None:
        return None
    if last.instance_id == desired.instance_id and now - last.last_at < FORGOTTEN_AFTER:
        return None
    return Finding(Outcome.IN_SYNC, steps=(steps.RecordSilence(None),))


def _counted(desired: Desired) -> SilenceStatus | None:
    """Restarts of this instance for this generation of the spec; a request begins anew."""
    last = desired.silence
    if last is None or last.instance_id != desired.instance_id or last.generation != desired.generation:
        return None
    return last if desired.requests.new is None else None


def _silent_since(desired: Desired) -> datetime | None:
    """Since when the status has said so."""
    for one in desired.status.get("conditions") or ():
        if one.get("type") == ConditionType.REACHABLE.value and one.get("status") == "False":
            return changed_at(one)
    return None


async def restart(step: steps.RebootInstance, desired: Desired, view: CloudView, world: World) -> None:
    """Reboot it, after a fresh look. Raises Conflict where that shows that it is not ours any more."""
    await power.judge_ours(step.instance_id, desired, view, world)
    await view.cloud.reboot_instance(step.instance_id)
