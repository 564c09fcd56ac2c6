"""EC2 as it concerns one machine: its instances, what its spec's names stand for there, its pinned host keys."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nixops_operator import absence, names
from nixops_operator.api.machine_spec import AwsSettings, Ec2Target, System
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import LaunchStatus
from nixops_operator.ec2.rules import Direction, admits_port
from nixops_operator.errors import Blocked, InvalidSpec, OperatorError, Retry
from nixops_operator.facts.cloud import (
    Image,
    Instance,
    InstanceState,
    KeyPair,
    SecurityGroup,
    Subnet,
    Volume,
    VolumeSettings,
)
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.informers.cloud import CloudView
from nixops_operator.informers.snapshot import CloudSnapshot
from nixops_operator.machine import addresses, host_keys, replacement, root_volume, subnets, volumes
from nixops_operator.machine.addresses import ObservedAddresses
from nixops_operator.machine.attributes import STOPPED_ONLY, declare, hidden, of_another
from nixops_operator.machine.claims import holder
from nixops_operator.machine.declared import Declared, Resolved
from nixops_operator.machine.desired import Desired, Leaving
from nixops_operator.machine.observe_host import client_key
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.world import World

_ARCHITECTURES = {"x86_64": System.X86_64_LINUX.value, "arm64": System.AARCH64_LINUX.value}
SSH_PORT = 22


async def observe(desired: Desired, ec2: Ec2Target, world: World) -> ObservedCloud:
    """EC2 for a living machine."""
    try:
        view = await world.cloud(desired.key, desired.uids, desired.spec.aws)
        if desired.requests.new is not None:
            view.note_request(desired.uid, desired.requests.new)
        snapshot = view.snapshot(desired.uids, desired.uids - {desired.uid})
        seen = _instances(desired, view, snapshot, world)
    except OperatorError as error:
        return ObservedCloud(error=error)
    seen = replace(await _with_pins(seen, desired, world), addresses=_addresses(desired, ec2, view, world))
    instance = seen.instance(desired.instance_id)
    if instance is None and seen.untagged is not None:
        instance = seen.untagged
    if instance is None or not instance.state.is_live:
        return await _of_next(seen, desired, ec2, view, snapshot, world)
    seen = _of_live(seen, desired, ec2, instance, view, snapshot, world)
    if not of_another(seen.declared, instance) or not replacement.is_allowed(desired):
        return seen
    another = await _of_next(seen, desired, replacement.beside(ec2, instance), view, snapshot, world)
    known = another.declared if another.declared_error is None else None
    first = replacement.goes_first(desired, world)
    return replace(seen, next_declared=known, next_error=another.declared_error, goes_first=first)


async def observe_leaving(leaving: Leaving, world: World) -> ObservedCloud:
    """EC2 for one in deletion: its instances and its address alone."""
    try:
        view = await world.cloud(leaving.key, leaving.uids, leaving.aws or AwsSettings(), is_leaving=True)
        seen = _instances(leaving, view, view.snapshot(leaving.uids, leaving.uids - {leaving.uid}), world)
        found = addresses.observe(leaving, None, view, world, is_declared=leaving.declares_address)
        return _with_volumes(replace(seen, addresses=found), leaving, view, world)
    except OperatorError as error:
        return ObservedCloud(error=error)


# --- its instances ------------------------------------------------------------------------------------------------


def _instances(machine: Desired | Leaving, view: CloudView, snapshot: CloudSnapshot, world: World) -> ObservedCloud:
    """All that carry our tags, and the recorded one whatever it carries. New tags cannot be filtered by at once, so the
    launched instance is asked for by its id or token, too, until the sweep shows it."""
    mine = snapshot.instances.of(machine.uid)
    ours = {i.id: i for i in mine if names.is_ours(i.tags, world.cluster_id, machine.uid)}
    launch, untagged, missing_for = machine.launch, None, None
    begun = [snapshot.instances_begun]
    other, is_other_gone = _other(machine, view, ours, world)
    if launch is not None and launch.instance_id is not None and launch.instance_id not in ours:
        look = view.instance_by_id(launch.instance_id)
        begun.append(look.begun)
        missing_for = look.empty_for
        found = next(iter(look.answer), None)
        if found is not None and names.is_ours(found.tags, world.cluster_id, machine.uid):
            ours[found.id] = found
        else:
            untagged = found
    elif launch is not None and launch.instance_id is None and _is_open(machine, launch, ours.values(), world):
        look = view.instances_by_token(launch.token)
        begun.append(look.begun)
        missing_for = look.empty_for
        ours |= {i.id: i for i in look.answer if names.is_ours(i.tags, world.cluster_id, machine.uid)}
    return ObservedCloud(
        account_id=snapshot.account_id,
        other=other,
        is_other_gone=is_other_gone,
        instances=tuple(sorted(ours.values(), key=lambda i: (i.launch_time, i.id), reverse=True)),
        untagged=untagged,
        looked_at=world.now() - view.since(min(begun)),
        missing_for=missing_for,
    )


def _other(
    machine: Desired | Leaving, view: CloudView, ours: dict[str, Instance], world: World
) -> tuple[Instance | None, bool]:
    """Of two instances of which one replaces the other, the one that is not the machine's now, taken out of `ours`
    while the machine is to stay; and whether it is gone."""
    launch = machine.replacement.other if machine.replacement is not None else None
    if launch is None or launch.instance_id is None:
        return None, True
    found = ours.get(launch.instance_id)
    if found is None:
        look = view.instance_by_id(launch.instance_id)
        found = next(iter(look.answer), None)
        if found is None:
            looked_at = world.now() - view.since(look.begun)
            return None, absence.is_gone(launch.last_call, looked_at, look.empty_for)
        if not names.is_ours(found.tags, world.cluster_id, machine.uid):
            return None, True  # somebody has made it his own
    if isinstance(machine, Desired):
        ours.pop(launch.instance_id, None)
    else:
        ours[found.id] = found
    return found, found.state is InstanceState.TERMINATED


def _addresses(desired: Desired, ec2: Ec2Target, view: CloudView, world: World) -> ObservedAddresses:
    try:
        return addresses.observe(desired, ec2.elastic_ip, view, world, is_declared=ec2.elastic_ip is not None)
    except OperatorError as error:
        return ObservedAddresses(error=error)


def _is_open(machine: Desired | Leaving, launch: LaunchStatus, shown: Iterable[Instance], world: World) -> bool:
    """Whether EC2 has to be asked what came of the launch. One that waits for its turn, and of which every call was
    answered, has made nothing; fifty of them would be asked for again and again."""
    is_waiting = isinstance(machine, Desired) and launch.token in world.answered_tokens
    return not is_waiting and not _has_token(shown, launch.token)


def _has_token(instances: Iterable[Instance], token: str) -> bool:
    return any(instance.client_token == token for instance in instances)


async def _with_pins(seen: ObservedCloud, desired: Desired, world: World) -> ObservedCloud:
    name = names.host_keys_secret(desired.key.name)
    try:
        secret = await world.reads.secret(desired.key.namespace, name)
        return replace(seen, pins=host_keys.pins(secret, desired.uid))
    except OperatorError as error:
        world.reads.forget_secret(desired.key.namespace, name)
        return replace(seen, pins_error=error)


# --- what the spec asks for ---------------------------------------------------------------------------------------


def _of_live(
    seen: ObservedCloud,
    desired: Desired,
    ec2: Ec2Target,
    instance: Instance,
    view: CloudView,
    snapshot: CloudSnapshot,
    world: World,
) -> ObservedCloud:
    """Of a live instance only what can differ is resolved; each thing that cannot be is left out of the comparison."""
    error: OperatorError | None = None
    groups = key_name = instance_type = users_key_pair = None
    others_admit_ssh: bool | None = None
    try:
        others = _security_groups(desired, ec2, instance, view, snapshot, world)
        others_admit_ssh = _others_admit_ssh(others, instance, snapshot, view)
        groups = others
    except OperatorError as failure:
        error = failure
    try:
        instance_type = _instance_type_of_live(ec2, view, instance)
    except OperatorError as failure:
        error = failure
    with contextlib.suppress(OperatorError):  # it counts at the next launch only, and is told then
        key_name = _key_pair_of_live(desired, ec2, view, snapshot, instance, world)
    if instance.key_name is not None and instance.key_name not in snapshot.key_pairs:
        with contextlib.suppress(OperatorError):  # it is words for people
            users_key_pair = view.key_pair(instance.key_name)
    image = _image_of(instance, view)
    resolved = Resolved(
        image_id=_declared_image(ec2, instance, image, world),
        instance_type=instance_type,
        subnet_id=ec2.subnet_id,
        key_name=key_name,
        security_group_ids=groups,
        tags=_tags(desired, ec2, names.attempt_of(instance.tags), world),
        applied=desired.applied_fields,
        has_run=desired.system.activated_at is not None,
    )
    declared = declare(ec2, resolved)
    try:
        _judge_placement_group(desired, ec2, view, instance)
    except OperatorError as failure:
        error = failure
        # One stop for all that needs one, when that is known to be possible.
        declared = declared.but(**dict.fromkeys(STOPPED_ONLY))
    seen, error_of_hidden = _with_hidden(seen, instance, declared, desired, view)
    seen = _with_volumes(seen, desired, view, world)
    seen = _with_root_volume(seen, instance, desired, ec2, view)
    return replace(
        seen,
        declared=declared,
        declared_error=error or error_of_hidden,
        image_name=image.name if image is not None else None,
        users_key_pair=users_key_pair,
        admits_ssh=_admits_ssh(instance, snapshot, view),
        others_admit_ssh=others_admit_ssh,
    )


def _with_root_volume(
    seen: ObservedCloud, instance: Instance, desired: Desired, ec2: Ec2Target, view: CloudView
) -> ObservedCloud:
    """Its root volume, which is known by where it is attached, whatever its tags; and what EC2 does with it where
    another change is due."""
    if not instance.root_volume_id or not root_volume.is_looked_at(desired, ec2):
        return seen
    try:
        volume = _volume(instance.root_volume_id, desired, view)
        changes = _changes_under_way([(volume, root_volume.declared(ec2))] if volume is not None else [], view)
        return replace(seen, root_volume=volume, volume_changes={**seen.volume_changes, **changes})
    except OperatorError as error:
        return replace(seen, volumes_error=error)


def _with_volumes(seen: ObservedCloud, machine: Desired | Leaving, view: CloudView, world: World) -> ObservedCloud:
    """Its data volumes. A recorded one is asked for by its id, too, until the sweep shows it."""
    if not volumes.is_looked_at(machine):
        return seen
    try:
        look = view.volumes(machine.uids)
        found = {one.id: one for one in look.answer.of(machine.uid) if names.ENTRY_TAG in one.tags}
        for record in machine.volumes:
            one = view.volume(record.volume_id) if record.volume_id and record.volume_id not in found else None
            found |= {one.id: one} if one is not None else {}
        there = {one.id: one for one in found.values() if one.is_there}
        given = {record.volume_id for record in machine.volumes if record.is_given}
        ours = {
            key: one
            for key, one in there.items()
            if names.is_ours(one.tags, world.cluster_id, machine.uid) and not names.is_retained(one.tags)
        }
        nobodys = {
            key: one
            for key, one in there.items()
            if key in given and (names.UID_TAG not in one.tags or names.is_retained(one.tags))
        }
        missing = {one.name: view.missing_for(one.volume_id or f"{machine.uid}/{one.name}") for one in machine.volumes}
        known = replace(
            seen,
            volumes=tuple(ours[key] for key in sorted(ours)),
            given_volumes=tuple(nobodys[key] for key in sorted(nobodys)),
            volumes_taken={
                key: holder(key, machine.key, machine.uid, world.cache.claimants(key)) for key in sorted(nobodys)
            },
            volumes_of_others=frozenset(there.keys() - ours.keys() - nobodys.keys()),
            volumes_looked_at=world.now() - view.since(look.begun),
            volumes_missing_for=missing,
        )
        if isinstance(machine, Leaving):
            return known
        return replace(known, volume_changes=_changes_under_way(_declared_volumes(machine, known), view))
    except OperatorError as error:
        return replace(seen, volumes_error=error)


def _declared_volumes(desired: Desired, seen: ObservedCloud) -> Sequence[tuple[Volume, VolumeSettings]]:
    ec2 = desired.spec.target.ec2
    pairs = ((entry, desired.volume(entry.name)) for entry in (ec2.volumes if ec2 is not None else ()))
    found = ((entry, seen.volume(record.volume_id)) for entry, record in pairs if record is not None)
    return [(volume, volumes.settings_of(entry)) for entry, volume in found if volume is not None]


def _changes_under_way(wanted: Sequence[tuple[Volume, VolumeSettings]], view: CloudView) -> Mapping[str, str]:
    """How the last modification of each volume stands that is due for another one."""
    return {
        volume.id: view.volume_change(volume.id)
        for volume, settings in wanted
        if root_volume.to_change(settings, volume) is not None
    }


def _volume(volume_id: str, desired: Desired, view: CloudView) -> Volume | None:
    found = view.volumes(desired.uids).answer.get(volume_id)
    return found if found is not None else view.volume(volume_id)


def _with_hidden(
    seen: ObservedCloud, instance: Instance, declared: Declared, desired: Desired, view: CloudView
) -> tuple[ObservedCloud, OperatorError | None]:
    """The instance with what is declared of it and no sweep shows; and why some of that is not known."""
    found: dict[str, Any] = {}
    error: OperatorError | None = None
    for field, attribute in hidden(declared):
        try:
            found[field] = view.attribute(desired.uid, instance.id, attribute)
        except OperatorError as failure:
            error = failure
    known = tuple(replace(one, **found) if one.id == instance.id else one for one in seen.instances)
    return replace(seen, instances=known), error


async def _of_next(
    seen: ObservedCloud, desired: Desired, ec2: Ec2Target, view: CloudView, snapshot: CloudSnapshot, world: World
) -> ObservedCloud:
    """All that a launch needs, resolved to ids; it is frozen with the attempt."""
    seen = _with_volumes(seen, desired, view, world)
    try:
        architecture = view.architecture(ec2.instance_type)
        _judge_system(desired, ec2, architecture)
        image = _image(ec2, architecture, view, world)
        subnet = _subnet(seen, desired, ec2, view, world)
        groups = _security_groups(desired, ec2, subnet, view, snapshot, world) or None
        resolved = Resolved(
            image_id=image.id,
            instance_type=ec2.instance_type,
            subnet_id=subnet.id,
            key_name=await _key_pair_to_launch_with(desired, ec2, view, snapshot, world),
            security_group_ids=groups,
            tags=_tags(desired, ec2, 0, world),
            root_device=image.root_device,
        )
    except OperatorError as error:
        return replace(seen, declared_error=error)
    return replace(seen, declared=declare(ec2, resolved), image_name=image.name)


def _instance_type_of_live(ec2: Ec2Target, view: CloudView, instance: Instance) -> str:
    """The declared type, if a live instance can become one. Raises InvalidSpec for a type that EC2 does not know, and
    for one of another architecture: what is on the instance's disk would not boot."""
    if ec2.instance_type != instance.instance_type:
        declared, present = view.architecture(ec2.instance_type), view.architecture(instance.instance_type)
        if declared != present:
            message = (
                f"{ec2.instance_type} is {declared}, and {instance.id} is {present}; name a type of that architecture, "
                "or delete this machine to get another"
            )
            raise InvalidSpec("spec.target.ec2.instanceType", message)
    return ec2.instance_type


