"""What a user does in the middle of a creation, and how it has to end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from crash.bench import HOWS, OURS, Worlds
from crash.workloads import DEPLOYMENT, SHOP, WORKLOADS, Reference, create, other_hardware, reference
from fakes.kube import Propagation
from nixops_operator import names
from nixops_operator.facts.cloud import Address, Instance, InstanceState, KeyPair, SecurityGroup, Volume
from nixops_operator.facts.kube import Body, Key, Kind, key_of

LATE = timedelta(seconds=90)
"""How far the garbage collector is behind."""
WEB = Key(Kind.MACHINE, OURS, "shop-web")
OTHER_SUBNET = "subnet-00000000000000003"


def _created() -> Reference:
    return reference("create")


@dataclass(frozen=True)
class Change:
    """`do` may return what `judge` has to know of the moment. `hows`: None is without a death. `within`: the workloads
    in the middle of which it is done. `wanted`: the life that `judge` compares with, if it does."""

    do: Callable[[Worlds], object]
    judge: Callable[[Worlds, Any], None]
    hows: tuple[str | None, ...] = (None, *HOWS)
    within: tuple[str, ...] = ("create",)
    wanted: Callable[[], Reference] = _created


# --- deletion -----------------------------------------------------------------------------------------------------


def _delete(worlds: Worlds, propagation: Propagation = Propagation.BACKGROUND) -> None:
    worlds.at_rest.clear()  # nobody edits what is gone
    worlds.tenant_b(_uid(worlds))
    worlds.kube.gc_delay = LATE
    worlds.kube.delete(SHOP, propagation)


def _delete_namespace(worlds: Worlds) -> None:
    worlds.tenant_b(_uid(worlds))
    worlds.kube.gc_delay = LATE
    worlds.kube.delete_namespace(OURS)


def _nothing_is_left(worlds: Worlds, _: object) -> None:
    """But volumes that are to outlive their machine, let go of."""
    assert worlds.is_empty(), worlds.standing()
    left = [one for one in _ours(worlds) if not (isinstance(one, Volume) and one.tags[names.ENTRY_TAG] == "kept")]
    assert not left, left
    assert all(names.is_retained(one.tags) for one in _ours(worlds))
    secrets = {name for namespace, name in worlds.kube.secrets if namespace == OURS}
    assert secrets <= {"aws", "tokens"}, secrets
    assert all(not secret.finalizers for secret in worlds.kube.secrets.values())


def _delete_and_apply(worlds: Worlds) -> None:
    """As GitOps does: the next life begins in the moment in which the name is free."""
    worlds.when_gone[SHOP] = partial(create, worlds)
    _delete(worlds)


def _a_second_life(worlds: Worlds, _: object) -> None:
    _as_in(_created(), worlds)
    uids = {_uid(worlds), *(body["metadata"]["uid"] for body in worlds.bodies(Kind.MACHINE))}
    assert {thing.tags[names.UID_TAG] for thing in _ours(worlds)} <= uids
    owners = {secret.owner.uid for (space, _), secret in worlds.kube.secrets.items() if secret.owner and space == OURS}
    assert owners <= uids


def _retain(worlds: Worlds) -> None:
    worlds.kube.edit(SHOP, lambda body: body["spec"].update(deletionPolicy="Retain"))
    _delete(worlds)


def _all_stays(worlds: Worlds, _: object) -> None:
    """Nothing is terminated on the way out (`invariants.py` looks at each termination)."""
    assert worlds.is_empty(), worlds.standing()
    left = [thing for thing in _ours(worlds) if not names.is_retained(thing.tags)]
    assert not left, left


def _orphan(worlds: Worlds) -> None:
    """The machines live on; at rest they are deleted, one by one."""
    _delete(worlds, Propagation.ORPHAN)
    worlds.at_rest.append(lambda worlds: [worlds.kube.delete(key_of(body)) for body in worlds.bodies(Kind.MACHINE)])


def _shared_things_stay(worlds: Worlds, _: object) -> None:
    assert worlds.is_empty(), worlds.standing()
    left = _ours(worlds)
    assert not any(isinstance(thing, Instance) for thing in left)
    assert all(names.is_retained(thing.tags) for thing in left)


# --- edits --------------------------------------------------------------------------------------------------------


def _edit(worlds: Worlds, change: Callable[[dict[str, Any]], object]) -> list[bool]:
    """Returns a list that will say, once shop-web has another spec, whether a launch of it was under way by then: its
    deployment may be edited some time before that."""
    before, was_launched = worlds.kube.body(WEB), list[bool]()

    def hear(_: str, body: Body) -> None:
        is_first = not was_launched and key_of(body) == WEB
        if is_first and before is not None and body["spec"] != before["spec"]:
            was_launched.append(bool(body["status"].get("launch")))

    worlds.kube.watchers.append(hear)
    worlds.kube.edit(SHOP, lambda body: change(body["spec"]))
    return was_launched


def _of_web(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["machines"][1]["target"]["ec2"]
    return found


def _type(spec: dict[str, Any]) -> None:
    _of_web(spec)["instanceType"] = "t3.medium"


def _resize(spec: dict[str, Any]) -> None:
    _type(spec)
    spec["machines"][1]["disruption"] = {"replace": "WhenLost", "stop": "WhenNeeded"}


def _hardware(spec: dict[str, Any]) -> None:
    other_hardware({"spec": spec})


def _as_before(spec: dict[str, Any]) -> None:
    _of_web(spec).pop("tenancy", None)


def _one_or_the_other(worlds: Worlds, _: object) -> None:
    """The former instance or the other one serves, as it came; the spec has nothing against either."""
    web = worlds.kube.body(WEB)
    assert web is not None
    assert worlds.is_ready(), worlds.standing()
    (instance,) = worlds.cloud.live(web["metadata"]["uid"])
    assert instance.id == web["status"]["launch"]["instanceId"]
    frozen = [name for _, name in worlds.kube.secrets if "-launch-" in name]
    assert not frozen, frozen


def _undo(worlds: Worlds) -> None:
    """Everything is declared as it was before, whatever was still to come; what may be done for it stays allowed, and
    EC2 has room again."""
    worlds.at_rest.clear()
    worlds.cloud.zones_without_capacity.clear()
    worlds.cloud.subnets_without_addresses.clear()
    for machine in worlds.hosts.machines.values():
        machine.mounted.clear()

    def undo(body: dict[str, Any]) -> None:
        allowed = body["spec"]["machines"][1]["disruption"]
        body["spec"] = copy.deepcopy(DEPLOYMENT["spec"])
        body["spec"]["machines"][1]["disruption"] = allowed

    worlds.kube.edit(SHOP, undo)


def _as_before_it(worlds: Worlds, _: object) -> None:
    """One instance of each machine, on its old hardware, and nothing of what was begun beside it. In which subnet it
    is, and what the spec has never said, may differ."""
    assert worlds.is_ready(), worlds.standing()
    live = [one for one in worlds.cloud.instances.values() if one.state.is_live]
    found = sorted((one.instance_type, one.placement_group or "", one.state.value) for one in live)
    assert found == [("t3.small", "", "running")] * 2, found
    addresses = [one for one in worlds.cloud.addresses.values() if one.id not in worlds.judge.by_hand]
    assert not addresses, addresses
    assert not [one for one in worlds.cloud.addresses.values() if one.association_id], "still associated"
    volumes = [one for one in worlds.cloud.volumes.values() if one.tags.get(names.ENTRY_TAG) not in (None, "data")]
    assert all(names.is_retained(one.tags) and one.state == "available" for one in volumes), volumes


def _address(spec: dict[str, Any]) -> None:
    _of_web(spec)["elasticIp"] = {"allocate": True}


def _power(spec: dict[str, Any]) -> None:
    _of_web(spec)["powerState"] = "Stopped"


def _subnet(spec: dict[str, Any]) -> None:
    _of_web(spec)["subnetId"] = OTHER_SUBNET


def _new_or_refused(worlds: Worlds, was_launched: list[bool], differs: Callable[[Instance], bool]) -> None:
    """A running instance keeps what it was launched with, and is told to; a launch that comes later has the new."""
    web = worlds.kube.body(WEB)
    assert web is not None
    (instance,) = worlds.cloud.live(web["metadata"]["uid"])
    told = {one["type"]: (one["status"], one["reason"]) for one in web["status"]["conditions"]}
    if differs(instance):
        assert any(was_launched), "launched with what had been edited before"
        assert told["Ready"] == ("False", "ChangeForbidden"), told
    else:
        assert told["Ready"][0] == "True", told


def _description(spec: dict[str, Any]) -> None:
    spec["securityGroups"][0]["description"] = "The web"


def _key(spec: dict[str, Any]) -> None:
    spec["keyPairs"] = [{"name": "second"}]
    for machine in spec["machines"]:
        machine["target"]["ec2"]["keyPair"] = "second"


def _module(spec: dict[str, Any]) -> None:
    spec["machines"][1]["configuration"]["modules"] = [{"inline": "{ services.nginx.enable = true; }"}]


def _edited(edit: Callable[[dict[str, Any]], object]) -> Change:
    """It ends as if it had been declared so from the beginning."""
    wanted = partial(_declared, edit)
    return Change(partial(_edit, change=edit), lambda worlds, _: _as_in(wanted(), worlds), wanted=wanted)


def _declared(edit: Callable[[dict[str, Any]], object]) -> Reference:
    body = copy.deepcopy(DEPLOYMENT)
    edit(body["spec"])
    name = f"create with {edit.__name__}"
    with mock.patch.dict(WORKLOADS, {name: partial(_create, body)}):
        return reference(name)


def _create(body: dict[str, Any], worlds: Worlds) -> None:
    worlds.kube.apply(body)


def _suspend(worlds: Worlds) -> None:
    """And resumed when nothing moves any more."""
    _edit(worlds, lambda spec: spec.update(suspend=True))
    worlds.at_rest.append(lambda worlds: _edit(worlds, lambda spec: spec.pop("suspend")))


def _resumed(worlds: Worlds, _: object) -> None:
    """A host that nobody confirmed meanwhile has gone back, and is brought there again."""
    _as_in(_created(), worlds)


def _is_off(worlds: Worlds, _: object) -> None:
    """How far its configuration came before depends on the moment."""
    web = worlds.kube.body(WEB)
    assert web is not None
    assert worlds.is_ready(), worlds.standing()
    assert [one.state for one in worlds.cloud.live(web["metadata"]["uid"])] == [InstanceState.STOPPED]


def _as_in(life: Reference, worlds: Worlds) -> None:
    """What stands is what that life gives; how it came there may differ."""
    end, wanted = worlds.end_state(), life.end
    assert worlds.is_ready(), worlds.standing()
    for part in ("objects", "groups", "key pairs"):
        assert _standing(end[part]) == _standing(wanted[part]), f"{end[part]} instead of {wanted[part]}"
    assert _live(end["instances"]) == _live(wanted["instances"])


def _standing(part: Any) -> Any:
    """Without what depends on uids (which system it is) and on the way (how an activation ended)."""
    if not isinstance(part, dict):
        return part
    return {
        name: {
            "spec": one["spec"],
            "labels": one["labels"],
            "conditions": one["conditions"],
            "runs": one["current"] == one["desired"],
        }
        for name, one in part.items()
    }


def _live(instances: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [one for one in instances if one[1] != "terminated"]


def _uid(worlds: Worlds) -> str:
    body = worlds.kube.body(SHOP)
    return str(body["metadata"]["uid"]) if body is not None else ""


def _ours(worlds: Worlds) -> list[Instance | SecurityGroup | KeyPair | Address | Volume]:
    """Everything in EC2 that is not the account's from the beginning, and not terminated."""
    return list(_things(worlds))


