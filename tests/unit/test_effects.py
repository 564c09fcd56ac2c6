"""Layers around a port see every effect, before it and after it, with its error."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from fakes.cloud import FakeCloud
from fakes.effects import recorded_as
from fakes.host import FakeHost, FakeHosts
from fakes.kube import FakeKube
from fakes.nix import FakeNix
from nixops_operator import ports
from nixops_operator.api.reasons import Reason
from nixops_operator.effects import Layer, Layered, effect, look, methods_of, port
from nixops_operator.errors import Retry
from nixops_operator.ports.cloud import Cloud
from nixops_operator.ports.host import Host, Hosts
from nixops_operator.ports.kube import Kube
from nixops_operator.ports.nix import Nix


@port
class Store(Protocol):
    """A port of its own: an effect that is a call, one that lasts, a look, a property."""

    @property
    def name(self) -> str: ...

    @effect("store.claim")
    async def claim(self) -> bool: ...

    @effect("store.copy")
    def copy(self, key: str) -> AbstractAsyncContextManager[Path]: ...

    @look
    async def facts(self) -> str: ...


@port
class Stores(Protocol):
    """Gives the other one, by an effect and by two looks."""

    @effect("store.open")
    async def opened(self) -> Store: ...

    @look
    async def known(self, name: str) -> Store | None: ...

    @look
    def nearest(self) -> Store: ...


class Shelf:
    """Implements both."""

    name = "shelf"

    def __init__(self, story: list[str]) -> None:
        self.story = story

    async def claim(self) -> bool:
        self.story.append("claimed")
        return True

    @asynccontextmanager
    async def copy(self, key: str) -> AsyncIterator[Path]:
        self.story.append(f"open for {key}")
        yield Path("/socket")
        self.story.append("closed")

    async def facts(self) -> str:
        return "facts"

    async def opened(self) -> Shelf:
        return self

    async def known(self, name: str) -> Shelf | None:
        return self if name == self.name else None

    def nearest(self) -> Shelf:
        return self

    async def undeclared(self) -> None:
        self.story.append("burnt down")


def telling(story: list[str], name: str) -> Layer:
    @asynccontextmanager
    async def layer(effect: str) -> AsyncIterator[None]:
        story.append(f"{name}: {effect}")
        try:
            yield
        except Exception as error:
            story.append(f"{name}: {type(error).__name__}")
            raise
        story.append(f"{name}: done")

    return layer


@asynccontextmanager
async def closed_fence(effect: str) -> AsyncIterator[None]:
    raise Retry(Reason.PROGRESSING_WITH_RETRY, f"{effect} refused")
    yield


def layered(story: list[str], *layers: Layer) -> Any:
    return Layered(Shelf(story), Store, layers)


async def test_layers_are_around_a_call() -> None:
    story: list[str] = []
    assert await layered(story, telling(story, "outer"), telling(story, "inner")).claim()
    assert story == ["outer: store.claim", "inner: store.claim", "claimed", "inner: done", "outer: done"]


async def test_layers_are_around_all_of_what_lasts() -> None:
    story: list[str] = []
    async with layered(story, telling(story, "layer")).copy("k") as socket:
        story.append(f"copied to {socket}")
    assert story == ["layer: store.copy", "open for k", "copied to /socket", "closed", "layer: done"]


async def test_layers_see_the_error_of_what_lasts() -> None:
    story: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with layered(story, telling(story, "layer")).copy("k"):
            raise ZeroDivisionError
    assert story == ["layer: store.copy", "open for k", "layer: ZeroDivisionError"]


async def test_behind_a_closed_fence_nothing_is_begun() -> None:
    story: list[str] = []
    port = layered(story, closed_fence)
    with pytest.raises(Retry, match=r"store\.claim refused"):
        await port.claim()
    with pytest.raises(Retry, match=r"store\.copy refused"):
        async with port.copy("k"):
            pytest.fail("the fence was passed")
    assert story == []


async def test_a_look_passes_no_layer() -> None:
    assert await layered([], closed_fence).facts() == "facts"


async def test_a_look_keeps_its_property() -> None:
    assert layered([], closed_fence).name == "shelf"


async def test_a_port_that_a_port_gives_is_layered_too() -> None:
    story: list[str] = []
    stores = Layered(Shelf(story), Stores, (telling(story, "layer"),))

    for store in (await stores.opened(), await stores.known("shelf"), stores.nearest()):
        story.clear()
        assert await store.claim()
        assert story == ["layer: store.claim", "claimed", "layer: done"]
    assert await stores.known("another") is None


async def test_what_a_port_does_not_declare_cannot_be_called_through_its_layers() -> None:
    """Or a method that was forgotten would run unfenced, with no audit and no crash plan."""
    story: list[str] = []
    with pytest.raises(AttributeError, match="Store declares no undeclared"):
        await layered(story).undeclared()
    assert story == []


def test_a_method_that_does_not_say_what_it_is_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Forgetful\.burn must say what it is"):

        @port
        class Forgetful(Protocol):
            async def burn(self) -> None: ...


def _protocols() -> Iterator[type]:
    for module in pkgutil.iter_modules(ports.__path__, f"{ports.__name__}."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if member.__module__ == module.name:
                yield member


@pytest.mark.parametrize("protocol", list(_protocols()), ids=lambda protocol: protocol.__name__)
def test_every_port_says_of_every_method_what_it_does(protocol: type) -> None:
    public = {name for name, _ in inspect.getmembers(protocol) if not name.startswith("_")}

    assert methods_of(protocol).keys() == public


@pytest.mark.parametrize(
    ("protocol", "fake"),
    [(Kube, FakeKube), (Cloud, FakeCloud), (Host, FakeHost), (Hosts, FakeHosts), (Nix, FakeNix)],
    ids=lambda one: one.__name__,
)
def test_a_fake_records_what_its_port_declares(protocol: type, fake: type) -> None:
    """A test that waits for an effect, or lets it fail, must meet the one that the layers see."""
    called = dict(inspect.getmembers(protocol, inspect.iscoroutinefunction))
    declared = {name: effect for name, effect in methods_of(protocol).items() if name in called and effect is not None}

    assert {name: recorded_as(getattr(fake, name)) for name in declared} == declared