def _judge_placement_group(desired: Desired, ec2: Ec2Target, view: CloudView, instance: Instance) -> None:
    """Raises InvalidSpec for a group that does not exist: EC2 says so of a stopped instance alone, and each stop is an
    outage. Whoever may not look for groups learns it then."""
    name = ec2.placement_group
    if name is None or name == instance.placement_group:
        return
    try:
        state = view.placement_group(name)
    except Blocked:
        return
    if state is None:
        message = f"placement group {name} does not exist in {desired.spec.aws.region}; make it, or name another"
        raise InvalidSpec("spec.target.ec2.placementGroup", message)


def _judge_system(desired: Desired, ec2: Ec2Target, architecture: str) -> None:
    """A configuration for another architecture would be built, copied and never run."""
    declared = desired.spec.configuration.system
    of_type = _ARCHITECTURES.get(architecture)
    if declared is not None and of_type is not None and declared.value != of_type:
        message = f"{declared.value} does not run on {ec2.instance_type}, which is {of_type}; change one of them"
        raise InvalidSpec("spec.configuration.system", message)


def _tags(desired: Desired, ec2: Ec2Target, attempt: int, world: World) -> Mapping[str, str]:
    return names.instance_tags(
        world.cluster_id, desired.key.namespace, desired.key.name, desired.uid, attempt, ec2.tags
    )