def _things(worlds: Worlds) -> Iterator[Instance | SecurityGroup | KeyPair | Address | Volume]:
    yield from (one for one in worlds.cloud.instances.values() if one.state.is_live)
    yield from (one for one in worlds.cloud.security_groups.values() if one.name != "default")
    yield from worlds.cloud.key_pairs.values()
    yield from (one for one in worlds.cloud.addresses.values() if one.id not in worlds.judge.by_hand)
    yield from (one for one in worlds.cloud.volumes.values() if names.ENTRY_TAG in one.tags)


CHANGES: dict[str, Change] = {
    "delete": Change(
        _delete,
        _nothing_is_left,
        within=("create", "substitute", "settle", "disks", "grow", "resize", "crowd", "rotate", "reboot"),
    ),
    "delete_foreground": Change(partial(_delete, propagation=Propagation.FOREGROUND), _nothing_is_left),
    # Who dies before the Secret is held, and finds it gone, cannot look into the account: a person is asked.
    "delete_namespace": Change(_delete_namespace, _nothing_is_left, (None, "reply lost", "not recorded")),
    "delete_and_apply": Change(_delete_and_apply, _a_second_life),
    "orphan": Change(_orphan, _shared_things_stay),
    "retain": Change(_retain, _all_stays, within=("create", "substitute", "settle", "disks", "resize")),
    "type": Change(
        partial(_edit, change=_type), partial(_new_or_refused, differs=lambda one: one.instance_type != "t3.medium")
    ),
    "resize": _edited(_resize),
    "take_back": Change(partial(_edit, change=_as_before), _one_or_the_other, within=("substitute",)),
    "undo": Change(
        _undo,
        _as_before_it,
        within=("reconfigure", "declare", "settle", "disks", "resize", "crowd", "rotate", "reboot"),
    ),
    "hardware": _edited(_hardware),
    "address": _edited(_address),
    "power": Change(partial(_edit, change=_power), _is_off),
    "subnet": Change(
        partial(_edit, change=_subnet), partial(_new_or_refused, differs=lambda one: one.subnet_id != OTHER_SUBNET)
    ),
    "description": _edited(_description),
    "key": _edited(_key),
    "module": _edited(_module),
    "suspend": Change(_suspend, _resumed),
}
"""By the word that names it in a plan."""
