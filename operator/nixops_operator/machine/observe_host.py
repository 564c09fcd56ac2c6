"""The machine over SSH: where it is, with which keys it is reached, what it says of itself."""

from __future__ import annotations

from dataclasses import replace

from nixops_operator.api.machine_spec import AddressKind, PrivateKeyReference
from nixops_operator.api.reasons import Reason
from nixops_operator.data_keys import not_there
from nixops_operator.errors import Blocked, NotYet, OperatorError, Retry
from nixops_operator.facts.cloud import Instance
from nixops_operator.facts.health import CheckResult
from nixops_operator.facts.host import ActivationState, HostOwner, HostTarget
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.host_policy import SSH_PORT, choose, judge_instance
from nixops_operator.informers.hosts import HostInformer
from nixops_operator.machine import health
from nixops_operator.machine.activation_log import telling_line
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observed import ObservedCloud, ObservedHost, running_instance
from nixops_operator.ssh_keys import PrivateKey, parse_private_key
from nixops_operator.world import World

_ENDED_BADLY = (ActivationState.FAILED, ActivationState.ROLLED_BACK)


async def observe(desired: Desired, cloud: ObservedCloud | None, world: World) -> ObservedHost:
    """What the held connection says, or why there is none."""
    if cloud is not None and isinstance(cloud.error, Retry):
        return _as_last_seen(desired, world)
    address: str | None = None
    try:
        if cloud is None:
            address = _given_address(desired, world)
            pinned = desired.spec.ssh.pinned_host_keys
        else:
            address = _instance_address(desired, cloud, world)
            pinned = cloud.pins.keys
        if address is None or not pinned:
            world.hosts.drop(desired.key)
            return ObservedHost(host_keys=pinned)
        target = await _target(desired, cloud, address, pinned, world)
    except OperatorError as error:
        if not isinstance(error, NotYet):
            world.hosts.drop(desired.key)
        return ObservedHost(address=address, error=error)
    informer = world.hosts.watch(desired.key, target)
    answer = informer.answer
    if answer.error is not None and answer.error.reason is Reason.AUTHENTICATION_FAILED:
        answer = replace(answer, error=await _explained(answer.error, desired, cloud, world))
        # The key may have been put right meanwhile.
        world.reads.forget_secret(desired.key.namespace, desired.spec.client_key.name)
    words = ""
    if answer.facts is not None and answer.facts.activation is not None:
        last = answer.facts.activation
        if last.state in _ENDED_BADLY:
            words = telling_line(informer.activation_log(last.id) or "")
    results = _health(desired, informer) if answer.facts is not None else ()
    seen = ObservedHost(address, answer.error, answer.facts, pinned, results, words)
    return _with_owner(seen, desired, world) if cloud is None else seen


async def _explained(
    refused: OperatorError, desired: Desired, cloud: ObservedCloud | None, world: World
) -> OperatorError:
    """Why an instance refuses the key, where its key pair shows it. Before the launch that is nobody's business: the
    key may be in the image, and the key pair for others."""
    pair = cloud.users_key_pair if cloud is not None else None
    if pair is None:
        return refused
    reference = desired.spec.client_key
    try:
        key = await client_key(desired.key.namespace, reference, world)
    except OperatorError:
        return refused
    if pair.public_key in ("", key.public):
        return refused
    message = (
        f"{refused.message}; the instance was launched with EC2's key pair {pair.name}, which holds another key than "
        f"key {reference.key} of Secret {reference.name}: store the private half of {pair.name} there"
    )
    return Blocked(refused.reason, message)


def _health(desired: Desired, informer: HostInformer) -> tuple[CheckResult, ...]:
    """How the checks stand, which are asked from now on if they were not."""
    facts = informer.answer.facts
    about = health.subject(facts) if facts is not None else None
    checks = health.checks_of(desired.spec.health_checks)
    if about is None or not checks:
        informer.end_health()
        return ()
    return informer.health(about, checks)


def _as_last_seen(desired: Desired, world: World) -> ObservedHost:
    """EC2 does not say now where the machine is, as after each own write: no reason to cut the connection to it."""
    look = world.hosts.known(desired.key)
    if look is None:
        return ObservedHost()
    results = _health(desired, look) if look.answer.facts is not None else ()
    return ObservedHost(look.target.address, look.answer.error, look.answer.facts, look.target.host_keys, results)


