"""What the sweeps of one account and region found, as passes read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from nixops_operator.facts.cloud import Instance, KeyPair, SecurityGroup
from nixops_operator.names import UID_TAG


class Tagged(Protocol):
    @property
    def tags(self) -> Mapping[str, str]: ...


S = TypeVar("S", bound=Tagged)


class Swept(dict[str, S]):
    """What one sweep found, by id or name; never changed afterwards. Each pass asks for what is its object's own: found
    without a walk over all that the others have."""

    def of(self, uid: str) -> Sequence[S]:
        """What carries the tag of that owner, in whatever cluster."""
        return self._by_uid.get(uid, ())

    @cached_property
    def _by_uid(self) -> Mapping[str, Sequence[S]]:
        found: dict[str, list[S]] = {}
        for one in self.values():
            if (uid := one.tags.get(UID_TAG)) is not None:
                found.setdefault(uid, []).append(one)
        return found


@dataclass(frozen=True)
class CloudSnapshot:
    """Everything of one cluster in one account and region. A snapshot is complete: a failed or partial sweep gives
    none.

    `instances_begun`, `network_begun`: monotonic seconds at which the call that gave instances, or groups and key
    pairs, *began*. What an own write changed may be missing from a sweep that began before the write.
    """

    account_id: str
    region: str
    instances: Swept[Instance]  # by id, every state
    security_groups: Swept[SecurityGroup]  # by id
    key_pairs: Swept[KeyPair]  # by name
    instances_begun: float
    network_begun: float
