"""Edits that EC2 refuses, and changes by hand that nobody expected, end with the machine as declared, or with words
that say what to do; and nothing is done again and again meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from crash.bench import SHORT_LAG, Worlds
from crash.changes import WEB
from crash.faults import Script, _until
from crash.workloads import SHOP, follow
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.cloud import Instance, InstanceState, Volume


def _web(worlds: Worlds) -> dict[str, Any]:
    body = worlds.kube.body(WEB)
    assert body is not None
    return body


def _instance(worlds: Worlds) -> Instance:
    (found,) = worlds.cloud.live(_web(worlds)["metadata"]["uid"])
    return found


def _told(worlds: Worlds) -> tuple[str, str, str]:
    (ready,) = (one for one in _web(worlds)["status"]["conditions"] if one["type"] == "Ready")
    return ready["status"], ready["reason"], ready["message"]


def _edit(worlds: Worlds, change: Callable[[dict[str, Any]], object]) -> None:
    worlds.kube.edit(SHOP, lambda body: change(body["spec"]["machines"][1]))


def _play(script: Script) -> Worlds:
    return follow(script, SHORT_LAG, from_rest=True)


def test_of_two_values_that_need_a_stop_one_is_refused_and_costs_one_stop():
    async def script(worlds: Worlds) -> None:
        worlds.cloud.placement_groups.add("near")
        text = "ModifyInstancePlacement: InvalidParameterCombination: not with this type"
        worlds.cloud.effects.standing_error["ec2.set_placement_group"] = Blocked(Reason.INVALID_SPEC, text).as_refusal()

        def edit(machine: dict[str, Any]) -> None:
            machine["target"]["ec2"] |= {"instanceType": "t3.medium", "placementGroup": "near"}
            machine["disruption"] = {"stop": "WhenNeeded"}

        _edit(worlds, edit)
        await _until(lambda: _told(worlds)[0] == "False")
        del worlds.cloud.effects.standing_error["ec2.set_placement_group"]
        await asyncio.sleep(30 * 60)
        assert len(worlds.cloud.effects.of("ec2.stop_instance")) == 1

    worlds = _play(script)

    assert _told(worlds)[:2] == ("False", "InvalidSpec")
    assert "not with this type" in _told(worlds)[2]
    assert (_instance(worlds).instance_type, _instance(worlds).state) == ("t3.small", InstanceState.RUNNING)


def test_a_mistyped_placement_group_costs_no_stop_and_is_carried_out_once_it_is_there():
    async def script(worlds: Worlds) -> None:
        def edit(machine: dict[str, Any]) -> None:
            machine["target"]["ec2"] |= {"instanceType": "t3.medium", "placementGroup": "near"}
            machine["disruption"] = {"stop": "WhenNeeded"}

        _edit(worlds, edit)
        await _until(lambda: _told(worlds)[1] == "InvalidSpec")
        await asyncio.sleep(10 * 60)
        assert "placement group near does not exist" in _told(worlds)[2]
        assert worlds.cloud.effects.of("ec2.stop_instance") == []
        worlds.cloud.placement_groups.add("near")
        async with asyncio.timeout(5 * 60):
            await _until(worlds.is_ready)
        assert len(worlds.cloud.effects.of("ec2.stop_instance")) == 1

    instance = _instance(_play(script))

    assert (instance.instance_type, instance.placement_group) == ("t3.medium", "near")


# --- volumes ------------------------------------------------------------------------------------------------------


def _disk(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "device": "/dev/sdf", "size": 10, **more}


def _declare(worlds: Worlds, *disks: dict[str, Any], **more: Any) -> None:
    _edit(worlds, lambda machine: machine["target"]["ec2"].update(volumes=list(disks), **more))


async def _have_disk(worlds: Worlds, **more: Any) -> Volume:
    """The machine's, attached and ready."""
    _declare(worlds, _disk("data"), **more)
    await _until(lambda: worlds.is_ready() and _disks(worlds))
    (found,) = _disks(worlds)
    return found


def _disks(worlds: Worlds) -> list[Volume]:
    uid = _web(worlds)["metadata"]["uid"]
    found = worlds.cloud.volumes.values()
    return [one for one in found if one.tags.get(names.UID_TAG) == uid and names.ENTRY_TAG in one.tags]


def test_a_machine_that_is_lost_while_its_zone_is_full_comes_back_beside_its_volume():
    """It was launched in another zone, where EC2 attaches the volume to nothing, for as long as it lived."""
    calls = []

    async def script(worlds: Worlds) -> None:
        volume = await _have_disk(worlds, subnetIds=sorted(worlds.cloud.subnets))
        before = len(worlds.cloud.effects.of("ec2.run_instances"))
        worlds.cloud.zones_without_capacity.add(volume.zone)
        worlds.cloud.set_state(_instance(worlds).id, InstanceState.TERMINATED, "Client.UserInitiatedShutdown")
        await asyncio.sleep(10 * 60)
        assert worlds.cloud.live(_web(worlds)["metadata"]["uid"]) == []
        assert f"keep the machine in {volume.zone}" in _told(worlds)[2]
        calls.append(len(worlds.cloud.effects.of("ec2.run_instances")) - before)
        worlds.cloud.zones_without_capacity.clear()
        await _until(lambda: worlds.cloud.live(_web(worlds)["metadata"]["uid"]))

    worlds = _play(script)

    (volume,) = _disks(worlds)
    assert worlds.is_ready(), worlds.standing()
    assert (volume.instance_id, volume.zone) == (_instance(worlds).id, _instance(worlds).zone)
    assert calls[0] <= 10, "asked without end"


