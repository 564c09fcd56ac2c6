"""Events, de-duplicated: what repeats within ten minutes raises a count instead of making another object."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nixops_operator.adapters.kube.connection import MERGE_PATCH, Connection, path_of
from nixops_operator.api.group import GROUP, VERSION
from nixops_operator.facts.kube import Event

WINDOW = 600.0
"""Seconds, as in client-go's event correlator (`k8s.io/client-go/tools/record`)."""
MESSAGE_LIMIT = 1024
"""Most characters that the API server takes in an Event's message (Event v1, `note`)."""
COMPONENT = "nixops-operator"


@dataclass
class _Posted:
    name: str
    count: int
    since: float


class EventPoster:
    """Remembers what it posted within the window."""

    def __init__(
        self,
        connection: Connection,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._now = now
        self._monotonic = monotonic
        self._posted: dict[Event, _Posted] = {}  # the oldest first

    async def post(self, event: Event) -> None:
        self._forget_old()
        posted = self._posted.get(event)
        if posted is not None and await self._count(event, posted):
            return
        # Noted before the reply: a lost reply must not make a second Event of the same.
        self._posted.pop(event, None)
        posted = self._posted[event] = _Posted(f"{event.key.name}.{secrets.token_hex(8)}", 1, self._monotonic())
        await self._connection.request(
            "POST",
            path_of("api", "v1", "namespaces", event.key.namespace, "events"),
            f"create event of {event.key}",
            body=event_body(event, posted.name, self._now()),
        )

    async def _count(self, event: Event, posted: _Posted) -> bool:
        """Whether the first Event still exists and counts this one, too."""
        reply = await self._connection.request(
            "PATCH",
            path_of("api", "v1", "namespaces", event.key.namespace, "events", posted.name),
            f"patch event of {event.key}",
            body={"count": posted.count + 1, "lastTimestamp": timestamp(self._now())},
            content_type=MERGE_PATCH,
            accepted=(404,),
        )
        posted.count += 1
        return reply is not None

    def _forget_old(self) -> None:
        oldest = self._monotonic() - WINDOW
        while self._posted:
            event, posted = next(iter(self._posted.items()))
            if posted.since > oldest:
                return
            del self._posted[event]


def event_body(event: Event, name: str, now: datetime) -> dict[str, Any]:
    """A core v1 Event. Pure."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": event.key.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": event.key.kind.object_kind,
            "namespace": event.key.namespace,
            "name": event.key.name,
            "uid": event.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MESSAGE_LIMIT],
        "count": 1,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": socket.gethostname(),
    }


def timestamp(moment: datetime) -> str:
    """As metav1.Time: whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
