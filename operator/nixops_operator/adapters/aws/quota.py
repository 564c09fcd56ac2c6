"""How often EC2 may be called: a token bucket for each of EC2's own, a little below what AWS publishes.

EC2 counts calls per account and region, in buckets by kind of call, and answers what is too much with
`RequestLimitExceeded`; the whole account then waits, its console included. So each call takes a token here first. One
whose turn comes soon waits for it; one whose turn is further away is told when to come again, and its turn is kept.
What EC2 refuses all the same was used up by somebody else: the bucket is emptied, and fills at half its rate for a
minute. Source: EC2 Developer Guide, "Request throttling for the Amazon EC2 API".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import TurnKept

WAITED_FOR = timedelta(seconds=1)
"""A turn that comes within this is waited for. A pass that waits has a worker, and a namespace gets eleven: with five
seconds ten launches in a row held them, and everything else came after."""
KEPT_FOR = timedelta(seconds=30)
"""How long a turn is kept for whom it was promised to, who may have gone."""
EARLY = 0.01
"""Seconds by which somebody may come before their turn: sleeps are not exact."""
PENALTY = timedelta(seconds=60)
"""How long a bucket fills at half its rate after EC2 has refused a call."""
RECOVERY = timedelta(seconds=10)
"""After that the rate grows by a tenth of the whole in each of these."""


@dataclass(frozen=True)
class Limit:
    """Tokens: `burst` at most, `rate` new ones a second."""

    burst: int
    rate: float


# Published for the default account: RunInstances and StartInstances 5 and 2 a second, Terminate 100 and 5, tags 100
# and 10, rules and new key pairs 50 and 5, other changes 50 and 5, looks by filter or page 100 and 20, others 50 and
# 10. What is left is for others; of launches and starts, which are scarce, just enough that calls which arrive up to
# half a second closer together than they left are taken: that is one token, whatever the rate. Of changes, of which a
# new machine with an address takes two, a tenth.
LAUNCHES, STARTS = Limit(4, 2), Limit(4, 2)
ENDS = Limit(20, 5)
TAGS = Limit(20, 5)
RULES = Limit(10, 2)
CHANGES = Limit(40, 4.5)
LOOKS = Limit(45, 10)
_OF_OPERATION = {
    "RunInstances": ("launches", LAUNCHES),
    "StartInstances": ("starts", STARTS),
    "TerminateInstances": ("ends", ENDS),
    "CreateTags": ("tags", TAGS),
    "DeleteTags": ("tags", TAGS),
    "AuthorizeSecurityGroupIngress": ("rules", RULES),
    "AuthorizeSecurityGroupEgress": ("rules", RULES),
    "RevokeSecurityGroupIngress": ("rules", RULES),
    "RevokeSecurityGroupEgress": ("rules", RULES),
    "CreateKeyPair": ("rules", RULES),
}


def bucket_of(operation: str) -> tuple[str, Limit] | None:
    """Which bucket an EC2 operation counts in; None for one of another service."""
    if operation == "GetCallerIdentity":
        return None
    if operation in _OF_OPERATION:
        return _OF_OPERATION[operation]
    return ("looks", LOOKS) if operation.startswith(("Describe", "Get")) else ("changes", CHANGES)


class Bucket:
    """One bucket. Times are monotonic seconds, given by the caller; they never go back."""

    def __init__(self, limit: Limit, now: float) -> None:
        self._limit = limit
        self._tokens = float(limit.burst)  # below zero: that many turns are promised
        self._filled_at = now
        self._refused_at = float("-inf")
        self._promised: deque[float] = deque()

    def take(self, now: float) -> float:
        """0: a token was taken. Else seconds until one is there for the caller, who comes again then."""
        self._fill(now)
        if self._promised and self._promised[0] <= now + EARLY:
            self._promised.popleft()
            return 0.0
        self._tokens -= 1
        if self._tokens >= 0:
            return 0.0
        wait = -self._tokens / self._rate(now)
        self._promised.append(now + wait)
        return wait

    def refused(self, now: float) -> None:
        """EC2 had no token for a call that had one here."""
        self._fill(now)
        self._tokens = min(self._tokens, 0.0)
        self._refused_at = now

    def _fill(self, now: float) -> None:
        while self._promised and self._promised[0] <= now - KEPT_FOR.total_seconds():
            self._promised.popleft()
            self._tokens += 1  # nobody came for it
        self._tokens = min(float(self._limit.burst), self._tokens + (now - self._filled_at) * self._rate(now))
        self._filled_at = now

    def _rate(self, now: float) -> float:
        since = now - self._refused_at
        if since < PENALTY.total_seconds():
            return self._limit.rate / 2
        grown = (since - PENALTY.total_seconds()) // RECOVERY.total_seconds()
        return min(self._limit.rate, self._limit.rate * (0.5 + 0.1 * grown))


class Quota:
    """All buckets of one account and region; of one identity there, as long as its account is not known."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[str, Bucket] = {}

    async def turn(self, operation: str) -> None:
        """Returns when the call may be sent. Raises TurnKept (`Throttled`) with the time to come again, if that is
        later than anybody waits for; then nothing was sent."""
        bucket = self._bucket(operation)
        while bucket is not None and (wait := bucket.take(self._monotonic())) > 0:
            if wait > WAITED_FOR.total_seconds():
                text = f"{operation}: more calls wait than EC2 takes at once; this one has its turn kept"
                raise TurnKept(Reason.THROTTLED, text, timedelta(seconds=wait)).as_refusal()
            await asyncio.sleep(wait)

    def refused(self, operation: str) -> None:
        """EC2 has answered that it was called too often."""
        if (bucket := self._bucket(operation)) is not None:
            bucket.refused(self._monotonic())

    def _bucket(self, operation: str) -> Bucket | None:
        found = bucket_of(operation)
        if found is None:
            return None
        name, limit = found
        if name not in self._buckets:
            self._buckets[name] = Bucket(limit, self._monotonic())
        return self._buckets[name]
