"""Whether EC2 has room for more instances, and whether the account may have them. No knob set: always.

Facts: EC2 User Guide, "Troubleshoot Amazon EC2 instance launch issues" (insufficient instance capacity, instance limit
exceeded), "Amazon EC2 On-Demand Instances" (limits in vCPUs) and "Amazon EC2 instance types" (not every zone offers
each); codes: EC2 API Reference, "Error codes".
"""

from collections.abc import Iterable

from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.knobs import Knobs
from nixops_lab.ec2.records import Instance, InstanceType
from nixops_lab.ec2.region import Region

# What is stopped has given its place back, and gets another one at its start.
_HOLDING = frozenset({"pending", "running", "stopping", "shutting-down"})
_COUNTED = frozenset({"pending", "running", "stopping"})


def room(region: Region, instance_type: InstanceType, zone: str, least: int, most: int) -> int:
    """How many of `most` instances may be launched. Raises if that is less than `least`.

    `InsufficientInstanceCapacity` with HTTP 500, which clients take for a fault of the server; `VcpuLimitExceeded`;
    `Unsupported` for a zone that does not offer the type.
    """
    knobs = region.panel.knobs
    if zone in knobs.not_offered.get(instance_type.name, ()):
        raise Ec2Error(
            "Unsupported",
            f"Your requested instance type ({instance_type.name}) is not supported in your requested Availability Zone "
            f"({zone}). Please retry your request by not specifying an Availability Zone or choosing another.",
        )
    allowed = _within_quota(knobs, region, instance_type, most)
    if allowed < least:
        raise Ec2Error(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {knobs.quota_vcpus} allows for the "
            "instance bucket that the specified instance type belongs to. Please visit "
            "http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.",
        )
    there = _with_capacity(knobs, region, instance_type.name, zone, allowed)
    if there < least:
        raise Ec2Error(
            "InsufficientInstanceCapacity",
            f"We currently do not have sufficient {instance_type.name} capacity in the Availability Zone you requested "
            f"({zone}). Our system will be working on provisioning additional capacity.",
            500,
        )
    return there


def _within_quota(knobs: Knobs, region: Region, instance_type: InstanceType, most: int) -> int:
    if knobs.quota_vcpus is None:
        return most
    used = sum(instance.instance_type.vcpus for instance in _in(region.instances.values(), _COUNTED))
    return max(0, min(most, (knobs.quota_vcpus - used) // instance_type.vcpus))


def _with_capacity(knobs: Knobs, region: Region, name: str, zone: str, most: int) -> int:
    there = most
    of_type = [one for one in _in(region.instances.values(), _HOLDING) if one.instance_type.name == name]
    for member, beside in ((name, of_type), (f"{name}.{zone}", [one for one in of_type if one.subnet.zone == zone])):
        if member in knobs.capacity:
            there = min(there, knobs.capacity[member] - len(beside))
    return max(0, there)


def _in(instances: Iterable[Instance], states: frozenset[str]) -> list[Instance]:
    return [instance for instance in instances if instance.state in states]
