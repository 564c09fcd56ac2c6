"""What ports.kube.Kube promises, on the API in memory and on a real API server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest

from contract.kube_worlds import FakeWorld, World, event, key, machine, owner, present, real_world
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict
from nixops_operator.facts.kube import Kind
from nixops_operator.names import FINALIZER, IN_USE_FINALIZER


@pytest.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    async with real_world(request.getfixturevalue("crds").kubeconfig) as world:
        yield world


async def test_an_object_is_read_as_the_server_has_it(world: World) -> None:
    created = await world.apply(machine(world.namespace))

    body = await world.kube.get(key(world.namespace))

    assert body is not None
    assert body["metadata"]["uid"] == created["metadata"]["uid"]
    assert body["kind"] == "NixMachine"
    assert body["spec"]["target"]["host"]["address"] == "192.0.2.10"
    assert body["status"]["observedGeneration"] == -1
    assert "managedFields" not in body["metadata"]


async def test_an_object_that_does_not_exist_is_none(world: World) -> None:
    assert await world.kube.get(key(world.namespace, "nobody")) is None


async def test_a_list_holds_every_object_of_the_kind(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.apply(machine(world.namespace, name))

    pages = [page async for page in world.kube.list(Kind.MACHINE)]

    bodies = [body for page in pages for body in page.bodies]
    ours = [body for body in bodies if body["metadata"]["namespace"] == world.namespace]
    assert [body["metadata"]["name"] for body in ours] == ["a", "b", "c"]
    assert all(body["kind"] == "NixMachine" and "managedFields" not in body["metadata"] for body in bodies)
    assert {page.version > 0 for page in pages} == {True}


async def test_the_finalizer_is_added_beside_others(world: World) -> None:
    body = await world.apply(machine(world.namespace))
    body = await world.kube.add_finalizer(body)
    assert body["metadata"]["finalizers"] == [FINALIZER]

    assert await world.kube.add_finalizer(body) == body

    other = machine(world.namespace, "other")
    other["metadata"]["finalizers"] = ["example.org/theirs"]
    body = await world.kube.add_finalizer(await world.apply(other))
    assert body["metadata"]["finalizers"] == ["example.org/theirs", FINALIZER]


async def test_the_finalizer_is_added_to_the_newest_object_only(world: World) -> None:
    stale = await world.apply(machine(world.namespace))
    await world.apply(machine(world.namespace, suspend=True))

    with pytest.raises(Conflict):
        await world.kube.add_finalizer(stale)


async def test_a_deleted_object_takes_no_finalizer(world: World) -> None:
    other = machine(world.namespace)
    other["metadata"]["finalizers"] = ["example.org/theirs"]
    await world.apply(other)
    await world.delete(key(world.namespace))
    body = await world.kube.get(key(world.namespace))
    assert body is not None

    with pytest.raises(Conflict):
        await world.kube.add_finalizer(body)
    await world.drop_finalizers(key(world.namespace))

    with pytest.raises(Conflict):
        await world.kube.add_finalizer(body)


async def test_an_object_stays_until_its_finalizer_is_removed(world: World) -> None:
    await world.kube.add_finalizer(await world.apply(machine(world.namespace)))
    await world.delete(key(world.namespace))
    body = await world.kube.get(key(world.namespace))
    assert body is not None
    assert "deletionTimestamp" in body["metadata"]

    await world.kube.remove_finalizer(body)

    assert await world.kube.get(key(world.namespace)) is None
    assert await world.kube.remove_finalizer(body) == body


async def test_removing_the_finalizer_leaves_those_of_others(world: World) -> None:
    other = machine(world.namespace)
    other["metadata"]["finalizers"] = ["example.org/theirs"]
    body = await world.kube.add_finalizer(await world.apply(other))

    body = await world.kube.remove_finalizer(body)

    assert body["metadata"]["finalizers"] == ["example.org/theirs"]
    assert await world.kube.remove_finalizer(body) == body


async def test_the_finalizer_is_removed_from_the_newest_object_only(world: World) -> None:
    stale = await world.kube.add_finalizer(await world.apply(machine(world.namespace)))
    await world.kube.patch_status(stale, {"observedGeneration": 1})

    with pytest.raises(Conflict):
        await world.kube.remove_finalizer(stale)


@pytest.mark.parametrize("write", ["patch_status", "write_intent"])
async def test_a_status_is_merged(world: World, write: str) -> None:
    body = await world.apply(machine(world.namespace))
    body = await getattr(world.kube, write)(body, {"accountId": "1", "instance": {"id": "i-1", "type": "t3.small"}})

    body = await getattr(world.kube, write)(body, {"accountId": None, "instance": {"type": "m7i.large"}})

    assert body["status"]["instance"] == {"id": "i-1", "type": "m7i.large"}
    assert "accountId" not in body["status"]
    assert body["metadata"]["generation"] == 1
    assert "managedFields" not in body["metadata"]
    assert await world.kube.get(key(world.namespace)) == body


async def test_a_status_that_changes_nothing_makes_no_new_version(world: World) -> None:
    body = await world.apply(machine(world.namespace))
    body = await world.kube.patch_status(body, {"accountId": "1"})

    again = await world.kube.patch_status(body, {"accountId": "1"})

    assert again["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"]


@pytest.mark.parametrize("write", ["patch_status", "write_intent"])
async def test_a_status_is_written_to_the_newest_object_only(world: World, write: str) -> None:
    stale = await world.apply(machine(world.namespace))
    await world.apply(machine(world.namespace, suspend=True))

    with pytest.raises(Conflict):
        await getattr(world.kube, write)(stale, {"observedGeneration": 1})


async def test_a_status_goes_to_no_other_object_of_the_same_name(world: World) -> None:
    first = await world.apply(machine(world.namespace))
    await world.delete(key(world.namespace))
    with pytest.raises(Conflict):
        await world.kube.patch_status(first, {"observedGeneration": 1})
    await world.apply(machine(world.namespace))

    with pytest.raises(Conflict):
        await world.kube.patch_status(first, {"observedGeneration": 1})


async def test_a_machine_is_created_once(world: World) -> None:
    created = await world.kube.create_machine(machine(world.namespace))
    assert created["metadata"]["generation"] == 1
    assert created["status"] == {"observedGeneration": -1}

    with pytest.raises(Conflict):
        await world.kube.create_machine(machine(world.namespace))


async def test_a_created_machine_keeps_labels_and_owner(world: World) -> None:
    body = machine(world.namespace)
    body["metadata"] |= {
        "labels": {"nixops.dev/deployment": "shop"},
        "ownerReferences": [
            {
                "apiVersion": "nixops.dev/v1alpha1",
                "kind": "NixDeployment",
                "name": "shop",
                "uid": "1",
                "controller": True,
            }
        ],
    }

    created = await world.kube.create_machine(body)

    assert created["metadata"]["labels"] == {"nixops.dev/deployment": "shop"}
    assert created["metadata"]["ownerReferences"] == body["metadata"]["ownerReferences"]


async def test_a_spec_is_replaced_as_a_whole(world: World) -> None:
    body = machine(world.namespace, suspend=True)
    body["metadata"]["labels"] = {"theirs": "kept"}
    stored = await world.apply(body)

    labels = {"nixops.dev/deployment": "shop"}
    new = await world.kube.replace_machine_spec(stored, machine(world.namespace)["spec"], labels)

    assert not new["spec"].get("suspend")
    assert new["metadata"]["labels"] == {"theirs": "kept", "nixops.dev/deployment": "shop"}
    assert new["metadata"]["generation"] == 2
    with pytest.raises(Conflict):
        await world.kube.replace_machine_spec(stored, machine(world.namespace)["spec"], labels)


async def test_labels_come_to_an_object_that_has_none(world: World) -> None:
    stored = await world.apply(machine(world.namespace))

    new = await world.kube.replace_machine_spec(stored, stored["spec"], {"nixops.dev/deployment": "shop"})

    assert new["metadata"]["labels"] == {"nixops.dev/deployment": "shop"}
    assert new["metadata"]["generation"] == 1


async def test_labels_and_annotations_are_set_and_removed_one_by_one(world: World) -> None:
    body = machine(world.namespace)
    body["metadata"] |= {
        "labels": {"theirs": "kept", "example.org/team": "x", "tier": "front"},
        "annotations": {"theirs": "kept", "nixops.dev/applied": "old"},
    }
    stored = await world.apply(body)

    new = await world.kube.replace_machine_spec(
        stored,
        stored["spec"],
        {"example.org/team": None, "tier": "back", "example.org/new": "1", "was-never": None},
        {"nixops.dev/applied": None, "a": "b"},
    )

    assert new["metadata"]["labels"] == {"theirs": "kept", "tier": "back", "example.org/new": "1"}
    assert new["metadata"]["annotations"] == {"theirs": "kept", "a": "b"}


async def test_removing_labels_where_there_are_none_changes_nothing(world: World) -> None:
    stored = await world.apply(machine(world.namespace))

    new = await world.kube.replace_machine_spec(stored, stored["spec"], {"gone": None}, {"gone": None})

    assert new["metadata"].keys() & {"labels", "annotations"} == set()
    assert new["metadata"]["generation"] == stored["metadata"]["generation"]


async def test_a_machine_is_deleted_by_its_uid(world: World) -> None:
    first = await world.apply(machine(world.namespace))
    await world.kube.delete_machine(first)
    await world.kube.delete_machine(first)
    await world.apply(machine(world.namespace))

    with pytest.raises(Conflict):
        await world.kube.delete_machine(first)
    assert await world.kube.get(key(world.namespace)) is not None


async def test_a_secret_is_made_once_and_never_overwritten(world: World) -> None:
    namespace = world.namespace
    put = world.kube.create_secret

    assert await put(namespace, "keys", {"a": b"\x00one"}, owner=None, type_="Opaque", immutable=False)
    assert not await put(namespace, "keys", {"a": b"two"}, owner=None, type_="Opaque", immutable=False)

    assert present(await world.kube.read_secret(namespace, "keys")).data == {"a": b"\x00one"}
    assert await world.secret_owner("keys") is None


async def test_a_secret_names_its_owner(world: World) -> None:
    body = await world.apply(machine(world.namespace))

    await world.kube.create_secret(
        world.namespace, "keys", {"a": b"1"}, owner=owner(body), type_="Opaque", immutable=True
    )

    assert await world.secret_owner("keys") == body["metadata"]["uid"]


async def test_a_missing_secret(world: World) -> None:
    assert await world.kube.read_secret(world.namespace, "nothing") is None
    await world.kube.disown_secret(world.namespace, "nothing", "uid")


async def test_a_secret_may_be_let_stay_when_its_owner_goes(world: World) -> None:
    body = await world.apply(machine(world.namespace))
    uid, of = body["metadata"]["uid"], owner(body)
    for name in ("keys", "others"):
        await world.kube.create_secret(world.namespace, name, {"a": b"1"}, owner=of, type_="Opaque", immutable=True)
    assert present(await world.kube.read_secret(world.namespace, "keys")).owner_uids == {uid}

    await world.kube.disown_secret(world.namespace, "keys", uid)
    await world.kube.disown_secret(world.namespace, "keys", uid)
    await world.kube.disown_secret(world.namespace, "others", "another")

    assert await world.secret_owner("keys") is None
    assert await world.secret_owner("others") == uid
    left = present(await world.kube.read_secret(world.namespace, "keys"))
    assert (left.data, left.owner_uids) == ({"a": b"1"}, frozenset())


async def test_a_secret_is_read_with_what_says_whose_it_is(world: World) -> None:
    body = await world.apply(machine(world.namespace))
    put = world.kube.create_secret
    await put(world.namespace, "launch", {"a": b"\x001"}, owner=owner(body), type_="Opaque", immutable=True)
    ssh = {"ssh-privatekey": b"key"}
    await put(world.namespace, "keys", ssh, owner=None, type_="kubernetes.io/ssh-auth", immutable=False)

    launch = present(await world.kube.read_secret(world.namespace, "launch"))
    keys = present(await world.kube.read_secret(world.namespace, "keys"))

    assert (launch.name, launch.data, launch.type) == ("launch", {"a": b"\x001"}, "Opaque")
    assert launch.owner_uids == {body["metadata"]["uid"]}
    assert (launch.is_immutable, launch.is_deleting, launch.finalizers) == (True, False, ())
    assert (keys.data, keys.type) == (ssh, "kubernetes.io/ssh-auth")
    assert (keys.owner_uids, keys.is_immutable) == (frozenset(), False)
    assert keys.uid != launch.uid
    assert keys == await world.kube.read_secret(world.namespace, "keys")
    assert await world.kube.read_secret(world.namespace, "nothing") is None
    assert "key'" not in repr(keys)


async def test_a_secret_is_updated_in_the_version_that_was_read(world: World) -> None:
    await world.put_secret("keys", {"a": b"1", "b": b"2"})
    stale = present(await world.kube.read_secret(world.namespace, "keys"))
    await world.edit_secret("keys", {"a": b"by hand"})

    with pytest.raises(Conflict):
        await world.kube.update_secret(world.namespace, stale, {"a": b"ours"})
    fresh = present(await world.kube.read_secret(world.namespace, "keys"))
    updated = await world.kube.update_secret(world.namespace, fresh, {"b": b"3"})

    assert updated.data == {"a": b"by hand", "b": b"3"}
    assert updated.uid == fresh.uid == stale.uid
    assert updated == await world.kube.read_secret(world.namespace, "keys")


async def test_a_secret_of_an_earlier_life_is_neither_updated_nor_removed(world: World) -> None:
    await world.put_secret("keys", {"a": b"1"})
    earlier = present(await world.kube.read_secret(world.namespace, "keys"))
    await world.delete_secret("keys")
    with pytest.raises(Conflict):
        await world.kube.update_secret(world.namespace, earlier, {"a": b"2"})
    await world.kube.remove_secret(world.namespace, earlier)
    await world.put_secret("keys", {"a": b"theirs"})

    for call in (
        world.kube.update_secret(world.namespace, earlier, {"a": b"2"}),
        world.kube.hold_secret(world.namespace, earlier),
    ):
        with pytest.raises(Conflict):
            await call
    await world.kube.remove_secret(world.namespace, earlier)

    assert present(await world.kube.read_secret(world.namespace, "keys")).data == {"a": b"theirs"}


async def test_a_secret_is_removed_in_whatever_version(world: World) -> None:
    await world.put_secret("keys", {"a": b"1"})
    stale = present(await world.kube.read_secret(world.namespace, "keys"))
    await world.edit_secret("keys", {"a": b"2"})

    await world.kube.remove_secret(world.namespace, stale)

    assert await world.kube.read_secret(world.namespace, "keys") is None


async def test_an_immutable_secret_is_not_updated_and_its_content_is_not_told(world: World) -> None:
    put = world.kube.create_secret
    await put(world.namespace, "launch", {"a": b"hush"}, owner=None, type_="Opaque", immutable=True)
    launch = present(await world.kube.read_secret(world.namespace, "launch"))

    with pytest.raises(Blocked) as refused:
        await world.kube.update_secret(world.namespace, launch, {"a": b"psst"})

    assert refused.value.reason is Reason.INVALID_SPEC
    for content in (b"hush", b"psst"):
        assert content.decode() not in refused.value.message
        assert base64.b64encode(content).decode() not in refused.value.message


async def test_a_secret_in_use_stays_until_it_is_released(world: World) -> None:
    await world.put_secret("keys", {"a": b"1"})
    held = await world.kube.hold_secret(world.namespace, present(await world.kube.read_secret(world.namespace, "keys")))
    assert held.finalizers == (IN_USE_FINALIZER,)
    assert await world.kube.hold_secret(world.namespace, held) == held

    await world.delete_secret("keys")
    going = present(await world.kube.read_secret(world.namespace, "keys"))
    assert (going.is_deleting, going.data) == (True, {"a": b"1"})
    assert going.deleted_at is not None
    assert going.deleted_at.tzinfo is not None
    with pytest.raises(Conflict):
        await world.kube.release_secret(world.namespace, held)
    await world.kube.release_secret(world.namespace, going)

    assert await world.kube.read_secret(world.namespace, "keys") is None
    await world.kube.release_secret(world.namespace, going)


async def test_a_secret_in_deletion_takes_no_hold(world: World) -> None:
    await world.put_secret("keys", {"a": b"1"})
    before = present(await world.kube.read_secret(world.namespace, "keys"))
    await world.set_secret_finalizers("keys", ["example.org/theirs"])
    await world.delete_secret("keys")
    going = present(await world.kube.read_secret(world.namespace, "keys"))

    for secret in (before, going):
        with pytest.raises(Conflict):
            await world.kube.hold_secret(world.namespace, secret)
    await world.set_secret_finalizers("keys", [])


async def test_holds_leave_the_finalizers_of_others(world: World) -> None:
    await world.put_secret("keys", {"a": b"1"})
    await world.set_secret_finalizers("keys", ["example.org/theirs"])
    held = await world.kube.hold_secret(world.namespace, present(await world.kube.read_secret(world.namespace, "keys")))
    assert held.finalizers == ("example.org/theirs", IN_USE_FINALIZER)

    await world.kube.release_secret(world.namespace, held)

    left = present(await world.kube.read_secret(world.namespace, "keys"))
    assert left.finalizers == ("example.org/theirs",)
    await world.kube.release_secret(world.namespace, left)
    await world.set_secret_finalizers("keys", [])


async def test_a_config_map_gives_text_and_binary_data(world: World) -> None:
    await world.put_config_map("configuration", {"web.nix": "{ } # ü"}, {"blob": b"\x00\xff"})

    content = await world.kube.get_config_map(world.namespace, "configuration")

    assert content == {"web.nix": "{ } # ü".encode(), "blob": b"\x00\xff"}
    assert await world.kube.get_config_map(world.namespace, "nothing") is None


async def test_an_event_that_repeats_is_counted(world: World) -> None:
    body = await world.apply(machine(world.namespace))

    for message in ("started", "started", "stopped", "started"):
        await world.kube.post_event(event(body, message))

    assert await world.event_counts("web") == [("started", 3), ("stopped", 1)]


async def test_the_cluster_has_one_id(world: World) -> None:
    first = await world.kube.cluster_id()

    assert len(first) == 36
    assert await world.kube.cluster_id() == first
