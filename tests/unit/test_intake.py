"""What news of a machine wakes beside the machine: whoever it may stand in the way of."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from nixops_operator.cache import Cache
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.names import machine_object_name
from nixops_operator.watch import Intake
from nixops_operator.workqueue import WorkQueue


def an_object(kind: Kind, name: str, namespace: str = "default", version: int = 1) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "uid": f"{kind}/{namespace}/{name}", "generation": 1}
    return {"kind": kind.object_kind, "metadata": metadata | {"resourceVersion": str(version)}}


def deployment(name: str, namespace: str = "default") -> Key:
    return Key(Kind.DEPLOYMENT, namespace, name)


class Listening:
    def __init__(self, *deployments: Key) -> None:
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        self.intake = Intake(self.cache, self.queue)
        for key in deployments:
            self.cache.put(key, an_object(key.kind, key.name, key.namespace))

    def saw(self, body: Body) -> set[Key]:
        """The deployments that this wakes."""
        return self._deployments(self.woken_by(body))

    def woken_by(self, body: Body) -> set[Key]:
        self.intake.saw(Kind.MACHINE, body)
        return self._woken()

    def gone(self, body: Body, version: int) -> set[Key]:
        metadata = body["metadata"]
        self.intake.gone(Key(Kind.MACHINE, metadata["namespace"], metadata["name"]), version)
        return self._deployments(self._woken())

    def _deployments(self, keys: set[Key]) -> set[Key]:
        return {key for key in keys if key.kind is Kind.DEPLOYMENT}

    def _woken(self) -> set[Key]:
        async def all_of_them() -> set[Key]:
            keys = {await self.queue.get() for _ in range(len(self.queue))}
            for key in keys:
                self.queue.done(key)
            return keys

        return asyncio.run(all_of_them())


SHOP, SHOP_WEB = deployment("shop"), deployment("shop-web")
BESIDE = (deployment("sho"), deployment("web"), deployment("shop", "theirs"))


@pytest.mark.parametrize(
    ("name", "woken"),
    [
        pytest.param(machine_object_name("shop", "web"), {SHOP}, id="a machine's name of one deployment"),
        pytest.param("shop-web-0", {SHOP, SHOP_WEB}, id="a name that could be of two"),
        pytest.param(machine_object_name("shop", "web-front"), {SHOP, SHOP_WEB}, id="a name with a hash"),
        pytest.param(machine_object_name("shop", "w" * 300), {SHOP}, id="a name that was cut"),
        pytest.param("shop", set(), id="the deployment's own name"),
        pytest.param("db", set(), id="a name of nobody"),
    ],
)
def test_a_machine_wakes_the_deployments_whose_machine_s_name_it_may_have(name: str, woken: set[Key]) -> None:
    """It was made by hand, so no owner reference says whom it concerns."""
    listening, machine = Listening(SHOP, SHOP_WEB, *BESIDE), an_object(Kind.MACHINE, name)

    assert listening.saw(machine) == woken
    assert listening.gone(machine, 2) == woken


def test_its_later_news_concern_nobody_else() -> None:
    listening = Listening(SHOP)
    listening.saw(an_object(Kind.MACHINE, "shop-web"))

    assert listening.saw(an_object(Kind.MACHINE, "shop-web", version=2)) == set()


# What wakes the object itself


@pytest.mark.parametrize(
    ("before", "after", "is_news"),
    [
        pytest.param((), ("nixops.dev/finalizer",), False, id="ours was added: the pass that did it goes on"),
        pytest.param(("nixops.dev/finalizer",), (), True, id="ours was taken off by hand"),
        pytest.param(("nixops.dev/finalizer", "theirs"), ("nixops.dev/finalizer",), True, id="another one went"),
    ],
)
def test_a_finalizer_that_goes_is_news_of_its_object(before, after, is_news):
    listening = Listening()
    for version, finalizers in enumerate((before, after), 1):
        seen = an_object(Kind.MACHINE, "web", version=version)
        seen["metadata"]["finalizers"] = list(finalizers)
        woken = listening.woken_by(seen)

    assert woken == ({Key(Kind.MACHINE, "default", "web")} if is_news else set())
