"""An instance as EC2 describes it: record to reply. EC2 API Reference, "Instance"."""

from typing import Any

from nixops_lab.ec2 import tags
from nixops_lab.ec2.cloud import ACCOUNT
from nixops_lab.ec2.records import STATE_CODES, Instance, Interface, Volume
from nixops_lab.ec2.region import Region
from nixops_lab.ec2.tag_book import Tags


def state_entry(state: str) -> dict[str, Any]:
    """`InstanceState`."""
    return {"Code": STATE_CODES[state], "Name": state}


def private_dns(region: Region, address: str) -> str:
    """IP based name: EC2 User Guide, "EC2 instance hostnames and domains"."""
    return f"ip-{address.replace('.', '-')}.{region.name}.compute.internal"


def public_dns(region: Region, address: str | None) -> str:
    """Empty without an address."""
    return "" if address is None else f"ec2-{address.replace('.', '-')}.{region.name}.compute.amazonaws.com"


def group_entries(region: Region, group_ids: tuple[str, ...]) -> list[dict[str, str]]:
    """`GroupIdentifier`s. A group that an interface has cannot be deleted, so each exists."""
    return [{"GroupId": group_id, "GroupName": region.groups[group_id].name} for group_id in group_ids]


def association(region: Region, instance: Instance | None) -> dict[str, Any] | None:
    """The public address of an instance's interface, None without one."""
    if instance is None or instance.public_address is None:
        return None
    address, owner = instance.public_address, ACCOUNT if instance.has_elastic_address else "amazon"
    return {"IpOwnerId": owner, "PublicDnsName": public_dns(region, address), "PublicIp": address}


def instance_entry(region: Region, instance: Instance, shown_tags: Tags) -> dict[str, Any]:
    """One member of `Instances`. A terminated one has lost network, groups and devices."""
    reason = instance.state_reason
    entry: dict[str, Any] = {
        "InstanceId": instance.id,
        "ImageId": instance.image.id,
        "AmiLaunchIndex": instance.launch_index,
        "InstanceType": instance.instance_type.name,
        "Architecture": instance.image.architecture,
        "ClientToken": instance.client_token,
        "KeyName": instance.key_name,
        "LaunchTime": instance.launch_time,
        "State": state_entry(instance.state),
        "StateReason": {"Code": reason[0], "Message": reason[1]} if reason else None,
        "StateTransitionReason": instance.transition_reason,
        "Placement": {
            "AvailabilityZone": instance.subnet.zone,
            "GroupName": instance.placement_group,
            "Tenancy": instance.tenancy,
        },
        "Monitoring": {"State": "enabled" if instance.is_monitored else "disabled"},
        "EbsOptimized": instance.is_ebs_optimized,
        "EnaSupport": True,
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "IamInstanceProfile": {"Arn": instance.profile.profile.arn, "Id": instance.profile.profile.id}
        if instance.profile
        else None,
        "RootDeviceName": "/dev/xvda",
        "RootDeviceType": "ebs",
        "MetadataOptions": metadata_entry(region, instance),
        "ProductCodes": [],
        "Tags": tags.as_list(shown_tags),
        "BlockDeviceMappings": [],
        "NetworkInterfaces": [],
        "SecurityGroups": [],
        "PrivateDnsName": "",
        "PublicDnsName": "",
    }
    if instance.state == "terminated":
        return entry
    return entry | _attached(region, instance)


def metadata_entry(region: Region, instance: Instance) -> dict[str, Any]:
    """`InstanceMetadataOptionsResponse`; a change of a running instance is `pending` for a while."""
    changed, knobs = instance.metadata_changed_at, region.panel.knobs
    is_pending = changed is not None and changed + knobs.metadata_seconds > region.panel.clock()
    return {"State": "pending" if is_pending else "applied", **instance.metadata_options}


def _attached(region: Region, instance: Instance) -> dict[str, Any]:
    # Both are gone where a terminated instance is still shown as it was.
    interface = region.interfaces.get(instance.interface_id)
    volumes = [one for one in region.volumes.values() if one.instance_id == instance.id and one.is_attached]
    return {
        "VpcId": instance.subnet.vpc_id,
        "SubnetId": instance.subnet.id,
        "PrivateIpAddress": instance.private_address,
        "PrivateDnsName": private_dns(region, instance.private_address),
        "PublicIpAddress": instance.public_address,
        "PublicDnsName": public_dns(region, instance.public_address),
        "SourceDestCheck": interface.checks_source_and_destination if interface else True,
        "SecurityGroups": group_entries(region, interface.group_ids) if interface else [],
        "NetworkInterfaces": [_interface_member(region, instance, interface)] if interface else [],
        "BlockDeviceMappings": [_device(volume) for volume in volumes],
    }


def _device(volume: Volume) -> dict[str, Any]:
    return {
        "DeviceName": volume.device,
        "Ebs": {
            "AttachTime": volume.created_at,
            "DeleteOnTermination": volume.is_deleted_on_termination,
            "Status": "attached",
            "VolumeId": volume.id,
        },
    }


def _interface_member(region: Region, instance: Instance, interface: Interface) -> dict[str, Any]:
    public = association(region, instance)
    return {
        "NetworkInterfaceId": interface.id,
        "Status": "in-use",
        "OwnerId": ACCOUNT,
        "VpcId": interface.subnet.vpc_id,
        "SubnetId": interface.subnet.id,
        "MacAddress": interface.mac,
        "InterfaceType": "interface",
        "SourceDestCheck": interface.checks_source_and_destination,
        "Description": "",
        "Groups": group_entries(region, interface.group_ids),
        "Ipv6Addresses": [],
        "PrivateIpAddress": interface.private_address,
        "PrivateDnsName": private_dns(region, interface.private_address),
        "Association": public,
        "PrivateIpAddresses": [
            {
                "Primary": True,
                "PrivateIpAddress": interface.private_address,
                "PrivateDnsName": private_dns(region, interface.private_address),
                "Association": public,
            }
        ],
        "Attachment": {
            "AttachmentId": interface.attachment_id,
            "AttachTime": interface.created_at,
            "DeleteOnTermination": True,
            "DeviceIndex": 0,
            "NetworkCardIndex": 0,
            "Status": "attached",
        },
    }
