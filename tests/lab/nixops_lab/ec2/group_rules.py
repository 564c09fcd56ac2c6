"""Rules of security groups: authorize, revoke, modify, describe.

Facts: EC2 API Reference, "AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress" (in the default VPC values
that match no rule raise no error), "ModifySecurityGroupRules"; VPC User Guide, "Amazon VPC quotas".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.groups import find_group
from nixops_lab.ec2.records import Group, GroupRule
from nixops_lab.ec2.region import Region
from nixops_lab.ec2.rules import RuleKey, as_permissions, canonical, description

# Per direction, IPv4 and IPv6 apart; a group as peer counts in both.
MAX_RULES = 60
_SHORT_FORM = ("CidrIp", "FromPort", "ToPort", "IpProtocol", "SourceSecurityGroupName")


def _group_names(region: Region, group: Group) -> dict[str, str]:
    """Id or name → id, as a rule of `group` may name its peers: ids of its VPC, names only in the default VPC."""
    peers = [other for other in region.visible(region.groups).values() if other.vpc_id == group.vpc_id]
    names = {other.name: other.id for other in peers} if group.vpc_id == region.network.default_vpc else {}
    return names | {other.id: other.id for other in peers}


def _permissions(params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """`IpPermissions`, or the one rule that the old parameters describe."""
    short = {name: params[name] for name in _SHORT_FORM if name in params}
    if params.get("IpPermissions"):
        if short:
            raise combination("The parameter 'ipPermissions' may not be used in combination with 'ipProtocol'")
        return list(params["IpPermissions"])
    if not short:
        raise missing("ipPermissions")
    permission: dict[str, Any] = {name: short[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in short}
    if "CidrIp" in short:
        permission["IpRanges"] = [{"CidrIp": short["CidrIp"]}]
    if "SourceSecurityGroupName" in short:
        permission.setdefault("IpProtocol", "-1")
        permission["UserIdGroupPairs"] = [{"GroupName": short["SourceSecurityGroupName"]}]
    return [permission]


def _authorize(cloud: Cloud, region: Region, params: Mapping[str, Any], *, is_egress: bool) -> dict[str, Any]:
    group = find_group(region, params)
    given = tags.on_create(params, "security-group-rule").get("security-group-rule", {})
    entries = canonical(_permissions(params), is_egress=is_egress, group_of=_group_names(region, group))
    keys = [key for key, _text in entries]
    if len(set(keys)) < len(keys):
        raise invalid("The same permission must not appear multiple times")
    present = {rule.key for rule in region.rules_of(group.id)}
    for key in keys:
        if key in present:
            raise Ec2Error("InvalidPermission.Duplicate", f'the specified rule "{_told(key)}" already exists')
    _refuse_too_many([*present, *keys], is_egress=is_egress)
    added = [region.add_rule(group.id, key, text, cloud.panel.clock()) for key, text in entries]
    for rule in added:
        region.tags.put(rule.id, given, rule.created_at)
    return {"Return": True, "SecurityGroupRules": [_rule_entry(region, rule) for rule in added]}


def _refuse_too_many(keys: Sequence[RuleKey], *, is_egress: bool) -> None:
    for other_family in ("cidr6", "cidr4"):
        weight = sum(1 for key in keys if key.is_egress == is_egress and key.peer_kind != other_family)
        if weight > MAX_RULES:
            raise Ec2Error(
                "RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached."
            )


def _told(key: RuleKey) -> str:
    protocol = "ALL" if key.protocol == "-1" else key.protocol.upper()
    range_text = "" if key.from_port is None else f", from port: {key.from_port}, to port: {key.to_port}"
    return f"peer: {key.peer}, {protocol}{range_text}, ALLOW"


def _revoke(region: Region, params: Mapping[str, Any], *, is_egress: bool) -> dict[str, Any]:
    group = find_group(region, params)
    present = {rule.id: rule for rule in region.rules_of(group.id) if rule.key.is_egress == is_egress}
    if rule_ids := params.get("SecurityGroupRuleIds"):
        if params.get("IpPermissions"):
            raise combination("The parameters securityGroupRuleIds and ipPermissions cannot be used together")
        gone, unmatched = ids.pick(ids.RULE, rule_ids, present), []
    else:
        entries = canonical(_permissions(params), is_egress=is_egress, group_of=_group_names(region, group))
        by_key = {rule.key: rule for rule in present.values()}
        gone = [by_key[key] for key in dict.fromkeys(key for key, _text in entries) if key in by_key]
        unmatched = [(key, text) for key, text in entries if key not in by_key]
        if unmatched and group.vpc_id != region.network.default_vpc:
            raise Ec2Error("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
    for rule in gone:
        region.rules.pop(rule.id, None)
        region.tags.forget(rule.id)
    return {
        "Return": True,
        "UnknownIpPermissions": as_permissions(unmatched, ACCOUNT),
        "RevokedSecurityGroupRules": [_revoked_entry(rule) for rule in gone],
    }


async def authorize_ingress(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """All rules of the call or none."""
    return _authorize(cloud, region, params, is_egress=False)


async def authorize_egress(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """All rules of the call or none."""
    return _authorize(cloud, region, params, is_egress=True)


async def revoke_ingress(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By rule id or by content."""
    return _revoke(region, params, is_egress=False)


