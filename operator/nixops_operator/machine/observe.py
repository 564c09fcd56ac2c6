"""What is there: EC2, the host, the configuration, and the jobs that this machine has asked for. Looks only; what
cannot be looked at becomes an error in
the seen, never an empty one."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from nixops_operator import names
from nixops_operator.api.conditions import find_condition
from nixops_operator.api.machine_spec import AddressKind, Ec2Target, System
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, InvalidSpec, NotYet, OperatorError, Retry
from nixops_operator.facts.cloud import CloudSnapshot, Image, Instance, InstanceState
from nixops_operator.facts.host import ActivationState, HostTarget
from nixops_operator.facts.nix import Module
from nixops_operator.informers.cloud import CloudInformer
from nixops_operator.machine import host_keys
from nixops_operator.machine.activation_log import telling_line
from nixops_operator.machine.observed import (
    Desired,
    LaunchParameters,
    Observed,
    ObservedCloud,
    ObservedHost,
    ObservedSystem,
    SystemInput,
)
from nixops_operator.world import World

_ARCHITECTURES = {"x86_64": System.X86_64_LINUX.value, "arm64": System.AARCH64_LINUX.value}
_ENDED_BADLY = (ActivationState.FAILED, ActivationState.ROLLED_BACK)
_RELEASE = re.compile(r"nixos/(\d\d\.\d\d)")


async def observe(desired: Desired, world: World) -> Observed:
    """One look at everything that concerns this machine."""
    ec2 = desired.spec.target.ec2
    cloud = await _observe_cloud(desired, ec2, world) if ec2 is not None else None
    if desired.is_deleting:
        world.hosts.drop(desired.key)
        return Observed(cloud, ObservedHost(), ObservedSystem(waits_for="nothing"), {})
    host = await _observe_host(desired, cloud, world)
    system = await _observe_system(desired, cloud, host, world)
    return Observed(
        cloud, host, system, world.jobs.states(desired.key), _working_since(desired), _deadline_passed(desired)
    )


# --- EC2 ----------------------------------------------------------------------------------------------------------


async def _observe_cloud(desired: Desired, ec2: Ec2Target, world: World) -> ObservedCloud:
    if desired.is_deleting and desired.account_id is None:
        return ObservedCloud()  # nothing was ever made: the way out needs no credentials
    uids = frozenset(filter(None, (desired.uid, desired.deployment_uid)))
    try:
        look = await world.look_at_cloud(desired.key, uids, desired.spec.aws)
        snapshot = await look.snapshot(uids)
        return await _sight(desired, ec2, world, look, snapshot)
    except OperatorError as error:
        return ObservedCloud(error=error)


async def _sight(
    desired: Desired, ec2: Ec2Target, world: World, look: CloudInformer, snapshot: CloudSnapshot
) -> ObservedCloud:
    ours = {i.id: i for i in snapshot.instances.values() if i.tags.get(names.UID_TAG) == desired.uid}
    recorded = desired.launch.instance_id if desired.launch else None
    missing_for = None
    if recorded is not None and recorded not in ours:
        # New tags may not be filterable yet, and tags can be taken away by hand: the id is asked for itself.
        ours |= {i.id: i for i in await look.cloud.find_instances(instance_id=recorded)}
        missing_for = look.missing_for(recorded) if recorded not in ours else None
    if desired.launch is not None and recorded is None and not ours:
        ours |= {i.id: i for i in await look.cloud.find_instances(client_token=desired.launch.token)}
    instances = tuple(sorted(ours.values(), key=lambda i: (i.launch_time, i.id), reverse=True))
    seen = ObservedCloud(account_id=snapshot.account_id, instances=instances, missing_for=missing_for)
    if desired.is_deleting:
        return seen
    secret = await world.kube.get_secret(desired.key.namespace, names.host_keys_secret(desired.key.name))
    seen = replace(seen, pins=host_keys.pins(secret))
    try:
        groups = _security_groups(desired, ec2, snapshot)
    except OperatorError as error:
        seen = replace(seen, dependency_error=error)
    else:
        seen = replace(seen, security_group_ids=groups or None)
    current = seen.instance(recorded)
    try:
        if current is None or not current.state.is_live:
            if seen.dependency_error is None:
                seen = replace(seen, parameters=await _launch_parameters(desired, ec2, world, look, snapshot))
            image: Image | None = seen.parameters.image if seen.parameters else await _image(ec2, world, look)
        else:
            image = await look.image(current.image_id)
    except OperatorError as error:
        return replace(seen, dependency_error=seen.dependency_error or error)
    return replace(seen, image_name=image.name if image is not None else None)


def _security_groups(desired: Desired, ec2: Ec2Target, snapshot: CloudSnapshot) -> tuple[str, ...]:
    """Ids of the groups that the spec names, sorted. Raises Retry while the deployment has not made one yet."""
    ids = []
    for name in ec2.security_groups:
        if name.startswith("sg-"):
            ids.append(name)
            continue
        found = [
            group.id
            for group in snapshot.security_groups.values()
            if group.tags.get(names.UID_TAG) == desired.deployment_uid and group.tags.get(names.ENTRY_TAG) == name
        ]
        if desired.deployment_uid is None:
            raise InvalidSpec("spec.target.ec2.securityGroups", f"{name} is no id; a machine on its own names sg-… ids")
        if not found:
            raise Retry(Reason.SECURITY_GROUP_NOT_READY, f"security group {name} does not exist yet")
        # While a changed description or VPC is being carried out there are two; the newer name wins in the deployment's
        # status.
        ids.append(max(found))
    return tuple(sorted(ids))


async def _launch_parameters(
    desired: Desired, ec2: Ec2Target, world: World, look: CloudInformer, snapshot: CloudSnapshot
) -> LaunchParameters:
    image = await _image(ec2, world, look)
    if ec2.subnet_id is None:
        subnet = await look.default_subnet()
    else:
        found = await look.cloud.get_subnet(ec2.subnet_id)
        if found is None:
            raise InvalidSpec(
                "spec.target.ec2.subnetId", f"{ec2.subnet_id} does not exist in {desired.spec.aws.region}"
            )
        subnet = found
    groups = _security_groups(desired, ec2, snapshot)
    key_name = await _key_name(desired, ec2, look, snapshot)
    return LaunchParameters(image, subnet, ec2.instance_type, key_name, groups, dict(ec2.tags))


async def _image(ec2: Ec2Target, world: World, look: CloudInformer) -> Image:
    architecture = await look.architecture(ec2.instance_type)
    if ec2.image is not None and ec2.image.id is not None:
        image = await look.image(ec2.image.id)
        what = ec2.image.id
    else:
        owner = (ec2.image.owner if ec2.image else None) or world.policy.default_image_owner
        pattern = (ec2.image.name if ec2.image else None) or world.policy.default_image_name
        image = await look.newest_image(owner, pattern, architecture)
        what = f"{pattern} of account {owner} for {architecture}"
    if image is None:
        message = (
            f"image {what} does not exist or is not visible in this account and region; "
            "name another in spec.target.ec2.image, or look at the account's Allowed AMIs setting"
        )
        raise Blocked(Reason.IMAGE_NOT_FOUND, message)
    return image


async def _key_name(desired: Desired, ec2: Ec2Target, look: CloudInformer, snapshot: CloudSnapshot) -> str | None:
    if ec2.key_pair is None:
        return None
    for pair in snapshot.key_pairs.values():
        tags = pair.tags
        if tags.get(names.UID_TAG) == desired.deployment_uid and tags.get(names.ENTRY_TAG) == ec2.key_pair:
            return pair.name
    if desired.deployment_uid is None and await look.cloud.find_key_pair(ec2.key_pair) is not None:
        return ec2.key_pair
    if desired.deployment_uid is not None:
        raise Retry(Reason.KEY_PAIR_NOT_READY, f"key pair {ec2.key_pair} does not exist yet")
    message = f"key pair {ec2.key_pair} does not exist in {desired.spec.aws.region}; import it, or name another"
    raise InvalidSpec("spec.target.ec2.keyPair", message)


# --- the host -----------------------------------------------------------------------------------------------------


async def _observe_host(desired: Desired, cloud: ObservedCloud | None, world: World) -> ObservedHost:
    address: str | None = None
    try:
        if cloud is None:
            address = await _given_address(desired, world)
            pinned = desired.spec.ssh.pinned_host_keys
        else:
            address = _instance_address(desired, cloud)
            pinned = cloud.pins.keys
        if address is None or not pinned:
            world.hosts.drop(desired.key)
            return ObservedHost(host_keys=pinned)
        target = await _target(desired, address, pinned, world)
    except OperatorError as error:
        if not isinstance(error, NotYet):
            world.hosts.drop(desired.key)
        return ObservedHost(address=address, error=error)
    look = world.hosts.watch(desired.key, target)
    facts = look.answer.facts
    words = ""
    if facts is not None and facts.activation is not None and facts.activation.state in _ENDED_BADLY:
        words = telling_line(look.activation_log(facts.activation.id) or "")
    return ObservedHost(address, look.answer.error, facts, pinned, words)


async def _given_address(desired: Desired, world: World) -> str:
    """The address of a given host, resolved once and judged; the connection goes to the very address that was
    judged."""
    host = desired.spec.target.host
    assert host is not None  # noqa: S101 - exactly one target
    address = world.hosts.resolve(desired.key, host.address)[0]
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    is_allowed = any(ip in network for network in world.policy.allowed_hosts if network.version == ip.version)
    is_denied = any(ip in network for network in world.policy.denied_hosts if network.version == ip.version)
    if ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or is_denied or not is_allowed:
        what = host.address if host.address == str(ip) else f"{host.address} ({ip})"
        message = (
            f"{what} lies in no network that the administrator allows; "
            "have it added to the operator's setting hosts.allowedCidrs"
        )
        raise Blocked(Reason.HOST_FORBIDDEN, message)
    return str(ip)


def _instance_address(desired: Desired, cloud: ObservedCloud) -> str | None:
    instance: Instance | None = cloud.instance(desired.launch.instance_id) if desired.launch else None
    if instance is None or instance.state is not InstanceState.RUNNING or cloud.pins.instance_id != instance.id:
        return None
    match desired.spec.ssh.address:
        case AddressKind.PRIVATE:
            return instance.private_address
        case AddressKind.PUBLIC:
            return instance.public_address
        case None:
            return instance.public_address or instance.private_address


async def _target(desired: Desired, address: str, pinned: tuple[str, ...], world: World) -> HostTarget:
    reference = desired.spec.client_key
    data = await world.kube.get_secret(desired.key.namespace, reference.name)
    if data is None or reference.key not in data:
        what = f"Secret {reference.name}" if data is None else f"key {reference.key} of Secret {reference.name}"
        raise Blocked(Reason.SECRET_NOT_FOUND, f"{what} with the SSH client key does not exist; create it")
    host = desired.spec.target.host
    return HostTarget(
        address=address,
        port=host.port if host is not None else 22,
        user=desired.spec.ssh.user,
        client_keys=(data[reference.key].decode(errors="replace"),),
        host_keys=pinned,
    )


# --- the configuration --------------------------------------------------------------------------------------------


async def _observe_system(
    desired: Desired, cloud: ObservedCloud | None, host: ObservedHost, world: World
) -> ObservedSystem:
    configuration = desired.spec.configuration
    try:
        files = await _files(desired, world)
        modules = await _modules(desired, files, world)
        if configuration.nixpkgs is None and world.policy.nixpkgs is None:
            message = "no nixpkgs: set the operator's nix.nixpkgs.path, or name spec.configuration.nixpkgs.path"
            raise Blocked(Reason.SOURCE_NOT_FOUND, message)
        system = await _system_kind(desired, world)
    except OperatorError as error:
        return ObservedSystem(error=error)
    state_version = _state_version(desired, cloud, host)
    if state_version is None:
        return ObservedSystem(waits_for="the machine, to learn its NixOS release (system.stateVersion)")
    given = SystemInput(
        name=desired.machine,
        deployment=desired.deployment,
        uuid=desired.deployment_uid or desired.uid,
        system=system,
        is_ec2=desired.spec.target.ec2 is not None,
        files=files,
        nixpkgs_path=configuration.nixpkgs.path if configuration.nixpkgs else None,
        modules=modules,
        state_version=state_version,
        arguments=dict(configuration.arguments),
    )
    return ObservedSystem(input=given, evaluate_job=f"evaluate:{input_hash(given)}")


def input_hash(given: SystemInput) -> str:
    """One name for equal inputs: sha256 over sorted JSON, file contents by their own hash."""
    text = json.dumps(
        {
            **{name: getattr(given, name) for name in ("name", "deployment", "uuid", "system", "is_ec2")},
            "files": {path: hashlib.sha256(data).hexdigest() for path, data in (given.files or {}).items()},
            "nixpkgs": given.nixpkgs_path,
            "modules": [[module.label, module.text, module.path] for module in given.modules],
            "stateVersion": given.state_version,
            "arguments": dict(given.arguments),
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


async def _files(desired: Desired, world: World) -> Mapping[str, bytes] | None:
    source = desired.spec.configuration.source
    if source is None:
        return None
    name = source.config_map_ref.name
    found = await world.kube.get_config_map(desired.key.namespace, name)
    if found is None:
        raise Blocked(Reason.SOURCE_NOT_FOUND, f"ConfigMap {name} with the configuration does not exist; create it")
    return found


async def _modules(desired: Desired, files: Mapping[str, bytes] | None, world: World) -> tuple[Module, ...]:
    modules = []
    for place, module in enumerate(desired.spec.configuration.modules):
        field = f"modules[{place}]"
        if module.path is not None:
            if files is not None and module.path not in files:
                message = (
                    f"{module.path} is no key of the source's ConfigMap; it has {', '.join(sorted(files)) or 'none'}"
                )
                raise InvalidSpec(f"spec.configuration.{field}.path", message)
            modules.append(Module(module.path, path=module.path))
        elif module.inline is not None:
            modules.append(Module(field, text=module.inline))
        elif (reference := module.config_map_key_ref) is not None:
            found = await world.kube.get_config_map(desired.key.namespace, reference.name)
            if found is None or reference.key not in found:
                what = (
                    f"ConfigMap {reference.name}"
                    if found is None
                    else f"key {reference.key} of ConfigMap {reference.name}"
                )
                raise Blocked(Reason.SOURCE_NOT_FOUND, f"{what} ({field}) does not exist; create it")
            modules.append(
                Module(f"{reference.name}/{reference.key}", text=found[reference.key].decode(errors="replace"))
            )
    return tuple(modules)


async def _system_kind(desired: Desired, world: World) -> str:
    if desired.spec.configuration.system is not None:
        return desired.spec.configuration.system.value
    ec2 = desired.spec.target.ec2
    if ec2 is None:
        return System.X86_64_LINUX.value
    look = await world.look_at_cloud(
        desired.key, frozenset(filter(None, (desired.uid, desired.deployment_uid))), desired.spec.aws
    )
    return _ARCHITECTURES[await look.architecture(ec2.instance_type)]


def _state_version(desired: Desired, cloud: ObservedCloud | None, host: ObservedHost) -> str | None:
    """The release that the machine was first installed with; it belongs to the machine and never follows the nixpkgs in
    use."""
    known: str | None = desired.system.get("stateVersion")
    if known is not None:
        return known
    if host.facts is not None:
        return host.facts.state_version or host.facts.version_id
    # Before first contact an image's name tells its release, so that evaluation need not wait for the boot.
    found = _RELEASE.match(cloud.image_name or "") if cloud is not None else None
    return found.group(1) if found else None


# --- what earlier passes said -------------------------------------------------------------------------------------


def _working_since(desired: Desired) -> datetime | None:
    """Since when work for this generation has been under way."""
    for entry in desired.status.get("conditions", ()):
        is_ours = entry["type"] == ConditionType.RECONCILING and entry.get("observedGeneration") == desired.generation
        if is_ours and entry["status"] == "True":
            return datetime.fromisoformat(entry["lastTransitionTime"])
    return None


def _deadline_passed(desired: Desired) -> bool:
    stalled = find_condition({"status": desired.status}, ConditionType.STALLED)
    return (
        stalled is not None
        and stalled.reason is Reason.PROGRESS_DEADLINE_EXCEEDED
        and stalled.observed_generation == desired.generation
    )
