"""boto3's answers as the port's values, canonical rules as EC2's parameters. Pure.

Shapes: EC2 API Reference, data types "Instance", "SecurityGroupRule", "IpPermission", "KeyPairInfo".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nixops_operator.ec2.rules import Direction, PeerKind, Rule, canonical_rule
from nixops_operator.facts.cloud import (
    Address,
    Image,
    Instance,
    InstanceState,
    KeyPair,
    LaunchRequest,
    MetadataOptions,
    ObservedRule,
    SecurityGroup,
    Subnet,
    Volume,
    VolumeSettings,
)

Answer = Mapping[str, Any]


def tags(answer: Answer) -> dict[str, str]:
    return {tag["Key"]: tag.get("Value", "") for tag in answer.get("Tags", ())}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": tags[key]} for key in sorted(tags)]


def tag_specifications(resource_type: str, tags: Mapping[str, str]) -> list[Any]:
    return [{"ResourceType": resource_type, "Tags": tag_list(tags)}]


def instance(answer: Answer) -> Instance:
    return Instance(
        id=answer["InstanceId"],
        state=_state(answer.get("State", {}).get("Name", "")),
        state_reason=answer.get("StateReason", {}).get("Code", ""),
        instance_type=answer.get("InstanceType", ""),
        image_id=answer.get("ImageId", ""),
        zone=answer.get("Placement", {}).get("AvailabilityZone", ""),
        subnet_id=answer.get("SubnetId", ""),
        private_address=answer.get("PrivateIpAddress") or None,
        public_address=answer.get("PublicIpAddress") or None,
        key_name=answer.get("KeyName") or None,
        security_group_ids=tuple(sorted(group["GroupId"] for group in answer.get("SecurityGroups", ()))),
        tags=tags(answer),
        launch_time=answer.get("LaunchTime", datetime.min.replace(tzinfo=UTC)).astimezone(UTC),
        client_token=answer.get("ClientToken", ""),
        state_reason_message=answer.get("StateReason", {}).get("Message", ""),
        # `pending` is on its way to `enabled`, `disabling` to `disabled`: EC2 API Reference, "Monitoring".
        monitoring=answer.get("Monitoring", {}).get("State", "") in ("enabled", "pending"),
        source_dest_check=bool(answer.get("SourceDestCheck", True)),
        metadata=_metadata_options(answer.get("MetadataOptions", {})),
        metadata_pending=answer.get("MetadataOptions", {}).get("State") == "pending",
        public_ip=_has_public_ip(answer),
        ebs_optimized=bool(answer.get("EbsOptimized", False)),
        tenancy=answer.get("Placement", {}).get("Tenancy", "default"),
        placement_group=answer.get("Placement", {}).get("GroupName", ""),
        instance_profile=profile_name(answer),
        root_volume_id=_root_volume_id(answer),
    )


def _root_volume_id(answer: Answer) -> str:
    root = answer.get("RootDeviceName")
    devices = answer.get("BlockDeviceMappings", ())
    return next((one.get("Ebs", {}).get("VolumeId", "") for one in devices if one.get("DeviceName") == root), "")


def volume(answer: Answer) -> Volume:
    return Volume(
        id=answer["VolumeId"],
        state=answer.get("State", ""),
        zone=answer.get("AvailabilityZone", ""),
        settings=VolumeSettings(
            answer.get("Size"),
            answer.get("VolumeType"),
            answer.get("Iops"),
            answer.get("Throughput"),
            bool(answer.get("Encrypted", False)),
            answer.get("SnapshotId") or None,  # empty for one that was made empty
        ),
        tags=tags(answer),
        **_attachment(answer),
    )


def _attachment(answer: Answer) -> dict[str, str]:
    """The one that is not over; a volume of ours is attached once at a time."""
    for one in answer.get("Attachments", ()):
        if one.get("State") != "detached":
            return {
                "instance_id": one.get("InstanceId", ""),
                "device": one.get("Device", ""),
                "attachment": one.get("State", ""),
            }
    return {}


def volume_parameters(settings: VolumeSettings) -> dict[str, Any]:
    """As ModifyVolume takes them; a launch calls the size VolumeSize."""
    parameters = {
        "Size": settings.size_gib,
        "VolumeType": settings.type,
        "Iops": settings.iops,
        "Throughput": settings.throughput_mib,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def profile_name(answer: Answer) -> str:
    """Of an instance, or an association. `arn:aws:iam::123456789012:instance-profile/path/name`; empty without one."""
    return str(answer.get("IamInstanceProfile", {}).get("Arn", "")).rpartition("/")[2]


def _metadata_options(answer: Answer) -> MetadataOptions:
    usual = MetadataOptions()
    return MetadataOptions(
        answer.get("HttpTokens", usual.tokens),
        answer.get("HttpPutResponseHopLimit", usual.hop_limit),
        answer.get("InstanceMetadataTags", usual.tags),
        answer.get("HttpEndpoint", usual.endpoint),
    )


def metadata_parameters(options: MetadataOptions) -> dict[str, Any]:
    """As ModifyInstanceMetadataOptions takes them: with a service that is switched off, nothing else
    (terraform-provider-aws, internal/service/ec2/ec2_instance.go)."""
    if options.endpoint == "disabled":
        return {"HttpEndpoint": options.endpoint}
    return {
        "HttpEndpoint": options.endpoint,
        "HttpTokens": options.tokens,
        "HttpPutResponseHopLimit": options.hop_limit,
        "InstanceMetadataTags": options.tags,
    }


def _has_public_ip(answer: Answer) -> bool | None:
    """EC2's own addresses are those of `amazon`, an elastic one is its account's; and a stopped instance has none until
    it is started: EC2 API Reference, "InstanceNetworkInterfaceAssociation"."""
    if answer.get("State", {}).get("Name") != InstanceState.RUNNING:
        return None
    owners = {one.get("Association", {}).get("IpOwnerId") for one in answer.get("NetworkInterfaces", ())} - {None}
    return bool(owners) if owners <= {"amazon"} else None


def launch_parameters(request: LaunchRequest) -> dict[str, Any]:
    """RunInstances' parameters, without ClientToken, MinCount and MaxCount.

    The same request gives the same ones for ever: EC2 refuses a token that comes with others.
    """
    metadata = metadata_parameters(request.metadata)
    if request.metadata.tags == MetadataOptions.tags:
        metadata.pop("InstanceMetadataTags", None)  # the requests of earlier releases went out without it
    parameters: dict[str, Any] = {
        "ImageId": request.image_id,
        "InstanceType": request.instance_type,
        "UserData": request.user_data,
        "TagSpecifications": [
            *tag_specifications("instance", request.tags),
            *tag_specifications("volume", request.tags),
        ],
        "MetadataOptions": metadata,
        **_network_parameters(request),
        **_disk_parameters(request),
    }
    if request.key_name is not None:
        parameters["KeyName"] = request.key_name
    if request.monitoring:
        parameters["Monitoring"] = {"Enabled": True}
    if request.ebs_optimized is not None:
        parameters["EbsOptimized"] = request.ebs_optimized
    if request.termination_protection is not None:
        parameters["DisableApiTermination"] = request.termination_protection
    if request.stop_protection is not None:
        parameters["DisableApiStop"] = request.stop_protection
    if request.shutdown_behavior is not None:
        parameters["InstanceInitiatedShutdownBehavior"] = request.shutdown_behavior
    if request.credits is not None:
        parameters["CreditSpecification"] = {"CpuCredits": request.credits}
    if request.instance_profile is not None:
        parameters["IamInstanceProfile"] = {"Name": request.instance_profile}
    placement = {"Tenancy": request.tenancy, "GroupName": request.placement_group}
    if placement := {name: value for name, value in placement.items() if value is not None}:
        parameters["Placement"] = placement
    return parameters


def _disk_parameters(request: LaunchRequest) -> dict[str, Any]:
    """What is not said of the root volume is as the image has it."""
    if request.root_volume is None:
        return {}
    settings = request.root_volume.settings
    ebs = {"DeleteOnTermination": True, **volume_parameters(settings)}
    if settings.size_gib is not None:
        ebs["VolumeSize"] = ebs.pop("Size")
    if settings.encrypted is not None:
        ebs["Encrypted"] = settings.encrypted
    return {"BlockDeviceMappings": [{"DeviceName": request.root_volume.device, "Ebs": ebs}]}


def _network_parameters(request: LaunchRequest) -> dict[str, Any]:
    """Whether there is a public address is asked of a network interface, and then subnet and groups are its own."""
    groups = list(request.security_group_ids)
    if request.public_ip is None:
        return {"SubnetId": request.subnet_id, **({"SecurityGroupIds": groups} if groups else {})}
    interface = {"DeviceIndex": 0, "SubnetId": request.subnet_id, "AssociatePublicIpAddress": request.public_ip}
    return {"NetworkInterfaces": [interface | ({"Groups": groups} if groups else {})]}


def _state(name: str) -> InstanceState:
    try:
        return InstanceState(name)
    except ValueError:
        return InstanceState.UNKNOWN


def security_group(answer: Answer, rules: Iterable[Answer]) -> SecurityGroup:
    """A group of DescribeSecurityGroups with its rules of DescribeSecurityGroupRules."""
    return SecurityGroup(
        id=answer["GroupId"],
        name=answer["GroupName"],
        description=answer.get("Description", ""),
        vpc_id=answer.get("VpcId", ""),
        tags=tags(answer),
        rules=tuple(sorted(map(observed_rule, rules), key=lambda rule: rule.id)),
    )


def observed_rule(answer: Answer) -> ObservedRule:
    kind, peer = _peer(answer)
    return ObservedRule(
        id=answer["SecurityGroupRuleId"],
        rule=canonical_rule(
            Direction.EGRESS if answer.get("IsEgress") else Direction.INGRESS,
            answer["IpProtocol"],
            answer.get("FromPort"),
            answer.get("ToPort"),
            kind,
            peer,
        ),
        description=answer.get("Description", ""),
    )


def _peer(answer: Answer) -> tuple[PeerKind, str]:
    if cidr := answer.get("CidrIpv4"):
        return PeerKind.IPV4, cidr
    if cidr := answer.get("CidrIpv6"):
        return PeerKind.IPV6, cidr
    if prefix_list := answer.get("PrefixListId"):
        return PeerKind.PREFIX_LIST, prefix_list
    group = answer["ReferencedGroupInfo"]
    owner = group.get("UserId")
    # A group of the own account goes by its id alone; another account's keeps its owner: `123456789012/sg-…`.
    is_foreign = owner and owner != answer.get("GroupOwnerId", owner)
    return PeerKind.GROUP, f"{owner}/{group['GroupId']}" if is_foreign else group["GroupId"]


def ip_permission(rule: Rule, description: str) -> dict[str, Any]:
    """One rule as one IpPermission."""
    permission: dict[str, Any] = {"IpProtocol": rule.protocol}
    if rule.from_port is not None:
        permission |= {"FromPort": rule.from_port, "ToPort": rule.to_port}
    text = {"Description": description} if description else {}
    match rule.peer_kind:
        case PeerKind.IPV4:
            permission["IpRanges"] = [{"CidrIp": rule.peer} | text]
        case PeerKind.IPV6:
            permission["Ipv6Ranges"] = [{"CidrIpv6": rule.peer} | text]
        case PeerKind.PREFIX_LIST:
            permission["PrefixListIds"] = [{"PrefixListId": rule.peer} | text]
        case PeerKind.GROUP:
            permission["UserIdGroupPairs"] = [_group_pair(rule.peer) | text]
    return permission


def _group_pair(peer: str) -> dict[str, str]:
    owner, _, group_id = peer.rpartition("/")
    return {"UserId": owner, "GroupId": group_id} if owner else {"GroupId": group_id}


def rule_request(answer: Answer, description: str) -> dict[str, Any]:
    """A rule of DescribeSecurityGroupRules as ModifySecurityGroupRules wants it: whole, with another description."""
    request = {
        key: answer[key]
        for key in ("IpProtocol", "FromPort", "ToPort", "CidrIpv4", "CidrIpv6", "PrefixListId")
        if answer.get(key) is not None
    }
    if group := answer.get("ReferencedGroupInfo"):
        request["ReferencedGroupId"] = group["GroupId"]
    return {
        "SecurityGroupRuleId": answer["SecurityGroupRuleId"],
        "SecurityGroupRule": request | {"Description": description},
    }


def key_pair(answer: Answer) -> KeyPair:
    return KeyPair(
        id=answer["KeyPairId"],
        name=answer["KeyName"],
        public_key=without_comment(answer.get("PublicKey", "")),
        tags=tags(answer),
    )


def without_comment(public_key: str) -> str:
    """`<type> <base64>` of an OpenSSH public key line."""
    return " ".join(public_key.split()[:2])


def address(answer: Answer) -> Address:
    return Address(
        id=answer["AllocationId"],
        public_address=answer["PublicIp"],
        tags=tags(answer),
        association_id=answer.get("AssociationId") or None,
        instance_id=answer.get("InstanceId") or None,
    )


def subnet(answer: Answer) -> Subnet:
    return Subnet(
        id=answer["SubnetId"],
        vpc_id=answer["VpcId"],
        zone=answer["AvailabilityZone"],
        has_ipv4=not answer.get("Ipv6Native", False),
    )


def newest_image(answers: Sequence[Answer]) -> Image | None:
    """By creation date (ISO 8601, so text order is time order); equal dates by id."""
    if not answers:
        return None
    newest = max(answers, key=lambda answer: (answer.get("CreationDate", ""), answer["ImageId"]))
    root_device = newest.get("RootDeviceName") or Image.root_device
    return Image(id=newest["ImageId"], name=newest.get("Name", ""), root_device=root_device)


def interface_in_use(answer: Answer) -> str:
    """`eni-… (i-…)`, or what the interface says of itself where no instance holds it."""
    holder = answer.get("Attachment", {}).get("InstanceId") or answer.get("Description") or "no instance"
    return f"{answer['NetworkInterfaceId']} ({holder})"
