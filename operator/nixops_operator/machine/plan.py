"""What does this machine need next? Pure: values in, a Plan out. No I/O, no clock, no ports.

    observe.py ── Observed ──► plan() ── Plan ──► apply.py (steps), status.py (verdict)

A check returns a Plan, or None when its question is settled. The first answer decides. Read from top to bottom, CHECKS
is the life of a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from nixops_operator import retain
from nixops_operator.api.conditions import Truth, find_condition
from nixops_operator.api.machine_spec import DeletionPolicy, DriftPolicy, ReplacePolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.nix import Evaluation
from nixops_operator.jobs import Done, Failed, JobState, Running
from nixops_operator.machine import activation, steps
from nixops_operator.machine.observed import Desired, Observed, ObservedCloud
from nixops_operator.machine.steps import Step
from nixops_operator.verdict import Outcome, Verdict, suspended_verdict, verdict_of

LAUNCH_VISIBLE_AFTER = timedelta(minutes=5)
"""NotFound proves nothing for that long after a launch (EC2 Developer Guide, "Eventual consistency")."""
ABSENCE_SPAN = timedelta(seconds=60)
"""Complete sweeps that far apart must both miss an instance before it counts as gone."""
SOON = timedelta(seconds=2)


@dataclass(frozen=True)
class Plan:
    """Steps to take now, and how the machine stands. `toplevel`: the desired system, once it is evaluated."""

    verdict: Verdict
    steps: tuple[Step, ...] = ()
    toplevel: str | None = None
    wants: frozenset[str] = (
        frozenset()
    )  # jobs that are of use to this machine; others of its evaluations, builds and copies are not


Check = Callable[[Desired, Observed, datetime], Plan | None]


def plan(desired: Desired, observed: Observed, now: datetime, progress_deadline: timedelta) -> Plan:
    """The first answer of CHECKS; `now` is aware UTC. Evaluation and build are started beside any other work."""
    answer = next(answer for check in CHECKS if (answer := check(desired, observed, now)) is not None)
    if desired.is_paused and not desired.is_deleting:
        return _suspended(desired, observed, answer)
    if answer.verdict.outcome in (Outcome.WORKING, Outcome.RETRYING):
        beside = _evaluation_beside(observed, answer)
        answer = replace(answer, steps=(*answer.steps, *beside))
        answer = _within_deadline(answer, observed, now, progress_deadline)
    if answer.verdict.outcome is Outcome.WORKING and _merely_looking(desired, observed):
        answer = replace(answer, verdict=replace(answer.verdict, outcome=Outcome.LOOKING))
    return replace(answer, toplevel=toplevel_of(observed), wants=_wanted_jobs(desired, observed))


def _suspended(desired: Desired, observed: Observed, answer: Plan) -> Plan:
    """A person said stop: look and report only. Evaluating and building tell what is wanted, and change no machine."""
    harmless = tuple(step for step in answer.steps if isinstance(step, steps.Evaluate | steps.Build))
    verdict = suspended_verdict(answer.verdict)
    return Plan(verdict, harmless, toplevel_of(observed), _wanted_jobs(desired, observed))


def _merely_looking(desired: Desired, observed: Observed) -> bool:
    """Whether all that keeps a machine from being in sync is that this process has not connected or evaluated yet, as
    after
    its start. The status then stays as it is: nothing has happened to the machine."""
    ready = find_condition({"status": desired.status}, ConditionType.READY)
    if ready is None or ready.status is not Truth.TRUE or ready.observed_generation != desired.generation:
        return False
    instance = _instance(desired, observed)
    if observed.cloud is not None and (instance is None or instance.state is not InstanceState.RUNNING):
        return False
    facts, recorded = observed.host.facts, desired.system.get("desired")
    is_as_recorded = facts is None or (facts.current_system == recorded and not facts.lists_left)
    is_evaluated_alike = toplevel_of(observed) in (None, recorded)
    return observed.host.error is None and is_as_recorded and is_evaluated_alike


def _wanted_jobs(desired: Desired, observed: Observed) -> frozenset[str]:
    wanted = {observed.system.evaluate_job}
    if (toplevel := toplevel_of(observed)) is not None:
        wanted |= {_build_step(observed).job, activation.copy_job_of(desired, toplevel)}
    return frozenset(wanted)


def toplevel_of(observed: Observed) -> str | None:
    """The desired system, if its evaluation is known."""
    job = observed.jobs.get(observed.system.evaluate_job)
    return job.result.toplevel if isinstance(job, Done) and isinstance(job.result, Evaluation) else None


# --- deletion ----------------------------------------------------------------------------------------------------


def deleting(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The way out, from every phase; it needs no valid image, configuration or SSH key."""
    if not desired.is_deleting:
        return None
    cloud = observed.cloud
    if cloud is None or desired.account_id is None:
        return Plan(Verdict(Outcome.GONE))
    is_over = retain.is_patience_over(desired.status, desired.generation, desired.deleted_at, now)
    if cloud.error is not None:
        if desired.spec.deletion_policy is DeletionPolicy.RETAIN and isinstance(cloud.error, Blocked):
            return Plan(retain.without_credentials(cloud.error, desired.account_id, is_over=is_over))
        return Plan(_wedged_without_credentials(cloud, desired))
    if cloud.account_id != desired.account_id:
        return Plan(Verdict(Outcome.WEDGED, Reason.ACCESS_DENIED, _other_account(cloud, desired)))
    if desired.spec.deletion_policy is DeletionPolicy.RETAIN:
        untagged = [instance for instance in cloud.live if not _is_retained(instance)]
        if not untagged:
            return Plan(_gone())
        if is_over:
            return Plan(retain.let_go_untagged(Reason.ACCESS_DENIED, _ids(untagged)))
        taking = tuple(steps.RetainInstance(instance.id) for instance in untagged)
        return Plan(_deleting(f"tagging {_ids(untagged)} as retained"), taking)
    if cloud.live:
        terminations = tuple(steps.TerminateInstance(instance.id) for instance in cloud.live)
        return Plan(_deleting(f"terminating {_ids(cloud.live)}"), terminations)
    leaving = [i for i in cloud.instances if i.state is InstanceState.SHUTTING_DOWN]
    if leaving:
        return Plan(_deleting(f"waiting for {_ids(leaving)} to terminate"))
    return _launch_answered_before_leaving(desired, cloud, now)


