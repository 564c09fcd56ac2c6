"""What a test may turn while the layer runs. Set by `POST /knobs {"name": value}` or `lab ec2 set NAME=VALUE`.

The lab's README has them as a table. Values may come as text; a name that does not exist is refused, with the nearest
one that does: a knob that was not turned would hide what a test means to show.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nixops_lab.ec2.knob_values import Death, count, death, delay, is_place, nearest, operations, seconds, switch, zones


def _knob(name: str, read: Callable[[object], Any]) -> dict[str, Any]:
    return {"name": name, "read": read}


def _family(name: str, read: Callable[[object], Any]) -> dict[str, Any]:
    """Knobs of one kind, `name.<member>` each. What reads as None is nothing that is kept."""
    return {"family": name, "read": read}


# Older names, and those that set several at once.
ALIASES: Mapping[str, tuple[str, ...]] = {"visibility_seconds": ("visibility.ids", "visibility.tags")}


@dataclass(frozen=True)
class Knobs:
    """Times are seconds. The defaults are short, so that a demonstration is not spent on waiting."""

    # A machine that has booted is shown as running only when this much time has passed since the call.
    pending_seconds: float = field(default=2.0, metadata=_knob("pending_seconds", seconds))
    # How long `stopping` is shown at least; it ends when the real machine is off.
    stopping_seconds: float = field(default=1.0, metadata=_knob("stopping_seconds", seconds))
    # The same for `shutting-down`.
    shutting_down_seconds: float = field(default=1.0, metadata=_knob("shutting_down_seconds", seconds))
    # How long a terminated instance can be described: EC2 User Guide, "Terminate your instance": about an hour.
    terminated_visible_seconds: float = field(default=3600.0, metadata=_knob("terminated_visible_seconds", seconds))
    # How long the network interface of a terminated instance still holds its security groups.
    interface_release_seconds: float = field(default=2.0, metadata=_knob("interface_release_seconds", seconds))
    # How long a change of a running instance's metadata options is shown as `pending`.
    metadata_seconds: float = field(default=1.0, metadata=_knob("metadata_seconds", seconds))
    # How long a volume is shown as `creating`, and as `attaching` and `detaching`.
    volume_moving_seconds: float = field(default=1.0, metadata=_knob("volume.moving_seconds", seconds))
    # How long a modification of a volume is shown as `modifying`, and then as `optimizing`.
    volume_modifying_seconds: float = field(default=1.0, metadata=_knob("volume.modifying_seconds", seconds))
    volume_optimizing_seconds: float = field(default=2.0, metadata=_knob("volume.optimizing_seconds", seconds))
    # Most modifications of a volume within 24 hours: EBS User Guide, "Requirements for EBS volume modifications".
    volume_modifications: int | None = field(default=4, metadata=_knob("volume.modifications", count))
    # How long what is new stays out of answers, and unknown to calls that name it: EC2 Developer Guide, "Eventual
    # consistency in the Amazon EC2 API", which advises to wait up to five minutes.
    visibility_ids: float = field(default=0.0, metadata=_knob("visibility.ids", seconds))
    # How long filters by tag and by client token do not know it, where that is longer; and new tags on old things.
    visibility_tags: float = field(default=0.0, metadata=_knob("visibility.tags", seconds))
    # How long answers show an instance as it was before it changed.
    visibility_states: float = field(default=0.0, metadata=_knob("visibility.states", seconds))
    # What becomes of every new launch, and of every machine that boots.
    launch_dies: Death | None = field(default=None, metadata=_knob("launch.dies", death))
    boot_poweroff: float | None = field(default=None, metadata=_knob("boot.poweroff", delay))
    # Most vCPUs that may be in use in a region.
    quota_vcpus: int | None = field(default=None, metadata=_knob("quota.vcpus", count))
    # Most elastic addresses of a region: EC2 User Guide, "Elastic IP address quota".
    quota_addresses: int | None = field(default=5, metadata=_knob("quota.addresses", count))
    # How long it takes until an instance is reached, and shown, at its new public address.
    address_seconds: float = field(default=1.0, metadata=_knob("address_seconds", seconds))
    # Instance type, or type and zone as `t3.small.us-west-2a` → how many EC2 has room for.
    capacity: Mapping[str, int] = field(default_factory=dict, metadata=_family("capacity", count))
    # Instance type → zones in which EC2 does not offer it.
    not_offered: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=_family("not_offered", zones))
    # How long temporary credentials last, whatever was asked for.
    session_seconds: float | None = field(default=None, metadata=_knob("session.seconds", delay))
    # EC2's own limits of calls, as published times this; none if not set.
    buckets_factor: float | None = field(default=None, metadata=_knob("buckets.factor", delay))
    # Nobody listens: connections are refused, and those that stand are reset.
    endpoint_refuses: bool = field(default=False, metadata=_knob("endpoint.refuses", switch))
    # Caller → patterns of operations, see standing.py.
    silent: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=_family("silent", operations))
    reset: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=_family("reset", operations))
    deny: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=_family("deny", operations))
    throttle: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=_family("throttle", operations))

    def with_values(self, changes: Mapping[str, object], callers: Collection[str] = ()) -> "Knobs":
        """A copy with `changes`; `callers` may be named in knobs. Raises ValueError, and then nothing is changed."""
        turned = self
        for given, value in changes.items():
            for name in ALIASES.get(given, (given,)):
                try:
                    turned = turned._with_value(name, value, callers)
                except ValueError as error:
                    raise ValueError(f"{given}: {error}") from None
        return turned

    def _with_value(self, name: str, value: object, callers: Collection[str]) -> "Knobs":
        family, _, member = name.partition(".")
        for each in fields(self):
            if each.metadata.get("name") == name:
                return replace(self, **{each.name: each.metadata["read"](value)})
            if each.metadata.get("family") == family and _is_member(family, member, callers):
                others = {key: kept for key, kept in getattr(self, each.name).items() if key != member}
                read = each.metadata["read"](value)
                members: Any = others if read is None else {**others, member: read}
                return replace(self, **{each.name: members})
        raise ValueError(f"there is no such knob; {nearest(name, self._names(callers))}")

    def _names(self, callers: Collection[str]) -> set[str]:
        singles = {each.metadata["name"] for each in fields(self) if "name" in each.metadata}
        families = [each.metadata["family"] for each in fields(self) if "family" in each.metadata]
        members = {f"{family}.{who}" for family in families for who in callers if family not in _OF_TYPES}
        of_types = {"capacity.t3.small", "capacity.t3.small.us-west-2a", "not_offered.t3.small"}
        return singles | set(ALIASES) | members | of_types

    def as_dict(self) -> dict[str, Any]:
        """name → value, as JSON has it."""
        told: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if "name" in each.metadata:
                told[each.metadata["name"]] = _as_json(value)
            else:
                told |= {f"{each.metadata['family']}.{member}": _as_json(kept) for member, kept in value.items()}
        return told


def _is_member(family: str, member: str, callers: Collection[str]) -> bool:
    return is_place(member) if family in _OF_TYPES else member in callers


_OF_TYPES = ("capacity", "not_offered")


def _as_json(value: Any) -> Any:
    match value:
        case tuple():
            return ",".join(value)
        case Death():
            return str(value)
    return value


class Panel:
    """The knobs as they stand now, and waits that follow them."""

    def __init__(self, clock: Callable[[], float], callers: Collection[str] = ()) -> None:
        """`callers`: access keys and names that knobs may be about."""
        self.clock = clock
        self.knobs = Knobs()
        self._callers = callers
        self._turned = asyncio.Event()
        self._followers: list[Callable[[Knobs], Awaitable[None]]] = []

    def follow(self, follower: Callable[[Knobs], Awaitable[None]]) -> None:
        """Have `follower` act on each turn, before the turn is over."""
        self._followers.append(follower)

    async def turn(self, changes: Mapping[str, object]) -> None:
        """Set some knobs; waits in progress see it at once. Raises ValueError, and then nothing is changed."""
        await self._become(self.knobs.with_values(changes, self._callers))

    async def reset(self) -> None:
        """All knobs as at the start."""
        await self._become(Knobs())

    async def _become(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self._turned.set()
        self._turned = asyncio.Event()
        for follower in self._followers:
            await follower(knobs)

    async def passed(self, seconds: float, since: float) -> None:
        """Return once so much time has passed since `since`."""
        await asyncio.sleep(max(0.0, since + seconds - self.clock()))

    async def elapsed(self, name: str, since: float) -> None:
        """Return once the time of the knob `name` has passed since `since`, as the knob stands then."""
        while (left := since + getattr(self.knobs, name) - self.clock()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._turned.wait()
            except TimeoutError:
                continue
