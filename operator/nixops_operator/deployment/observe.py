"""What is there: the deployment's groups and key pairs in EC2, its keys in Secrets, its machines in the cache. Looks
only; what cannot be looked at becomes an error in what was observed, never an empty one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from nixops_operator import in_use, names
from nixops_operator.api.machine_spec import DeletionPolicy
from nixops_operator.deployment import account, creations, deletion, key_pairs, machines, security_groups
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedMachine, ObservedNetwork
from nixops_operator.errors import OperatorError
from nixops_operator.informers.cloud import CloudView
from nixops_operator.informers.snapshot import CloudSnapshot
from nixops_operator.world import World


async def observe(given: Desired | Leaving, world: World) -> Observed:
    """One look at everything that concerns this deployment."""
    if isinstance(given, Desired) and given.requests.new is not None:
        world.reads.look_anew(given.key.namespace)
    children = machines.observe_children(given, world)
    network = await _network(given, children, world) if given.needs_cloud else None
    if isinstance(given, Leaving):
        orphans = machines.observe_orphans(given, world)
        entries = key_pairs.entries_known(given, network) if given.retains or orphans else ()
        going = await key_pairs.going_keys(given, entries, world)
        return Observed(network, going_keys=going, children=children, orphans=orphans)
    generated = [entry.name for entry in given.spec.key_pairs if entry.private_key_secret_ref is None]
    retains = given.spec.deletion_policy is DeletionPolicy.RETAIN
    return Observed(
        network,
        keys=await key_pairs.observe(given, network, world),
        going_keys=await key_pairs.going_keys(given, generated if retains else (), world),
        children=children,
        obstacles=machines.observe_obstacles(given, children, world),
        secret=await in_use.observe(given, given.aws, world),
    )


async def _network(given: Desired | Leaving, children: tuple[ObservedMachine, ...], world: World) -> ObservedNetwork:
    uids = frozenset({given.uid})
    try:
        view = await account.look(given, world)
        snapshot = view.snapshot(uids)
    except OperatorError as error:
        return ObservedNetwork(error=error)
    looked_at = world.now() - view.since(snapshot.network_begun)
    network = _seen(given, children, snapshot, view, world.cluster_id, looked_at)
    if isinstance(given, Leaving):
        asked = () if children or account.problem(given, network) else deletion.groups_to_go(network)
        return replace(network, uses=security_groups.observe_uses(asked, view))
    if any(entry.vpc_id is None for entry in given.spec.security_groups):
        try:
            network = replace(network, default_vpc=view.default_subnet().vpc_id)
        except OperatorError as error:
            network = replace(network, default_vpc_error=error)
    asked = security_groups.groups_to_ask_about(given, network)
    network = replace(network, uses=security_groups.observe_uses(asked, view))
    others = security_groups.others_to_ask_about(given, Observed(network, children=children))
    return replace(network, others=security_groups.observe_others(others, view))


def _seen(
    given: Desired | Leaving,
    children: tuple[ObservedMachine, ...],
    snapshot: CloudSnapshot,
    view: CloudView,
    cluster_id: str,
    looked_at: datetime,
) -> ObservedNetwork:
    groups = [one for one in snapshot.security_groups.of(given.uid) if names.is_ours(one.tags, cluster_id, given.uid)]
    pairs = [one for one in snapshot.key_pairs.of(given.uid) if names.is_ours(one.tags, cluster_id, given.uid)]
    attached = {
        child.uid: frozenset(one.security_group_ids)
        for child in children
        for one in snapshot.instances.of(child.uid)
        if one.state.is_live
    }
    return ObservedNetwork(
        account_id=snapshot.account_id,
        cluster_id=cluster_id,
        groups=tuple(sorted(groups, key=lambda group: group.name)),
        key_pairs=tuple(sorted(pairs, key=lambda pair: pair.name)),
        attached=attached,
        looked_at=looked_at,
        missing_for={name: view.missing_for(name) for name in creations.watched(given)},
    )