def _security_groups(
    desired: Desired,
    ec2: Ec2Target,
    of: Instance | Subnet,
    view: CloudView,
    snapshot: CloudSnapshot,
    world: World,
) -> tuple[str, ...] | None:
    """Ids of the groups that the spec names, sorted: of an instance that lives, or of one that is to be launched in
    that subnet. None named: the VPC's default group, which EC2 gives a new instance by itself, and which takes the
    place of groups that have left the spec.

    Raises Retry while the deployment has not made one yet, InvalidSpec where it never will, for a group that does not
    exist, and for one of another VPC than the subnet's.
    """
    ids = {
        name if name.startswith("sg-") else _group_of_deployment(name, desired, snapshot, world)
        for name in ec2.security_groups
    }
    if isinstance(of, Instance) and ids == set(of.security_group_ids):
        return tuple(sorted(ids))
    subnet = of if isinstance(of, Subnet) else view.subnet(of.subnet_id)
    if not ids and isinstance(of, Instance):
        default = view.default_group(subnet.vpc_id) if subnet is not None else None
        return (default.id,) if default is not None else None
    groups = [snapshot.security_groups.get(one) or _group_of_others(one, desired, view) for one in sorted(ids)]
    if subnet is not None:
        subnets.agree(subnet, groups)
    return tuple(sorted(ids))


