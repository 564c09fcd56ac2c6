"""Machines, looked at over one held connection each, and never from inside a pass.

    HostInformers ── one HostInformer for each machine: connects (with backoff), asks for facts every period
        names: one question for each host name, asked again every minute while somebody reads it
    a pass reads the last answer or error, without waiting; the machine's key is woken when that has changed

A host that can watch itself tells of changes over the same connection, and is asked at once; then the period between
two looks is longer. While something moves on the host (`hurry`) it is asked twice a second. Whatever a host does not
answer has a deadline, and holds up nobody but its own look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from ipaddress import ip_address

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError, Retry
from nixops_operator.facts.health import Check, CheckResult
from nixops_operator.facts.host import UNCONFIRMED, HostFacts, HostTarget
from nixops_operator.facts.kube import Key
from nixops_operator.informers.health import HealthLook
from nixops_operator.informers.questions import Fact
from nixops_operator.ports.host import Host, Hosts

log = logging.getLogger(__name__)

HURRIED_PERIOD = timedelta(milliseconds=500)
HURRY_FOR = timedelta(seconds=5)
TOLD_PERIOD = timedelta(seconds=30)  # of looks at a host that tells of changes: for what it did not notice
TOLD_GAP = timedelta(milliseconds=500)  # a host where everything changes all the time is asked no more often than this
SHORT_WATCH = timedelta(seconds=60)  # a watch that ends sooner is asked for more and more slowly
FIRST_RETRY = timedelta(seconds=1)
LONGEST_WATCH_RETRY = timedelta(minutes=5)  # no host can watch before its first activation brings inotify-tools
LONGEST_RETRY = timedelta(seconds=30)  # a machine that comes back should not wait longer than its boot takes
ANSWER_DEADLINE = timedelta(seconds=60)  # above the adapter's own 30 s for each of two commands
CLOSE_DEADLINE = timedelta(seconds=10)
NAME_PERIOD = timedelta(seconds=60)
NAME_DEADLINE = timedelta(seconds=15)  # three name servers of resolv.conf(5), 5 s each
NAME_READ_WITHIN = timedelta(hours=1)  # a name that no pass has asked for in so long is not looked up any more


@dataclass(frozen=True)
class HostAnswer:
    """What is known of a machine now: facts, or why there are none; both None before the first answer. After a cut, the
    error alone."""

    facts: HostFacts | None = None
    error: OperatorError | None = None


class _Farewells:
    """What ends in the background: a peer that does not take leave holds up nobody."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, end: Callable[[], Awaitable[object]]) -> None:
        """`end` is called by the task itself: a task that is cancelled before it begins leaves nothing unawaited."""
        task = asyncio.get_running_loop().create_task(self._bounded(end), name="close a connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bounded(self, end: Callable[[], Awaitable[object]]) -> None:
        try:
            async with asyncio.timeout(CLOSE_DEADLINE.total_seconds()):
                await end()
        except TimeoutError:
            log.info("a host did not take leave in time")
        except Exception:
            log.exception("closing a connection")

    async def all_done(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class HostInformer:
    """One machine's held connection. Made inside a running loop; its task ends with `end`."""

    def __init__(
        self, hosts: Hosts, target: HostTarget, period: timedelta, wake: Callable[[], None], farewells: _Farewells
    ) -> None:
        self.target = target
        self.answer = HostAnswer()
        self._news = self.answer
        self._hosts = hosts
        self._period = period
        self._wake = wake
        self._farewells = farewells
        self._host: Host | None = None
        self._hurried_until = float("-inf")
        self._log: tuple[str, str] | None = None  # id and text; an activation that has ended says nothing more
        self._log_task: asyncio.Task[None] | None = None
        self._log_asked_at = float("-inf")
        self._health: HealthLook | None = None
        self._nudge = asyncio.Event()
        self._is_told = False  # by the host itself, of changes
        self._listening: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._look_for_ever(), name=f"host {target.address}")

    def news(self) -> HostAnswer:
        """The answer that woke the key last: another one only if more than free space differs."""
        return self._news

    def host(self) -> Host:
        """The open connection. Raises Retry (`ConnectTimeout`) while there is none."""
        if self._host is None or not self._host.is_open:
            raise Retry(Reason.CONNECT_TIMEOUT, f"no connection to {self.target.address} now")
        return self._host

    def activation_log(self, activation_id: str) -> str | None:
        """As Host.activation_log, of an activation that has ended; None until the host has told it (the key is woken
        then). A host that does not tell is asked again now and then."""
        if self._log is not None and self._log[0] == activation_id:
            return self._log[1]
        is_asking = self._log_task is not None and not self._log_task.done()
        is_due = self._loop.time() >= self._log_asked_at + LONGEST_RETRY.total_seconds()
        if self._host is not None and not is_asking and is_due:
            self._log_asked_at = self._loop.time()
            self._log_task = self._loop.create_task(self._ask_for_log(self._host, activation_id))
        return None

    def health(self, subject: str, checks: tuple[Check, ...]) -> tuple[CheckResult, ...]:
        """How the checks of what the machine runs stand; the key is woken when one begins to pass or to fail.
        `subject`: what runs there; of something else, or with other checks, nothing is known at first."""
        if self._health is None or (self._health.subject, self._health.checks) != (subject, checks):
            self.end_health()
            self._health = HealthLook(subject, checks, self.host, self._wake)
        return self._health.results

    def end_health(self) -> None:
        """Asks after nobody's health any more."""
        look, self._health = self._health, None
        tasks = tuple(look.end()) if look is not None else ()
        if tasks:
            self._farewells.add(partial(asyncio.wait, tasks))

    async def connect_anew(self) -> Host:
        """A second, fresh connection: what it proves, the held one cannot. The caller closes it."""
        return await self._hosts.connect(self.target)

    def hurry(self) -> None:
        """Something was started on the host: ask at once, and often for a while."""
        self._hurried_until = self._loop.time() + HURRY_FOR.total_seconds()
        self._nudge.set()

    async def refresh(self) -> HostAnswer:
        """Ask now, after an own effect; the answer is newer than the call."""
        await self._ask()
        return self.answer

    def end(self) -> None:
        """Looks no more; the connection is closed in the background."""
        self._task.cancel()
        self._farewells.add(partial(asyncio.wait, (self._task,)))
        self.end_health()
        if self._log_task is not None:
            self._log_task.cancel()
            self._farewells.add(partial(asyncio.wait, (self._log_task,)))
        self._leave()

    def _leave(self) -> None:
        host, self._host = self._host, None
        listening, self._listening = self._listening, None
        self._is_told = False
        if listening is not None:
            listening.cancel()
            self._farewells.add(partial(asyncio.wait, (listening,)))
        if host is not None:
            self._farewells.add(host.close)

    async def _look_for_ever(self) -> None:
        retry = FIRST_RETRY
        while True:
            self._nudge.clear()  # what is told from here on may be too late for the answer
            try:
                is_answered = await self._connect() and await self._ask()
            except Exception as error:
                # A task that ends by a fault of ours must not look like a machine of which there is no news.
                log.exception("looking at %s", self.target.address)
                text = f"{self.target.address}: internal error ({type(error).__name__}); the operator's log has more"
                self._fail(Retry(Reason.PROGRESSING_WITH_RETRY, text))
                is_answered = False
            if is_answered:
                retry = FIRST_RETRY
                await self._pause()
            else:
                # A host that answers the handshake and then fails must not be knocked at in a tight loop.
                await asyncio.sleep(retry.total_seconds())
                retry = min(retry * 2, LONGEST_RETRY)

    async def _connect(self) -> bool:
        if self._host is None:
            try:
                self._host = await self._hosts.connect(self.target)
            except OperatorError as error:
                self._fail(error)
                return False
            self._listening = self._loop.create_task(self._listen(self._host), name=f"changes of {self.target.address}")
        return True

    async def _listen(self, host: Host) -> None:
        """Ask as soon as the host says that something changed, as long as the connection is up."""
        retry = FIRST_RETRY
        while True:
            began = self._loop.time()
            async for _ in host.changes():
                self._is_told = True
                self._nudge.set()
                await asyncio.sleep(TOLD_GAP.total_seconds())
            if self._is_told:
                self._nudge.set()  # the connection may have ended with it
            self._is_told = False
            retry = FIRST_RETRY if self._loop.time() - began >= SHORT_WATCH.total_seconds() else retry
            await asyncio.sleep(retry.total_seconds())
            retry = min(retry * 2, LONGEST_WATCH_RETRY)

    async def _ask(self) -> bool:
        async with self._asking:
            host = self._host
            if host is None:
                return False
            try:
                async with asyncio.timeout(ANSWER_DEADLINE.total_seconds()):
                    facts = await host.facts()
            except TimeoutError:
                self._fail(Retry(Reason.CONNECT_TIMEOUT, f"{self.target.address} did not answer `facts` in time"))
                return False
            except OperatorError as error:
                self._fail(error)
                return False
            self._see(HostAnswer(facts=facts))
            return True

    async def _ask_for_log(self, host: Host, activation_id: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_DEADLINE.total_seconds()):
                text = await host.activation_log(activation_id)
        except (TimeoutError, OperatorError):
            return  # words for people; the facts stand without them
        self._log = activation_id, text
        self._wake()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._next_period().total_seconds()):
                await self._nudge.wait()
        except TimeoutError:
            return

    def _next_period(self) -> timedelta:
        if self._loop.time() < self._hurried_until:
            return HURRIED_PERIOD
        is_calm = self.answer.facts is not None and _is_calm(self.answer.facts)
        return max(self._period, TOLD_PERIOD) if self._is_told and is_calm else self._period

    def _fail(self, error: OperatorError) -> None:
        self._leave()
        self._see(HostAnswer(error=error))

    def _see(self, answer: HostAnswer) -> None:
        before, self.answer = self.answer, answer
        if _without_free_space(answer) != _without_free_space(before):
            self._news = answer
            self._wake()


