"""Files with secrets on the machine: from Secrets of the namespace, kept as they are there.

    Secret ──► contents (a hash, for some seconds) ──► wanted ──┐
                                                                ├──► differences ──► DeliverKeys, one call for all
    /var/lib/nixops/keys on the machine, and what lies there ───┘

What differs is told apart by why it does. A key that the machine has not been given (in this boot, where it lies in
memory) is missing; one that it was given with another content or owner than is declared now is out of date; one that
is not as it was given any more was changed by hand, and `activation.driftPolicy` governs that.

Digests. The machine remembers of each key a digest that is keyed with a secret of the operator's, which no machine
learns: it lies on the machine's disk, and in our status, and a bare hash of a short secret can be guessed. What lies at
the path now the machine tells as a plain SHA-256, over the connection, to whom the content came from; the operator
compares that with its own and keeps neither. So the machine need not know how digests are made.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from nixops_operator import job_names
from nixops_operator.api.machine_spec import KeyReference, KeyUpload, MachineKey
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.data_keys import not_there
from nixops_operator.errors import Blocked, InvalidSpec, OperatorError
from nixops_operator.facts import host
from nixops_operator.facts.host import DeliveredKey, HostFacts
from nixops_operator.jobs import Failed, Running
from nixops_operator.planning import Area, Finding, found_error
from nixops_operator.step import Identity, JobStep
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from nixops_operator.machine.desired import Desired
    from nixops_operator.machine.observed import Observed
    from nixops_operator.world import World

MOST_BYTES = 4 << 20
"""Of all keys of one machine together: they are hashed there at each look, and held in memory while they are sent. One
Secret holds at most 1 MiB (Kubernetes, "Secrets")."""

_PRESENT = ConditionType.KEYS_PRESENT


# --- what is wanted -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WantedKey:
    """One of spec.keys whose Secret is there; its content is not here."""

    declared: MachineKey
    digest: str
    sha256: str = field(repr=False)

    @property
    def name(self) -> str:
        return self.declared.name

    @property
    def path(self) -> str:
        return self.declared.place


@dataclass(frozen=True)
class ObservedKeys:
    """spec.keys, as far as their contents are known. `errors`: name → why one is not."""

    wanted: tuple[WantedKey, ...] = ()
    errors: tuple[tuple[str, OperatorError], ...] = ()


async def observe(desired: Desired, world: World) -> ObservedKeys:
    """What Secrets say, a little less than a resync old at most."""
    wanted, errors, total = [], [], 0
    for declared in desired.spec.keys:
        try:
            contents = await world.reads.contents(desired.key.namespace, declared.secret_ref.name)
            if contents is None or declared.secret_ref.key not in contents:
                world.reads.forget_secret(desired.key.namespace, declared.secret_ref.name)
                raise _not_there(declared, contents)
        except OperatorError as error:
            errors.append((declared.name, error))
            continue
        content = contents[declared.secret_ref.key]
        total += content.size
        digest = _digest(world.digest_key, desired.uid, declared.name, content.sha256)
        wanted.append(WantedKey(declared, digest, content.sha256))
    if total > MOST_BYTES:
        message = f"the keys of this machine are larger than {MOST_BYTES >> 20} MiB together; nothing is delivered"
        return ObservedKeys(errors=(("", Blocked(Reason.DELIVERY_FAILED, message)),))
    if (in_the_way := _in_each_others_way(desired.spec.keys)) is not None:
        return ObservedKeys(errors=(("", in_the_way),))
    return ObservedKeys(tuple(wanted), tuple(errors))


def _not_there(declared: MachineKey, present: Iterable[str] | None) -> Blocked:
    reference: KeyReference = declared.secret_ref
    what = f"Secret {reference.name}, for the key {declared.name},"
    return Blocked(Reason.SECRET_NOT_FOUND, not_there(what, reference.key, present))


def _in_each_others_way(declared: Sequence[MachineKey]) -> InvalidSpec | None:
    """Two files of one path, or one that would be the folder of another."""
    seen: dict[str, str] = {}
    for place, key in enumerate(declared):
        if key.place in seen:
            message = f"{key.place} is the path of the key {seen[key.place]}, too; name another one"
            return InvalidSpec(f"spec.keys[{place}]", message)
        seen[key.place] = key.name
    for place, key in enumerate(declared):
        if (
            folder := next((str(one) for one in PurePosixPath(key.place).parents if str(one) in seen), None)
        ) is not None:
            message = f"{key.place} lies in {folder}, which is the path of the key {seen[folder]}; name another one"
            return InvalidSpec(f"spec.keys[{place}]", message)
    return None


def _digest(digest_key: bytes, uid: str, name: str, sha256: str) -> str:
    """Machine and name are part of it: equal contents are not to be known by equal digests."""
    return hmac.new(digest_key, f"{uid}/{name}/{sha256}".encode(), hashlib.sha256).hexdigest()


# --- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeliverKeys(JobStep):
    """Bring these keys, and take off what lies at the paths `gone`; contents are read when it is carried out."""

    keys: tuple[WantedKey, ...]
    gone: tuple[str, ...] = ()

    @property
    def subject(self) -> Identity:
        return (self.job,)


# --- what differs -------------------------------------------------------------------------------------------------


class Lack(Enum):
    """Why a key is not as it should be."""

    MISSING = "it was not delivered, or not in this boot"
    OUTDATED = "the Secret or the spec says something else by now"
    CHANGED = "somebody else changed it, or took it away"


AWAITED = (Lack.MISSING, Lack.OUTDATED)
"""What the operator still has to bring, whatever policy says of changes by hand."""


def lack(key: WantedKey, facts: HostFacts) -> Lack | None:
    """None: it is there as declared."""
    declared, known = key.declared, _delivered(key, facts)
    if known is None:
        return Lack.MISSING
    wanted = (key.digest, declared.mode, declared.user, declared.group)
    is_left_unowned = known.was_unowned and known.has_owner and not _has_its_owner(known)
    if known.owes_restarts or is_left_unowned or (known.digest, known.mode, known.user, known.group) != wanted:
        return Lack.OUTDATED
    return None if _lies_there(key, known) else Lack.CHANGED


def _delivered(key: WantedKey, facts: HostFacts) -> DeliveredKey | None:
    """The machine's record of it; None if nothing was delivered, or the boot has ended in whose memory it lay."""
    known = next((one for one in facts.keys if one.path == key.path), None)
    if known is None or not known.digest or (known.file is None and known.boot_id != facts.boot_id):
        return None
    return known


