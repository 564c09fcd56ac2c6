"""RunInstances: which request is a launch, and what it creates.

Facts: EC2 API Reference, "RunInstances"; EC2 User Guide, "Launch instance parameters", "Instance user data".
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixops_lab.ec2 import credit_options, ids, metadata_options, tags, volumes
from nixops_lab.ec2.capacity import room
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing, unsupported
from nixops_lab.ec2.groups import groups_named
from nixops_lab.ec2.images import ROOT_DEVICE, ROOT_SIZE_GIB, image_of
from nixops_lab.ec2.instance_entry import instance_entry
from nixops_lab.ec2.keys import key_pair_named
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.network import Subnet
from nixops_lab.ec2.placement import placement_of
from nixops_lab.ec2.records import (
    Image,
    Instance,
    InstanceType,
    Interface,
    KeyPair,
    Profile,
    ProfileAssociation,
    Volume,
)
from nixops_lab.ec2.region import Region

MAX_USER_DATA = 16 * 1024
MAX_GROUPS = 5
# EC2's default where a request names none.
DEFAULT_INSTANCE_TYPE = "m1.small"

_HONOURED = frozenset(
    {
        "BlockDeviceMappings",
        "ClientToken",
        "CreditSpecification",
        "DisableApiStop",
        "DisableApiTermination",
        "DryRun",
        "EbsOptimized",
        "IamInstanceProfile",
        "ImageId",
        "InstanceInitiatedShutdownBehavior",
        "InstanceType",
        "KeyName",
        "MaxCount",
        "MetadataOptions",
        "MinCount",
        "Monitoring",
        "NetworkInterfaces",
        "Placement",
        "PrivateIpAddress",
        "SecurityGroupIds",
        "SecurityGroups",
        "SubnetId",
        "TagSpecifications",
        "UserData",
    }
)
_INTERFACE_HONOURED = frozenset(
    {
        "AssociatePublicIpAddress",
        "DeleteOnTermination",
        "Description",
        "DeviceIndex",
        "Groups",
        "PrivateIpAddress",
        "SubnetId",
    }
)


_EBS_HONOURED = frozenset({"DeleteOnTermination", "Encrypted", "Iops", "Throughput", "VolumeSize", "VolumeType"})


@dataclass(frozen=True)
class Placed:
    """Where a launch goes: its subnet and the scope of its token."""

    subnet: Subnet
    token_scope: str
    interface: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A launch that nothing forbids."""

    image: Image
    instance_type: InstanceType
    key_pair: KeyPair | None
    group_ids: tuple[str, ...]
    user_data: str
    root: Mapping[str, Any]
    metadata_options: Mapping[str, object]
    tenancy: str
    placement_group: str
    credits: str | None
    profile: Profile | None
    tags: Mapping[str, Mapping[str, str]]
    count: int


