"""Key pairs of a deployment: the private half in a Secret, the public half in EC2, under a name that follows from the
key. EC2 cannot change a key pair: another key is another key pair.

    Secret (the user's, or generated) ─► public key ─► name ─► RecordCreation ─► ImportKeyPair ─► used at launches

A generated private key is written here alone (GenerateKey), into a Secret that the deployment owns. Nothing here
deletes it: the garbage collector does when the deployment has gone, unless KeepKey took the owner off because machines
stay. A Secret that the user named is only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from nixops_operator import names
from nixops_operator.api.deployment_spec import KeyPairEntry
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.data_keys import not_there
from nixops_operator.deployment import account, creations, proof
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import Observed, ObservedKey, ObservedNetwork
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.facts.cloud import KeyPair
from nixops_operator.facts.kube import Body, Kind, OwnerReference, Secret
from nixops_operator.informers.cloud import CloudView
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.ssh_keys import generate_ed25519, parse_private_key, public_key_for_ec2
from nixops_operator.step import Identity, Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

_INFRASTRUCTURE = ConditionType.INFRASTRUCTURE_READY
KEEPING_KEYS = "letting the Secrets with generated private keys stay"


# --- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerateKey(Step):
    """A new Ed25519 key into its Secret, before EC2 hears of it: a lost reply must not lose the private half."""

    entry: str

    @property
    def subject(self) -> Identity:
        return (self.entry,)


@dataclass(frozen=True)
class KeepKey(Step):
    """Let the Secret with a generated key stay when the deployment goes: what is retained is reached by no other."""

    secret: str

    @property
    def subject(self) -> Identity:
        return (self.secret,)


@dataclass(frozen=True)
class ImportKeyPair(Step):
    entry: str
    name: str
    public_key: str

    @property
    def subject(self) -> Identity:
        return (self.name,)

    @property
    def of_field(self) -> str:
        return f"spec.keyPairs[{self.entry}]"


@dataclass(frozen=True)
class DeleteKeyPair(Step):
    """Only after a fresh quorum read of the deployment (proof.py)."""

    name: str

    @property
    def subject(self) -> Identity:
        return (self.name,)


# --- what is there ------------------------------------------------------------------------------------------------


async def observe(desired: Desired, network: ObservedNetwork | None, world: World) -> dict[str, ObservedKey]:
    """Entry name → the key in its Secret."""
    return {entry.name: await _observe_key(desired, entry, network, world) for entry in desired.spec.key_pairs}


async def _observe_key(
    desired: Desired, entry: KeyPairEntry, network: ObservedNetwork | None, world: World
) -> ObservedKey:
    reference = entry.private_key_secret_ref
    name = reference.name if reference else names.key_pair_secret(desired.key.name, entry.name)
    key = reference.key if reference else names.SSH_PRIVATE_KEY
    try:
        secret = await world.reads.secret(desired.key.namespace, name)
        if secret is None and reference is None:
            return ObservedKey()
        if secret is None or (reference is not None and key not in secret.data):
            what = f"Secret {name} with the private key of key pair {entry.name}"
            message = not_there(what, key, secret.data if secret else None)
            return ObservedKey(error=Blocked(Reason.SECRET_NOT_FOUND, message))
        if reference is None and desired.uid not in secret.owner_uids:
            return _judge_foreign(desired, entry, secret, network, world)
        return ObservedKey(_public_key(secret, key))
    except OperatorError as error:
        # What cannot be used may be mended at any time.
        world.reads.forget_secret(desired.key.namespace, name)
        return ObservedKey(error=error)


def _judge_foreign(
    desired: Desired, entry: KeyPairEntry, secret: Secret, network: ObservedNetwork | None, world: World
) -> ObservedKey:
    """A Secret that stands where a generated key is to be, and is not owned by this deployment. It is ours all the same
    if it was let go of for Retain: then it holds the very key that was imported under our uid. Anything else is never
    used, patched or deleted.
    """
    if not secret.owner_uids and not secret.is_deleting:
        try:
            known = _public_key(secret, names.SSH_PRIVATE_KEY)
        except OperatorError:
            known = None
        if known is not None and _name(world.cluster_id, desired, entry.name, known) in _names_known(desired, network):
            return ObservedKey(known)
    living = {
        body["metadata"]["uid"]
        for kind in Kind
        for body in world.cache.in_namespace(kind, desired.key.namespace)
        if not body["metadata"].get("deletionTimestamp")
    }
    if secret.is_deleting or (secret.owner_uids and secret.owner_uids.isdisjoint(living)):
        message = (
            f"Secret {secret.name}, where the key of key pair {entry.name} is to be generated, belongs to something "
            f"else, an earlier deployment {desired.key.name} as a rule; waiting for it to go. If it is to stay, rename "
            "the entry"
        )
        raise Retry(Reason.KEY_PAIR_NOT_READY, message)
    message = (
        f"Secret {secret.name} stands where the key of key pair {entry.name} is to be generated, and is not of this "
        f"deployment; nothing is done to it: name it in spec.keyPairs[{entry.name}].privateKeySecretRef to use it, "
        "rename the entry, or delete it"
    )
    raise Blocked(Reason.ADOPTION_CONFLICT, message)


def _public_key(secret: Secret, key: str) -> str:
    """`<type> <base64>`. Raises Blocked (`SecretNotFound`) where it is no key, or none that EC2 takes."""
    where = f"key {key} of Secret {secret.name}"
    return public_key_for_ec2(parse_private_key(secret.data.get(key, b""), where), where)


async def going_keys(given: Desired | Leaving, entries: Iterable[str], world: World) -> tuple[str, ...]:
    """Secrets of generated keys of those entries that would go with the deployment."""
    found = []
    for entry in entries:
        secret = await world.reads.secret(given.key.namespace, names.key_pair_secret(given.key.name, entry))
        if secret is not None and given.uid in secret.owner_uids:
            found.append(secret.name)
    return tuple(found)


def _name(cluster_id: str, desired: Desired, entry: str, key: str) -> str:
    return names.key_pair_name(cluster_id, desired.uid, entry, key)


def _names_known(desired: Desired, network: ObservedNetwork | None) -> frozenset[str]:
    """EC2 names of key pairs that this deployment has imported, or was about to."""
    shown = network.key_pairs if network is not None else ()
    return frozenset(
        (
            *(pair.name for pair in shown),
            *(pair.key_name for pair in desired.key_pairs),
            *(one.name for one in desired.creations),
        )
    )


# --- what is wanted, and what differs -----------------------------------------------------------------------------


def secrets_present(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Each entry of keyPairs has its private key in a Secret."""
    for entry in desired.spec.key_pairs:
        key = observed.keys[entry.name]
        if isinstance(key.error, Retry) and key.error.reason is Reason.KEY_PAIR_NOT_READY:
            yield Finding(Outcome.WORKING, key.error.reason, key.error.message, _INFRASTRUCTURE, look_again=SOON)
        elif key.error is not None:
            yield found_error(key.error, _INFRASTRUCTURE)
        elif key.public_key is None:
            yield _lost(desired, entry) if _is_known(desired, observed, entry.name) else _to_generate(entry)


