"""What does this deployment need next? Pure: values in, a Plan out.

Read from top to bottom, CHECKS is the life of a deployment: what machines share, the machines, then what is not wanted
any more. Independent things are findings of their own: what is refused keeps nothing else from being done.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from nixops_operator import in_use
from nixops_operator.api.machine_spec import DriftPolicy
from nixops_operator.deployment import account, deletion, key_pairs, machines, security_groups
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed
from nixops_operator.planning import Area, Finding, Gate, Plan, Repair, Rules, found_error, planned, walk
from nixops_operator.ready import is_deadline_passed, was_told
from nixops_operator.verdict import Outcome


def plan(given: Desired | Leaving, observed: Observed, now: datetime, progress_deadline: timedelta) -> Plan:
    """The way out, or else what CHECKS find. `now` is aware UTC."""
    told = was_told(given.status, given.generation)
    if isinstance(given, Leaving):
        return planned(deletion.way_out(given, observed, now), Rules(was_told=told))
    rules = Rules(
        is_suspended=given.is_paused,
        was_reached=given.was_reached,
        reported=frozenset({Area.CLOUD}) if given.spec.drift_policy is DriftPolicy.REPORT else frozenset(),
        was_told=told,
        deadline_passed=is_deadline_passed(given.status, given.generation, progress_deadline, now),
    )
    return walk(CHECKS, given, observed, now, rules)


def machines_valid(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """Every machine's merged settings make a whole spec."""
    return found_error(desired.invalid) if desired.invalid is not None else None


def successors_serve(desired: Desired, observed: Observed, now: datetime) -> Sequence[Finding]:
    """Nothing goes before what replaces it is live: below this gate things are removed."""
    if machines.serve(desired, observed):
        return ()
    return (Finding(Outcome.IN_SYNC), *machines.waiting_to_go(desired, observed))


CHECKS: tuple[Gate[Desired, Observed] | Repair[Desired, Observed], ...] = (
    Repair(machines.summary),
    Gate(machines_valid),
    Repair(account.credentials_usable),
    Repair(account.account_recorded),
    Repair(in_use.kept),
    Repair(account.other_secrets_released),
    Repair(key_pairs.secrets_present),
    Repair(key_pairs.secrets_kept),
    Repair(key_pairs.imported),
    Repair(security_groups.created),
    Repair(security_groups.rules_as_declared),
    Repair(machines.misplaced),
    Repair(machines.as_declared),
    Repair(machines.requests_passed_on),
    Repair(machines.ready),
    Gate(successors_serve),
    Repair(machines.surplus),
    Repair(security_groups.surplus),
    Repair(key_pairs.surplus),
)
