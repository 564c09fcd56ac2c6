"""What a test may turn while the layer runs. Set by `POST /knobs {"name": value}` or `lab ec2 set NAME=VALUE`.

The lab's README has them as a table. Values may come as text; a name that does not exist is refused, with the nearest
one that does: a knob that was not turned would hide what a test means to show.
"""

import asyncio
import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nixops_lab.ec2.knob_values import seconds


def _knob(name: str, read: Callable[[object], Any], default: object) -> Any:
    return field(default=default, metadata={"name": name, "read": read})


# Older names, and those that set several at once.
ALIASES: Mapping[str, tuple[str, ...]] = {"visibility_seconds": ("visibility.ids", "visibility.tags")}


@dataclass(frozen=True)
class Knobs:
    """Times are seconds. The defaults are short, so that a demonstration is not spent on waiting."""

    # A machine that has booted is shown as running only when this much time has passed since the call.
    pending_seconds: float = _knob("pending_seconds", seconds, 2.0)
    # How long `stopping` is shown at least; it ends when the real machine is off.
    stopping_seconds: float = _knob("stopping_seconds", seconds, 1.0)
    # The same for `shutting-down`.
    shutting_down_seconds: float = _knob("shutting_down_seconds", seconds, 1.0)
    # How long a terminated instance can be described: EC2 User Guide, "Terminate your instance": about an hour.
    terminated_visible_seconds: float = _knob("terminated_visible_seconds", seconds, 3600.0)
    # How long the network interface of a terminated instance still holds its security groups.
    interface_release_seconds: float = _knob("interface_release_seconds", seconds, 2.0)
    # How long what is new stays out of answers, and unknown to calls that name it: EC2 Developer Guide, "Eventual
    # consistency in the Amazon EC2 API", which advises to wait up to five minutes.
    visibility_ids: float = _knob("visibility.ids", seconds, 0.0)
    # How long filters by tag and by client token do not know it, where that is longer; and new tags on old things.
    visibility_tags: float = _knob("visibility.tags", seconds, 0.0)
    # How long answers show an instance as it was before it changed.
    visibility_states: float = _knob("visibility.states", seconds, 0.0)

    def with_values(self, changes: Mapping[str, object]) -> "Knobs":
        """A copy with `changes`. Raises ValueError, and then nothing is changed."""
        turned = self
        for given, value in changes.items():
            for name in ALIASES.get(given, (given,)):
                try:
                    turned = turned._with_value(name, value)
                except ValueError as error:
                    raise ValueError(f"{given}: {error}") from None
        return turned

    def _with_value(self, name: str, value: object) -> "Knobs":
        for each in fields(self):
            if each.metadata["name"] == name:
                return replace(self, **{each.name: each.metadata["read"](value)})
        raise ValueError(f"there is no such knob; {nearest(name, self.as_dict().keys() | ALIASES)}")

    def as_dict(self) -> dict[str, Any]:
        """name → value, as JSON has it."""
        return {each.metadata["name"]: getattr(self, each.name) for each in fields(self)}


def nearest(name: str, known: Collection[str]) -> str:
    """Says which of the known names was probably meant."""
    return f"did you mean {difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)[0]}?"


class Panel:
    """The knobs as they stand now, and waits that follow them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.knobs = Knobs()
        self._turned = asyncio.Event()

    def turn(self, knobs: Knobs) -> None:
        """Set all knobs; waits in progress see it at once."""
        self.knobs = knobs
        self._turned.set()
        self._turned = asyncio.Event()

    async def elapsed(self, name: str, since: float) -> None:
        """Return once the time of the knob `name` has passed since `since`, as the knob stands then."""
        while (left := since + getattr(self.knobs, name) - self.clock()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._turned.wait()
            except TimeoutError:
                continue
