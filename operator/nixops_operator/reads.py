"""Secrets and ConfigMaps, read by name and remembered for a while.

Neither can be watched: the operator may not list what it does not own. A thousand machines share a handful of them, so
what was found is taken again for a time; what was not found, or could not be used, is read anew by each pass that needs
it. An identity whose Secret has gone serves on for a deletion.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from nixops_operator.facts.kube import Secret
from nixops_operator.ports.kube import Kube

T = TypeVar("T")

SECRET_LASTS = timedelta(minutes=5)
"""A rotated Secret is noticed after that; one that EC2 or a host refuses is read again at once (`forget_secret`)."""
REMEMBERED = 20_000
"""Entries; the least recently read go first."""


class _Remembered(Generic[T]):
    """Answers by place. An answer of None is never remembered, but does not make the last one forgotten either."""

    def __init__(self, lasts: timedelta) -> None:
        self._lasts = lasts.total_seconds()
        self._answers: OrderedDict[tuple[str, str], tuple[float, T]] = OrderedDict()

    async def read(self, place: tuple[str, str], ask: Callable[[], Awaitable[T | None]]) -> T | None:
        now = asyncio.get_running_loop().time()
        known = self._answers.get(place)
        if known is not None and now - known[0] < self._lasts:
            self._answers.move_to_end(place)
            return known[1]
        answer = await ask()
        if answer is not None:
            self._answers[place] = (now, answer)
            self._answers.move_to_end(place)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        elif known is not None:
            self._answers[place] = (float("-inf"), known[1])
        return answer

    def last(self, place: tuple[str, str]) -> T | None:
        known = self._answers.get(place)
        return known[1] if known is not None else None

    def age(self, place: tuple[str, str]) -> None:
        """Ask again at the next read."""
        known = self._answers.get(place)
        if known is not None:
            self._answers[place] = (float("-inf"), known[1])

    def age_all_of(self, namespace: str) -> None:
        for place in [place for place in self._answers if place[0] == namespace]:
            self.age(place)


@dataclass(frozen=True)
class Content:
    """What one key of a Secret's data holds, without the bytes themselves."""

    sha256: str = field(repr=False)  # in hex; a short secret can be guessed by it
    size: int


class Reads:
    """What passes read by name. Raises, all: what the Kubernetes port raises.

    `edits_last`: a ConfigMap edited in place is a new configuration, and a rotated key is to be on machines soon:
    people wait for both. A pass at rest comes once in a resync, so that is how long they are remembered.
    """

    def __init__(self, kube: Kube, edits_last: timedelta) -> None:
        self._kube = kube
        self._secrets: _Remembered[Secret] = _Remembered(SECRET_LASTS)
        self._contents: _Remembered[Mapping[str, Content]] = _Remembered(edits_last * 0.8)
        self._config_maps: _Remembered[Mapping[str, bytes]] = _Remembered(edits_last * 0.8)

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """The Secret, at most five minutes old; None if it does not exist now."""
        return await self._secrets.read((namespace, name), lambda: self._kube.read_secret(namespace, name))

    async def contents(self, namespace: str, name: str) -> Mapping[str, Content] | None:
        """Key of the Secret's data → what it holds, a little less than a resync old at most; None if the Secret does
        not exist now. The bytes are not remembered: keys of machines may be large, and many."""
        return await self._contents.read((namespace, name), lambda: self._ask_for_contents(namespace, name))

    async def _ask_for_contents(self, namespace: str, name: str) -> Mapping[str, Content] | None:
        secret = await self._kube.read_secret(namespace, name)
        if secret is None:
            return None
        return {key: Content(hashlib.sha256(data).hexdigest(), len(data)) for key, data in secret.data.items()}

    def last_secret(self, namespace: str, name: str) -> Secret | None:
        """As it was when it was read last, whether or not it still exists."""
        return self._secrets.last((namespace, name))

    def forget_secret(self, namespace: str, name: str) -> None:
        """It was written by us, or what it says was refused: read it anew."""
        self._secrets.age((namespace, name))
        self._contents.age((namespace, name))

    async def config_map(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """The ConfigMap's data, a little less than a resync old at most; None if it does not exist now."""
        return await self._config_maps.read((namespace, name), lambda: self._kube.get_config_map(namespace, name))

    def forget_config_map(self, namespace: str, name: str) -> None:
        self._config_maps.age((namespace, name))

    def look_anew(self, namespace: str) -> None:
        """Somebody asks for a look now (requests.py): what this namespace's passes need next is read anew, once."""
        self._secrets.age_all_of(namespace)
        self._contents.age_all_of(namespace)
        self._config_maps.age_all_of(namespace)
