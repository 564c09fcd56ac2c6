"""Machines, looked at over one held connection each.

A task per watched machine connects (with backoff), asks for facts every period, and wakes the machine's key when the
answer, or the reason why there is none,
has changed. While something moves on the host (`hurry`) it asks twice a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError, Retry
from nixops_operator.facts.host import HostFacts, HostTarget
from nixops_operator.facts.kube import Key
from nixops_operator.ports.host import Host, Hosts

HURRIED_PERIOD = timedelta(milliseconds=500)
HURRY_FOR = timedelta(seconds=5)
FIRST_RETRY = timedelta(seconds=1)
LONGEST_RETRY = timedelta(seconds=30)  # a machine that comes back should not wait longer than its boot takes


@dataclass(frozen=True)
class HostAnswer:
    """What is known of a machine now: facts, or why there are none; both None before the first answer. After a cut, the
    error alone."""

    facts: HostFacts | None = None
    error: OperatorError | None = None


class HostInformer:
    """One machine's held connection."""

    def __init__(self, hosts: Hosts, target: HostTarget, period: timedelta, wake: Callable[[], None]) -> None:
        self.target = target
        self.answer = HostAnswer()
        self._hosts = hosts
        self._period = period
        self._wake = wake
        self._host: Host | None = None
        self._hurried_until = float("-inf")
        self._logs: dict[str, str] = {}
        self._nudge = asyncio.Event()
        self._asking = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(self._look_for_ever(), name=f"host {target.address}")

    def host(self) -> Host:
        """The open connection. Raises Retry (`ConnectTimeout`) while there is none."""
        if self._host is None or not self._host.is_open:
            raise Retry(Reason.CONNECT_TIMEOUT, f"no connection to {self.target.address} now")
        return self._host

    async def activation_log(self, activation_id: str) -> str:
        """As Host.activation_log, asked once: an activation that has ended says nothing more. Empty while there is no
        answer."""
        if activation_id not in self._logs:
            try:
                self._logs[activation_id] = await self.host().activation_log(activation_id)
            except OperatorError:
                return ""  # words for people; the facts stand without them, and the next look asks again
        return self._logs[activation_id]

    async def connect_anew(self) -> Host:
        """A second, fresh connection: what it proves, the held one cannot. The caller closes it."""
        return await self._hosts.connect(self.target)

    def hurry(self) -> None:
        """Something was started on the host: ask at once, and often for a while."""
        self._hurried_until = asyncio.get_running_loop().time() + HURRY_FOR.total_seconds()
        self._nudge.set()

    async def refresh(self) -> HostAnswer:
        """Ask now, after an own effect; the answer is newer than the call."""
        await self._ask()
        return self.answer

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._host is not None:
            await self._host.close()
            self._host = None

    async def _look_for_ever(self) -> None:
        retry = FIRST_RETRY
        while True:
            if self._host is None:
                try:
                    self._host = await self._hosts.connect(self.target)
                except OperatorError as error:
                    self._see(HostAnswer(error=error))
                    await asyncio.sleep(retry.total_seconds())
                    retry = min(retry * 2, LONGEST_RETRY)
                    continue
            if await self._ask():
                retry = FIRST_RETRY
            else:
                # A host that answers the handshake and then fails must not be knocked at in a tight loop.
                await asyncio.sleep(retry.total_seconds())
                retry = min(retry * 2, LONGEST_RETRY)
                continue
            await self._pause()

    async def _ask(self) -> bool:
        async with self._asking:
            host = self._host
            if host is None:
                return False
            try:
                facts = await host.facts()
            except OperatorError as error:
                self._host = None
                self._see(HostAnswer(error=error))
                await host.close()
                return False
            self._see(HostAnswer(facts=facts))
            return True

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        period = HURRIED_PERIOD if loop.time() < self._hurried_until else self._period
        self._nudge.clear()
        try:
            async with asyncio.timeout(period.total_seconds()):
                await self._nudge.wait()
        except TimeoutError:
            return

    def _see(self, answer: HostAnswer) -> None:
        before, self.answer = self.answer, answer
        if _without_free_space(answer) != _without_free_space(before):
            self._wake()


def _without_free_space(answer: HostAnswer) -> HostAnswer:
    """Free space changes with every look; it is no news."""
    return HostAnswer(replace(answer.facts, free_bytes=0)) if answer.facts is not None else answer


class HostInformers:
    """The look of each machine key."""

    def __init__(self, hosts: Hosts, period: timedelta, wake: Callable[[Key], None]) -> None:
        self.hosts = hosts
        self._period = period
        self._wake = wake
        self._looks: dict[Key, HostInformer] = {}

    async def watch(self, key: Key, target: HostTarget) -> HostInformer:
        """The look at `target` for `key`; one at another target is closed first."""
        look = self._looks.get(key)
        if look is not None and look.target != target:
            await self.drop(key)
            look = None
        if look is None:
            look = HostInformer(self.hosts, target, self._period, lambda: self._wake(key))
            self._looks[key] = look
        return look

    def of(self, key: Key) -> HostInformer:
        """The look that `key` has now. Raises Retry (`ConnectTimeout`) if it has none."""
        look = self._looks.get(key)
        if look is None:
            raise Retry(Reason.CONNECT_TIMEOUT, "no connection to the machine now")
        return look

    async def drop(self, key: Key) -> None:
        look = self._looks.pop(key, None)
        if look is not None:
            await look.close()

    async def close(self) -> None:
        for key in list(self._looks):
            await self.drop(key)
