"""What does this machine need next? Read from top to bottom, CHECKS is the life of a machine. Pure.

    observe.py ── Observed ──► plan() ── Plan ──► apply.py (steps), status.py (verdict)

planning.py says what gates and repairs are, and applies suspension, Report and deadline to what they find.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from nixops_operator import account, in_use, job_names
from nixops_operator.api.machine_spec import ActivationMode, BuildOn, DriftPolicy
from nixops_operator.api.reasons import Reason
from nixops_operator.machine import (
    activation,
    addresses,
    bad_revisions,
    build_on_target,
    deletion,
    generations,
    health,
    host,
    host_key_rotation,
    instance,
    keys,
    launch,
    power,
    reboot,
    replacement,
    root_volume,
    silence,
    system,
    volumes,
)
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observed import Observed, ObservedCloud, ObservedLeaving
from nixops_operator.planning import Area, Check, Finding, Gate, Plan, Repair, Rules, planned, walk
from nixops_operator.ready import is_deadline_passed, was_reached, was_told
from nixops_operator.verdict import Outcome

InCloud = Check[Desired, ObservedCloud]


def plan(desired: Desired, observed: Observed, now: datetime, progress_deadline: timedelta) -> Plan:
    """What a living machine needs. `now` is aware UTC."""
    return walk(CHECKS, desired, observed, now, _rules(desired, now, progress_deadline))


def plan_way_out(leaving: Leaving, observed: ObservedLeaving, now: datetime) -> Plan:
    """What one in deletion needs."""
    rules = Rules(was_told=was_told(leaving.status, leaving.generation))
    return planned(deletion.way_out(leaving, observed, now), rules)


def wanted_jobs(desired: Desired, observed: Observed) -> frozenset[str] | None:
    """Jobs that are of use to this machine now; others of its evaluations, builds and copies are not. None: nobody can
    say, because what they depend on is not known at the moment."""
    if observed.system.input is None:
        return None
    wanted = {observed.system.evaluate_job, *(step.job for step in system.fetch_steps(observed))}
    if observed.system.build_on is BuildOn.TARGET:
        dry = _dry_run(desired, observed, observed.toplevel) if observed.toplevel is not None else set()
        return frozenset(wanted | dry | build_on_target.wanted_jobs(desired, observed))
    if (build := system.build_step(observed)) is not None:
        wanted.add(build.job)
    if observed.toplevel is not None:
        wanted.add(job_names.copy(desired.host_id, observed.toplevel))
        wanted |= _dry_run(desired, observed, observed.toplevel)
    return frozenset(wanted)


def _dry_run(desired: Desired, observed: Observed, toplevel: str) -> set[str]:
    if desired.spec.activation.mode is not ActivationMode.DRY_ACTIVATE:
        return set()
    current = observed.host.facts.current_system if observed.host.facts is not None else None
    return {job_names.dry_activate(desired.host_id, toplevel, current or "nothing")}


def _rules(desired: Desired, now: datetime, progress_deadline: timedelta) -> Rules:
    reported = set()
    if desired.spec.drift_policy is DriftPolicy.REPORT:
        reported.add(Area.CLOUD)
    if desired.spec.activation.drift_policy is DriftPolicy.REPORT:
        reported.add(Area.HOST)
    return Rules(
        is_suspended=desired.is_paused,
        was_reached=was_reached(desired.status, desired.generation),
        reported=frozenset(reported),
        deadline_passed=is_deadline_passed(desired.status, desired.generation, progress_deadline, now),
        was_told=was_told(desired.status, desired.generation),
    )


def _in_cloud(check: InCloud) -> Check[Desired, Observed]:
    """A check that only concerns machines in EC2."""

    def of_cloud(desired: Desired, observed: Observed, now: datetime) -> Finding | Iterable[Finding] | None:
        return check(desired, observed.cloud, now) if observed.cloud is not None else None

    return of_cloud


def _credentials_usable(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """EC2 answers, as the account in which our things are."""
    return account.unusable(account.problem(desired, cloud.error, cloud.account_id))


def _account_recorded(desired: Desired, cloud: ObservedCloud, now: datetime) -> Finding | None:
    """The account is written down before anything is made in it."""
    return account.to_record(desired, cloud.account_id)


def _keys_of_the_new_boot(desired: Desired, observed: Observed, now: datetime) -> Iterable[Finding] | None:
    """Keys in memory went with the restart, and the health of what was booted may depend on them: they are brought
    before it is confirmed."""
    facts = observed.host.facts
    return keys.kept(desired, observed, now) if facts is not None and reboot.awaits_confirmation(facts) else None


def _summary(desired: Desired, observed: Observed, now: datetime) -> Finding:
    """What is said when nothing else is."""
    message = "; ".join(filter(None, ("the declared system runs", health.note(desired, observed))))
    return Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, message)


CHECKS: tuple[Gate[Desired, Observed] | Repair[Desired, Observed], ...] = (
    Repair(_summary),
    Repair(bad_revisions.remembered),
    Repair(system.ahead),
    Repair(in_use.kept),
    Gate(_in_cloud(_credentials_usable)),
    Gate(_in_cloud(_account_recorded)),
    Repair(in_use.others_released),
    Repair(_in_cloud(replacement.other_to_go)),
    Gate(_in_cloud(launch.unanswered)),  # before `missing`, or a lost reply makes a second instance
    Gate(replacement.given_up),
    Gate(_in_cloud(instance.missing)),
    Gate(_in_cloud(instance.host_key_pinned)),
    Repair(_in_cloud(replacement.asked_for)),
    Repair(_in_cloud(replacement.changed)),
    Gate(_in_cloud(replacement.due)),
    Repair(_in_cloud(addresses.kept)),
    Gate(_in_cloud(power.as_declared)),
    Repair(_in_cloud(power.changed)),
    Repair(_in_cloud(instance.undisturbed)),
    Repair(_in_cloud(instance.as_declared)),
    Repair(_in_cloud(root_volume.as_declared)),
    Repair(_in_cloud(volumes.as_declared)),
    Gate(reboot.coming_back),
    Gate(silence.broken),
    Gate(reboot.did_not_come_back),
    Gate(host.reachable),
    Repair(silence.over),
    Gate(host.owned),
    Gate(host_key_rotation.replaced),  # before a secret or a system goes there
    Gate(host.of_declared_system),
    Repair(root_volume.grown),  # a full disk may be why nothing below gets on
    Repair(volumes.grown),
    Repair(build_on_target.nothing_else_built),
    Repair(_keys_of_the_new_boot),
    Gate(activation.followed),
    Repair(activation.boot_entry_again),
    Repair(keys.kept),
    Repair(system.source_gone),
    Gate(system.resolved),
    Gate(system.fetched),
    Gate(system.evaluated),
    Gate(system.built),
    Repair(health.kept),
    Repair(reboot.told),
    Repair(generations.kept),
    Gate(keys.ready_for_activation),
    Gate(replacement.taken_over),
    Gate(volumes.ready_for_activation),
    Gate(activation.next_move),
    Repair(volumes.released),  # last: when the system without them runs
)