async def run_instances(lifecycle: Lifecycle, cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """The instances of this token and these parameters: new ones, or those of the first call."""
    placed = _place(region, params)
    launch = region.tokens.find(placed.token_scope, params.get("ClientToken", ""), params)
    if launch is not None and params.get("ClientToken"):
        return _repeated(region, launch.reservation_id, launch.instance_ids)
    instance_type = await cloud.instance_type(region.name, params.get("InstanceType", DEFAULT_INSTANCE_TYPE))
    profile = await cloud.profile(params["IamInstanceProfile"]) if params.get("IamInstanceProfile") else None
    # No await from here on: two requests with one token must not both get past the look into the ledger.
    launch = region.tokens.find(placed.token_scope, params.get("ClientToken", ""), params)
    if launch is not None and params.get("ClientToken"):
        return _repeated(region, launch.reservation_id, launch.instance_ids)
    plan = _plan(region, params, placed, instance_type, profile)
    created = _create(cloud, region, params, placed, plan)
    if token := params.get("ClientToken"):
        region.tokens.record(
            placed.token_scope, token, params, created[0].reservation_id, tuple(instance.id for instance in created)
        )
    for instance in created:
        lifecycle.launch(region, instance.id)
    return _reply(region, created[0].reservation_id, created)


def _place(region: Region, params: Mapping[str, Any]) -> Placed:
    interface = _interface(params)
    zone = params.get("Placement", {}).get("AvailabilityZone")
    subnet_id = interface.get("SubnetId") or params.get("SubnetId")
    if zone is not None and zone not in region.network.zones:
        raise invalid(f"Invalid availability zone: [{zone}]")
    if not subnet_id:
        subnet = region.network.default_subnet(zone)
        return Placed(subnet, zone or region.name, interface)
    (subnet,) = ids.pick(ids.SUBNET, [subnet_id], region.network.subnets)
    if zone not in {None, subnet.zone}:
        raise invalid(
            f"The availability zone '{zone}' and the subnet '{subnet.id}' in '{subnet.zone}' do not belong together."
        )
    return Placed(subnet, subnet.zone, interface)


def _interface(params: Mapping[str, Any]) -> Mapping[str, Any]:
    interfaces = params.get("NetworkInterfaces", [])
    if not interfaces:
        return {}
    for name in ("SubnetId", "SecurityGroupIds", "SecurityGroups", "PrivateIpAddress"):
        if params.get(name):
            raise combination("Network interfaces and an instance-level parameter may not be specified together")
    if len(interfaces) > 1:
        raise unsupported("the lab's instances have one network interface")
    if extra := sorted(set(interfaces[0]) - _INTERFACE_HONOURED):
        raise unsupported(f"the lab does not model NetworkInterface.{extra[0]}")
    if interfaces[0].get("DeviceIndex") != 0:
        raise invalid("The primary network interface has device index 0")
    return dict(interfaces[0])


def _plan(
    region: Region, params: Mapping[str, Any], placed: Placed, instance_type: InstanceType, profile: Profile | None
) -> Plan:
    if extra := sorted(set(params) - _HONOURED):
        raise unsupported(f"the lab does not model {extra[0]} of RunInstances")
    tenancy, placement_group = placement_of(region, params.get("Placement", {}))
    minimum, maximum = params["MinCount"], params["MaxCount"]
    if not 1 <= minimum <= maximum:
        raise invalid(f"Value ({minimum}:{maximum}) for the number of instances is invalid")
    if "ImageId" not in params:
        raise missing("ImageId")
    image = image_of(params["ImageId"])
    if image.architecture not in instance_type.architectures:
        raise invalid(
            f"The architecture '{','.join(instance_type.architectures)}' of the specified instance type does not match "
            f"the architecture '{image.architecture}' of the specified AMI. Specify an instance type and an AMI that "
            "have matching architectures, and try again."
        )
    if params.get("InstanceInitiatedShutdownBehavior", "stop") not in {"stop", "terminate"}:
        raise invalid(
            f"Value ({params['InstanceInitiatedShutdownBehavior']}) for parameter "
            "instanceInitiatedShutdownBehavior is invalid."
        )
    given = tags.on_create(params, "instance", "volume", "network-interface", "spot-instances-request")
    metadata = metadata_options.changed(
        metadata_options.DEFAULTS, params.get("MetadataOptions", {}), given.get("instance", {})
    )
    return Plan(
        image=image,
        instance_type=instance_type,
        key_pair=key_pair_named(region, params["KeyName"]) if "KeyName" in params else None,
        group_ids=_groups(region, params, placed),
        user_data=_user_data(params.get("UserData", "")),
        root=_root_volume(params.get("BlockDeviceMappings", [])),
        metadata_options=metadata,
        tenancy=tenancy,
        placement_group=placement_group,
        credits=credit_options.at_launch(instance_type.name, params.get("CreditSpecification")),
        profile=profile,
        tags=given,
        # Last: there is room only for what nothing else forbids.
        count=room(region, instance_type, placed.subnet.zone, minimum, maximum),
    )


def _groups(region: Region, params: Mapping[str, Any], placed: Placed) -> tuple[str, ...]:
    group_ids = list(placed.interface.get("Groups", [])) + list(params.get("SecurityGroupIds", []))
    names = params.get("SecurityGroups", [])
    if names and (params.get("SubnetId") and placed.subnet.vpc_id != region.network.default_vpc):
        raise combination("The parameter groupName cannot be used with the parameter subnet")
    groups = ids.pick(ids.GROUP, group_ids, region.visible(region.groups)) + groups_named(region, names)
    for group in groups:
        if group.vpc_id != placed.subnet.vpc_id:
            raise Ec2Error(
                "InvalidParameter",
                f"Security group {group.id} and subnet {placed.subnet.id} belong to different networks.",
            )
    chosen = tuple(dict.fromkeys(group.id for group in groups))
    if len(chosen) > MAX_GROUPS:
        raise Ec2Error(
            "SecurityGroupsPerInterfaceLimitExceeded",
            "The maximum number of security groups per interface has been reached.",
        )
    return chosen or (region.default_group(placed.subnet.vpc_id).id,)


def _user_data(encoded: str) -> str:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Invalid BASE64 encoding of user data.") from None
    if len(decoded) > MAX_USER_DATA:
        raise invalid(f"User data is limited to {MAX_USER_DATA} bytes")
    return decoded.decode("utf-8", errors="surrogateescape")


def _root_volume(mappings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for mapping in mappings:
        if extra := sorted(set(mapping.get("Ebs", {})) - _EBS_HONOURED):
            raise unsupported(f"the lab does not model Ebs.{extra[0]}")
        if mapping.get("DeviceName") != ROOT_DEVICE or "Ebs" not in mapping:
            raise unsupported(f"the lab models one block device, {ROOT_DEVICE}")
        size = mapping["Ebs"].get("VolumeSize", ROOT_SIZE_GIB)
        if size < ROOT_SIZE_GIB:
            raise Ec2Error(
                "InvalidBlockDeviceMapping",
                f"Volume of size {size}GB is smaller than snapshot, expect size >= {ROOT_SIZE_GIB}GB",
            )
        volumes.performance(
            mapping["Ebs"].get("VolumeType", "gp3"), mapping["Ebs"].get("Iops"), mapping["Ebs"].get("Throughput")
        )
        return dict(mapping["Ebs"])
    return {}


def _create(cloud: Cloud, region: Region, params: Mapping[str, Any], placed: Placed, plan: Plan) -> list[Instance]:
    now = cloud.panel.clock()
    reservation_id = region.new_ids.new("r")
    addresses = _private_addresses(cloud, params, placed, plan.count)
    created = []
    for index, address in enumerate(addresses):
        instance_id = region.new_ids.new("i")
        interface = Interface(
            id=region.new_ids.new("eni"),
            instance_id=instance_id,
            attachment_id=region.new_ids.new("eni-attach"),
            subnet=placed.subnet,
            private_address=address,
            group_ids=plan.group_ids,
            created_at=now,
        )
        volume = Volume(
            id=region.new_ids.new("vol"),
            instance_id=instance_id,
            device=ROOT_DEVICE,
            zone=placed.subnet.zone,
            size_gib=plan.root.get("VolumeSize", ROOT_SIZE_GIB),
            volume_type=plan.root.get("VolumeType", "gp3"),
            iops=plan.root.get("Iops"),
            throughput=plan.root.get("Throughput"),
            is_encrypted=plan.root.get("Encrypted", False),
            is_deleted_on_termination=plan.root.get("DeleteOnTermination", True),
            created_at=now,
        )
        instance = Instance(
            id=instance_id,
            reservation_id=reservation_id,
            launch_index=index,
            client_token=params.get("ClientToken", ""),
            image=plan.image,
            instance_type=plan.instance_type,
            key_name=plan.key_pair.name if plan.key_pair else None,
            authorized_key=plan.key_pair.public_key if plan.key_pair else None,
            subnet=placed.subnet,
            interface_id=interface.id,
            private_address=address,
            volume_id=volume.id,
            user_data=plan.user_data,
            has_public_address=placed.interface.get("AssociatePublicIpAddress", placed.subnet.gives_public_address),
            is_monitored=params.get("Monitoring", {}).get("Enabled", False),
            is_ebs_optimized=params.get("EbsOptimized", False),
            metadata_options=plan.metadata_options,
            tenancy=plan.tenancy,
            placement_group=plan.placement_group,
            shutdown_behavior=params.get("InstanceInitiatedShutdownBehavior", "stop"),
            is_protected=params.get("DisableApiTermination", False),
            is_stop_protected=params.get("DisableApiStop", False),
            credits=plan.credits,
            profile=ProfileAssociation(region.new_ids.new("iip-assoc"), plan.profile) if plan.profile else None,
            created_at=now,
            launch_time=now,
        )
        region.instances[instance_id] = instance
        region.interfaces[interface.id] = interface
        region.volumes[volume.id] = volume
        for resource, kind in ((instance_id, "instance"), (volume.id, "volume"), (interface.id, "network-interface")):
            region.tags.put(resource, plan.tags.get(kind, {}), now)
        created.append(instance)
    return created


def _private_addresses(cloud: Cloud, params: Mapping[str, Any], placed: Placed, count: int) -> list[str]:
    wanted = params.get("PrivateIpAddress") or placed.interface.get("PrivateIpAddress")
    if wanted:
        if count > 1:
            raise combination("A private address is for one instance")
        return [cloud.addresses.hold_private(placed.subnet, wanted)]
    return cloud.addresses.private(placed.subnet, count)


def _repeated(region: Region, reservation_id: str, instance_ids: Sequence[str]) -> dict[str, Any]:
    """The first reply again, with the states of today."""
    instances = [region.instances[name] for name in instance_ids if name in region.instances]
    if len(instances) < len(instance_ids) or any(instance.state == "terminated" for instance in instances):
        raise Ec2Error(
            "IdempotentInstanceTerminated",
            "The request to launch an instance uses the same client token as a previous request for which the "
            "instance has been terminated.",
        )
    return _reply(region, reservation_id, instances)


def _reply(region: Region, reservation_id: str, instances: Sequence[Instance]) -> dict[str, Any]:
    return {
        "ReservationId": reservation_id,
        "OwnerId": ACCOUNT,
        "Groups": [],
        "Instances": [instance_entry(region, instance, region.tags.now(instance.id)) for instance in instances],
    }