def _group_of_others(group_id: str, desired: Desired, view: CloudView) -> SecurityGroup:
    found = view.security_group(group_id)
    if found is None:
        message = f"{group_id} does not exist in {desired.spec.aws.region}, or not yet; name another"
        raise InvalidSpec("spec.target.ec2.securityGroups", message)
    return found


def _group_of_deployment(name: str, desired: Desired, snapshot: CloudSnapshot, world: World) -> str:
    field = "spec.target.ec2.securityGroups"
    if desired.deployment_uid is None:
        raise InvalidSpec(field, f"{name} is no id; a machine on its own names sg-… ids")
    _judge_region(field, name, desired, world)
    found = [
        group
        for group in snapshot.security_groups.of(desired.deployment_uid)
        if names.is_ours(group.tags, world.cluster_id, desired.deployment_uid)
        and group.tags.get(names.ENTRY_TAG) == name
    ]
    if len(found) > 1:
        # While a changed description or VPC is being carried out there are two; the exact name says which one counts.
        wanted = _name_of_group(name, desired, world, {group.vpc_id for group in found})
        named = [group for group in found if group.name in wanted]
        # One that was made just now has no rules yet, and might never get them; meanwhile the earlier one serves.
        vpcs = {group.vpc_id for group in named if not _has_its_rules(name, group, desired, world)}
        found = [group for group in found if group not in named and group.vpc_id in vpcs] or named
    if len(found) != 1:
        raise Retry(Reason.SECURITY_GROUP_NOT_READY, f"security group {name} does not exist yet")
    return found[0].id