def _lies_there(key: WantedKey, known: DeliveredKey) -> bool:
    file = known.file
    if file is None or file.mode != stat.S_IFREG | known.mode or file.sha256 != key.sha256:
        return False
    return not known.has_owner or _has_its_owner(known)


def _has_its_owner(known: DeliveredKey) -> bool:
    return known.file is not None and (known.file.user, known.file.group) == (known.user, known.group)


def kept(desired: Desired, observed: Observed, now: datetime) -> Iterable[Finding]:
    """Every key lies on the machine as declared, whatever becomes of the configuration."""
    facts, where = observed.host.facts, observed.host.address
    for _, error in observed.keys.errors:
        yield found_error(error, _PRESENT)
    if facts is None:
        return
    lacking: dict[Lack, list[WantedKey]] = {one: [] for one in Lack}
    for key in observed.keys.wanted:
        found = lack(key, facts)
        if found is not None and not _comes_later(key, found, observed):
            lacking[found].append(key)
    missing, outdated, changed = lacking.values()
    if missing or outdated:
        message = f"delivering {_named((*missing, *outdated))} to {where}"
        outcome = Outcome.WORKING if missing else Outcome.REPAIRING
        working = Finding(outcome, Reason.DELIVERING, message, _PRESENT)
        yield _delivery(desired, observed, (*missing, *outdated), working)
    if changed:
        message = f"{_named(changed)} on {where}: changed by hand"
        drift = Finding(
            Outcome.REPAIRING,
            Reason.KEY_DRIFT,
            message,
            ConditionType.UP_TO_DATE,
            differs=Area.HOST,
            is_drift=True,
        )
        yield _delivery(desired, observed, changed, drift)
    yield from _surplus(desired, observed, facts)
    yield from _ownerless(observed, facts)


def _comes_later(key: WantedKey, found: Lack, observed: Observed) -> bool:
    is_late = key.declared.upload is KeyUpload.AFTER_ACTIVATION
    return is_late and found is Lack.MISSING and not _was_delivered(key, observed) and not runs_as_declared(observed)


def _was_delivered(key: WantedKey, observed: Observed) -> bool:
    facts = observed.host.facts
    return facts is not None and any(one.path == key.path and one.digest for one in facts.keys)


def runs_as_declared(observed: Observed) -> bool:
    """Whether nothing is to be activated."""
    facts = observed.host.facts
    return facts is not None and facts.current_system == observed.toplevel and not facts.lists_left


