"""Layers around a port see every effect, before it and after it, with its error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.effects import Layer, Layered
from nixops_operator.errors import Retry


class Port:
    """A host of which one effect is a call, one lasts, and one method looks only."""

    def __init__(self, story: list[str]) -> None:
        self.story = story

    async def claim(self) -> bool:
        self.story.append("claimed")
        return True

    @asynccontextmanager
    async def nix_daemon(self, key: str) -> AsyncIterator[Path]:
        self.story.append(f"open for {key}")
        yield Path("/socket")
        self.story.append("closed")

    async def facts(self) -> str:
        return "facts"


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
    return Layered(Port(story), "host", layers)


async def test_layers_are_around_a_call() -> None:
    story: list[str] = []
    assert await layered(story, telling(story, "outer"), telling(story, "inner")).claim()
    assert story == ["outer: host.claim", "inner: host.claim", "claimed", "inner: done", "outer: done"]


async def test_layers_are_around_all_of_what_lasts() -> None:
    story: list[str] = []
    async with layered(story, telling(story, "layer")).nix_daemon("k") as socket:
        story.append(f"copied to {socket}")
    assert story == ["layer: host.copy", "open for k", "copied to /socket", "closed", "layer: done"]


async def test_layers_see_the_error_of_what_lasts() -> None:
    story: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with layered(story, telling(story, "layer")).nix_daemon("k"):
            raise ZeroDivisionError
    assert story == ["layer: host.copy", "open for k", "layer: ZeroDivisionError"]


async def test_behind_a_closed_fence_nothing_is_begun() -> None:
    story: list[str] = []
    port = layered(story, closed_fence)
    with pytest.raises(Retry, match=r"host\.claim refused"):
        await port.claim()
    with pytest.raises(Retry, match=r"host\.copy refused"):
        async with port.nix_daemon("k"):
            pytest.fail("the fence was passed")
    assert story == []


async def test_a_look_passes_no_layer() -> None:
    assert await layered([], closed_fence).facts() == "facts"
