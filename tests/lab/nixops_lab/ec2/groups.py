"""Security groups: create, describe, delete; who holds one. Rules are in group_rules.py.

Facts: EC2 API Reference, "CreateSecurityGroup", "DeleteSecurityGroup", "DescribeSecurityGroups".
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing
from nixops_lab.ec2.filters import always, select
from nixops_lab.ec2.records import Group, GroupRule
from nixops_lab.ec2.region import Region
from nixops_lab.ec2.rules import as_permissions

_TEXT = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{1,255}")


async def create_security_group(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """A group that lets all traffic out, as every new one does."""
    name, description = params.get("GroupName", ""), params["Description"]
    if not name:
        raise missing("GroupName")
    for parameter, text in (("groupName", name), ("groupDescription", description)):
        if not _TEXT.fullmatch(text):
            raise invalid(
                f"Value ({text}) for parameter {parameter} is invalid. Character sets beyond ASCII are not supported."
            )
    if name.lower().startswith("sg-"):
        raise invalid(f"Value ({name}) for parameter GroupName is invalid. Group names may not be in the format sg-*.")
    vpc_id = params.get("VpcId") or region.network.default_vpc
    ids.pick(ids.VPC, [vpc_id], region.network.vpcs)
    given = tags.on_create(params, "security-group").get("security-group", {})
    if any(group.vpc_id == vpc_id and group.name.lower() == name.lower() for group in region.groups.values()):
        raise Ec2Error("InvalidGroup.Duplicate", f"The security group '{name}' already exists for VPC '{vpc_id}'")
    group = Group(region.new_ids.new("sg"), name, description, vpc_id, cloud.panel.clock())
    region.groups[group.id] = group
    region.tags.put(group.id, given, group.created_at)
    region.let_all_out(group)
    return {"GroupId": group.id, "Tags": tags.as_list(given), "SecurityGroupArn": _arn(region, group)}


def find_group(region: Region, params: Mapping[str, Any]) -> Group:
    """The visible group of `GroupId`, or of `GroupName` in the default VPC."""
    return _find_group(region, params, region.visible(region.groups))


def _find_group(region: Region, params: Mapping[str, Any], present: Mapping[str, Group]) -> Group:
    if group_id := params.get("GroupId"):
        return ids.pick(ids.GROUP, [group_id], present)[0]
    if name := params.get("GroupName"):
        return _groups_named(region, [name], present)[0]
    raise missing("GroupId")


def groups_named(region: Region, names: Sequence[str]) -> list[Group]:
    """The visible groups. Names are only valid in the default VPC. Raises `InvalidGroup.NotFound`."""
    return _groups_named(region, names, region.visible(region.groups))


def _groups_named(region: Region, names: Sequence[str], present: Mapping[str, Group]) -> list[Group]:
    by_name = {group.name: group for group in present.values() if group.vpc_id == region.network.default_vpc}
    for name in names:
        if name not in by_name:
            raise Ec2Error("InvalidGroup.NotFound", f"The security group '{name}' does not exist in default VPC")
    return [by_name[name] for name in names]


async def delete_security_group(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Refused while an interface has the group or a rule of another group names it.

    A group too new to be shown is there all the same.
    """
    group = _find_group(region, params, region.groups)
    if group.name == "default":
        raise Ec2Error("CannotDelete", f'the specified group: "{group.id}" name: "default" cannot be deleted by a user')
    in_use = any(group.id in interface.group_ids for interface in region.interfaces.values())
    named = any(
        rule.key.peer_kind == "group" and rule.key.peer == group.id and rule.group_id != group.id
        for rule in region.rules.values()
    )
    if in_use or named:
        raise Ec2Error("DependencyViolation", f"resource {group.id} has a dependent object")
    for rule in region.rules_of(group.id):
        del region.rules[rule.id]
        region.tags.forget(rule.id)
    del region.groups[group.id]
    region.tags.forget(group.id)
    return {"Return": True, "GroupId": group.id}


async def describe_security_groups(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By id, name (default VPC) and filters."""
    present = region.visible(region.groups)
    chosen = list(present.values())
    if group_ids := params.get("GroupIds"):
        if params.get("GroupNames"):
            raise combination("The parameters GroupId and GroupName cannot be used together")
        chosen = ids.pick(ids.GROUP, group_ids, present)
    elif names := params.get("GroupNames"):
        chosen = groups_named(region, names)
    found = select(chosen, params.get("Filters", []), _readers(region), lambda record: region.tags_indexed(record.id))
    shown, token = region.paged(found, params, "GroupIds")
    return {"SecurityGroups": [_group_entry(region, group) for group in shown], "NextToken": token}


def _readers(region: Region) -> dict[str, Any]:
    def permissions(is_egress: bool, read: Any) -> Any:
        return lambda group: [
            str(value)
            for rule in region.rules_shown(group.id)
            if rule.key.is_egress == is_egress and (value := read(rule)) is not None
        ]

    readers: dict[str, Any] = {
        "description": lambda group: [group.description],
        "group-id": lambda group: [group.id],
        "group-name": lambda group: [group.name],
        "owner-id": always(ACCOUNT),
        "vpc-id": lambda group: [group.vpc_id],
    }
    for prefix, is_egress in (("ip-permission", False), ("egress.ip-permission", True)):
        readers |= {
            f"{prefix}.cidr": permissions(is_egress, lambda rule: _peer(rule, "cidr4")),
            f"{prefix}.ipv6-cidr": permissions(is_egress, lambda rule: _peer(rule, "cidr6")),
            f"{prefix}.group-id": permissions(is_egress, lambda rule: _peer(rule, "group")),
            f"{prefix}.from-port": permissions(is_egress, lambda rule: rule.key.from_port),
            f"{prefix}.to-port": permissions(is_egress, lambda rule: rule.key.to_port),
            f"{prefix}.protocol": permissions(is_egress, lambda rule: rule.key.protocol),
        }
    return readers


def _peer(rule: GroupRule, kind: str) -> str | None:
    return rule.key.peer if rule.key.peer_kind == kind else None


def _group_entry(region: Region, group: Group) -> dict[str, Any]:
    rules = region.shuffled(region.rules_shown(group.id))
    return {
        "GroupId": group.id,
        "GroupName": group.name,
        "Description": group.description,
        "OwnerId": ACCOUNT,
        "VpcId": group.vpc_id,
        "SecurityGroupArn": _arn(region, group),
        "IpPermissions": as_permissions([(r.key, r.description) for r in rules if not r.key.is_egress], ACCOUNT),
        "IpPermissionsEgress": as_permissions([(r.key, r.description) for r in rules if r.key.is_egress], ACCOUNT),
        "Tags": tags.as_list(region.tags_shown(group.id)),
    }


def _arn(region: Region, group: Group) -> str:
    return f"arn:aws:ec2:{region.name}:{ACCOUNT}:security-group/{group.id}"


OPERATIONS = {
    "CreateSecurityGroup": create_security_group,
    "DeleteSecurityGroup": delete_security_group,
    "DescribeSecurityGroups": describe_security_groups,
}