def _launch_answered_before_leaving(desired: Desired, cloud: ObservedCloud, now: datetime) -> Plan:
    """Nothing is shown. That proves something only for a launch that had time to show."""
    launch = desired.launch
    if launch is None or launch.refused_generation is not None or cloud.instances:
        return Plan(_gone())
    if launch.instance_id is not None:
        shown_once = bool(desired.status.get("instance"))
        is_proven = cloud.missing_for is not None and cloud.missing_for >= ABSENCE_SPAN and shown_once
        if is_proven:
            return Plan(_gone())
    if now - launch.requested_at >= LAUNCH_VISIBLE_AFTER:
        return Plan(_gone())
    text = (
        "the launch was sent and EC2 shows no instance yet; waiting up to 5 min for one to show, so that none is left"
    )
    return Plan(_deleting(text))


def _deleting(message: str) -> Verdict:
    return Verdict(Outcome.DELETING, Reason.DELETING, message, look_again=SOON)


def _gone() -> Verdict:
    return Verdict(Outcome.GONE)


def _wedged_without_credentials(cloud: ObservedCloud, desired: Desired) -> Verdict:
    assert cloud.error is not None  # noqa: S101 - the caller looked
    found = verdict_of(cloud.error)
    message = (
        f"cannot look for the instance in account {desired.account_id}: {cloud.error.message}; "
        "repair the credentials, or set spec.deletionPolicy to Retain to let go of it"
    )
    outcome = Outcome.WEDGED if found.outcome is Outcome.STALLED else Outcome.DELETING
    return Verdict(outcome, cloud.error.reason, message, ConditionType.CREDENTIALS_READY)


# --- the instance -------------------------------------------------------------------------------------------------


