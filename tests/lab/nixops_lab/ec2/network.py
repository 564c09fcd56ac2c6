"""VPCs and subnets of a region as values. moto holds them; the layer reads."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.moto import Moto


@dataclass(frozen=True)
class Subnet:
    """A subnet; `gives_public_address` is its MapPublicIpOnLaunch."""

    id: str
    vpc_id: str
    zone: str
    block: ipaddress.IPv4Network
    is_default: bool
    gives_public_address: bool


@dataclass(frozen=True)
class Network:
    """All VPCs and subnets of one region, by id."""

    vpcs: Mapping[str, bool]  # id → whether it is the default VPC
    ipv6_vpcs: frozenset[str]  # ids of those with an IPv6 block
    subnets: Mapping[str, Subnet]

    @property
    def default_vpc(self) -> str:
        """Id of the default VPC. Raises `VPCIdNotSpecified` where it was deleted."""
        for vpc_id, is_default in self.vpcs.items():
            if is_default:
                return vpc_id
        raise Ec2Error("VPCIdNotSpecified", "No default VPC for this user")

    def default_subnet(self, zone: str | None) -> Subnet:
        """The default subnet of the zone, or of the lowest zone. Raises `MissingInput`."""
        fitting = [s for s in self.subnets.values() if s.is_default and zone in {None, s.zone}]
        if not fitting:
            raise Ec2Error("MissingInput", f"No default subnet for this user in the availability zone: '{zone}'.")
        return min(fitting, key=lambda subnet: subnet.zone)

    @property
    def zones(self) -> set[str]:
        """Names of the zones that have a subnet."""
        return {subnet.zone for subnet in self.subnets.values()}


async def read_network(moto: Moto, region: str) -> Network:
    """The region as moto has it now."""
    vpcs = await moto.call(region, "DescribeVpcs", {})
    subnets = await moto.call(region, "DescribeSubnets", {})
    return Network(
        vpcs={vpc["VpcId"]: vpc["IsDefault"] for vpc in vpcs["Vpcs"]},
        ipv6_vpcs=frozenset(vpc["VpcId"] for vpc in vpcs["Vpcs"] if _has_ipv6(vpc)),
        subnets={entry["SubnetId"]: _subnet(entry) for entry in subnets["Subnets"]},
    )


def _has_ipv6(vpc: Mapping[str, Any]) -> bool:
    blocks = vpc.get("Ipv6CidrBlockAssociationSet", [])
    return any(block["Ipv6CidrBlockState"]["State"] == "associated" for block in blocks)


def _subnet(entry: Mapping[str, Any]) -> Subnet:
    return Subnet(
        id=entry["SubnetId"],
        vpc_id=entry["VpcId"],
        zone=entry["AvailabilityZone"],
        block=ipaddress.IPv4Network(entry["CidrBlock"]),
        is_default=entry["DefaultForAz"],
        gives_public_address=entry["MapPublicIpOnLaunch"],
    )
