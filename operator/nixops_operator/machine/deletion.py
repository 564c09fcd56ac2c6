"""The way out of a machine, from every phase. It needs no valid spec, image, configuration or SSH key. Pure.

The finalizer goes when nothing of ours is left, or what is left was let go as `deletionPolicy: Retain` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from nixops_operator import absence, account, job_names, names, retain
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.jobs import Failed
from nixops_operator.machine import addresses, steps, volumes
from nixops_operator.machine.desired import Leaving
from nixops_operator.machine.observed import ObservedCloud, ObservedLeaving, ids
from nixops_operator.planning import SOON, Finding
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome


def way_out(leaving: Leaving, observed: ObservedLeaving, now: datetime) -> Sequence[Finding]:
    """What has to go, and what holds it; GONE alone when the finalizer may go."""
    cloud = observed.cloud
    if cloud is None or leaving.account_id is None:
        return _host_released(leaving, observed)
    is_over = retain.is_patience_over(leaving, ConditionType.STALLED, now)
    error = account.problem(leaving, cloud.error, cloud.account_id)
    if error is not None:
        told = ConditionType.CREDENTIALS_READY
        # The wrong account proves nothing of what is in the right one.
        retains = leaving.retains and cloud.error is not None
        return (account.unreachable(leaving, error, told, retains=retains, is_over=is_over),)
    going = _retained(cloud, is_over) if leaving.retains else _terminated(cloud)
    beside = (*addresses.way_out(leaving, cloud), *volumes.way_out(leaving, cloud))
    answered = _answered(leaving, cloud)
    if any(one.outcome is Outcome.GONE for one in answered):
        return going or beside or answered  # somebody else has the instance; what is beside it is ours all the same
    return going or answered or beside or (_GONE,)


_GONE = Finding(Outcome.GONE)


def _host_released(leaving: Leaving, observed: ObservedLeaving) -> Sequence[Finding]:
    """A given host stays as it is, but for the word whose it is; it is not waited for if it does not answer."""
    if not observed.host_names_us or isinstance(observed.disowning, Failed):
        return (_GONE,)
    step = steps.DisownHost(job_names.disown(leaving.uid))
    return (_deleting("taking this machine's name off its host", *(() if observed.disowning else (step,))),)


def _retained(cloud: ObservedCloud, is_over: bool) -> Sequence[Finding]:
    untagged = [instance for instance in cloud.live if not names.is_retained(instance.tags)]
    kept = addresses.retained(cloud)
    if (untagged or kept) and is_over:
        left = ", ".join(sorted((*(one.id for one in untagged), *(one.id for one in kept))))
        return (retain.let_go_untagged(Reason.ACCESS_DENIED, left),)
    return (
        *(
            _deleting(f"tagging {one.id} as retained", steps.RetainInstance(one.id, one.root_volume_id))
            for one in untagged
        ),
        *(_deleting(f"tagging {one.id} as retained", addresses.RetainAddress(one.id)) for one in kept),
    )


def _terminated(cloud: ObservedCloud) -> Sequence[Finding]:
    ours = [instance for instance in cloud.live if not names.is_retained(instance.tags)]
    going = [_deleting(f"terminating {one.id}", steps.TerminateInstance(one.id)) for one in ours]
    leaving = [one for one in cloud.instances if one.state is InstanceState.SHUTTING_DOWN]
    if leaving:
        going.append(_deleting(f"waiting for {ids(leaving)} to terminate"))
    return going


def _answered(leaving: Leaving, cloud: ObservedCloud) -> Sequence[Finding]:
    """Nothing that lives is shown. What that proves of the last launch depends on what was asked of EC2, and when."""
    launch = leaving.launch
    if not cloud.is_other_gone and cloud.other is None:
        text = "waiting for EC2 to show the instance that was launched beside this machine's other one"
        return (replace(_deleting(text), look_again=absence.LOOK_AGAIN),)
    if launch is None or launch.refused_generation is not None:
        return ()
    if any(one.client_token == launch.token or one.id == launch.instance_id for one in cloud.instances):
        return ()  # seen: it is terminated, or retained
    if cloud.untagged is not None:
        return _untagged(leaving, cloud.untagged)
    if absence.is_gone(launch.last_call, cloud.looked_at, cloud.missing_for):
        return ()
    text = "a launch was sent and EC2 shows no instance yet; waiting up to 6 min for one to show, so that none is left"
    return (replace(_deleting(text), look_again=absence.LOOK_AGAIN),)


def _untagged(leaving: Leaving, instance: Instance) -> Sequence[Finding]:
    """The recorded instance does not carry our tags: somebody took them off, or the object was moved here from another
    cluster with its status. It is never terminated for its id alone."""
    if not instance.state.is_live or names.is_retained(instance.tags):
        return ()
    if instance.tags.get(names.UID_TAG):
        return (_told_gone(f"{instance.id}, which carries another owner's {names.UID_TAG} tag"),)
    message = (
        f"{instance.id} is recorded as this machine's and does not carry its tags; it is not touched. Tag it "
        f"{names.CLUSTER_TAG} and {names.UID_TAG}={leaving.uid} to have it terminated, or {names.RETAINED_TAG}=true "
        "(or set spec.deletionPolicy to Retain) to let it live"
    )
    return (_wedged(Reason.ADOPTION_CONFLICT, message),)


def _told_gone(what: str) -> Finding:
    return Finding(Outcome.GONE, Reason.ADOPTION_CONFLICT, f"let go of {what}")


def _wedged(reason: Reason, message: str) -> Finding:
    return Finding(Outcome.WEDGED, reason, message)


def _deleting(message: str, *found: Step) -> Finding:
    return Finding(Outcome.DELETING, Reason.DELETING, message, steps=found, look_again=SOON)