def _to_generate(entry: KeyPairEntry) -> Finding:
    message = f"generating the key of key pair {entry.name}"
    return Finding(Outcome.WORKING, Reason.PROVISIONING, message, _INFRASTRUCTURE, (GenerateKey(entry.name),))


def _lost(desired: Desired, entry: KeyPairEntry) -> Finding:
    secret = names.key_pair_secret(desired.key.name, entry.name)
    message = (
        f"Secret {secret} with the private key of key pair {entry.name} is gone, and machines may know no "
        "other key; restore it, or rename the entry to have another key made for new machines"
    )
    return Finding(Outcome.STALLED, Reason.SECRET_NOT_FOUND, message, _INFRASTRUCTURE)


def _is_known(desired: Desired, observed: Observed, entry: str) -> bool:
    return entry in {*entries_known(desired, observed.network)}


def entries_known(given: Desired | Leaving, network: ObservedNetwork | None) -> tuple[str, ...]:
    """Entries whose key EC2 knows, or may know."""
    shown = network.key_pairs if network is not None else ()
    found = {
        *(pair.tags[names.ENTRY_TAG] for pair in shown if names.ENTRY_TAG in pair.tags),
        *(pair.name for pair in given.key_pairs),
        *(names.entry_of_key_pair(one.name) for one in given.creations if one.kind == "KeyPair"),
    }
    return tuple(sorted(found))


