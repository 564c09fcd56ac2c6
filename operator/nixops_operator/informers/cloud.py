"""EC2, looked at once for all objects of one identity and region, and never from inside a pass.

    CloudInformers ── one CloudInformer for each identity and region
        sweeps: instances, security groups, key pairs of the cluster, and the account, for as long as anybody watches
        questions: one instance, a subnet, an image …, for as long as anybody reads them
    CloudView ── what one object reads of it, without waiting: an answer, the error of the last look, or NotYet

One sweep of instances per period, however many machines exist; groups and key pairs more rarely. Each sweep stands on
its own: a right that is missing for one hides none of the others. A look counts only if every page of it arrived; what
an own write may have changed is looked at again before it is believed (`note_write`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from nixops_operator import names
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.errors import NotYet, OperatorError
from nixops_operator.facts.cloud import (
    Address,
    Image,
    Instance,
    InstanceAttribute,
    InstanceState,
    KeyPair,
    SecurityGroup,
    Subnet,
    Volume,
)
from nixops_operator.facts.kube import Key
from nixops_operator.informers.questions import Fact, Look, Question
from nixops_operator.informers.snapshot import CloudSnapshot, Swept, Tagged
from nixops_operator.ports.cloud import Cloud, Clouds

__all__ = ["CloudInformer", "CloudInformers", "CloudView", "Look"]

MOVING_PERIOD = timedelta(seconds=2)  # while an instance changes its state; EC2 takes 5-60 s for one
HURRY_FOR = timedelta(seconds=30)  # after an own write; EC2 mostly shows what it made within seconds
FACTS_LAST = timedelta(hours=1)  # images, types and subnets change by the week
ABSENT_FACTS_LAST = timedelta(minutes=1)  # what a person was told to make is looked for this often
ACCOUNT_LASTS = timedelta(days=1)  # an access key never changes its account
ABSENCE_KEPT = timedelta(hours=1)  # without being asked for; longer than any object's resync
QUESTIONS_PER_KEY = 256  # two for each of a deployment's groups; the ones read longest ago are let go first

_MOVING = (InstanceState.PENDING, InstanceState.STOPPING, InstanceState.SHUTTING_DOWN)

T = TypeVar("T")
S = TypeVar("S", bound=Tagged)


@dataclass
class _Absence:
    """Since when complete sweeps miss a thing. `first`, `last`: when those in a row began."""

    asked_at: float
    counts_from: float
    first: float | None = None
    last: float | None = None


class _Sweep(Question[Swept[S]]):
    """A look at everything of one sort; whoever watches the owner of what changed is woken."""

    is_permanent = True

    def __init__(
        self, informer: CloudInformer, ask: Callable[[], Awaitable[Mapping[str, S]]], period: Callable[[], float]
    ) -> None:
        async def swept() -> Swept[S]:
            return Swept(await ask())

        super().__init__(informer.where, swept, lambda _: period(), informer.wake)
        self._informer = informer
        self._absences: dict[str, _Absence] = {}

    def missing_for(self, name: str) -> timedelta | None:
        now = self._loop.time()
        absence = self._absences.setdefault(name, _Absence(now, now))
        absence.asked_at = now
        if absence.first is None or absence.last is None:
            return None
        return timedelta(seconds=absence.last - absence.first)

    def count_anew_for(self, name: str) -> None:
        now = self._loop.time()
        if name in self._absences:
            self._absences[name] = _Absence(now, now)

    def _settle(self, begun: float, answer: Swept[S]) -> None:
        oldest = begun - ABSENCE_KEPT.total_seconds()
        self._absences = {name: one for name, one in self._absences.items() if one.asked_at > oldest}
        shown = answer.keys() | {getattr(one, "name", "") for one in answer.values()}
        if any("/" in name for name in self._absences):
            shown |= {names.owner_and_entry(one.tags) for one in answer.values()}
        for name, absence in self._absences.items():
            if name in shown:
                absence.first = absence.last = None
            elif begun > absence.counts_from:
                absence.first, absence.last = (begun if absence.first is None else absence.first), begun
        super()._settle(begun, answer)

    def _concerned(self, before: Swept[S] | None, after: Swept[S]) -> Iterable[Key]:
        known = before or Swept[S]()
        changed = {name for name in known.keys() | after.keys() if known.get(name) != after.get(name)}
        uids = {side[name].tags.get(names.UID_TAG) for name in changed for side in (known, after) if name in side}
        return {key for uid in uids if uid is not None for key in self._informer.watchers_of(uid)}

    def _everyone(self) -> Iterable[Key]:
        return self._informer.watchers()


class _Account(Fact[str]):
    is_permanent = True


class CloudInformer:
    """What one identity sees in one region; objects read it through `for_key`. Made inside a running loop.

    `periods`: of the sweeps of instances, and of groups and key pairs.
    """

    def __init__(
        self,
        cloud: Cloud,
        region: str,
        cluster_id: str,
        periods: tuple[timedelta, timedelta],
        wake: Callable[[Key], None],
    ) -> None:
        self.cloud = cloud
        self.region = region
        self.where = f"EC2 ({region})"
        self.wake = wake
        self._period, network_period = (period.total_seconds() for period in periods)
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Key, frozenset[str]] = {}
        self._keys_of: dict[str, set[Key]] = defaultdict(set)
        self._written: dict[str, float] = {}
        self._requests: dict[str, tuple[str, float]] = {}  # uid → the newest request for a look, and since when
        self._hurried_until = float("-inf")
        self._questions: dict[tuple[str, ...], Question[Any]] = {}
        self._read_by: dict[Key, dict[tuple[str, ...], None]] = defaultdict(dict)
        self.account = _Account(self.where, cloud.account_id, lambda _: ACCOUNT_LASTS.total_seconds(), wake)
        self.instances = _Sweep(self, lambda: cloud.sweep_instances(cluster_id), self.pace)
        self.security_groups = _Sweep(self, lambda: cloud.sweep_security_groups(cluster_id), lambda: network_period)
        self.key_pairs = _Sweep(self, lambda: cloud.sweep_key_pairs(cluster_id), lambda: network_period)
        self._addresses: _Sweep[Address] | None = None
        self._volumes: _Sweep[Volume] | None = None
        self._of_addresses = (lambda: cloud.sweep_addresses(cluster_id), lambda: network_period)
        self._of_volumes = (lambda: cloud.sweep_volumes(cluster_id), lambda: network_period)

    @property
    def addresses(self) -> _Sweep[Address]:
        """Looked at from the first reading on: few machines have one, and whoever has none needs no right to it."""
        if self._addresses is None:
            self._addresses = _Sweep(self, *self._of_addresses)
        return self._addresses

    @property
    def volumes(self) -> _Sweep[Volume]:
        """In the same way: where no spec speaks of volumes, no right to describe them is needed."""
        if self._volumes is None:
            self._volumes = _Sweep(self, *self._of_volumes)
        return self._volumes

    @property
    def is_watched(self) -> bool:
        return bool(self._watched)

    def watchers(self) -> Iterable[Key]:
        return self._watched

    def watchers_of(self, uid: str) -> Iterable[Key]:
        return self._keys_of.get(uid, ())

    def for_key(self, key: Key) -> CloudView:
        """What `key` reads of this."""
        return CloudView(self, key)

    def watch(self, key: Key, uids: frozenset[str]) -> None:
        """Wake `key` when something tagged with one of `uids` appears, changes or goes, and when looking fails or works
        again."""
        if self._watched.get(key) == uids:
            return
        self._unindex(key)
        self._watched[key] = uids
        for uid in uids:
            self._keys_of[uid].add(key)

    def unwatch(self, key: Key) -> None:
        """`key` needs it no more."""
        self._unindex(key)
        for name in self._read_by.pop(key, {}):
            self._let_go(key, name)
        for question in self._sweeps():
            question.drop(key)

    async def close(self) -> None:
        """Looks no more."""
        await asyncio.gather(*(one.close() for one in (*self._sweeps(), *self._questions.values())))
        self._questions.clear()

    def note_write(self, uid: str, *made: str) -> None:
        """Something of `uid` was just changed, or may have been: only looks begun from now on count for it.

        `made`: id, name or client token of what the call may have made; its absence is counted anew.
        """
        now = self._loop.time()
        self._written[uid] = now
        self._hurried_until = now + HURRY_FOR.total_seconds()
        if not made:
            return
        for thing in made:
            for sweep in self._sweeps_of(thing):
                sweep.count_anew_for(thing)
        for name, question in self._questions.items():
            if name[-1] in (uid, *made):
                question.count_anew()

    def missing_for(self, thing: str) -> timedelta | None:
        """As CloudView.missing_for."""
        spans = [sweep.missing_for(thing) for sweep in self._sweeps_of(thing)]
        return min((span for span in spans if span is not None), default=None) if None not in spans else None

    def written_at(self, uids: Iterable[str]) -> float:
        """When something of `uids` was changed last, in the loop's seconds."""
        return max((self._written.get(uid, float("-inf")) for uid in uids), default=float("-inf"))

    def note_request(self, uid: str, request: str) -> None:
        """Somebody wants what concerns `uid` to be looked at now. Each request counts once, from its first mention."""
        if self._requests.get(uid, ("", 0.0))[0] != request:
            self._requests[uid] = request, self._loop.time()

    def requested_at(self, uid: str) -> float:
        """When a look at what concerns `uid` was asked for last, in the loop's seconds."""
        return self._requests[uid][1] if uid in self._requests else float("-inf")

    def watched_by(self, key: Key) -> frozenset[str]:
        return self._watched.get(key, frozenset())

    def pace(self) -> float:
        """Seconds from one look at instances to the next."""
        look = self.instances.look
        is_moving = look is not None and any(one.state in _MOVING for one in look.answer.values())
        is_hurried = self._loop.time() < self._hurried_until
        return min(self._period, MOVING_PERIOD.total_seconds()) if is_moving or is_hurried else self._period

    def moving(self, key: Key, name: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> Question[T]:
        """The question of that name, about something that changes by itself."""
        return self._question(key, name, ask, Question, lambda _: self.pace())

    def fact(self, key: Key, name: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> Question[T]:
        """The question of that name, about something that hardly ever changes."""

        def pace(answer: T) -> float:
            return (ABSENT_FACTS_LAST if answer is None else FACTS_LAST).total_seconds()

        return self._question(key, name, ask, Fact, pace)

    def _question(
        self,
        key: Key,
        name: tuple[str, ...],
        ask: Callable[[], Awaitable[T]],
        kind: type[Question[T]],
        pace: Callable[[T], float],
    ) -> Question[T]:
        if name not in self._questions:
            self._questions[name] = kind(self.where, ask, pace, self.wake, lambda: self._forget(name))
        read = self._read_by[key]
        read.pop(name, None)
        read[name] = None
        if len(read) > QUESTIONS_PER_KEY:
            oldest = next(iter(read))
            del read[oldest]
            self._let_go(key, oldest)
        return self._questions[name]

    def _let_go(self, key: Key, name: tuple[str, ...]) -> None:
        question = self._questions.get(name)
        if question is not None and not question.drop(key):
            self._forget(name)
            question.end()

    def _forget(self, name: tuple[str, ...]) -> None:
        self._questions.pop(name, None)

    def _sweeps_of(self, thing: str) -> tuple[_Sweep[Any], ...]:
        """Those that would show a thing of that id or name."""
        if thing.startswith("i-"):
            return (self.instances,)
        if thing.startswith("vol-") or "/" in thing:
            return (self.volumes,)
        return (self.security_groups,) if thing.startswith("sg-") else (self.security_groups, self.key_pairs)

    def _sweeps(self) -> tuple[Question[Any], ...]:
        asked_for = (one for one in (self._addresses, self._volumes) if one is not None)
        return (self.account, self.instances, self.security_groups, self.key_pairs, *asked_for)

    def _unindex(self, key: Key) -> None:
        for uid in self._watched.pop(key, ()):
            self._keys_of[uid].discard(key)
            if not self._keys_of[uid]:
                del self._keys_of[uid]
                self._written.pop(uid, None)
                self._requests.pop(uid, None)


class CloudView:
    """What one object reads of EC2, and the port for its effects. Reading waits for nobody.

    Each method gives the newest answer, or raises: NotYet - asked, and the object is woken when the answer comes; or
    what the last look raised (the object is woken when that changes).
    """

    def __init__(self, informer: CloudInformer, key: Key) -> None:
        self._informer = informer
        self._key = key

    @property
    def cloud(self) -> Cloud:
        """For effects."""
        return self._informer.cloud

    def note_write(self, uid: str, *made: str) -> None:
        """As CloudInformer.note_write."""
        self._informer.note_write(uid, *made)

    def note_request(self, uid: str, request: str) -> None:
        """As CloudInformer.note_request."""
        self._informer.note_request(uid, request)

    def since(self, begun: float) -> timedelta:
        """How long ago a look began."""
        return timedelta(seconds=asyncio.get_running_loop().time() - begun)

    @property
    def error(self) -> OperatorError | None:
        """What hinders looking at instances now; None if nothing does, or nothing is known yet."""
        return self._informer.account.error or self._informer.instances.error

    def snapshot(self, uids: frozenset[str], network_of: frozenset[str] | None = None) -> CloudSnapshot:
        """Everything of the cluster, by looks that began after all own writes to `uids`; of groups and key pairs after
        those to `network_of`, if that is given: a machine changes none of them. Where only instances matter,
        `instances` needs fewer rights."""
        newer_than = self._informer.written_at(uids)
        of_network = newer_than if network_of is None else self._informer.written_at(network_of)
        informer = self._informer
        account, instances, groups, key_pairs = _read_all(
            self._key,
            (
                (informer.account, float("-inf")),
                (informer.instances, newer_than),
                (informer.security_groups, of_network),
                (informer.key_pairs, of_network),
            ),
        )
        return CloudSnapshot(
            account.answer,
            self._informer.region,
            instances.answer,
            groups.answer,
            key_pairs.answer,
            instances.begun,
            min(groups.begun, key_pairs.begun),
        )

    def instances(self, uids: frozenset[str]) -> Look[Swept[Instance]]:
        """All instances of the cluster, by id, every state; by a look that began after all own writes to `uids`."""
        return self._informer.instances.read(self._key, self._informer.written_at(uids))

    def security_groups(self, uids: frozenset[str]) -> Look[Swept[SecurityGroup]]:
        """The same of security groups, by id."""
        return self._informer.security_groups.read(self._key, self._informer.written_at(uids))

    def key_pairs(self, uids: frozenset[str]) -> Look[Swept[KeyPair]]:
        """The same of key pairs, by name."""
        return self._informer.key_pairs.read(self._key, self._informer.written_at(uids))

    def addresses(self, uids: frozenset[str]) -> Look[Swept[Address]]:
        """The same of elastic addresses, by allocation id."""
        return self._informer.addresses.read(self._key, self._informer.written_at(uids))

    def volumes(self, uids: frozenset[str]) -> Look[Swept[Volume]]:
        """The same of EBS volumes, by id."""
        return self._informer.volumes.read(self._key, self._informer.written_at(uids))

    def volume(self, volume_id: str) -> Volume | None:
        """As Cloud.get_volume."""
        cloud = self._informer.cloud
        return self._moving(("volume", volume_id), lambda: cloud.get_volume(volume_id)).answer

    def volume_change(self, volume_id: str) -> str:
        """As Cloud.volume_change."""
        cloud = self._informer.cloud
        return self._moving(("volume change", volume_id), lambda: cloud.volume_change(volume_id)).answer

    def missing_for(self, thing: str) -> timedelta | None:
        """From the first to the last of the complete sweeps in a row that missed a thing: an instance, group or volume
        of that id (`i-…`, `sg-…`, `vol-…`), a volume of that owner's entry (`<uid>/<entry>`), or else a group or key
        pair of that name. Zero after one; None where the last one showed it.

        Only sweeps count that began after this was asked for first, and after `note_write` named the thing last; None
        while there is none. Never raises.
        """
        return self._informer.missing_for(thing)

    # Of what follows, looks begin after all own writes to what this object watches.

    def instance_by_id(self, instance_id: str) -> Look[tuple[Instance, ...]]:
        """The instance of that id, whatever its tags; empty where EC2 shows none."""
        cloud = self._informer.cloud
        return self._moving(("instance", instance_id), lambda: cloud.find_instances(instance_id=instance_id))

    def instances_by_token(self, token: str) -> Look[tuple[Instance, ...]]:
        """The instances that were launched with a client token, whatever their tags."""
        cloud = self._informer.cloud
        return self._moving(("token", token), lambda: cloud.find_instances(client_token=token))

    def address_by_id(self, allocation_id: str) -> Look[tuple[Address, ...]]:
        """The elastic address of that allocation id, whatever its tags; empty where EC2 shows none."""
        cloud = self._informer.cloud
        return self._moving(("address", allocation_id), lambda: cloud.find_addresses(allocation_id=allocation_id))

    def address_by_number(self, public_address: str) -> Look[tuple[Address, ...]]:
        """The elastic address of that IP address, whatever its tags; empty where the account has none."""
        cloud = self._informer.cloud
        name = ("public address", public_address)
        return self._moving(name, lambda: cloud.find_addresses(public_address=public_address))

    def addresses_of(self, uid: str) -> Look[tuple[Address, ...]]:
        """The elastic addresses that are tagged with that owner and were not let go of; empty where EC2 shows none."""
        cloud = self._informer.cloud

        async def held() -> tuple[Address, ...]:
            found = await cloud.find_addresses(tags={names.UID_TAG: uid})
            return tuple(one for one in found if not names.is_retained(one.tags))

        return self._moving(("addresses", uid), held)

    def interfaces_in_group(self, group_id: str) -> tuple[str, ...]:
        """As Cloud.interfaces_in_group."""
        cloud = self._informer.cloud
        return self._moving(("interfaces", group_id), lambda: cloud.interfaces_in_group(group_id)).answer

    def groups_naming(self, group_id: str) -> tuple[str, ...]:
        """As Cloud.groups_naming."""
        cloud = self._informer.cloud
        return self._moving(("naming", group_id), lambda: cloud.groups_naming(group_id)).answer

    def security_group_now(self, group_id: str) -> SecurityGroup | None:
        """As Cloud.get_security_group, with the rules that it has now."""
        cloud = self._informer.cloud
        return self._moving(("group now", group_id), lambda: cloud.get_security_group(group_id)).answer

    # What follows hardly ever changes; what does not exist is asked for again soon.

    def subnet(self, subnet_id: str) -> Subnet | None:
        """As Cloud.get_subnet."""
        cloud = self._informer.cloud
        return self._fact(("subnet", subnet_id), lambda: cloud.get_subnet(subnet_id))

    def security_group(self, group_id: str) -> SecurityGroup | None:
        """As Cloud.get_security_group."""
        cloud = self._informer.cloud
        return self._fact(("group", group_id), lambda: cloud.get_security_group(group_id))

    def default_group(self, vpc_id: str) -> SecurityGroup | None:
        """The group that EC2 gives instances of a VPC for which none is named (EC2 User Guide, "Default security
        groups for your VPCs")."""
        cloud = self._informer.cloud
        name = ("group", vpc_id, "default")
        return self._fact(name, lambda: cloud.find_security_group_by_name("default", vpc_id))

    def placement_group(self, name: str) -> str | None:
        """As Cloud.find_placement_group."""
        cloud = self._informer.cloud
        return self._fact(("placement group", name), lambda: cloud.find_placement_group(name))

    def default_subnet(self) -> Subnet:
        """As Cloud.default_subnet."""
        return self._fact(("default subnet",), self._informer.cloud.default_subnet)

    def key_pair(self, name: str) -> KeyPair | None:
        """As Cloud.find_key_pair."""
        cloud = self._informer.cloud
        return self._fact(("key pair", name), lambda: cloud.find_key_pair(name))

    def image(self, image_id: str) -> Image | None:
        """As Cloud.get_image."""
        cloud = self._informer.cloud
        return self._fact(("image", image_id), lambda: cloud.get_image(image_id))

    def newest_image(self, owner: str, name: str, architecture: str) -> Image | None:
        """As Cloud.find_image."""
        cloud = self._informer.cloud
        question = ("images", owner, name, architecture)
        return self._fact(question, lambda: cloud.find_image(owner, name, architecture))

    def architecture(self, instance_type: str) -> str:
        """As Cloud.architecture."""
        cloud = self._informer.cloud
        return self._fact(("type", instance_type), lambda: cloud.architecture(instance_type))

    def attribute(self, uid: str, instance_id: str, attribute: InstanceAttribute) -> bool | str:
        """As Cloud.attribute, of an instance of the owner `uid`; asked for again in an hour, after own writes to it,
        and when somebody wants a look."""
        cloud = self._informer.cloud
        name = ("attribute", attribute, instance_id)
        question = self._informer.fact(self._key, name, lambda: cloud.attribute(instance_id, attribute))
        newer_than = max(self._informer.written_at((uid,)), self._informer.requested_at(uid))
        return question.read(self._key, newer_than).answer

    def _moving(self, name: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> Look[T]:
        newer_than = self._informer.written_at(self._informer.watched_by(self._key))
        return self._informer.moving(self._key, name, ask).read(self._key, newer_than)

    def _fact(self, name: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> T:
        return self._informer.fact(self._key, name, ask).read(self._key).answer


def _read_all(key: Key, questions: Iterable[tuple[Question[Any], float]]) -> list[Look[Any]]:
    """A look of each, begun after the moment beside it. All are asked for before the first that is missing raises, and
    an error goes before "not yet"."""
    looks, failures = [], []
    for question, newer_than in questions:
        try:
            looks.append(question.read(key, newer_than))
        except OperatorError as error:
            failures.append(error)
    if failures:
        raise next((one for one in failures if not isinstance(one, NotYet)), failures[0])
    return looks


class CloudInformers:
    """The informer of each identity and region; equal identities share one, others never do."""

    def __init__(
        self, clouds: Clouds, sweep_period: timedelta, network_period: timedelta, wake: Callable[[Key], None]
    ) -> None:
        self._clouds = clouds
        self._periods = (sweep_period, network_period)
        self._wake = wake
        self._informers: dict[tuple[AwsIdentity, str], CloudInformer] = {}
        self._of_key: dict[Key, tuple[AwsIdentity, str]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def view(self, key: Key, uids: frozenset[str], identity: AwsIdentity, region: str, cluster_id: str) -> CloudView:
        """What `key` reads from now on; an informer of another identity that it used before is let go."""
        of_key = (identity, region)
        if self._of_key.get(key, of_key) != of_key:
            self.drop(key)
        informer = self._informers.get(of_key)
        if informer is None:
            cloud = self._clouds.cloud(identity, region)
            informer = CloudInformer(cloud, region, cluster_id, self._periods, self._wake)
            self._informers[of_key] = informer
        self._of_key[key] = of_key
        informer.watch(key, uids)
        return informer.for_key(key)

    def drop(self, key: Key) -> None:
        """`key` needs no informer any more; one that nobody needs ends, and nobody waits for that."""
        of_key = self._of_key.pop(key, None)
        if of_key is None:
            return
        informer = self._informers[of_key]
        informer.unwatch(key)
        if not informer.is_watched:
            del self._informers[of_key]
            task = asyncio.get_running_loop().create_task(informer.close(), name=f"end of {informer.where}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for key in list(self._of_key):
            self.drop(key)
        await asyncio.gather(*self._closing, return_exceptions=True)
