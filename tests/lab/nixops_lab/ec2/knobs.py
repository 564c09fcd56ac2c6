"""What a test may turn while the layer runs. Set by `POST /knobs {"name": value}`."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Knobs:
    """All in seconds. The defaults are short, so that a demonstration is not spent on waiting."""

    # A machine that has booted is shown as running only when this much time has passed since the call.
    pending_seconds: float = 2.0
    # How long `stopping` is shown at least; it ends when the real machine is off.
    stopping_seconds: float = 1.0
    # The same for `shutting-down`.
    shutting_down_seconds: float = 1.0
    # How long a terminated instance can be described: EC2 User Guide, "Terminate your instance": about an hour.
    terminated_visible_seconds: float = 3600.0
    # How long the network interface of a terminated instance still holds its security groups.
    interface_release_seconds: float = 2.0
    # How long a new object stays invisible to reads and to ids in other calls:
    # EC2 Developer Guide, "Eventual consistency in the Amazon EC2 API".
    visibility_seconds: float = 0.0

    def with_values(self, changes: Mapping[str, object]) -> "Knobs":
        """A copy with `changes`. Numbers may come as text. Raises ValueError on unknown names and no numbers."""
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"unknown knob {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        values: dict[str, float] = {}
        for name, value in changes.items():
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError(f"{name} takes a number of seconds")  # noqa: TRY004 - the control interface's one class
            seconds = float(value)
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{name} takes a number of seconds, zero or more")
            values[name] = seconds
        return replace(self, **values)

    def as_dict(self) -> dict[str, float]:
        """name → seconds."""
        return asdict(self)


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
