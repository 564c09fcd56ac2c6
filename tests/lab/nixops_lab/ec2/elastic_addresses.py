"""Elastic addresses: allocated, associated with instances, released.

Facts: EC2 API Reference, "AllocateAddress", "AssociateAddress", "DisassociateAddress", "ReleaseAddress",
"DescribeAddresses"; EC2 User Guide, "Elastic IP addresses" (an instance without its elastic address gets one of EC2's
again; one that is terminated loses it).
"""

from dataclasses import replace
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing, unsupported
from nixops_lab.ec2.filters import always, select
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.records import ElasticAddress, Instance
from nixops_lab.ec2.region import Region

_TAKING = {"running", "stopping", "stopped"}


async def allocate_address(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """A new one with its tags, each time it is called: there is no client token."""
    if extra := sorted(set(params) - {"Domain", "TagSpecifications", "DryRun"}):
        raise unsupported(f"the lab does not model {extra[0]} of AllocateAddress")
    if params.get("Domain", "vpc") != "vpc":
        raise invalid(f"Invalid value '{params['Domain']}' for domain.")
    given = tags.on_create(params, "elastic-ip").get("elastic-ip", {})
    quota = cloud.panel.knobs.quota_addresses
    if quota is not None and len(region.addresses) >= quota:
        raise Ec2Error("AddressLimitExceeded", "The maximum number of addresses has been reached.")
    now = cloud.panel.clock()
    made = ElasticAddress(region.new_ids.new("eipalloc"), cloud.addresses.public(), now)
    region.addresses[made.id] = made
    region.tags.put(made.id, given, now)
    return {
        "AllocationId": made.id,
        "PublicIp": made.public_address,
        "Domain": "vpc",
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": region.name,
    }


async def associate_address(
    lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """With an instance; what stands in the way is moved unless AllowReassociation is false."""
    if extra := sorted(set(params) - {"AllocationId", "InstanceId", "AllowReassociation", "DryRun"}):
        raise unsupported(f"the lab does not model {extra[0]} of AssociateAddress")
    if "AllocationId" not in params or "InstanceId" not in params:
        raise combination("Either 'AllocationId' or 'InstanceId' is missing")
    address = _named(region, params["AllocationId"])
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    if instance.state not in _TAKING:
        raise Ec2Error(
            "InvalidInstanceID",
            f"The {instance.state} instance '{instance.id}' is not in a valid state for this operation.",
        )
    if address.instance_id == instance.id:
        return {"AssociationId": address.association_id}
    own = region.elastic_address_of(instance.id)
    if not params.get("AllowReassociation", True):
        for resource, standing in ((address.id, address), (instance.interface_id, own)):
            if standing is not None and standing.association_id is not None:
                raise Ec2Error(
                    "Resource.AlreadyAssociated",
                    f"resource {resource} is already associated with associate-id {standing.association_id}",
                )
    for standing in (address, own):
        if standing is not None:
            _let_go(lifecycle, region, standing)
    associated = replace(address, association_id=region.new_ids.new("eipassoc"), instance_id=instance.id)
    region.addresses[address.id] = associated
    lifecycle.readdress(region, instance.id)
    return {"AssociationId": associated.association_id}


async def disassociate_address(
    lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """Its instance, if it runs, gets a public address of EC2's again where it had one."""
    if "AssociationId" not in params:
        raise missing("AssociationId")
    for address in region.addresses.values():
        if address.association_id == params["AssociationId"]:
            _let_go(lifecycle, region, address)
            return {}
    raise Ec2Error("InvalidAssociationID.NotFound", f"The association ID '{params['AssociationId']}' does not exist")


def _let_go(lifecycle: Lifecycle, region: Region, address: ElasticAddress) -> None:
    region.addresses[address.id] = replace(address, association_id=None, instance_id=None)
    if address.instance_id is not None:
        lifecycle.readdress(region, address.instance_id)


async def release_address(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Refused while it is associated."""
    if "AllocationId" not in params:
        raise missing("AllocationId")
    address = _named(region, params["AllocationId"])
    if address.association_id is not None:
        raise Ec2Error("InvalidIPAddress.InUse", f"Address {address.public_address} is in use.")
    del region.addresses[address.id]
    region.tags.forget(address.id)
    cloud.addresses.release_public(address.public_address)
    return {}


def _named(region: Region, allocation_id: str) -> ElasticAddress:
    (address,) = ids.pick(ids.ADDRESS, [allocation_id], region.visible(region.addresses))
    return address


def _of_instance(region: Region, address: ElasticAddress) -> Instance | None:
    return region.instances.get(address.instance_id or "")


def _readers(region: Region) -> dict[str, Any]:
    return {
        "allocation-id": lambda a: [a.id],
        "association-id": lambda a: [a.association_id] if a.association_id else [],
        "domain": always("vpc"),
        "instance-id": lambda a: [a.instance_id] if a.instance_id else [],
        "network-interface-id": lambda a: [i.interface_id] if (i := _of_instance(region, a)) else [],
        "private-ip-address": lambda a: [i.private_address] if (i := _of_instance(region, a)) else [],
        "public-ip": lambda a: [a.public_address],
    }


async def describe_addresses(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters, without pages."""
    present = region.visible(region.addresses)
    chosen = list(present.values())
    if "PublicIps" in params:
        raise unsupported("the lab finds addresses by id and by filter")
    if allocation_ids := params.get("AllocationIds"):
        chosen = ids.pick(ids.ADDRESS, allocation_ids, present)
    found = select(chosen, params.get("Filters", []), _readers(region), lambda record: region.tags_indexed(record.id))
    return {"Addresses": [_entry(region, address) for address in region.shuffled(found)]}


def _entry(region: Region, address: ElasticAddress) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "AllocationId": address.id,
        "PublicIp": address.public_address,
        "Domain": "vpc",
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": region.name,
        "Tags": tags.as_list(region.tags_shown(address.id)),
    }
    if (instance := _of_instance(region, address)) is not None:
        entry |= {
            "AssociationId": address.association_id,
            "InstanceId": instance.id,
            "NetworkInterfaceId": instance.interface_id,
            "NetworkInterfaceOwnerId": ACCOUNT,
            "PrivateIpAddress": instance.private_address,
        }
    return entry


OPERATIONS = {
    "AllocateAddress": allocate_address,
    "DescribeAddresses": describe_addresses,
    "ReleaseAddress": release_address,
}

# These also take the lifecycle, before the other arguments.
TRANSITIONS = {"AssociateAddress": associate_address, "DisassociateAddress": disassociate_address}
