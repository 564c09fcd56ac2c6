"""Injected faults: which request is met, and what happens to it.

    {"match": {"op": "RunInstances", "nth": 1, "param": {"KeyName": "web*"}}, "do": "commit-drop", "times": 1}

`nth` counts matching requests since the fault was set (1: the next). `param` gives a pattern per dotted path of
boto3's names; lists on the way are searched. `times` is how many requests in a row are met.

    do            the request          the reply
    commit-drop   takes effect         none: the connection is closed
    drop          has no effect        none: the connection is closed
    error         has no effect*       `code` and `status`       (*with "when": "after" it takes effect)
    delay         takes effect         after `seconds`
    hang          has no effect        none, and the connection stays open
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nixops_lab.ec2.filters import matches

ACTIONS = ("commit-drop", "drop", "error", "delay", "hang")


@dataclass
class Fault:
    """One fault and how often it was met."""

    do: str
    op: str = "*"
    nth: int = 1
    param: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    code: str = "InternalError"
    message: str = "An internal error has occurred"
    status: int = 500
    when: str = "before"
    seconds: float = 0.0
    seen: int = 0
    fired: int = 0

    def meets(self, operation: str, parameters: Mapping[str, Any]) -> bool:
        """Whether operation and parameters match; counts the request if so."""
        if not matches(operation, self.op):
            return False
        for path, pattern in self.param.items():
            if not any(matches(str(value), pattern) for value in _values(parameters, path.split("."))):
                return False
        self.seen += 1
        return self.nth <= self.seen and self.fired < self.times


def _values(node: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(node, list):
        for child in node:
            yield from _values(child, path)
    elif not path:
        yield node
    elif isinstance(node, Mapping) and path[0] in node:
        yield from _values(node[path[0]], path[1:])


def read_fault(wanted: Mapping[str, Any]) -> Fault:
    """A fault from its JSON form. Raises ValueError for what it does not know."""
    match = wanted.get("match", {})
    settings = {name: value for name, value in wanted.items() if name != "match"}
    if not isinstance(match, Mapping) or set(match) - {"op", "nth", "param"}:
        raise ValueError("`match` takes op, nth and param")
    if extra := set(settings) - {"do", "times", "code", "message", "status", "when", "seconds"}:
        raise ValueError(f"unknown: {', '.join(sorted(extra))}")
    if settings.get("do") not in ACTIONS:
        raise ValueError(f"`do` is one of {', '.join(ACTIONS)}")
    if settings.get("when", "before") not in {"before", "after"}:
        raise ValueError("`when` is before or after")
    for name, kind in _TYPES.items():
        given = {**settings, **match}.get(name)
        if given is not None and (isinstance(given, bool) or not isinstance(given, kind)):
            raise ValueError(f"`{name}` is of another type")
    return Fault(**settings, **match)


_TYPES: dict[str, Any] = {
    "op": str,
    "nth": int,
    "param": Mapping,
    "times": int,
    "code": str,
    "message": str,
    "status": int,
    "seconds": int | float,
}


class Faults:
    """All faults that are set, in the order of setting; a request meets the first that matches."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def meeting(self, operation: str, parameters: Mapping[str, Any]) -> Fault | None:
        """The fault for this request. Every fault that matches has counted it."""
        met = [fault for fault in self.all if fault.meets(operation, parameters)]
        if not met:
            return None
        met[0].fired += 1
        return met[0]