def credentials_usable(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """EC2 answers, as the account in which our things are."""
    cloud = observed.cloud
    if cloud is None:
        return None
    if cloud.error is not None:
        return Plan(verdict_of(cloud.error, ConditionType.CREDENTIALS_READY))
    if desired.account_id is not None and desired.account_id != cloud.account_id:
        message = _other_account(cloud, desired)
        return Plan(Verdict(Outcome.STALLED, Reason.ACCESS_DENIED, message, ConditionType.CREDENTIALS_READY))
    return None


def account_recorded(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The account is written down before anything is made in it."""
    if observed.cloud is None or desired.account_id is not None:
        return None
    return Plan(_provisioning("looking up the account"), (steps.RecordAccount(observed.cloud.account_id),))


def launch_unanswered(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """A launch is recorded, its instance unknown: record the one that EC2 shows, else repeat the same call, never a new
    one."""
    cloud, launch = observed.cloud, desired.launch
    if cloud is None:
        return None
    if launch is not None and launch.instance_id is not None:
        return None
    if len(cloud.live) == 1:
        only = cloud.live[0]
        attempt = int(only.tags.get("nixops.dev:attempt", "1") or "1")
        return Plan(_provisioning(f"recording {only.id}"), (steps.RecordInstance(only.id, attempt),))
    if len(cloud.live) > 1:
        message = f"{_ids(cloud.live)} all carry this machine's uid and none is recorded; terminate all but one"
        return Plan(_infrastructure(Outcome.STALLED, Reason.LAUNCH_AMBIGUOUS, message))
    if launch is None or launch.refused_generation is not None:
        return None
    if any(i.client_token == launch.token for i in cloud.instances):
        # The attempt's machine died before its id was written down; its token would only give it back.
        return _new_launch(desired, cloud, "the launched instance is gone again; launching another")
    return Plan(_provisioning("the launch is recorded; asking EC2 for the instance"), (steps.Launch(launch),))


def instance_missing(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """No instance: launch the first one, or replace a lost one if that is allowed."""
    cloud, launch = observed.cloud, desired.launch
    if cloud is None:
        return None
    if launch is None or launch.instance_id is None:
        return _new_launch(desired, cloud, "launching an instance")
    instance = cloud.instance(launch.instance_id)
    if instance is None:
        proven = (
            cloud.missing_for is not None
            and cloud.missing_for >= ABSENCE_SPAN
            and now - launch.requested_at >= LAUNCH_VISIBLE_AFTER
        )
        if not proven:
            return Plan(
                _infrastructure(
                    Outcome.WORKING, Reason.PENDING, f"EC2 does not show {launch.instance_id}; looking again", SOON
                )
            )
        return _lost(desired, cloud, f"{launch.instance_id} is gone: EC2 does not show it any more")
    if instance.state is InstanceState.SHUTTING_DOWN:
        message = f"{instance.id} is shutting down"
        return Plan(_infrastructure(Outcome.WORKING, Reason.SHUTTING_DOWN, message, SOON))
    if instance.state is InstanceState.TERMINATED:
        why = f" ({instance.state_reason})" if instance.state_reason else ""
        return _lost(desired, cloud, f"{instance.id} was terminated{why}")
    return None


def _lost(desired: Desired, cloud: ObservedCloud, what: str) -> Plan:
    if cloud.live:
        others = _ids(cloud.live)
        message = f"{what}, and {others} with this machine's uid is not recorded; terminate it or remove its tags"
        return Plan(_infrastructure(Outcome.STALLED, Reason.LAUNCH_AMBIGUOUS, message))
    if desired.spec.disruption.replace is ReplacePolicy.NEVER:
        message = f"{what}; set spec.disruption.replace to WhenLost to have it replaced"
        return Plan(_infrastructure(Outcome.STALLED, Reason.INSTANCE_LOST, message))
    return _new_launch(desired, cloud, f"{what}; launching another")


def _new_launch(desired: Desired, cloud: ObservedCloud, message: str) -> Plan:
    if cloud.dependency_error is not None:
        return Plan(verdict_of(cloud.dependency_error, ConditionType.INFRASTRUCTURE_READY))
    assert cloud.parameters is not None  # noqa: S101 - resolved, or the error says why not
    attempt = 1 + max(desired.launch.attempt if desired.launch else 0, cloud.highest_attempt)
    step = steps.RecordLaunch(attempt, cloud.account_id, cloud.parameters)
    return Plan(_provisioning(message), (step,))


def host_key_pinned(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The key that went into user data is the only one that this instance may show; its private half is not kept."""
    cloud, launch = observed.cloud, desired.launch
    if cloud is None or launch is None or launch.instance_id is None:
        return None
    is_pinned = cloud.pins.instance_id == launch.instance_id
    if is_pinned and not cloud.pins.launches_left:
        return None
    step = steps.PinHostKey(launch.instance_id, launch.attempt, is_pinned=is_pinned)
    return Plan(_provisioning(f"pinning the host key of {launch.instance_id}"), (step,))


def instance_running(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The instance runs, or is on its way; one that was stopped by hand is started."""
    instance = _instance(desired, observed)
    if instance is None:
        return None
    match instance.state:
        case InstanceState.RUNNING:
            return None
        case InstanceState.STOPPED:
            if desired.spec.drift_policy is DriftPolicy.REPORT:
                message = f"{instance.id} is stopped and driftPolicy is Report; start it by hand"
                return Plan(_infrastructure(Outcome.STALLED, Reason.STOPPED, message))
            step = steps.StartInstance(instance.id)
            return Plan(
                _infrastructure(Outcome.WORKING, Reason.STOPPED, f"{instance.id} is stopped; starting it"), (step,)
            )
        case InstanceState.STOPPING:
            message = f"{instance.id} is stopping; it is started as soon as it has stopped"
            return Plan(_infrastructure(Outcome.WORKING, Reason.STOPPING, message, SOON))
        case InstanceState.PENDING:
            message = f"{instance.id} is starting"
            return Plan(_infrastructure(Outcome.WORKING, Reason.WAITING_FOR_INSTANCE, message, SOON))
        case _:
            message = f"{instance.id} is in a state that this release does not know; looking again"
            return Plan(_infrastructure(Outcome.WORKING, Reason.PENDING, message))


def security_groups_attached(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The instance is in exactly the groups of its spec."""
    instance, cloud = _instance(desired, observed), observed.cloud
    if instance is None or cloud is None or not differs_in_groups(instance, cloud):
        return None
    if desired.spec.drift_policy is DriftPolicy.REPORT:
        return None
    assert cloud.security_group_ids is not None  # noqa: S101 - differs_in_groups looked
    step = steps.SetSecurityGroups(instance.id, cloud.security_group_ids)
    message = f"{instance.id} is in other security groups than declared; putting them back"
    return Plan(Verdict(Outcome.REPAIRING, Reason.SECURITY_GROUP_DRIFT, message, ConditionType.UP_TO_DATE), (step,))


def differs_in_groups(instance: Instance, cloud: ObservedCloud) -> bool:
    """Whether the instance is in other groups than its spec says."""
    return cloud.security_group_ids is not None and cloud.security_group_ids != instance.security_group_ids


# --- the host -----------------------------------------------------------------------------------------------------


def reachable(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """An SSH session with the pinned host key."""
    host = observed.host
    if host.error is not None:
        return Plan(verdict_of(host.error, ConditionType.REACHABLE))
    if host.address is None:
        return Plan(
            _infrastructure(Outcome.WORKING, Reason.WAITING_FOR_INSTANCE, "the instance has no address yet", SOON)
        )
    if host.facts is None:
        message = f"connecting to {host.address}"
        return Plan(Verdict(Outcome.WORKING, Reason.WAITING_FOR_SSH, message, ConditionType.REACHABLE))
    if not host.facts.is_nixos:
        message = (
            f"{host.address} is no NixOS machine (it has no /etc/NIXOS); install NixOS there, or name another address"
        )
        return Plan(Verdict(Outcome.STALLED, Reason.INVALID_SPEC, message, ConditionType.REACHABLE))
    return None


# --- the system ---------------------------------------------------------------------------------------------------


def configuration_resolved(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """All that the evaluation depends on is at hand."""
    system = observed.system
    if system.error is not None:
        return Plan(verdict_of(system.error, ConditionType.CONFIGURATION_BUILT))
    if system.input is None:
        return Plan(_building(Reason.EVALUATING, f"waiting for {system.waits_for}"))
    return None


def system_evaluated(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The configuration is one derivation."""
    system = observed.system
    assert system.input is not None  # noqa: S101 - configuration_resolved
    step = steps.Evaluate(system.evaluate_job, system.input)
    job = observed.jobs.get(system.evaluate_job)
    working = _building(Reason.EVALUATING, "evaluating the configuration")
    return job_answer(job, step, working, ConditionType.CONFIGURATION_BUILT)


def system_built(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The derivation's output is in the operator's store, signed."""
    step = _build_step(observed)
    working = _building(Reason.BUILDING, "building the system")
    return job_answer(observed.jobs.get(step.job), step, working, ConditionType.CONFIGURATION_BUILT)


def _build_step(observed: Observed) -> steps.Build:
    job = observed.jobs[observed.system.evaluate_job]
    assert isinstance(job, Done)  # noqa: S101 - system_evaluated
    return steps.Build(f"build:{job.result.drv_path}", job.result.drv_path)


def system_active(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """The desired system runs, is confirmed and is what the next boot starts; see activation.py for the protocol."""
    toplevel = toplevel_of(observed)
    assert toplevel is not None and observed.host.facts is not None  # noqa: S101, PT018 - the checks before
    answer = activation.next_move(desired, observed, toplevel, now)
    return Plan(answer.verdict, answer.steps) if answer is not None else None


def reported_drift(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    """Differences that policy says to leave: the machine serves, and says so."""
    instance, cloud = _instance(desired, observed), observed.cloud
    if instance is not None and cloud is not None and differs_in_groups(instance, cloud):
        message = f"{instance.id} is in other security groups than declared; driftPolicy is Report"
        return Plan(Verdict(Outcome.IN_SYNC, Reason.SECURITY_GROUP_DRIFT, message, ConditionType.UP_TO_DATE))
    return None


def in_sync(desired: Desired, observed: Observed, now: datetime) -> Plan | None:
    return Plan(Verdict(Outcome.IN_SYNC, Reason.SUCCEEDED, "the declared system runs"))


CHECKS: tuple[Check, ...] = (
    deleting,  # first; works from every phase, an unanswered launch included
    credentials_usable,
    account_recorded,
    launch_unanswered,  # before instance_missing, or a lost reply makes a second instance
    instance_missing,
    host_key_pinned,
    instance_running,
    security_groups_attached,
    reachable,
    configuration_resolved,
    system_evaluated,
    system_built,
    system_active,
    reported_drift,
    in_sync,
)


def job_answer(job: JobState | None, step: Step, working: Verdict, condition: ConditionType) -> Plan | None:
    """None when the job is done; else what it does, or why it failed; a failure whose time has come is tried again."""
    match job:
        case None:
            return Plan(working, (step,))
        case Running(progress, None):
            return Plan(replace(working, message=progress) if progress else working)
        case Running(_, error):
            assert error is not None  # noqa: S101 - the case before
            return Plan(verdict_of(error, condition))
        case Failed(error, is_due):
            return Plan(verdict_of(error, condition), (step,) if is_due else ())
        case Done():
            return None


def _evaluation_beside(observed: Observed, answer: Plan) -> tuple[Step, ...]:
    """Evaluation and build need no machine: they go on while an instance boots or a host is silent."""
    system = observed.system
    if system.input is None:
        return ()
    job = observed.jobs.get(system.evaluate_job)
    if job is None:
        step: Step = steps.Evaluate(system.evaluate_job, system.input)
    elif isinstance(job, Done) and observed.jobs.get(_build_step(observed).job) is None:
        step = _build_step(observed)
    else:
        return ()
    return () if step in answer.steps else (step,)


def _within_deadline(answer: Plan, observed: Observed, now: datetime, deadline: timedelta) -> Plan:
    """Work that has no end within the deadline is a person's business, too; it goes on, slowly."""
    since = observed.working_since
    if not observed.deadline_passed and (since is None or now - since < deadline):
        return answer
    verdict = answer.verdict
    message = f"no end within the progress deadline, still trying; {verdict.message}"
    stalled = Verdict(
        Outcome.STALLED, Reason.PROGRESS_DEADLINE_EXCEEDED, message, verdict.condition, verdict.look_again
    )
    return replace(answer, verdict=stalled)


def _instance(desired: Desired, observed: Observed) -> Instance | None:
    launch = desired.launch
    return observed.cloud.instance(launch.instance_id) if observed.cloud is not None and launch is not None else None


def _infrastructure(outcome: Outcome, reason: Reason, message: str, look_again: timedelta | None = None) -> Verdict:
    return Verdict(outcome, reason, message, ConditionType.INFRASTRUCTURE_READY, look_again)


def _provisioning(message: str) -> Verdict:
    return _infrastructure(Outcome.WORKING, Reason.PROVISIONING, message)


def _building(reason: Reason, message: str) -> Verdict:
    return Verdict(Outcome.WORKING, reason, message, ConditionType.CONFIGURATION_BUILT)


def _ids(instances: tuple[Instance, ...] | list[Instance]) -> str:
    return ", ".join(sorted(instance.id for instance in instances))


def _is_retained(instance: Instance) -> bool:
    return instance.tags.get("nixops.dev:retained") == "true"


def _other_account(cloud: ObservedCloud, desired: Desired) -> str:
    return (
        f"the credentials are of account {cloud.account_id}, this machine is in account {desired.account_id}; "
        "nothing is touched: bring back the credentials of that account"
    )