def _surplus(desired: Desired, observed: Observed, facts: HostFacts) -> Iterable[Finding]:
    """Keys that left the spec go once the system that was declared without them runs: not under one that uses them."""
    wanted = {key.place for key in desired.spec.keys}
    gone = tuple(one.path for one in facts.keys if one.path not in wanted)
    if gone and runs_as_declared(observed):
        message = f"removing {', '.join(gone)} from {observed.host.address}"
        working = Finding(Outcome.REPAIRING, Reason.DELIVERING, message, _PRESENT)
        yield _delivery(desired, observed, (), working, gone)


def _ownerless(observed: Observed, facts: HostFacts) -> Iterable[Finding]:
    """A user or group that the running system, which is the declared one, does not make."""
    if not runs_as_declared(observed):
        return
    known = {one.path: one for one in facts.keys}
    for key in observed.keys.wanted:
        one = known.get(key.path)
        if one is not None and not one.has_owner and lack(key, facts) is None:
            message = (
                f"the key {key.name} is to belong to {one.user}:{one.group}, and {observed.host.address} does not have "
                "both; until the configuration declares them (users.users, users.groups) it is root's"
            )
            yield Finding(Outcome.STALLED, Reason.DELIVERY_FAILED, message, _PRESENT)


def ready_for_activation(desired: Desired, observed: Observed, now: datetime) -> Finding | None:
    """No system is activated before the keys that it may need are there; `kept` has said which are not."""
    facts = observed.host.facts
    if facts is None or runs_as_declared(observed):
        return None
    early = {key.name for key in desired.spec.keys if key.upload is KeyUpload.BEFORE_ACTIVATION}
    has_errors = any(not name or name in early for name, _ in observed.keys.errors)
    if has_errors or any(key.name in early and lack(key, facts) in AWAITED for key in observed.keys.wanted):
        return Finding(Outcome.IN_SYNC, condition=_PRESENT)
    return None


def _named(keys: Iterable[WantedKey]) -> str:
    names = sorted(key.name for key in keys)
    return f"{'key' if len(names) == 1 else 'keys'} {', '.join(names)}"


def _delivery(
    desired: Desired,
    observed: Observed,
    keys: Iterable[WantedKey],
    working: Finding,
    gone: tuple[str, ...] = (),
) -> Finding:
    step = _step(desired, tuple(keys), gone)
    match observed.jobs.get(step.job):
        case None:
            return replace(working, steps=(step,))
        case Running(_, error) if error is not None:
            return _failing(error, working)
        case Failed(error, is_due):
            return replace(_failing(error, working), steps=(step,) if is_due else ())
        case _:
            return working


def _step(desired: Desired, keys: tuple[WantedKey, ...], gone: tuple[str, ...]) -> DeliverKeys:
    """The job is named by what it brings: an edit, or another content, waits for no other's time to be tried again."""
    what = repr([(key.declared, key.digest) for key in keys] + list(gone))
    return DeliverKeys(job_names.keys(desired.host_id, hashlib.sha256(what.encode()).hexdigest()[:12]), keys, gone)


def _failing(error: OperatorError, working: Finding) -> Finding:
    """What serves goes on serving with the key that it has."""
    if working.outcome is Outcome.REPAIRING and not isinstance(error, Blocked):
        return replace(working, message=f"{working.message}: {error.message}")
    return replace(found_error(error, working.condition), differs=working.differs, is_drift=working.is_drift)


# --- the step, carried out ----------------------------------------------------------------------------------------


def start(step: DeliverKeys, desired: Desired, world: World) -> None:
    """As a job: nothing in a pass waits for a host."""
    world.jobs.start(step.job, desired.key, lambda _: _deliver(step, desired, world), keep=False)


async def _deliver(step: DeliverKeys, desired: Desired, world: World) -> None:
    informer = world.hosts.of(desired.key)
    files = [await _read(key.declared, desired, world) for key in step.keys]
    await informer.host().deliver_keys(files, step.gone)
    await informer.refresh()


async def _read(declared: MachineKey, desired: Desired, world: World) -> host.MachineKey:
    """With its newest content. Raises Blocked (`SecretNotFound`)."""
    namespace, reference = desired.key.namespace, declared.secret_ref
    secret = await world.kube.read_secret(namespace, reference.name)
    # What was seen of it before may be older, and would ask for it again.
    world.reads.forget_secret(namespace, reference.name)
    if secret is None or reference.key not in secret.data:
        raise _not_there(declared, secret.data if secret is not None else None)
    content = secret.data[reference.key]
    sha256 = hashlib.sha256(content).hexdigest()
    return host.MachineKey(
        path=declared.place,
        mode=declared.mode,
        user=declared.user,
        group=declared.group,
        digest=_digest(world.digest_key, desired.uid, declared.name, sha256),
        restart_units=declared.restart_units,
        content=content,
    )
