"""boto3's answers as the port's values, canonical rules as EC2's parameters. Pure.

Shapes: EC2 API Reference, data types "Instance", "SecurityGroupRule", "IpPermission", "KeyPairInfo".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nixops_operator.ec2.rules import Direction, PeerKind, Rule, canonical_rule
from nixops_operator.facts.cloud import (
    Image,
    Instance,
    InstanceState,
    KeyPair,
    LaunchRequest,
    ObservedRule,
    SecurityGroup,
    Subnet,
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
    )


def launch_parameters(request: LaunchRequest) -> dict[str, Any]:
    """RunInstances' parameters, without ClientToken, MinCount and MaxCount.

    The same request gives the same ones for ever: EC2 refuses a token that comes with others.
    """
    parameters: dict[str, Any] = {
        "ImageId": request.image_id,
        "InstanceType": request.instance_type,
        "SubnetId": request.subnet_id,
        "UserData": request.user_data,
        "TagSpecifications": [
            *tag_specifications("instance", request.tags),
            *tag_specifications("volume", request.tags),
        ],
        # User data holds the first host key: only the instance itself may read it, and only with a session token.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
    }
    if request.key_name is not None:
        parameters["KeyName"] = request.key_name
    if request.security_group_ids:
        parameters["SecurityGroupIds"] = list(request.security_group_ids)
    if request.monitoring:
        parameters["Monitoring"] = {"Enabled": True}
    return parameters


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


def subnet(answer: Answer) -> Subnet:
    return Subnet(id=answer["SubnetId"], vpc_id=answer["VpcId"], zone=answer["AvailabilityZone"])


def newest_image(answers: Sequence[Answer]) -> Image | None:
    """By creation date (ISO 8601, so text order is time order); equal dates by id."""
    if not answers:
        return None
    newest = max(answers, key=lambda answer: (answer.get("CreationDate", ""), answer["ImageId"]))
    return Image(id=newest["ImageId"], name=newest.get("Name", ""))


def interface_in_use(answer: Answer) -> str:
    """`eni-… (i-…)`, or what the interface says of itself where no instance holds it."""
    holder = answer.get("Attachment", {}).get("InstanceId") or answer.get("Description") or "no instance"
    return f"{answer['NetworkInterfaceId']} ({holder})"
