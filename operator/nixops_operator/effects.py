"""What ports do to the world, by name; and layers around what they do.

A port is a Protocol marked with `@port`. Each of its methods says what it is:

    @effect("kube.create_machine")   changes something outside the process; the dotted name is stable, logs and metrics
                                     and the crash matrix know it by that
    @look                            changes nothing

The composition root wraps each port in layers: the fence (refuse when another operator may lead), audit and metrics
always; a test bench may add its own. A method that says neither cannot be imported, and one that its port does not
declare cannot be called through the layers: nothing runs unfenced or unaudited because it was forgotten.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
PortType = TypeVar("PortType", bound=type)

_MARK = "_effect"
_PORTS: dict[type, Mapping[str, _Declared]] = {}


@dataclass(frozen=True)
class _Declared:
    """A method or property of a port. `gives` is the port that its result is, if it is one."""

    effect: str | None
    is_property: bool = False
    is_coroutine: bool = False
    gives: type | None = None


def effect(name: str) -> Callable[[Method], Method]:
    """Marks a port's method that changes something. A coroutine's layers are around its call. A plain method gives an
    asynchronous context manager: its effect lasts, and the layers are around all of it."""

    def mark(method: Method) -> Method:
        setattr(method, _MARK, name)
        return method

    return mark


def look(method: Method) -> Method:
    """Marks a port's method that changes nothing."""
    setattr(method, _MARK, None)
    return method


def port(protocol: PortType) -> PortType:
    """Marks a Protocol as a port. Properties are looks. Raises TypeError for a method that is neither effect nor
    look."""
    methods: dict[str, _Declared] = {}
    for name, member in vars(protocol).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            methods[name] = _Declared(effect=None, is_property=True)
        elif inspect.isfunction(member):
            if not hasattr(member, _MARK):
                raise TypeError(f"{protocol.__name__}.{name} must say what it is: @effect(…) or @look")
            is_coroutine = inspect.iscoroutinefunction(member)
            methods[name] = _Declared(getattr(member, _MARK), is_coroutine=is_coroutine, gives=_given(member))
    _PORTS[protocol] = MappingProxyType(methods)
    return protocol


def _given(method: Callable[..., Any]) -> type | None:
    """The port that a method gives, which is declared above it, by its annotation `-> Port` or `-> Port | None`."""
    returned = typing.get_type_hints(method).get("return")
    return next((one for one in (returned, *typing.get_args(returned)) if one in _PORTS), None)


def methods_of(protocol: type) -> Mapping[str, str | None]:
    """Method or property of a port → its effect; None: it looks only."""
    return {name: declared.effect for name, declared in _PORTS[protocol].items()}


def effects_of(*protocols: type) -> frozenset[str]:
    """The effects of these ports."""
    return frozenset(name for one in protocols for name in methods_of(one).values() if name is not None)


Layer = Callable[[str], AbstractAsyncContextManager[None]]
"""Called with the effect's name; entered before the call, left after it with its error, if any."""


class Layered:
    """What implements a port, with layers around its effects, the outermost first. Looks are handed through; a port
    that a method gives is layered, too. What the port does not declare is an AttributeError."""

    def __init__(self, adapter: Any, protocol: type, layers: Sequence[Layer]) -> None:
        self._adapter = adapter
        self._protocol = protocol
        self._layers = tuple(layers)

    def __getattr__(self, name: str) -> Any:
        declared = _PORTS[self._protocol].get(name)
        if declared is None:
            raise AttributeError(f"{self._protocol.__name__} declares no {name}", name=name, obj=self)
        target = getattr(self._adapter, name)
        if declared.is_property or (declared.effect is None and declared.gives is None):
            return target
        if declared.is_coroutine:
            return lambda *args, **kwargs: self._call(declared, lambda: target(*args, **kwargs))
        if declared.effect is not None:
            return lambda *args, **kwargs: self._lasting(declared.effect, target(*args, **kwargs))
        return lambda *args, **kwargs: self._layered(declared, target(*args, **kwargs))

    async def _call(self, declared: _Declared, call: Callable[[], Awaitable[Any]]) -> Any:
        if declared.effect is None:
            return self._layered(declared, await call())
        return self._layered(declared, await _within(self._layers, declared.effect, call))

    def _layered(self, declared: _Declared, result: Any) -> Any:
        return result if declared.gives is None or result is None else Layered(result, declared.gives, self._layers)

    @asynccontextmanager
    async def _lasting(self, effect: str, entered: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(effect))
            yield await stack.enter_async_context(entered)


async def _within(layers: tuple[Layer, ...], effect: str, call: Callable[[], Awaitable[Any]]) -> Any:
    if not layers:
        return await call()
    async with layers[0](effect):
        return await _within(layers[1:], effect, call)