def test_an_entry_is_renamed_together_with_the_configuration_and_keeps_its_device():
    """The new volume waited for the device, the device for the system, and the system for the new volume."""

    async def script(worlds: Worlds) -> None:
        await _have_disk(worlds)
        for host in worlds.hosts.machines.values():
            host.mounted["/dev/sdf"] = "/data"

        def edit(machine: dict[str, Any]) -> None:
            machine["target"]["ec2"]["volumes"] = [_disk("fresh")]
            machine["configuration"]["modules"] = [{"inline": "{ services.nginx.enable = true; }"}]

        _edit(worlds, edit)
        await _until(lambda: "in use on the machine (/data)" in _told(worlds)[2])
        for host in worlds.hosts.machines.values():
            host.mounted.clear()

    worlds = _play(script)

    found = {one.tags[names.ENTRY_TAG]: (one.device, names.is_retained(one.tags)) for one in _disks(worlds)}
    assert worlds.is_ready(), worlds.standing()
    assert found == {"data": ("", True), "fresh": ("/dev/sdf", False)}


def test_a_volume_that_was_deleted_by_hand_is_told_and_another_one_is_made_under_another_name():
    async def script(worlds: Worlds) -> None:
        volume = await _have_disk(worlds)
        del worlds.cloud.volumes[volume.id]
        await _until(lambda: _told(worlds)[1] == "NotFound")
        await asyncio.sleep(10 * 60)
        assert f"{volume.id}, which is volume data, is gone" in _told(worlds)[2]
        assert _disks(worlds) == []
        _declare(worlds, _disk("again"))

    worlds = _play(script)

    (volume,) = _disks(worlds)
    assert worlds.is_ready(), worlds.standing()
    assert (volume.tags[names.ENTRY_TAG], volume.instance_id) == ("again", _instance(worlds).id)


def test_a_volume_that_ec2_refuses_to_make_is_made_as_soon_as_the_spec_is_right():
    """It took minutes, in which EC2 might have shown what no call had made."""

    async def script(worlds: Worlds) -> None:
        _declare(worlds, _disk("data", snapshotId="snap-0123"))
        await _until(lambda: _told(worlds)[1] == "InvalidSpec")
        _declare(worlds, _disk("data"))
        async with asyncio.timeout(30):
            await _until(lambda: _disks(worlds))

    assert _play(script).is_ready()


# --- addresses ----------------------------------------------------------------------------------------------------


def _address(worlds: Worlds, elastic_ip: dict[str, Any]) -> None:
    _edit(worlds, lambda machine: machine["target"]["ec2"].update(elasticIp=elastic_ip))


def _release_by_hand(worlds: Worlds) -> str:
    (allocation_id,) = worlds.cloud.addresses
    worlds.cloud.associate(allocation_id, None)
    del worlds.cloud.addresses[allocation_id]
    return allocation_id


def test_in_place_of_an_allocated_address_that_was_released_by_hand_one_other_is_allocated():
    async def script(worlds: Worlds) -> None:
        _address(worlds, {"allocate": True})
        await _until(lambda: worlds.is_ready() and worlds.cloud.addresses)
        released = _release_by_hand(worlds)
        async with asyncio.timeout(8 * 60):  # EC2 may still show what was allocated a moment ago
            await _until(lambda: worlds.cloud.addresses.keys() - {released})

    worlds = _play(script)

    (address,) = worlds.cloud.addresses.values()
    assert worlds.is_ready(), worlds.standing()
    assert address.instance_id == _instance(worlds).id


def test_a_given_address_that_was_released_by_hand_is_told_and_another_one_takes_its_place():
    async def script(worlds: Worlds) -> None:
        given = worlds.cloud.allocate()
        worlds.judge.by_hand.add(given)
        _address(worlds, {"id": given})
        await _until(lambda: worlds.is_ready() and worlds.cloud.addresses[given].instance_id)
        _release_by_hand(worlds)
        await _until(lambda: _told(worlds)[1] == "InvalidSpec")
        await asyncio.sleep(10 * 60)
        assert f"{given} is no elastic address of this account" in _told(worlds)[2]
        assert worlds.cloud.addresses == {}
        _address(worlds, {"allocate": True})

    worlds = _play(script)

    (address,) = worlds.cloud.addresses.values()
    assert worlds.is_ready(), worlds.standing()
    assert address.instance_id == _instance(worlds).id
