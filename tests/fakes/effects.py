"""What all fakes share: a log of calls, and faults that a test sets per effect."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError, OutcomeUnknown

F = TypeVar("F", bound=Callable[..., Awaitable[Any] | AsyncIterator[Any]])


@dataclass(frozen=True)
class Call:
    """One call of a port: its effect (or, for a look, its name) and its arguments by name."""

    effect: str
    arguments: Mapping[str, Any]


@dataclass
class Effects:
    """The log and the faults of one fake.

    `next_error[effect]` is raised once, before anything is changed; `standing_error[effect]` every time until it is
    removed. `drop_reply` names effects that are carried out once and then raise OutcomeUnknown. `gates[effect]` holds a
    call until its event is set.
    """

    calls: list[Call] = field(default_factory=list)
    next_error: dict[str, OperatorError] = field(default_factory=dict)
    standing_error: dict[str, OperatorError] = field(default_factory=dict)
    drop_reply: set[str] = field(default_factory=set)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def of(self, *effects: str) -> list[Call]:
        """The calls of these effects, in order."""
        return [call for call in self.calls if call.effect in effects]

    async def begin(self, effect: str, arguments: Mapping[str, Any]) -> None:
        self.calls.append(Call(effect, arguments))
        await asyncio.sleep(0)
        if effect in self.gates:
            await self.gates[effect].wait()
        if (error := self.next_error.pop(effect, None)) is not None:
            raise error
        if effect in self.standing_error:
            raise self.standing_error[effect]

    def end(self, effect: str) -> None:
        if effect in self.drop_reply:
            self.drop_reply.remove(effect)
            raise OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, f"{effect}: the reply was lost")


def effect(name: str) -> Callable[[F], F]:
    """Marks a port method of a fake, which has its Effects as `self.effects`."""

    def mark(method: F) -> F:
        names = tuple(inspect.signature(method).parameters)[1:]

        def arguments_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return dict(zip(names, args, strict=False)) | kwargs

        @functools.wraps(method)
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            await self.effects.begin(name, arguments_of(*args, **kwargs))
            result = await method(self, *args, **kwargs)
            self.effects.end(name)
            return result

        @functools.wraps(method)
        async def parts(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            await self.effects.begin(name, arguments_of(*args, **kwargs))
            async for part in method(self, *args, **kwargs):  # type: ignore[attr-defined]
                yield part
            self.effects.end(name)

        marked = parts if inspect.isasyncgenfunction(method) else call
        marked._effect_of_fake = name  # type: ignore[attr-defined]
        return marked  # type: ignore[return-value]

    return mark


def recorded_as(method: object) -> str | None:
    """The name under which a fake's method is recorded."""
    return getattr(method, "_effect_of_fake", None)