def _is_calm(facts: HostFacts) -> bool:
    """Whether nothing is expected to change of which the host does not tell, as that a unit is well again."""
    is_activating = facts.activation is not None and facts.activation.state in UNCONFIRMED
    return not (facts.failed_units or facts.lists_left or facts.building or is_activating)


def _without_free_space(answer: HostAnswer) -> HostAnswer:
    """Free space changes with every look; it is no news."""
    return HostAnswer(replace(answer.facts, free_bytes=0)) if answer.facts is not None else answer


class _Name(Fact[tuple[str, ...]]):
    """Addresses of a host name. The last ones stay good while no name server answers: a connection held to one of them
    is not cut for that."""

    def _patience(self) -> float:
        return NAME_READ_WITHIN.total_seconds()


class HostInformers:
    """The look of each machine key. Nothing here but `close` waits."""

    def __init__(self, hosts: Hosts, period: timedelta, wake: Callable[[Key], None]) -> None:
        self.hosts = hosts
        self._period = period
        self._wake = wake
        self._looks: dict[Key, HostInformer] = {}
        self._names: dict[str, _Name] = {}
        self._farewells = _Farewells()

    def watch(self, key: Key, target: HostTarget) -> HostInformer:
        """The look at `target` for `key`; one at another target is ended first."""
        look = self._looks.get(key)
        if look is not None and look.target != target:
            self.drop(key)
            look = None
        if look is None:
            look = HostInformer(self.hosts, target, self._period, lambda: self._wake(key), self._farewells)
            self._looks[key] = look
        return look

    def of(self, key: Key) -> HostInformer:
        """The look that `key` has now. Raises Retry (`ConnectTimeout`) if it has none."""
        look = self._looks.get(key)
        if look is None:
            raise Retry(Reason.CONNECT_TIMEOUT, "no connection to the machine now")
        return look

    def known(self, key: Key) -> HostInformer | None:
        """The look that `key` has now, if it has one."""
        return self._looks.get(key)

    def last_facts(self, key: Key) -> HostFacts | None:
        """What the machine has said, if it is connected to now."""
        look = self._looks.get(key)
        return look.answer.facts if look is not None else None

    def resolve(self, key: Key, name: str) -> tuple[str, ...]:
        """The addresses of a host name, never none: the one that `key` is connected to first, if it is among them, then
        as the port gives them; so a name that shows its addresses in turn cuts no connection. An address is its own.

        Raises NotYet before the first answer (`key` is woken by it, and by every change), Retry (`ConnectTimeout`) if
        the name does not resolve.
        """
        try:
            return (str(ip_address(name)),)
        except ValueError:
            pass
        if name not in self._names:
            self._names[name] = _Name(
                f"the name {name}",
                lambda: self._ask_for_addresses(name),
                lambda _: NAME_PERIOD.total_seconds(),
                self._wake,
                lambda: self._forget_name(name),
            )
        addresses = self._names[name].read(key).answer
        look = self._looks.get(key)
        held = look.target.address if look is not None else None
        return tuple(sorted(addresses, key=lambda each: each != held))

    def drop(self, key: Key) -> None:
        """Ends the look of `key`, if it has one. Its name's changes still wake it."""
        look = self._looks.pop(key, None)
        if look is not None:
            look.end()

    def forget(self, key: Key) -> None:
        """The object has gone."""
        self.drop(key)
        for name in self._names.values():
            name.drop(key)

    async def close(self) -> None:
        for key in list(self._looks):
            self.drop(key)
        for name in self._names.values():
            self._farewells.add(name.close)
        self._names.clear()
        await self._farewells.all_done()

    def _forget_name(self, name: str) -> None:
        self._names.pop(name, None)

    async def _ask_for_addresses(self, name: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(NAME_DEADLINE.total_seconds()):
                return await self.hosts.resolve(name)
        except TimeoutError:
            message = f"the name {name} does not resolve: no name server answers in time"
            raise Retry(Reason.CONNECT_TIMEOUT, message) from None
