"""Specs, parsed once per generation, as long as they are in use: an object's passes come in bursts, and a pass over a
deployment must not cost what all its machines' specs cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.kube import Body, Key, key_of

T = TypeVar("T")


class ParsedSpecs(Generic[T]):
    """What `parse` made of each object's spec, or why it could not; of those `kept` that were read last."""

    def __init__(self, parse: Callable[[Body], T], kept: int) -> None:
        self._parse = parse
        self._kept = kept
        self._known: OrderedDict[Key, tuple[tuple[str, int], T | InvalidSpec]] = OrderedDict()

    def of(self, body: Body) -> T:
        """Raises InvalidSpec, as remembered."""
        key = key_of(body)
        version = body["metadata"]["uid"], body["metadata"]["generation"]
        known = self._known.get(key)
        if known is None or known[0] != version:
            known = version, self._parsed(body)
            self._known[key] = known
            if len(self._known) > self._kept:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if isinstance(known[1], InvalidSpec):
            raise known[1].with_traceback(None)
        return known[1]

    def forget(self, key: Key) -> None:
        self._known.pop(key, None)

    def _parsed(self, body: Body) -> T | InvalidSpec:
        try:
            return self._parse(body)
        except InvalidSpec as error:
            return error