def _name_of_group(name: str, desired: Desired, world: World, vpcs: set[str]) -> set[str]:
    """EC2's names of the entry as the deployment declares it now; of one VPC, or of each that is possible."""
    entry = _entry_of_group(name, desired, world)
    possible = {str(entry["vpcId"])} if entry.get("vpcId") else vpcs
    uid, description = str(desired.deployment_uid), str(entry.get("description", ""))
    return {names.security_group_name(world.cluster_id, uid, name, vpc, description) for vpc in possible}


def _entry_of_group(name: str, desired: Desired, world: World) -> Mapping[str, object]:
    entries = _part(_deployment(desired, world), "securityGroups")
    return next((one for one in entries if one.get("name") == name), {})


def _has_its_rules(name: str, group: SecurityGroup, desired: Desired, world: World) -> bool:
    """Whether any of those that let traffic in, if some are declared: they come in one call."""
    is_let_in = any(seen.rule.direction is Direction.INGRESS for seen in group.rules)
    return is_let_in or not _entry_of_group(name, desired, world).get("ingress")


def _judge_region(field: str, name: str, desired: Desired, world: World) -> None:
    aws = (_deployment(desired, world) or {}).get("spec", {}).get("aws") or {}
    theirs = aws.get("region") if isinstance(aws, Mapping) else None
    if theirs is not None and theirs != desired.spec.aws.region:
        message = (
            f"{name} is in the deployment's region {theirs}, this machine is in {desired.spec.aws.region}; name an id"
        )
        raise InvalidSpec(field, message)


def _deployment(desired: Desired, world: World) -> Body | None:
    """The deployment that controls the machine, as it is known now."""
    body = world.cache.get(Key(Kind.DEPLOYMENT, desired.key.namespace, desired.deployment))
    return body if body is not None and body["metadata"]["uid"] == desired.deployment_uid else None


