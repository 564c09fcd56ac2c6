"""The way out of a deployment, from every phase. It needs no valid spec and no Secret but the AWS credentials'. Pure.

    machines ─► security groups, key pairs ─► what EC2 may still show ─► finalizer off

EC2 refuses to delete a group that is in use, hence the order. `deletionPolicy: Retain`, and machines that were orphaned
and live on, keep what is shared: it is tagged as let go of. The finalizer goes when nothing of ours is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from nixops_operator import names, retain
from nixops_operator.account import unreachable
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment import account, creations, key_pairs, machines, security_groups
from nixops_operator.deployment.desired import Leaving
from nixops_operator.deployment.observed import Observed, ObservedNetwork
from nixops_operator.deployment.retained import RetainThing
from nixops_operator.facts.cloud import SecurityGroup
from nixops_operator.planning import SOON, Finding
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome

TRIED = ConditionType.INFRASTRUCTURE_READY
"""The condition that is False from when this deployment's own try to let go was refused: machines' refusals are told by
Stalled, too, and say nothing about what the deployment may do."""


def way_out(leaving: Leaving, observed: Observed, now: datetime) -> Sequence[Finding]:
    """What has to go, and what holds it; GONE alone when the finalizer may go."""
    if leaving.is_orphaning:
        return (_deleting("waiting for the garbage collector to let go of the machines, which stay"),)
    found = tuple(_found(leaving, observed, now))
    held = tuple(one for one in found if one.outcome is not Outcome.GONE)
    return held or found or (Finding(Outcome.GONE),)


def _found(leaving: Leaving, observed: Observed, now: datetime) -> Iterator[Finding]:
    keeps = leaving.retains or bool(observed.orphans)
    if leaving.account_id is not None and keeps:
        for secret in observed.going_keys:
            yield _deleting(key_pairs.KEEPING_KEYS, key_pairs.KeepKey(secret))
    waiting = tuple(_machines_go(leaving, observed))
    yield from waiting
    network = observed.network
    if leaving.account_id is None or network is None:
        return
    error = account.problem(leaving, network)
    if error is not None:
        is_over = retain.is_patience_over(leaving, TRIED, now) and not waiting
        yield unreachable(leaving, error, TRIED, retains=keeps, is_over=is_over)
    elif keeps:
        yield from _shared_stay(leaving, network, now, may_go=not waiting)
        yield from _unseen(leaving, network)
    elif not waiting:
        yield from _shared_go(network)
        yield from _unseen(leaving, network)


# --- machines -----------------------------------------------------------------------------------------------------


def _machines_go(leaving: Leaving, observed: Observed) -> Iterator[Finding]:
    for seen in observed.children:
        if machines.is_to_be_retained(leaving, seen):
            step = machines.RetainMachine(seen.key, seen.uid)
            yield _deleting("telling the machines that their instances stay", step)
        elif not seen.is_deleting:
            yield _deleting(f"waiting for {seen.name} to go", machines.DeleteMachine(seen.key, seen.uid))
        elif seen.is_stalled and seen.ready is not None:
            yield Finding(Outcome.WEDGED, seen.ready.reason, f"{seen.name}: {seen.ready.message}", look_again=SOON)
        else:
            yield _deleting(f"waiting for {seen.name} to go")


# --- what machines share ------------------------------------------------------------------------------------------


def _shared_go(network: ObservedNetwork) -> Iterator[Finding]:
    """Groups and key pairs; what was let go of stays."""
    going = groups_to_go(network)
    for message, taken in security_groups.deletions(going, network, network.groups):
        yield _deleting(message, *taken)
    for pair in network.key_pairs:
        if not names.is_retained(pair.tags):
            yield _deleting(f"deleting key pair {pair.name}", *key_pairs.deletion_of(pair))


def groups_to_go(network: ObservedNetwork) -> tuple[SecurityGroup, ...]:
    """Groups of ours that were not let go of."""
    return tuple(group for group in network.groups if not names.is_retained(group.tags))


def _shared_stay(leaving: Leaving, network: ObservedNetwork, now: datetime, *, may_go: bool) -> Iterator[Finding]:
    untagged = sorted(thing.id for thing in network.things if not names.is_retained(thing.tags))
    if untagged and retain.is_patience_over(leaving, TRIED, now):
        if may_go:
            yield retain.let_go_untagged(Reason.ACCESS_DENIED, ", ".join(untagged))
        return
    for thing_id in untagged:
        message = f"tagging {thing_id} as retained"
        yield Finding(Outcome.DELETING, Reason.DELETING, message, TRIED, (RetainThing(thing_id),), look_again=SOON)


def _unseen(leaving: Leaving, network: ObservedNetwork) -> Iterator[Finding]:
    for name in creations.unseen(leaving, network):
        yield _deleting(f"{name} was asked for, and EC2 does not show it; waiting up to 6 min, so that nothing is left")


def _deleting(message: str, *taken: Step) -> Finding:
    return Finding(Outcome.DELETING, Reason.DELETING, message, steps=taken, look_again=SOON)
