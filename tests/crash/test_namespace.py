"""A namespace is deleted while machines run: EC2 is empty in the end and the namespace too, whenever the operator dies.

The Secret with the AWS credentials would go at once, and a dying namespace takes no other one.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any
from unittest import mock

import pytest

from crash.bench import HOWS, Cut, Worlds
from crash.workloads import DEPLOYMENT, SHOP, WORKLOADS, at_rest, play, reference
from fakes.kube import Secret
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.facts.kube import Body, Kind

NAMESPACE = "default"
AWS = (NAMESPACE, "aws")


def go(worlds: Worlds) -> None:
    worlds.kube.delete_namespace(NAMESPACE)


def go_amid_launches(worlds: Worlds) -> None:
    """A second deployment is on its way when the namespace is deleted."""
    second = copy.deepcopy(DEPLOYMENT)
    second["metadata"]["name"] = "second"
    launching: set[str] = set()

    def hear(what: str, body: Body) -> None:
        name = body["metadata"]["name"]
        if name.startswith("second-") and (body.get("status") or {}).get("launch") and not launching:
            launching.add(name)
            asyncio.get_running_loop().call_soon(worlds.kube.delete_namespace, NAMESPACE)

    worlds.kube.watchers.append(hear)
    worlds.kube.apply(second)


WORKLOADS_HERE = {"the namespace goes": go, "the namespace goes amid launches": go_amid_launches}


@pytest.fixture(autouse=True)
def known() -> Any:
    with mock.patch.dict(WORKLOADS, WORKLOADS_HERE):
        yield


def is_nothing(end: dict[str, Any]) -> bool:
    alive = [one for one in end["instances"] if one[1] != "terminated"]
    groups = [one for one in end["groups"] if one[0] != "default"]
    return (end["objects"], end["secrets"], end["key pairs"], alive, groups) == ({}, [], [], [], [])


def test_the_secret_with_the_credentials_is_held_while_machines_live():
    worlds = at_rest().worlds
    assert worlds.kube.secrets[AWS].finalizers == (names.IN_USE_FINALIZER,)
    told = [body["status"] for kind in Kind for body in worlds.kube.bodies(kind)]
    assert {tuple(one["heldSecrets"]) for one in told if "accountId" in one} == {("aws",)}


@pytest.mark.parametrize("workload", WORKLOADS_HERE)
def test_nothing_is_left_of_a_namespace(workload):
    assert is_nothing(reference(workload).end)


@pytest.mark.parametrize("how", HOWS)
def test_nothing_is_left_of_a_namespace_wherever_the_operator_dies(how):
    """The identity that was in memory is gone then; so the Secret has to be there, until it is needed no more."""
    trace = reference("the namespace goes").trace
    cuts = [Cut(effect, trace[: place + 1].count(effect), how) for place, effect in enumerate(trace)]
    for cut in cuts:
        if cut.effect.startswith(("kube.", "ec2.")) and cut.effect != "kube.post_event":
            worlds, _ = play("the namespace goes", cut)
            assert is_nothing(worlds.end_state()), cut


def test_a_dying_namespace_is_not_asked_at_full_speed_to_take_what_it_refuses():
    after = reference("the namespace goes amid launches")
    assert after.trace.count("kube.create_machine") <= 4
    assert after.trace.count("kube.put_secret") < 40
    assert Reason.SECRET_NOT_FOUND not in {posted.event.reason for posted in after.after.worlds.kube.events}


def test_a_secret_that_is_deleted_alone_goes_and_may_be_made_anew():
    """`kubectl delete secret` waits for its finalizers; it must not do so for ever."""
    gone_after: list[float] = []

    def recreated(worlds: Worlds) -> None:
        loop, data = asyncio.get_running_loop(), dict(worlds.kube.secrets[AWS].data)
        begun = loop.time()

        def look() -> None:
            if AWS in worlds.kube.secrets:
                loop.call_later(1, look)
                return
            gone_after.append(loop.time() - begun)
            worlds.kube.secrets[AWS] = Secret(data)

        worlds.kube.delete_secret_as_user(*AWS)
        look()

    with mock.patch.dict(WORKLOADS, {"the secret is made anew": recreated}):
        after = reference("the secret is made anew").after.worlds

    assert len(gone_after) == 1
    assert gone_after[0] >= 60, "the objects of a namespace that goes would follow by then"
    assert after.kube.secrets[AWS].finalizers == (names.IN_USE_FINALIZER,)
    assert after.is_ready()


def test_a_secret_that_is_named_no_more_is_released():
    def renamed(worlds: Worlds) -> None:
        worlds.kube.secrets[NAMESPACE, "other"] = Secret(dict(worlds.kube.secrets[AWS].data))
        worlds.kube.edit(SHOP, lambda body: body["spec"]["aws"]["credentials"].update(secretRef={"name": "other"}))

    with mock.patch.dict(WORKLOADS, {"another secret": renamed}):
        after = reference("another secret").after.worlds

    assert after.kube.secrets[AWS].finalizers == ()
    assert after.kube.secrets[NAMESPACE, "other"].finalizers == (names.IN_USE_FINALIZER,)
    told = [body["status"] for kind in Kind for body in after.kube.bodies(kind)]
    assert {tuple(one["heldSecrets"]) for one in told if "accountId" in one} == {("other",)}
