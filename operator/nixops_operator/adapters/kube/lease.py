"""One acting operator at a time, by a coordination.k8s.io Lease.

It promises no more than the clocks allow: a process that stood still may act for a moment although another one took
over, so every effect must be safe with two operators at once. `renewed_at` lets the composition root refuse effects
once the Lease may have run out.

The steps are those of client-go (`k8s.io/client-go/tools/leaderelection`): a holder counts as gone when its record
stayed the same for the record's own duration on *our* monotonic clock; times of other hosts are never compared.
kubernetes.aio's own election is not used: it ends the process where it meets an error, and compares wall clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nixops_operator.adapters.kube.connection import Connection, path_of
from nixops_operator.errors import Conflict, OperatorError


@dataclass(frozen=True)
class Timing:
    """Seconds. A lost Lease is noticed `duration - renew_deadline` before another process may take it."""

    duration: float = 15
    renew_deadline: float = 10
    retry_period: float = 2

    @property
    def attempt_limit(self) -> float:
        """What one attempt may take, so that after a request that hangs there is time for another one."""
        return (self.renew_deadline - self.retry_period) / 2


@dataclass(frozen=True)
class _Seen:
    version: str
    at: float


class Lease:
    """The Lease `namespace/name`, for the process `identity` (unique for each start)."""

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: Timing | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.renewed_at: float | None = None
        """Monotonic seconds at which the last successful renewal began; None while the Lease is not ours."""
        self._connection = connection
        self._collection = path_of("apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases")
        self._name = name
        self._what = f"lease {namespace}/{name}"
        self._identity = identity
        self._timing = timing or Timing()
        self._now = now
        self._monotonic = monotonic
        self._sleep = sleep
        self._seen: _Seen | None = None

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have taken it yet."""
        return self.renewed_at is not None and self._monotonic() < self.renewed_at + self._timing.renew_deadline

    async def acquire(self) -> None:
        """Returns when the Lease is ours. Errors of the API server are waited out."""
        while not await self._attempt():
            await self._sleep(self._timing.retry_period)

    async def hold(self, on_lost: Callable[[], None]) -> None:
        """Renews the acquired Lease until it is lost; then calls `on_lost` and returns. Cancel it to stop."""
        took = 0.0
        while True:
            await self._sleep(max(self._timing.retry_period - took, 0))
            begun = self._monotonic()
            is_ours = await self._attempt()
            took = self._monotonic() - begun
            if not is_ours and not self.is_held:
                self.renewed_at = None
                on_lost()
                return

    async def release(self) -> None:
        """Gives it up so that the next process need not wait. Raises as the connection does."""
        if self.renewed_at is None:
            return
        self.renewed_at = None
        lease = await self._get()
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._timestamp()}
            await self._put(lease)

    async def _attempt(self) -> bool:
        """Takes or renews it, if that is allowed now. Whether it is ours."""
        try:
            async with asyncio.timeout(self._timing.attempt_limit):
                return await self._take_or_renew()
        except (OperatorError, TimeoutError):
            return False  # whether that was too long is a question of renewed_at

    async def _take_or_renew(self) -> bool:
        begun = self._monotonic()
        lease = await self._get()
        if lease is None:
            await self._connection.request("POST", self._collection, f"create {self._what}", body=self._first_record())
        elif self._may_write(lease, begun):
            lease["spec"] = self._record(lease.get("spec") or {})
            await self._put(lease)
        else:
            self.renewed_at = None
            return False
        self.renewed_at = begun
        return True

    def _may_write(self, lease: dict[str, Any], now: float) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version = lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen.version != version:
            self._seen = _Seen(version, now)
        return now >= self._seen.at + float(spec.get("leaseDurationSeconds") or self._timing.duration)

    def _first_record(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._record({}),
        }

    def _record(self, previous: dict[str, Any]) -> dict[str, Any]:
        is_ours = previous.get("holderIdentity") == self._identity
        moment = self._timestamp()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._timing.duration),
            "acquireTime": previous["acquireTime"] if is_ours and "acquireTime" in previous else moment,
            "renewTime": moment,
            "leaseTransitions": int(previous.get("leaseTransitions") or 0) + (0 if is_ours or not previous else 1),
        }

    async def _get(self) -> dict[str, Any] | None:
        return await self._connection.request(
            "GET", self._collection + path_of(self._name), f"get {self._what}", accepted=(404,)
        )

    async def _put(self, lease: dict[str, Any]) -> None:
        """Carries the resourceVersion that was read: of two processes one gets Conflict."""
        answer = await self._connection.request(
            "PUT", self._collection + path_of(self._name), f"update {self._what}", body=lease
        )
        if answer is None:
            raise Conflict(f"update {self._what}: it is gone")

    def _timestamp(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