async def revoke_egress(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By rule id or by content."""
    return _revoke(region, params, is_egress=True)


async def modify_rules(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Replace the content of rules by id; a rule's direction stays."""
    group = find_group(region, params)
    present = {rule.id: rule for rule in region.rules_of(group.id)}
    changed = {}
    for update in params["SecurityGroupRules"]:
        (rule,) = ids.pick(ids.RULE, [update["SecurityGroupRuleId"]], present)
        wanted = update.get("SecurityGroupRule", {})
        entries = canonical(
            [_as_permission(wanted)], is_egress=rule.key.is_egress, group_of=_group_names(region, group)
        )
        if len(entries) != 1:
            raise invalid("A security group rule has exactly one source or destination")
        changed[rule.id] = replace(rule, key=entries[0][0], description=description(wanted.get("Description")))
    keys = [rule.key for rule in (present | changed).values()]
    if len(set(keys)) < len(keys):
        raise Ec2Error("InvalidPermission.Duplicate", "A rule with this content already exists")
    for is_egress in (False, True):
        _refuse_too_many(keys, is_egress=is_egress)
    region.rules |= changed
    return {"Return": True}


def _as_permission(wanted: Mapping[str, Any]) -> dict[str, Any]:
    permission: dict[str, Any] = {name: wanted[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in wanted}
    # -1 stands for "no port" in this operation's parameters.
    if permission.get("IpProtocol") not in {"icmp", "icmpv6", "1", "58"}:
        permission = {name: value for name, value in permission.items() if value != -1}
    if "CidrIpv4" in wanted:
        permission["IpRanges"] = [{"CidrIp": wanted["CidrIpv4"]}]
    if "CidrIpv6" in wanted:
        permission["Ipv6Ranges"] = [{"CidrIpv6": wanted["CidrIpv6"]}]
    if "ReferencedGroupId" in wanted:
        permission["UserIdGroupPairs"] = [{"GroupId": wanted["ReferencedGroupId"]}]
    return permission


_READERS = {
    "group-id": lambda rule: [rule.group_id],
    "security-group-rule-id": lambda rule: [rule.id],
}


async def describe_rules(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id and filters."""
    groups = region.visible(region.groups)
    present = {rule.id: rule for rule in region.visible(region.rules).values() if rule.group_id in groups}
    chosen = list(present.values())
    if rule_ids := params.get("SecurityGroupRuleIds"):
        chosen = ids.pick(ids.RULE, rule_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "SecurityGroupRuleIds")
    return {"SecurityGroupRules": [_rule_entry(region, rule) for rule in shown], "NextToken": token}


def _peer_members(key: RuleKey) -> dict[str, Any]:
    match key.peer_kind:
        case "cidr4":
            return {"CidrIpv4": key.peer}
        case "cidr6":
            return {"CidrIpv6": key.peer}
    return {}


def _rule_entry(region: Region, rule: GroupRule) -> dict[str, Any]:
    key = rule.key
    referenced = {"GroupId": key.peer, "UserId": ACCOUNT} if key.peer_kind == "group" else None
    return {
        "SecurityGroupRuleId": rule.id,
        "GroupId": rule.group_id,
        "GroupOwnerId": ACCOUNT,
        "IsEgress": key.is_egress,
        "IpProtocol": key.protocol,
        # EC2 writes -1 here where a rule has no ports.
        "FromPort": -1 if key.from_port is None else key.from_port,
        "ToPort": -1 if key.to_port is None else key.to_port,
        **_peer_members(key),
        "ReferencedGroupInfo": referenced,
        "Description": rule.description,
        "Tags": tags.as_list(region.tags_shown(rule.id)),
        "SecurityGroupRuleArn": f"arn:aws:ec2:{region.name}:{ACCOUNT}:security-group-rule/{rule.id}",
    }


def _revoked_entry(rule: GroupRule) -> dict[str, Any]:
    key = rule.key
    return {
        "SecurityGroupRuleId": rule.id,
        "GroupId": rule.group_id,
        "IsEgress": key.is_egress,
        "IpProtocol": key.protocol,
        "FromPort": -1 if key.from_port is None else key.from_port,
        "ToPort": -1 if key.to_port is None else key.to_port,
        **_peer_members(key),
        "ReferencedGroupId": key.peer if key.peer_kind == "group" else None,
        "Description": rule.description,
    }


OPERATIONS = {
    "AuthorizeSecurityGroupEgress": authorize_egress,
    "AuthorizeSecurityGroupIngress": authorize_ingress,
    "DescribeSecurityGroupRules": describe_rules,
    "ModifySecurityGroupRules": modify_rules,
    "RevokeSecurityGroupEgress": revoke_egress,
    "RevokeSecurityGroupIngress": revoke_ingress,
}
