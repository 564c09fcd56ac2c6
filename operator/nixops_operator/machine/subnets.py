"""In which subnet an instance is launched: the first of the list in which EC2 has room. Pure, but for the note of a
refusal.

    subnetIds: [a, b, c] ─► launch in a ─► no room ─► status.fullSubnets: a ─► another attempt, in b ─► …
                              ▲                                                       │
                              └── three minutes later, or when all have no room ◄─────┘

A zone in which EC2 does not offer the type has no room in this sense: the others are tried before it. A machine that
has data volumes stays in their zone, with room or without.

A token counts in the zone that it was first used in, so that another subnet is another attempt, allowed only after EC2
has refused the one before (launch.py). Sources: EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests";
EC2 API Reference, "Error codes for the Amazon EC2 API".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from nixops_operator.api.status import FullSubnetStatus
from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.cloud import Instance, SecurityGroup, Subnet, Volume

FULL_FOR = timedelta(minutes=3)
"""Capacity comes back within minutes; so long, other subnets have the better chance. Assumed."""
NO_ROOM_AT_LAUNCH = "Server.InsufficientInstanceCapacity"
"""The state reason of an instance for which there was no room after all."""
_FIELD = "spec.target.ec2.subnetIds"


def choose(
    candidates: Sequence[Subnet],
    instance_type: str,
    full: Iterable[FullSubnetStatus],
    instances: Iterable[Instance],
    now: datetime,
) -> Subnet:
    """The first with room as far as anybody knows; where all had none of late, the one that was asked longest ago.
    `instances`: of this machine, dead ones among them. `now` is aware."""
    known = {one.subnet_id: one.at for one in full if one.instance_type == instance_type}
    for one in instances:
        if one.state_reason == NO_ROOM_AT_LAUNCH and one.instance_type == instance_type:
            known[one.subnet_id] = max(one.launch_time, known.get(one.subnet_id, one.launch_time))
    fresh = {name: at for name, at in known.items() if now - at < FULL_FOR}
    free = [one for one in candidates if one.id not in fresh]
    return free[0] if free else min(candidates, key=lambda one: fresh[one.id])


def others_with_room(
    declared: Sequence[str], refused: str, instance_type: str, full: Iterable[FullSubnetStatus], now: datetime
) -> tuple[str, ...]:
    """The subnets of the list that are tried next, at once."""
    crowded = {one.subnet_id for one in full if one.instance_type == instance_type and now - one.at < FULL_FOR}
    return tuple(one for one in declared if one != refused and one not in crowded)


def noted(
    full: Iterable[FullSubnetStatus], subnet: Subnet, instance_type: str, now: datetime, declared: Sequence[str]
) -> tuple[FullSubnetStatus, ...]:
    """With this one, the newest last; those that have left the spec are forgotten."""
    kept = [one for one in full if one.subnet_id != subnet.id and one.subnet_id in declared]
    entry = FullSubnetStatus(subnet_id=subnet.id, zone=subnet.zone, instance_type=instance_type, at=now)
    return (*kept, entry)


def in_one_vpc(found: Sequence[Subnet]) -> Sequence[Subnet]:
    """Raises InvalidSpec for subnets of several VPCs: security groups and addresses are of one."""
    vpcs = sorted({one.vpc_id for one in found})
    if len(vpcs) > 1:
        raise InvalidSpec(_FIELD, f"these are subnets of {', '.join(vpcs)}; name those of one VPC")
    return found


def beside(candidates: Sequence[Subnet], volumes: Mapping[str, Volume], field: str) -> Sequence[Subnet]:
    """Those in the zone of the volumes that the machine is to have; `volumes`: entry → volume, as far as they exist. In
    another zone EC2 attaches none of them, and what is in them would be lost to the machine (EBS User Guide, "Attach an
    Amazon EBS volume to an Amazon EC2 instance").

    Raises InvalidSpec where there is none.
    """
    fitting = [one for one in candidates if all(one.zone == volume.zone for volume in volumes.values())]
    if fitting or not volumes:
        return fitting or candidates
    where = ", ".join(f"{volume.id} (volume {entry}) is in {volume.zone}" for entry, volume in sorted(volumes.items()))
    named = ", ".join(f"{one.id} in {one.zone}" for one in candidates)
    message = (
        f"{where}, and cannot be attached to an instance of {named}: name a subnet of that zone, or rename the entry "
        "to get a new, empty volume"
    )
    raise InvalidSpec(field, message)


def agree(subnet: Subnet, groups: Iterable[SecurityGroup]) -> None:
    """Raises InvalidSpec for a security group of another VPC than the subnet's; EC2 refuses the launch for it."""
    for group in groups:
        if group.vpc_id != subnet.vpc_id:
            message = (
                f"security group {group.name} ({group.id}) is in {group.vpc_id}, and {subnet.id} is in "
                f"{subnet.vpc_id}; name groups of that VPC (a deployment's own: securityGroups[].vpcId)"
            )
            raise InvalidSpec("spec.target.ec2.securityGroups", message)