def _part(body: Body | None, field: str) -> list[Mapping[str, object]]:
    found = ((body or {}).get("spec") or {}).get(field)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _key_pairs_of_entry(desired: Desired, entry: str, snapshot: CloudSnapshot, world: World) -> list[KeyPair]:
    """The deployment's key pairs for that entry: two, while a changed key is being carried out."""
    uid = desired.deployment_uid
    if uid is None:
        return []
    return [
        pair
        for pair in snapshot.key_pairs.of(uid)
        if names.is_ours(pair.tags, world.cluster_id, uid) and pair.tags.get(names.ENTRY_TAG) == entry
    ]


def _key_pair_of_live(
    desired: Desired, ec2: Ec2Target, view: CloudView, snapshot: CloudSnapshot, instance: Instance, world: World
) -> str | None:
    """EC2's name of the key pair that the spec means for a live instance: any of the entry, if it is its own."""
    if ec2.key_pair is None:
        return None
    found = [pair.name for pair in _key_pairs_of_entry(desired, ec2.key_pair, snapshot, world)]
    if instance.key_name in found:
        return instance.key_name
    return found[0] if len(found) == 1 else _other_key_pair(desired, ec2.key_pair, view, world)


async def _key_pair_to_launch_with(
    desired: Desired, ec2: Ec2Target, view: CloudView, snapshot: CloudSnapshot, world: World
) -> str | None:
    """EC2's name of the key pair whose private half the machine is going to be reached with: an instance that was
    launched with another one admits nobody, for good.

    Raises Retry while the deployment has not imported it yet, Blocked where there is no private half.
    """
    if ec2.key_pair is None:
        return None
    found = _key_pairs_of_entry(desired, ec2.key_pair, snapshot, world)
    if not found:
        return _other_key_pair(desired, ec2.key_pair, view, world)
    reference = desired.spec.client_key
    key = await client_key(desired.key.namespace, reference, world)
    digest = names.key_digest(key.public)
    for pair in found:
        if pair.tags.get(names.KEY_DIGEST_TAG) == digest:
            return pair.name
    if len(found) == 1 and _has_own_client_key(desired, ec2.key_pair, world):
        return found[0].name
    world.reads.forget_secret(desired.key.namespace, reference.name)
    raise Retry(Reason.KEY_PAIR_NOT_READY, f"key pair {ec2.key_pair} is being replaced")


def _has_own_client_key(desired: Desired, entry: str, world: World) -> bool:
    """Whether the machine is reached with a key of its own, which is in its image or its configuration, and the key
    pair is for others."""
    pairs = _part(_deployment(desired, world), "keyPairs")
    pair = next((one for one in pairs if one.get("name") == entry), None)
    if pair is None:
        return False
    named = pair.get("privateKeySecretRef")
    of_entry = named.get("name") if isinstance(named, Mapping) else names.key_pair_secret(desired.deployment, entry)
    return desired.spec.client_key.name != of_entry


def _other_key_pair(desired: Desired, name: str, view: CloudView, world: World) -> str:
    """One that the user brings. Raises Retry or InvalidSpec if it does not exist."""
    if view.key_pair(name) is not None:
        return name
    deployment = _deployment(desired, world)
    is_known = desired.deployment_uid is None or deployment is not None
    if not is_known or any(entry.get("name") == name for entry in _part(deployment, "keyPairs")):
        raise Retry(Reason.KEY_PAIR_NOT_READY, f"key pair {name} does not exist yet")
    message = f"key pair {name} does not exist in {desired.spec.aws.region}; import it, or name another"
    raise InvalidSpec("spec.target.ec2.keyPair", message)


def _subnet(seen: ObservedCloud, desired: Desired, ec2: Ec2Target, view: CloudView, world: World) -> Subnet:
    volumes_there = _volumes_there(seen, desired, ec2, view)
    if ec2.subnet_ids:
        candidates = subnets.in_one_vpc([_known_subnet("subnetIds", one, desired, view) for one in ec2.subnet_ids])
        candidates = subnets.beside(candidates, volumes_there, "spec.target.ec2.subnetIds")
        return subnets.choose(candidates, ec2.instance_type, desired.full_subnets, seen.instances, world.now())
    if ec2.subnet_id is None:
        subnet = view.default_subnet()
    else:
        subnet = _known_subnet("subnetId", ec2.subnet_id, desired, view)
    return subnets.beside([subnet], volumes_there, "spec.target.ec2.subnetId")[0]


