"""What goes wrong outside of the process, and what a user does meanwhile: each a whole life with its judgement."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

from crash.bench import LONGEST_LAG, NO_LAG, OURS, SHORT_LAG, Lags, Worlds
from crash.changes import LATE, WEB
from crash.workloads import SHOP, delete, follow, retain
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.deployment.rules import ALL_IPV6
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.kube import Key, Kind

DB = Key(Kind.MACHINE, OURS, "shop-db")
RUN, TAG, ALLOCATE = "ec2.run_instances", "ec2.create_tags", "ec2.allocate_address"
NO_CAPACITY = Retry(Reason.INSUFFICIENT_CAPACITY, "RunInstances: InsufficientInstanceCapacity").as_refusal()
DENIED = Blocked(Reason.ACCESS_DENIED, "CreateTags: not allowed")
SIX_MINUTES = 360

Script = Callable[[Worlds], Coroutine[Any, Any, None]]


async def _until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody could set an event: these are the worlds' states
        await asyncio.sleep(0.5)


def _to_large(machine: dict[str, Any]) -> None:
    machine["target"]["ec2"]["instanceType"] = "m7i.large"


def _instance(worlds: Worlds, key: Key = WEB) -> Instance:
    body = worlds.kube.body(key)
    assert body is not None
    (instance,) = worlds.cloud.live(body["metadata"]["uid"])
    return instance


def _uid(worlds: Worlds) -> str:
    body = worlds.kube.body(WEB)
    return str(body["metadata"]["uid"]) if body is not None else ""


def _retag(worlds: Worlds, instance: Instance, tags: dict[str, str]) -> None:
    """By hand. From now on what carries no tags of ours is no broken promise, and the instance is his."""
    worlds.judge.may_leave_untagged = True
    worlds.judge.by_hand.add(instance.id)
    worlds.cloud.instances[instance.id] = replace(worlds.cloud.instances[instance.id], tags=tags)


# --- capacity -----------------------------------------------------------------------------------------------------


async def _refuse_for_six_minutes(worlds: Worlds) -> None:
    worlds.cloud.effects.standing_error[RUN] = NO_CAPACITY
    await _until(lambda: worlds.judge.requests)
    await asyncio.sleep(SIX_MINUTES)


def capacity_returns_and_all_is_deleted() -> None:
    """Refused for six minutes, then launched, and deleted in the very next moment: long before EC2 shows it."""

    async def script(worlds: Worlds) -> None:
        await _refuse_for_six_minutes(worlds)
        worlds.cloud.lag_of_ids = timedelta(seconds=150)
        del worlds.cloud.effects.standing_error[RUN]
        await _until(lambda: worlds.cloud.instances)
        delete(worlds)

    worlds = follow(script, Lags(150, 300), from_rest=False)
    assert worlds.is_empty(), worlds.standing()


def capacity_returns_after_an_edit() -> None:
    """What is launched in the end is what the spec says by then."""

    async def script(worlds: Worlds) -> None:
        await _refuse_for_six_minutes(worlds)
        worlds.kube.edit(SHOP, lambda body: _to_large(body["spec"]["machines"][1]))
        await asyncio.sleep(60)
        del worlds.cloud.effects.standing_error[RUN]
        await asyncio.sleep(2 * SIX_MINUTES)
        assert worlds.is_ready(), worlds.standing()

    worlds = follow(script, SHORT_LAG, from_rest=False)
    assert _instance(worlds).instance_type == "m7i.large"


# --- answers ------------------------------------------------------------------------------------------------------


def _lost_then_denied(lags: Lags, *, is_deleted: bool) -> Worlds:
    async def script(worlds: Worlds) -> None:
        worlds.cloud.effects.drop_reply.add(RUN)
        await _until(lambda: worlds.cloud.instances)
        worlds.cloud.deny(RUN)
        await asyncio.sleep(20)
        if is_deleted:
            delete(worlds)
        else:
            worlds.kube.edit(SHOP, lambda body: [_to_large(one) for one in body["spec"]["machines"]])
            del worlds.cloud.effects.standing_error[RUN]

    return follow(script, lags, from_rest=False)


def refused_after_an_unknown_outcome() -> None:
    """The first call made an instance, its reply was lost, and its repeat is refused for good: there is no second, also
    if another type is declared by then."""
    worlds = _lost_then_denied(LONGEST_LAG, is_deleted=False)
    assert len(worlds.cloud.instances) == len(worlds.bodies(Kind.MACHINE))


def refused_after_an_unknown_outcome_and_deleted() -> None:
    worlds = _lost_then_denied(LONGEST_LAG, is_deleted=True)
    assert worlds.is_empty(), worlds.standing()


def address_lost_and_deleted() -> None:
    """The reply to AllocateAddress is lost, EC2 shows the address late, and the machine is deleted meanwhile."""

    async def script(worlds: Worlds) -> None:
        worlds.cloud.effects.drop_reply.add(ALLOCATE)
        worlds.kube.edit(SHOP, lambda body: _with_address(body["spec"]["machines"][1]))
        await _until(lambda: worlds.cloud.addresses)
        delete(worlds)

    worlds = follow(script, LONGEST_LAG, from_rest=True)
    assert worlds.is_empty(), worlds.standing()
    assert not worlds.cloud.addresses


def _with_address(machine: dict[str, Any]) -> None:
    machine["target"]["ec2"]["elasticIp"] = {"allocate": True}


# --- instances ----------------------------------------------------------------------------------------------------


def dead_while_starting() -> None:
    """Again and again, for an hour: backed off, and a person is asked."""

    async def script(worlds: Worlds) -> None:
        alive = worlds.becomes
        worlds.becomes = _dies
        for _ in range(60):
            await asyncio.sleep(60)
            launches = Counter(one.tags[names.UID_TAG] for one in worlds.cloud.instances.values())
            assert max(launches.values(), default=0) <= 12, launches
        web = worlds.kube.body(WEB)
        assert web is not None
        assert {"Stalled", "Reconciling"} & {one["type"] for one in web["status"]["conditions"]} == {"Stalled"}
        assert max(launches.values()) > 5, launches
        worlds.becomes = alive
        await _until(worlds.is_ready)

    follow(script, NO_LAG, from_rest=False)


def _dies(instance: Instance) -> tuple[InstanceState, str]:
    return InstanceState.TERMINATED, "Server.InternalError"


def tags_taken_off() -> None:
    """They come back: the client token says whose the instance is."""

    async def script(worlds: Worlds) -> None:
        instance = _instance(worlds)
        _retag(worlds, instance, {})
        await _until(lambda: worlds.cloud.instances[instance.id].tags.get(names.UID_TAG))

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_ready(), worlds.standing()
    assert len(worlds.cloud.instances) == len(worlds.bodies(Kind.MACHINE))


def _let_live(tags: dict[str, str]) -> None:
    async def script(worlds: Worlds) -> None:
        instance = _instance(worlds)
        delete(worlds)
        worlds.kube.delete(WEB)
        _retag(worlds, instance, tags or {**instance.tags, names.RETAINED_TAG: "true"})
        await asyncio.sleep(SIX_MINUTES)
        assert worlds.cloud.instances[instance.id].state is InstanceState.RUNNING
        _retag(worlds, instance, {names.RETAINED_TAG: "true"})
        # Its groups are in use: they are let go of, too.
        worlds.cloud.instances[instance.id] = replace(worlds.cloud.instances[instance.id], security_group_ids=())

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_empty(), worlds.standing()


def deleted_without_tags() -> None:
    """Never terminated for its recorded id alone."""
    _let_live({"Name": "mine"})


def deleted_with_the_retained_tag() -> None:
    _let_live({})


def moved_with_its_status() -> None:
    """An object with another uid, and the status of ours, is deleted: our instance is none of its business."""

    async def script(worlds: Worlds) -> None:
        body, key = worlds.kube.body(WEB), Key(Kind.MACHINE, OURS, "moved")
        assert body is not None
        metadata = {"namespace": OURS, "name": "moved", "finalizers": [names.FINALIZER]}
        worlds.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": {**body["spec"], "suspend": True}})
        worlds.kube.edit(key, lambda moved: moved.update(status=body["status"]))
        worlds.kube.edit(key, lambda moved: moved["metadata"].update(finalizers=[names.FINALIZER]))
        worlds.kube.delete(key)
        await _until(lambda: worlds.kube.body(key) is None)

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert _instance(worlds).state is InstanceState.RUNNING


def machine_deleted_by_hand() -> None:
    """The next one of its name comes before the Secrets of the first have been collected."""

    async def script(worlds: Worlds) -> None:
        worlds.kube.gc_delay = LATE
        first = _uid(worlds)
        worlds.kube.delete(WEB)
        await _until(lambda: worlds.is_ready() and _uid(worlds) != first)

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_ready(), worlds.standing()


def neighbour_names_our_deployment() -> None:
    """Machines of another namespace say that they are ours: nothing is done to them, and they hold up nothing."""

    async def script(worlds: Worlds) -> None:
        shop = worlds.kube.body(SHOP)
        assert shop is not None
        worlds.tenant_b(shop["metadata"]["uid"])
        await asyncio.sleep(10)
        delete(worlds)

    worlds = follow(script, SHORT_LAG, from_rest=True)
    assert worlds.is_empty(), worlds.standing()


# --- groups -------------------------------------------------------------------------------------------------------


def ipv6_egress_stays() -> None:
    """No egress declared means everything, by IPv6, too, where somebody has said so."""

    async def script(worlds: Worlds) -> None:
        for group_id in _instance(worlds).security_group_ids:
            worlds.cloud.grant(group_id, ALL_IPV6)
        await asyncio.sleep(120)
        for group_id in _instance(worlds).security_group_ids:
            assert ALL_IPV6 in {one.rule for one in worlds.cloud.security_groups[group_id].rules}

    follow(script, SHORT_LAG, from_rest=True)


def descriptions_change() -> None:
    """Each is another group; ids say nothing of which one counts."""

    async def script(worlds: Worlds) -> None:
        for text in ("one", "two", "three", "four"):
            worlds.kube.edit(SHOP, lambda body, text=text: body["spec"]["securityGroups"][0].update(description=text))
            await asyncio.sleep(120)
            assert worlds.is_ready(), worlds.standing()
            groups = worlds.cloud.security_groups
            used = {groups[one].description for key in (WEB, DB) for one in _instance(worlds, key).security_group_ids}
            assert used == {text, "SSH"}, used

    follow(script, SHORT_LAG, from_rest=True)


def forty_rules_for_forty() -> None:
    """Never more than EC2 admits, and in the end the new ones (`invariants.py` counts)."""

    def rules(first: int) -> list[dict[str, Any]]:
        return [{"fromPort": port, "toPort": port, "cidrs": ["0.0.0.0/0"]} for port in range(first, first + 40)]

    async def script(worlds: Worlds) -> None:
        for first in (1000, 2000):
            worlds.kube.edit(
                SHOP, lambda body, first=first: body["spec"]["securityGroups"][0].update(ingress=rules(first))
            )
            await asyncio.sleep(120)
            await _until(worlds.is_ready)

    worlds = follow(script, SHORT_LAG, from_rest=True)
    ports = {one.rule.from_port for group in worlds.cloud.security_groups.values() for one in group.rules}
    assert set(range(2000, 2040)) <= ports
    assert not ports & set(range(1000, 1040))


def machines_are_refused_for_five_minutes() -> None:
    """Machines were let go of untagged; their deployment, which nobody refuses, tags what is its own."""

    async def script(worlds: Worlds) -> None:
        worlds.cloud.effects.standing_error[TAG] = DENIED
        worlds.judge.may_leave_untagged = True
        retain(worlds)
        await _until(lambda: not worlds.bodies(Kind.MACHINE) or not worlds.bodies())
        del worlds.cloud.effects.standing_error[TAG]

    worlds = follow(script, SHORT_LAG, from_rest=True)
    shared = [one for one in worlds.cloud.security_groups.values() if one.name != "default"]
    assert all(names.is_retained(one.tags) for one in (*shared, *worlds.cloud.key_pairs.values()))


FAULTS: tuple[Callable[[], None], ...] = (
    capacity_returns_and_all_is_deleted,
    capacity_returns_after_an_edit,
    refused_after_an_unknown_outcome,
    refused_after_an_unknown_outcome_and_deleted,
    address_lost_and_deleted,
    dead_while_starting,
    tags_taken_off,
    deleted_without_tags,
    deleted_with_the_retained_tag,
    moved_with_its_status,
    machine_deleted_by_hand,
    neighbour_names_our_deployment,
    ipv6_egress_stays,
    descriptions_change,
    forty_rules_for_forty,
    machines_are_refused_for_five_minutes,
)
