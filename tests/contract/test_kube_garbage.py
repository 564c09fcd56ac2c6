"""What becomes of dependents and of a namespace, in memory and under the real controllers."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from component.conftest import ApiServer
from contract.kube_worlds import FakeWorld, World, event, key, machine, owned_by, owner, present, real_world
from fakes.kube_garbage import Propagation
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.kube import Body
from nixops_operator.names import FINALIZER


@pytest.fixture(scope="module")
def controllers(crds: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a cluster in which the garbage collector and the namespace controller work."""
    command = [
        str(crds.programs / "kube-controller-manager"),
        f"--kubeconfig={crds.kubeconfig}",
        "--controllers=garbage-collector-controller,namespace-controller",
        "--leader-elect=false",
        "--secure-port=0",
    ]
    with (tmp_path_factory.mktemp("controllers") / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield crds.kubeconfig
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    async with real_world(request.getfixturevalue("controllers")) as world:
        yield world


async def body_of(world: World, name: str) -> Body | None:
    return await world.kube.get(key(world.namespace, name))


async def put_secret(world: World, name: str, of: Body | None = None) -> None:
    owning = None if of is None else owner(of)
    await world.kube.create_secret(world.namespace, name, {}, owner=owning, type_="Opaque", immutable=False)


async def is_gone(world: World, name: str) -> bool:
    return await body_of(world, name) is None


async def test_dependents_go_after_their_owner(world: World) -> None:
    shop = await world.apply(machine(world.namespace, "shop"))
    await world.apply(owned_by(shop, world.namespace, "web"))
    await put_secret(world, "keys", of=shop)
    await put_secret(world, "theirs")

    await world.delete(key(world.namespace, "shop"))
    assert await is_gone(world, "shop")

    async def dependents_are_gone() -> bool:
        return await is_gone(world, "web") and await world.kube.read_secret(world.namespace, "keys") is None

    await world.until(dependents_are_gone)
    assert await world.kube.read_secret(world.namespace, "theirs") is not None


async def test_a_dependent_of_an_earlier_life_goes(world: World) -> None:
    """Although an object of that name exists: the uid is another."""
    earlier = await world.apply(machine(world.namespace, "shop"))
    await world.delete(key(world.namespace, "shop"))
    await world.apply(machine(world.namespace, "shop"))
    await world.apply(owned_by(earlier, world.namespace, "web"))

    async def it_is_gone() -> bool:
        return await is_gone(world, "web")

    await world.until(it_is_gone)
    assert not await is_gone(world, "shop")


async def test_orphaned_dependents_stay_and_name_no_owner(world: World) -> None:
    shop = await world.kube.add_finalizer(await world.apply(machine(world.namespace, "shop")))
    await world.apply(owned_by(shop, world.namespace, "web"))
    await put_secret(world, "keys", of=shop)

    await world.delete(key(world.namespace, "shop"), Propagation.ORPHAN)
    going = await body_of(world, "shop")
    assert going is not None
    assert set(going["metadata"]["finalizers"]) >= {FINALIZER}

    async def they_are_let_go() -> bool:
        web, keys = await body_of(world, "web"), present(await world.kube.read_secret(world.namespace, "keys"))
        return web is not None and "ownerReferences" not in web["metadata"] and not keys.owner_uids

    await world.until(they_are_let_go)

    async def only_ours_holds_it() -> bool:
        shop = await body_of(world, "shop")
        return shop is not None and shop["metadata"]["finalizers"] == [FINALIZER]

    await world.until(only_ours_holds_it)
    web = await body_of(world, "web")
    assert web is not None
    assert "deletionTimestamp" not in web["metadata"]
    await world.drop_finalizers(key(world.namespace, "shop"))


async def test_a_deletion_in_the_foreground_waits_for_the_dependents(world: World) -> None:
    """And takes a dependent's Secrets before the dependent itself has gone."""
    shop = await world.apply(machine(world.namespace, "shop"))
    web = await world.kube.add_finalizer(await world.apply(owned_by(shop, world.namespace, "web")))
    await put_secret(world, "keys", of=web)

    await world.delete(key(world.namespace, "shop"), Propagation.FOREGROUND)

    async def the_secret_is_gone() -> bool:
        return await world.kube.read_secret(world.namespace, "keys") is None

    await world.until(the_secret_is_gone)
    for name in ("shop", "web"):
        body = await body_of(world, name)
        assert body is not None
        assert "deletionTimestamp" in body["metadata"]

    await world.drop_finalizers(key(world.namespace, "web"))

    async def all_is_gone() -> bool:
        return await is_gone(world, "web") and await is_gone(world, "shop")

    await world.until(all_is_gone)


async def test_a_namespace_that_is_deleted_loses_its_secrets_before_its_machines(world: World) -> None:
    web = await world.kube.add_finalizer(await world.apply(machine(world.namespace)))
    await put_secret(world, "loose")
    await put_secret(world, "held")
    await world.kube.hold_secret(world.namespace, present(await world.kube.read_secret(world.namespace, "held")))

    await world.delete_namespace()

    async def only_what_is_held_is_left() -> bool:
        held = present(await world.kube.read_secret(world.namespace, "held"))
        body = await body_of(world, "web")
        assert body is not None
        loose = await world.kube.read_secret(world.namespace, "loose")
        return held.is_deleting and "deletionTimestamp" in body["metadata"] and loose is None

    await world.until(only_what_is_held_is_left)
    held = present(await world.kube.read_secret(world.namespace, "held"))
    web = await body_of(world, "web") or web
    web = await world.kube.patch_status(web, {"accountId": "1"})
    await world.kube.release_secret(world.namespace, held)
    await world.kube.remove_finalizer(web)

    async def nothing_is_left() -> bool:
        return await is_gone(world, "web") and await world.kube.read_secret(world.namespace, "held") is None

    await world.until(nothing_is_left)


async def test_a_namespace_that_is_being_terminated_takes_nothing_new(world: World) -> None:
    body = await world.kube.add_finalizer(await world.apply(machine(world.namespace)))
    await world.kube.post_event(event(body, "started"))
    await world.delete_namespace()

    put = world.kube.create_secret
    for call in (
        world.kube.post_event(event(body, "stopped")),
        put(world.namespace, "keys", {"a": b"hush"}, owner=None, type_="Opaque", immutable=False),
        world.kube.create_machine(machine(world.namespace, "another")),
    ):
        with pytest.raises(Blocked) as refused:
            await call
        assert refused.value.reason is Reason.ACCESS_DENIED
        assert f"namespace {world.namespace} is being terminated" in refused.value.message
        assert "hush" not in refused.value.message
    await world.drop_finalizers(key(world.namespace))
