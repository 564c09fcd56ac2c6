"""Which EC2 operations there are: served here, passed on to moto, or refused because they are not modelled."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from nixops_lab.ec2 import (
    credit_options,
    elastic_addresses,
    group_rules,
    groups,
    images,
    instances,
    interfaces,
    keys,
    launch,
    metadata_options,
    placement,
    profiles,
    snapshots,
    tags,
    volumes,
)
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.region import Region

Operation = Callable[[Cloud, Region, dict[str, Any]], Awaitable[dict[str, Any]]]

# moto knows these kinds, and nothing in the layer has another opinion about them.
FORWARDED = frozenset(
    {
        "AssociateRouteTable",
        "AssociateVpcCidrBlock",
        "AttachInternetGateway",
        "CreateDefaultSubnet",
        "CreateDefaultVpc",
        "CreateInternetGateway",
        "CreateRoute",
        "CreateRouteTable",
        "CreateSubnet",
        "CreateVpc",
        "DeleteSubnet",
        "DeleteVpc",
        "DescribeAccountAttributes",
        "DescribeAvailabilityZones",
        "DescribeInstanceTypeOfferings",
        "DescribeInstanceTypes",
        "DescribeInternetGateways",
        "DescribeNetworkAcls",
        "DescribeRegions",
        "DescribeRouteTables",
        "DescribeSpotInstanceRequests",
        "DescribeSubnets",
        "DescribeVpcAttribute",
        "DescribeVpcs",
        "DisassociateVpcCidrBlock",
        "ModifySubnetAttribute",
        "ModifyVpcAttribute",
    }
)


def served(lifecycle: Lifecycle) -> dict[str, Operation]:
    """Operation name → function, for all that the layer answers itself."""
    operations: dict[str, Operation] = {
        **credit_options.OPERATIONS,
        **elastic_addresses.OPERATIONS,
        **group_rules.OPERATIONS,
        **groups.OPERATIONS,
        **images.OPERATIONS,
        **instances.OPERATIONS,
        **interfaces.OPERATIONS,
        **keys.OPERATIONS,
        **metadata_options.OPERATIONS,
        **placement.OPERATIONS,
        **profiles.OPERATIONS,
        **snapshots.OPERATIONS,
        **tags.OPERATIONS,
        **volumes.OPERATIONS,
    }
    transitions = {
        "RunInstances": launch.run_instances,
        **instances.TRANSITIONS,
        **elastic_addresses.TRANSITIONS,
        **volumes.TRANSITIONS,
    }
    return operations | {name: functools.partial(function, lifecycle) for name, function in transitions.items()}


def is_read(name: str) -> bool:
    """Whether an operation changes nothing."""
    return name.startswith(("Describe", "Get", "List"))