def _volumes_there(seen: ObservedCloud, desired: Desired, ec2: Ec2Target, view: CloudView) -> Mapping[str, Volume]:
    """The data volumes of the spec that exist, by entry. Raises what kept them from being looked at."""
    if seen.volumes_error is not None:
        raise seen.volumes_error
    found: dict[str, Volume] = {}
    for entry in ec2.volumes:
        record = desired.volume(entry.name)
        if entry.volume_id is not None:
            known = view.volume(entry.volume_id)
            found |= {entry.name: known} if known is not None and known.is_there else {}
        elif record is not None and record.volume_id is not None:
            known = seen.volume(record.volume_id)
            found |= {entry.name: known} if known is not None else {}
        else:
            made = next(iter(seen.volumes_of(entry.name)), None)
            found |= {entry.name: made} if made is not None else {}
    return found


def _known_subnet(field: str, subnet_id: str, desired: Desired, view: CloudView) -> Subnet:
    found = view.subnet(subnet_id)
    if found is None:
        raise InvalidSpec(f"spec.target.ec2.{field}", f"{subnet_id} does not exist in {desired.spec.aws.region}")
    if not found.has_ipv4:
        message = f"{subnet_id} has IPv6 addresses alone; machines are reached over IPv4: name a subnet that has both"
        raise InvalidSpec(f"spec.target.ec2.{field}", message)
    return found


def _image(ec2: Ec2Target, architecture: str, view: CloudView, world: World) -> Image:
    if ec2.image is not None and ec2.image.id is not None:
        image = view.image(ec2.image.id)
        what = ec2.image.id
    else:
        owner, pattern = _image_pattern(ec2, world)
        image = view.newest_image(owner, pattern, architecture)
        what = f"{pattern} of account {owner} for {architecture}"
    if image is None:
        message = (
            f"image {what} does not exist or is not visible in this account and region; "
            "name another in spec.target.ec2.image, or look at the account's Allowed AMIs setting"
        )
        raise Blocked(Reason.IMAGE_NOT_FOUND, message)
    return image


def _image_pattern(ec2: Ec2Target, world: World) -> tuple[str, str]:
    owner = (ec2.image.owner if ec2.image else None) or world.policy.default_image_owner
    return owner, (ec2.image.name if ec2.image else None) or world.policy.default_image_name


def _image_of(instance: Instance, view: CloudView) -> Image | None:
    """The image that a live instance came from. It may be gone, or not be looked at yet: nothing depends on it."""
    try:
        return view.image(instance.image_id)
    except OperatorError:
        return None


def _declared_image(ec2: Ec2Target, instance: Instance, image: Image | None, world: World) -> str | None:
    """What the spec would launch from instead of the instance's own image; that itself where it fits the spec. A newer
    image of the same pattern comes every week, and is no difference."""
    if ec2.image is None:
        return None
    if ec2.image.id is not None:
        return ec2.image.id
    pattern = _image_pattern(ec2, world)[1]
    return instance.image_id if image is None or fnmatch.fnmatchcase(image.name, pattern) else pattern


def _admits_ssh(instance: Instance, snapshot: CloudSnapshot, view: CloudView) -> bool | None:
    """Whether a rule of its groups does; None: not all of them are ours, or the VPC's default group."""
    known = dict(snapshot.security_groups)
    with contextlib.suppress(OperatorError):
        are_all_known = known.keys() >= set(instance.security_group_ids)
        subnet = view.subnet(instance.subnet_id) if not are_all_known else None
        default = view.default_group(subnet.vpc_id) if subnet is not None else None
        known |= {default.id: default} if default is not None else {}
    groups = [known.get(group_id) for group_id in instance.security_group_ids]
    if any(group is None for group in groups):
        return None
    return admits_port((seen.rule for group in groups if group is not None for seen in group.rules), SSH_PORT)


def _others_admit_ssh(
    group_ids: tuple[str, ...] | None, instance: Instance, snapshot: CloudSnapshot, view: CloudView
) -> bool | None:
    """Whether a rule of those groups does, where they are others than the instance's; None: they are not, or one of
    them does not exist. Raises what looking at groups that are not ours raises."""
    if group_ids is None or set(group_ids) == set(instance.security_group_ids):
        return None
    groups = [snapshot.security_groups.get(one) or view.security_group_now(one) for one in group_ids]
    if any(group is None for group in groups):
        return None
    return admits_port((seen.rule for group in groups if group is not None for seen in group.rules), SSH_PORT)
