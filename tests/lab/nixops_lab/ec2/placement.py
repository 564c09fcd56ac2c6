"""Placement groups, by name. EC2 API Reference, "CreatePlacementGroup", "DescribePlacementGroups".

Which group takes which instances: EC2 User Guide, "Placement strategies for your placement groups"; of these rules the
lab has one, that a spread group takes instances of tenancy `default` or `dedicated`, not of `host`.
"""

from collections.abc import Mapping
from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, incorrect_state, invalid, missing, unsupported
from nixops_lab.ec2.records import PlacementGroup
from nixops_lab.ec2.region import Region

_STRATEGIES = {"cluster", "spread", "partition"}


def placement_of(region: Region, wanted: Mapping[str, Any]) -> tuple[str, str]:
    """(tenancy, name of the placement group or empty) of a launch. Raises where EC2 refuses it."""
    if extra := sorted(set(wanted) - {"AvailabilityZone", "Tenancy", "GroupName"}):
        raise unsupported(f"the lab does not model {extra[0]} of Placement")
    tenancy, name = wanted.get("Tenancy", "default"), wanted.get("GroupName", "")
    if tenancy == "host":
        raise unsupported("the lab has no dedicated hosts")
    if tenancy not in {"default", "dedicated"}:
        raise invalid(f"Invalid value '{tenancy}' for tenancy.")
    if name and name not in region.placement_groups:
        raise _unknown(name)
    return tenancy, name


def _unknown(name: str) -> Ec2Error:
    return Ec2Error("InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")


async def create_placement_group(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Empty, under a name that none has."""
    name = params.get("GroupName")
    if not name:
        raise missing("groupName")
    if params.get("Strategy") not in _STRATEGIES:
        raise invalid(f"Invalid value '{params.get('Strategy')}' for strategy.")
    if name in region.placement_groups:
        raise Ec2Error("InvalidPlacementGroup.Duplicate", f"The Placement Group '{name}' already exists.")
    group = PlacementGroup(region.new_ids.new("pg"), name, params["Strategy"], cloud.panel.clock())
    region.placement_groups[name] = group
    return {"PlacementGroup": _entry(group)}


async def describe_placement_groups(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """All, or those of the given names."""
    wanted = params.get("GroupNames")
    for name in wanted or ():
        if name not in region.placement_groups:
            raise _unknown(name)
    found = [group for name, group in region.placement_groups.items() if not wanted or name in wanted]
    return {"PlacementGroups": [_entry(group) for group in found]}


async def delete_placement_group(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Only without instances."""
    name = params["GroupName"]
    if name not in region.placement_groups:
        raise _unknown(name)
    if any(each.placement_group == name and each.state != "terminated" for each in region.instances.values()):
        raise Ec2Error("InvalidPlacementGroup.InUse", f"The Placement Group '{name}' is in use and may not be deleted.")
    del region.placement_groups[name]
    return {}


def _entry(group: PlacementGroup) -> dict[str, Any]:
    return {"GroupName": group.name, "GroupId": group.id, "Strategy": group.strategy, "State": "available"}


async def modify_instance_placement(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Another placement group for a stopped instance; an empty name is none. EC2 API Reference,
    "ModifyInstancePlacement"."""
    if extra := sorted(set(params) - {"InstanceId", "GroupName", "DryRun"}):
        raise unsupported(f"the lab does not model a change of {extra[0]}")
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    name = params.get("GroupName")
    if name is None:
        raise missing("groupName")
    if instance.state != "stopped":
        raise incorrect_state(f"The instance '{instance.id}' is not in the 'stopped' state.")
    if name and name not in region.placement_groups:
        raise _unknown(name)
    region.change(instance.id, placement_group=name)
    return {"Return": True}


OPERATIONS = {
    "CreatePlacementGroup": create_placement_group,
    "DeletePlacementGroup": delete_placement_group,
    "DescribePlacementGroups": describe_placement_groups,
    "ModifyInstancePlacement": modify_instance_placement,
}
