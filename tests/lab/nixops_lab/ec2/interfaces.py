"""Network interfaces of instances: describe, change of groups.

Facts: EC2 API Reference, "DescribeNetworkInterfaces", "ModifyNetworkInterfaceAttribute".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, missing, unsupported
from nixops_lab.ec2.filters import always, select
from nixops_lab.ec2.instance_entry import association, group_entries, private_dns
from nixops_lab.ec2.records import Interface
from nixops_lab.ec2.region import Region


def changed_groups(region: Region, interface: Interface, group_ids: Sequence[str]) -> None:
    """Give the interface another whole set of groups, at least one."""
    if not group_ids:
        raise missing("securityGroupId")
    groups = ids.pick(ids.GROUP, group_ids, region.visible(region.groups))
    for group in groups:
        if group.vpc_id != interface.subnet.vpc_id:
            raise Ec2Error(
                "InvalidGroup.NotFound",
                f"You have specified two resources that belong to different networks: '{group.id}' and "
                f"'{interface.id}'",
            )
    chosen = tuple(dict.fromkeys(group.id for group in groups))
    region.interfaces[interface.id] = replace(interface, group_ids=chosen)


def changed_check(region: Region, interface: Interface, wanted: Mapping[str, bool]) -> None:
    """Switch the check of sources and destinations."""
    region.interfaces[interface.id] = replace(interface, checks_source_and_destination=wanted.get("Value", False))


async def modify_network_interface_attribute(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """The groups of an interface, or its check of sources and destinations; nothing else is modelled."""
    (interface,) = ids.pick(ids.INTERFACE, [params["NetworkInterfaceId"]], region.visible(region.interfaces))
    changes = set(params) - {"NetworkInterfaceId", "DryRun"}
    if len(changes) != 1:
        raise combination("Exactly one attribute may be modified in a request")
    match changes.pop():
        case "Groups":
            changed_groups(region, interface, params["Groups"])
        case "SourceDestCheck":
            changed_check(region, interface, params["SourceDestCheck"])
        case other:
            raise unsupported(f"the lab does not model a change of {other}")
    return {}


_READERS: dict[str, Any] = {
    "attachment.instance-id": lambda i: [] if i.terminated_at is not None else [i.instance_id],
    "availability-zone": lambda i: [i.subnet.zone],
    "group-id": lambda i: i.group_ids,
    "network-interface-id": lambda i: [i.id],
    "owner-id": always(ACCOUNT),
    "private-ip-address": lambda i: [i.private_address],
    "addresses.private-ip-address": lambda i: [i.private_address],
    "status": lambda i: [_status(i)],
    "subnet-id": lambda i: [i.subnet.id],
    "vpc-id": lambda i: [i.subnet.vpc_id],
}


def _status(interface: Interface) -> str:
    return "in-use" if interface.terminated_at is None else "available"


async def describe_network_interfaces(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters; those of a terminated instance until they are released."""
    present = region.visible(region.interfaces)
    chosen = list(present.values())
    if interface_ids := params.get("NetworkInterfaceIds"):
        chosen = ids.pick(ids.INTERFACE, interface_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "NetworkInterfaceIds")
    return {"NetworkInterfaces": [_interface_entry(region, interface) for interface in shown], "NextToken": token}


def _interface_entry(region: Region, interface: Interface) -> dict[str, Any]:
    instance = region.instances.get(interface.instance_id)
    public = association(region, instance)
    private_name = private_dns(region, interface.private_address)
    entry: dict[str, Any] = {
        "NetworkInterfaceId": interface.id,
        "Status": _status(interface),
        "OwnerId": ACCOUNT,
        "RequesterManaged": False,
        "InterfaceType": "interface",
        "AvailabilityZone": interface.subnet.zone,
        "SubnetId": interface.subnet.id,
        "VpcId": interface.subnet.vpc_id,
        "MacAddress": interface.mac,
        "Description": "",
        "SourceDestCheck": interface.checks_source_and_destination,
        "PrivateIpAddress": interface.private_address,
        "PrivateDnsName": private_name,
        "PrivateIpAddresses": [
            {
                "Primary": True,
                "PrivateIpAddress": interface.private_address,
                "PrivateDnsName": private_name,
                "Association": public,
            }
        ],
        "Association": public,
        "Groups": group_entries(region, interface.group_ids),
        "TagSet": tags.as_list(region.tags_shown(interface.id)),
    }
    if interface.terminated_at is None:
        entry["Attachment"] = {
            "AttachmentId": interface.attachment_id,
            "AttachTime": interface.created_at,
            "DeleteOnTermination": True,
            "DeviceIndex": 0,
            "InstanceId": interface.instance_id,
            "InstanceOwnerId": ACCOUNT,
            "Status": "attached",
        }
    return entry


OPERATIONS = {
    "DescribeNetworkInterfaces": describe_network_interfaces,
    "ModifyNetworkInterfaceAttribute": modify_network_interface_attribute,
}
