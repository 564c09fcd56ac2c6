"""What is there: the deployment's groups and key pairs in EC2, its keys in Secrets, its machines in the cache. Looks
only."""

from __future__ import annotations

from dataclasses import replace

from nixops_operator import names
from nixops_operator.api.deployment_spec import KeyPairEntry
from nixops_operator.api.machine_spec import DeletionPolicy
from nixops_operator.api.reasons import Reason
from nixops_operator.deployment import key_pairs, plan
from nixops_operator.deployment.observed import (
    Desired,
    GroupUse,
    Observed,
    ObservedKey,
    ObservedMachine,
    ObservedNetwork,
)
from nixops_operator.errors import Blocked, OperatorError
from nixops_operator.informers.cloud import CloudInformer
from nixops_operator.world import World


async def observe(desired: Desired, world: World) -> Observed:
    """One look at everything that concerns this deployment."""
    children = tuple(ObservedMachine(body) for body in world.cache.owned_by(desired.uid))
    is_leaving_untouched = desired.is_deleting and desired.account_id is None
    network = await _observe_network(desired, world) if desired.needs_cloud and not is_leaving_untouched else None
    keys = {}
    if not desired.is_deleting:
        keys = {entry.name: await _observe_key(desired, entry, world) for entry in desired.spec.key_pairs}
    observed = Observed(network, keys, children, await _going_keys(desired, world))
    return await _with_uses(desired, observed, world)


async def _observe_network(desired: Desired, world: World) -> ObservedNetwork:
    uids = frozenset({desired.uid})
    try:
        look = await world.look_at_cloud(desired.key, uids, desired.spec.aws)
        snapshot = await look.snapshot(uids)
        vpc = None
        if not desired.is_deleting and any(entry.vpc_id is None for entry in desired.spec.security_groups):
            vpc = (await look.default_subnet()).vpc_id
    except OperatorError as error:
        return ObservedNetwork(error=error)
    ours = [group for group in snapshot.security_groups.values() if group.tags.get(names.UID_TAG) == desired.uid]
    pairs = [pair for pair in snapshot.key_pairs.values() if pair.tags.get(names.UID_TAG) == desired.uid]
    return ObservedNetwork(
        account_id=snapshot.account_id,
        cluster_id=world.cluster_id,
        default_vpc=vpc,
        groups=tuple(sorted(ours, key=lambda group: group.id)),
        key_pairs=tuple(sorted(pairs, key=lambda pair: pair.name)),
    )


async def _observe_key(desired: Desired, entry: KeyPairEntry, world: World) -> ObservedKey:
    reference = entry.private_key_secret_ref
    name = reference.name if reference else names.key_pair_secret(desired.key.name, entry.name)
    key = reference.key if reference else names.SSH_PRIVATE_KEY
    try:
        data = await world.kube.get_secret(desired.key.namespace, name)
        if data is None and reference is None:
            return ObservedKey()
        if data is None or key not in data:
            what = f"Secret {name}" if data is None else f"key {key} of Secret {name}"
            message = f"{what} with the private key of key pair {entry.name} does not exist; create it"
            return ObservedKey(error=Blocked(Reason.SECRET_NOT_FOUND, message))
        return ObservedKey(key_pairs.public_key(data[key], f"key {key} of Secret {name}"))
    except OperatorError as error:
        return ObservedKey(error=error)


async def _going_keys(desired: Desired, world: World) -> tuple[str, ...]:
    if desired.spec.deletion_policy is not DeletionPolicy.RETAIN:
        return ()
    generated = [entry.name for entry in desired.spec.key_pairs if entry.private_key_secret_ref is None]
    secrets = [names.key_pair_secret(desired.key.name, name) for name in generated]
    return tuple([s for s in secrets if await world.kube.is_secret_owned(desired.key.namespace, s, desired.uid)])


async def _with_uses(desired: Desired, observed: Observed, world: World) -> Observed:
    """What uses the groups that are to go; asked only then."""
    network = observed.network
    if network is None or network.error is not None:
        return observed
    going = plan.groups_to_go(desired, observed)
    if not going:
        return observed
    try:
        look = await world.look_at_cloud(desired.key, frozenset({desired.uid}), desired.spec.aws)
        uses = {group_id: await _use(look, group_id) for group_id in going}
    except OperatorError as error:
        return replace(observed, network=replace(network, error=error))
    return replace(observed, network=replace(network, uses=uses))


async def _use(look: CloudInformer, group_id: str) -> GroupUse:
    interfaces = await look.cloud.interfaces_in_group(group_id)
    return GroupUse(interfaces, await look.cloud.groups_naming(group_id))