def _with_owner(seen: ObservedHost, desired: Desired, world: World) -> ObservedHost:
    """Whose a given host is."""
    owner = seen.facts.owner if seen.facts is not None else None
    return replace(seen, ours=owner_of(desired, world), owner_has_gone=has_gone(owner, world))


def has_gone(owner: HostOwner | None, world: World) -> bool:
    """Whether the machine that a given host names exists no more: it was deleted while the host could not be told.

    That is known where machines are watched. Of another namespace, or another cluster, nothing is ever seen.
    """
    if owner is None or owner.cluster != world.cluster_id:
        return False
    namespace, _, name = owner.name.partition("/")
    known = world.cache.get(Key(Kind.MACHINE, namespace, name))
    is_there = known is not None and known["metadata"]["uid"] == owner.uid
    watched = world.policy.namespaces
    return not is_there and (not watched or namespace in watched)


def owner_of(machine: Desired | Leaving, world: World) -> HostOwner:
    """What a given host says of its owner, if that is this machine."""
    return HostOwner(world.cluster_id, machine.uid, f"{machine.key.namespace}/{machine.key.name}")


def _given_address(desired: Desired, world: World) -> str:
    """The address of a given host. The very address that was judged is connected to.

    Raises Blocked where the administrator does not allow it, NotYet while its name is being resolved.
    """
    host = desired.spec.target.host
    assert host is not None  # noqa: S101 - exactly one target
    return choose(world.hosts.resolve(desired.key, host.address), host.port, world.policy.hosts)


def _instance_address(desired: Desired, cloud: ObservedCloud, world: World) -> str | None:
    instance = running_instance(cloud, desired.instance_id)
    if instance is None or cloud.pins.instance_id != instance.id:
        return None
    address = _address_of(desired, instance)
    if address is not None and (refusal := judge_instance(address, world.policy.hosts)) is not None:
        raise Blocked(Reason.HOST_FORBIDDEN, f"{instance.id}: {refusal}")
    return address


def _address_of(desired: Desired, instance: Instance) -> str | None:
    match desired.spec.ssh.address:
        case AddressKind.PRIVATE:
            return instance.private_address
        case AddressKind.PUBLIC:
            return instance.public_address
        case None:
            return instance.public_address or instance.private_address


async def _target(
    desired: Desired, cloud: ObservedCloud | None, address: str, pinned: tuple[str, ...], world: World
) -> HostTarget:
    """With the key that the spec names, and after it with the one that the instance was launched with: a key pair that
    is renamed, or a Secret that is replaced, counts at the next launch, and must lock nobody out before."""
    launched_with = cloud.pins.client_key if cloud is not None else None
    keys = []
    try:
        keys.append((await client_key(desired.key.namespace, desired.spec.client_key, world)).text)
    except Blocked:
        if launched_with is None:
            raise
    if launched_with is not None and launched_with not in keys:
        keys.append(launched_with)
    host = desired.spec.target.host
    return HostTarget(
        address=address,
        port=host.port if host is not None else SSH_PORT,
        user=desired.spec.ssh.user,
        client_keys=tuple(keys),
        host_keys=pinned,
    )


async def client_key(namespace: str, reference: PrivateKeyReference, world: World) -> PrivateKey:
    """The private key behind a reference.

    Raises Blocked (`SecretNotFound`) where it is missing, or no usable key.
    """
    secret = await world.reads.secret(namespace, reference.name)
    if secret is None or reference.key not in secret.data:
        world.reads.forget_secret(namespace, reference.name)
        what = f"Secret {reference.name} with the SSH client key"
        raise Blocked(Reason.SECRET_NOT_FOUND, not_there(what, reference.key, secret.data if secret else None))
    where = f"key {reference.key} of Secret {reference.name}"
    try:
        return parse_private_key(secret.data[reference.key], where)
    except Blocked:
        world.reads.forget_secret(namespace, reference.name)  # it may have been put right meanwhile
        raise


async def known_client_key(desired: Desired, world: World) -> str | None:
    """What an instance launched now admits for good, whatever becomes of the Secret; it is told elsewhere if that is
    missing."""
    try:
        return (await client_key(desired.key.namespace, desired.spec.client_key, world)).text
    except Blocked:
        return None