def secrets_kept(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """With Retain from the first, not only in deletion: the garbage collector may come before us then. A key that EC2
    has not been told of yet is kept along with its import: a Secret that nobody owns is known as ours by its key alone.
    """
    known = {names.key_pair_secret(desired.key.name, one) for one in entries_known(desired, observed.network)}
    taken = tuple(KeepKey(secret) for secret in observed.going_keys if secret in known)
    if not taken:
        return None
    return Finding(Outcome.WORKING, Reason.PROVISIONING, KEEPING_KEYS, _INFRASTRUCTURE, taken)


@dataclass(frozen=True)
class Wanted:
    """A key pair as EC2 is to have it."""

    entry: str
    name: str
    public_key: str


def wanted(desired: Desired, observed: Observed, network: ObservedNetwork) -> list[Wanted]:
    """The key pairs whose keys are known."""
    found = []
    for entry in desired.spec.key_pairs:
        key = observed.keys[entry.name].public_key
        if key is not None:
            found.append(Wanted(entry.name, _name(network.cluster_id, desired, entry.name, key), key))
    return found


def imported(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """EC2 knows the public half of each key, under the name that follows from it."""
    network = account.usable(desired, observed)
    if network is None:
        return
    for one in wanted(desired, observed, network):
        if network.shows(one.name):
            continue
        call = ImportKeyPair(one.entry, one.name, one.public_key)
        secret = names.key_pair_secret(desired.key.name, one.entry)
        kept = (KeepKey(secret),) if secret in observed.going_keys else ()
        yield Finding(
            Outcome.REPAIRING,
            Reason.INSTANCE_DRIFT if desired.was_reached else Reason.PROVISIONING,
            f"key pair {one.entry} is not in EC2",
            _INFRASTRUCTURE,
            (creations.RecordCreation(one.name, "KeyPair", call.identity), *kept, call),
            differs=Area.CLOUD,
        )


def surplus(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Key pairs that no entry means any more: of entries that have gone, or of keys that were changed. Machines that
    run keep working without them."""
    network = account.usable(desired, observed)
    if network is None:
        return
    current = {one.name for one in wanted(desired, observed, network)}
    unknown = {entry.name for entry in desired.spec.key_pairs if observed.keys[entry.name].public_key is None}
    for pair in network.key_pairs:
        if pair.name in current or pair.tags.get(names.ENTRY_TAG) in unknown or names.is_retained(pair.tags):
            continue
        message = f"deleting key pair {pair.name}, which nothing names any more"
        yield Finding(Outcome.REPAIRING, Reason.ROLLING_OUT, message, _INFRASTRUCTURE, deletion_of(pair))


def deletion_of(pair: KeyPair) -> tuple[Step, ...]:
    return (DeleteKeyPair(pair.name), creations.ForgetThing(pair.name, pair.name))


# --- the steps, carried out ---------------------------------------------------------------------------------------


async def generate(step: GenerateKey, desired: Desired, world: World) -> None:
    """Make the Secret; one that stands there is looked at by the next pass."""
    name = names.key_pair_secret(desired.key.name, step.entry)
    await world.kube.create_secret(
        desired.key.namespace,
        name,
        {names.SSH_PRIVATE_KEY: generate_ed25519().text.encode()},
        owner=OwnerReference(Kind.DEPLOYMENT, desired.key.name, desired.uid),
        type_=names.SSH_SECRET_TYPE,
        immutable=False,
    )
    world.reads.forget_secret(desired.key.namespace, name)


async def keep(step: KeepKey, given: Desired | Leaving, world: World) -> None:
    await world.kube.disown_secret(given.key.namespace, step.secret, given.uid)
    world.reads.forget_secret(given.key.namespace, step.secret)


async def import_pair(step: ImportKeyPair, desired: Desired, view: CloudView, world: World) -> None:
    key = desired.key
    tags = names.key_pair_tags(world.cluster_id, key.namespace, key.name, desired.uid, step.entry, step.public_key)
    await view.cloud.import_key_pair(step.name, step.public_key, tags)


async def delete(step: DeleteKeyPair, given: Desired | Leaving, body: Body, view: CloudView, world: World) -> None:
    await proof.still_stands(given.key, given.uid, body, world)
    await view.cloud.delete_key_pair(step.name)
