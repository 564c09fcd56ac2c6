"""EC2, looked at once for all objects of one identity and region.

One sweep of instances per period, however many machines exist; groups and key pairs more rarely. A snapshot counts only
if every page of it arrived; what
an own write changed is asked for again before it is believed (`note_write`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from nixops_operator import names
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import (
    CloudSnapshot,
    Image,
    Instance,
    InstanceState,
    KeyPair,
    SecurityGroup,
    Subnet,
)
from nixops_operator.facts.kube import Key
from nixops_operator.ports.cloud import Cloud, Clouds

MOVING_PERIOD = timedelta(seconds=2)  # while an instance changes its state; EC2 takes 5-60 s for one
FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(seconds=30)
FACTS_LAST = timedelta(hours=1)  # images, types and subnets change by the week

T = TypeVar("T")

_MOVING = (InstanceState.PENDING, InstanceState.STOPPING, InstanceState.SHUTTING_DOWN)


class CloudInformer:
    """What one identity sees in one region. `cloud` is for effects and for targeted looks.

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
        self.error: OperatorError | None = None
        self._cluster_id = cluster_id
        self._region = region
        self._sweep_period, self._network_period = (period.total_seconds() for period in periods)
        self._wake = wake
        self._account_id: str | None = None
        self._instances: Mapping[str, Instance] | None = None
        self._groups: Mapping[str, SecurityGroup] = {}
        self._key_pairs: Mapping[str, KeyPair] = {}
        self._instances_begun = self._network_begun = float("-inf")
        self._watchers: dict[Key, frozenset[str]] = {}
        self._written: dict[str, float] = {}
        self._expected: dict[str, tuple[float, float] | None] = {}
        self._facts: dict[tuple[str, ...], tuple[float, Any]] = {}
        self._sweeping = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_watched(self) -> bool:
        return bool(self._watchers)

    def watch(self, key: Key, uids: frozenset[str]) -> None:
        """Wake `key` when something tagged with one of `uids` appears, changes or goes, and when looking fails or works
        again."""
        self._watchers[key] = uids
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sweep_for_ever(), name="sweep")

    async def unwatch(self, key: Key) -> None:
        self._watchers.pop(key, None)
        if not self._watchers and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def note_write(self, uid: str) -> None:
        """Something of `uid` was just changed: only looks begun from now on count for it."""
        self._written[uid] = asyncio.get_running_loop().time()

    async def snapshot(self, uids: frozenset[str]) -> CloudSnapshot:
        """The newest snapshot that knows all own writes to `uids`. Raises what the last look raised."""
        needed = max((self._written.get(uid, float("-inf")) for uid in uids), default=float("-inf"))
        if self._instances is None or min(self._instances_begun, self._network_begun) <= needed:
            async with self._sweeping:
                if self._instances is None or self._instances_begun <= needed:
                    await self._sweep_instances()
                if self._network_begun <= needed:
                    await self._sweep_network()
        elif self.error is not None:
            raise self.error
        assert self._instances is not None and self._account_id is not None  # noqa: S101, PT018 - a sweep succeeded
        return CloudSnapshot(
            self._account_id,
            "",
            self._instances,
            self._groups,
            self._key_pairs,
            self._instances_begun,
            self._network_begun,
        )

    def missing_for(self, instance_id: str) -> timedelta:
        """How long complete sweeps have missed an instance in a row; zero after a sweep that showed it, or one that has
        just missed it."""
        span = self._expected.setdefault(instance_id, None)
        return timedelta(seconds=span[1] - span[0]) if span is not None else timedelta(0)

    async def architecture(self, instance_type: str) -> str:
        """As Cloud.architecture, remembered."""
        return await self._remembered(("type", instance_type), lambda: self.cloud.architecture(instance_type))

    async def image(self, image_id: str) -> Image | None:
        """As Cloud.get_image, remembered once it was found."""
        return await self._remembered(("image", image_id), lambda: self.cloud.get_image(image_id))

    async def newest_image(self, owner: str, name: str, architecture: str) -> Image | None:
        """As Cloud.find_image, remembered once one was found."""
        return await self._remembered(
            ("images", owner, name, architecture), lambda: self.cloud.find_image(owner, name, architecture)
        )

    async def default_subnet(self) -> Subnet:
        """As Cloud.default_subnet, remembered."""
        return await self._remembered(("default subnet",), self.cloud.default_subnet)

    async def _remembered(self, what: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> T:
        now = asyncio.get_running_loop().time()
        asked_at, answer = self._facts.get(what, (float("-inf"), None))
        if now - asked_at < FACTS_LAST.total_seconds():
            return answer  # type: ignore[no-any-return]
        found = await ask()
        if found is not None:
            self._facts[what] = (now, found)
        return found

    async def _sweep_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        retry = FIRST_RETRY
        while True:
            try:
                async with self._sweeping:
                    if loop.time() - self._instances_begun >= self._period() * 0.9:
                        await self._sweep_instances()
                    if loop.time() - self._network_begun >= self._network_period * 0.9:
                        await self._sweep_network()
            except OperatorError:
                await asyncio.sleep(retry.total_seconds())
                retry = min(retry * 2, LONGEST_RETRY)
            else:
                retry = FIRST_RETRY
                await asyncio.sleep(self._period())

    def _period(self) -> float:
        is_moving = any(instance.state in _MOVING for instance in (self._instances or {}).values())
        return min(self._sweep_period, MOVING_PERIOD.total_seconds()) if is_moving else self._sweep_period

    async def _sweep_instances(self) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            if self._account_id is None:
                self._account_id = await self.cloud.account_id()
            found = await self.cloud.sweep_instances(self._cluster_id)
        except OperatorError as error:
            self._tell_error(error)
            raise
        for instance_id, span in self._expected.items():
            self._expected[instance_id] = None if instance_id in found else ((span or (begun, begun))[0], begun)
        before, self._instances, self._instances_begun = self._instances or {}, found, begun
        self._tell_error(None)
        self._tell_changes(before, found)

    async def _sweep_network(self) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            groups, key_pairs = await self.cloud.sweep_network(self._cluster_id)
        except OperatorError as error:
            self._tell_error(error)
            raise
        groups_before, key_pairs_before = self._groups, self._key_pairs
        self._groups, self._key_pairs, self._network_begun = groups, key_pairs, begun
        self._tell_error(None)
        self._tell_changes(groups_before, groups)
        self._tell_changes(key_pairs_before, key_pairs)

    def _tell_error(self, error: OperatorError | None) -> None:
        if error != self.error:
            self.error = error
            for key in self._watchers:
                self._wake(key)

    def _tell_changes(
        self,
        before: Mapping[str, Instance | SecurityGroup | KeyPair],
        after: Mapping[str, Instance | SecurityGroup | KeyPair],
    ) -> None:
        changed = {i for i in before.keys() | after.keys() if before.get(i) != after.get(i)}
        uids = {side[i].tags.get(names.UID_TAG) for i in changed for side in (before, after) if i in side}
        for key, watched in self._watchers.items():
            if not watched.isdisjoint(uids):
                self._wake(key)


class CloudInformers:
    """The look of each identity and region; equal identities share one, others never do."""

    def __init__(
        self, clouds: Clouds, sweep_period: timedelta, network_period: timedelta, wake: Callable[[Key], None]
    ) -> None:
        self._clouds = clouds
        self._periods = (sweep_period, network_period)
        self._wake = wake
        self._looks: dict[tuple[AwsIdentity, str], CloudInformer] = {}
        self._of_key: dict[Key, tuple[AwsIdentity, str]] = {}

    async def watch(
        self, key: Key, uids: frozenset[str], identity: AwsIdentity, region: str, cluster_id: str
    ) -> CloudInformer:
        """The look that `key` uses from now on; an earlier one of another identity is let go."""
        of_key = (identity, region)
        if self._of_key.get(key, of_key) != of_key:
            await self.drop(key)
        look = self._looks.get(of_key)
        if look is None:
            look = CloudInformer(self._clouds.cloud(identity, region), region, cluster_id, self._periods, self._wake)
            self._looks[of_key] = look
        self._of_key[key] = of_key
        look.watch(key, uids)
        return look

    async def drop(self, key: Key) -> None:
        """`key` needs no look any more; a look that nobody needs ends."""
        of_key = self._of_key.pop(key, None)
        if of_key is None:
            return
        look = self._looks[of_key]
        await look.unwatch(key)
        if not look.is_watched:
            self._looks.pop(of_key, None)

    async def close(self) -> None:
        for key in list(self._of_key):
            await self.drop(key)
