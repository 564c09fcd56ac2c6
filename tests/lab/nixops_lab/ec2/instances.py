"""Instances after their launch: describe, start, stop, reboot, terminate, attributes.

Facts: EC2 API Reference, operations of these names; EC2 User Guide, "Amazon EC2 instance state changes" and
"Change instance termination protection".
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.capacity import room
from nixops_lab.ec2.cloud import ACCOUNT, Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, incorrect_state, invalid, unsupported
from nixops_lab.ec2.filters import always, select
from nixops_lab.ec2.instance_entry import group_entries, instance_entry, private_dns, public_dns, state_entry
from nixops_lab.ec2.interfaces import changed_check, changed_groups
from nixops_lab.ec2.lifecycle import Lifecycle
from nixops_lab.ec2.records import STATE_CODES, Instance
from nixops_lab.ec2.region import Region


def _named(region: Region, params: dict[str, Any]) -> list[Instance]:
    return ids.pick(ids.INSTANCE, dict.fromkeys(params["InstanceIds"]), region.visible(region.instances))


def _readers(region: Region) -> dict[str, Callable[[Instance], Iterable[str]]]:
    def unless_terminated(read: Callable[[Instance], str | None]) -> Callable[[Instance], Iterable[str]]:
        return lambda i: [] if i.state == "terminated" or (value := read(i)) is None else [value]

    return {
        "architecture": lambda i: [i.image.architecture],
        "availability-zone": lambda i: [i.subnet.zone],
        # Which index answers this filter is not documented: the slower one is taken.
        "client-token": lambda i: [i.client_token] if region.is_indexed(i) else [],
        "dns-name": unless_terminated(lambda i: public_dns(region, i.public_address)),
        "image-id": lambda i: [i.image.id],
        "instance-id": lambda i: [i.id],
        "instance-state-code": lambda i: [str(STATE_CODES[i.state])],
        "instance-state-name": lambda i: [i.state],
        "instance-type": lambda i: [i.instance_type.name],
        "instance.group-id": region.group_ids_of,
        "instance.group-name": lambda i: [region.groups[g].name for g in region.group_ids_of(i)],
        "ip-address": unless_terminated(lambda i: i.public_address),
        "key-name": lambda i: [i.key_name] if i.key_name else [],
        "network-interface.group-id": region.group_ids_of,
        "network-interface.network-interface-id": unless_terminated(lambda i: i.interface_id),
        "owner-id": always(ACCOUNT),
        "private-dns-name": unless_terminated(lambda i: private_dns(region, i.private_address)),
        "private-ip-address": unless_terminated(lambda i: i.private_address),
        "reservation-id": lambda i: [i.reservation_id],
        "state-reason-code": lambda i: [i.state_reason[0]] if i.state_reason else [],
        "subnet-id": unless_terminated(lambda i: i.subnet.id),
        "vpc-id": unless_terminated(lambda i: i.subnet.vpc_id),
    }


def _found(region: Region, params: dict[str, Any]) -> tuple[Sequence[Instance], str | None]:
    chosen: Iterable[Instance] = region.visible(region.instances).values()
    if params.get("InstanceIds"):
        chosen = _named(region, params)
    seen = [region.seen(instance) for instance in chosen]
    found = select(seen, params.get("Filters", []), _readers(region), lambda record: region.tags_indexed(record.id))
    return region.paged(found, params, "InstanceIds")


async def describe_instances(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """All states, terminated ones while they last."""
    shown, token = _found(region, params)
    reservations: dict[str, list[Instance]] = {}
    for instance in shown:
        reservations.setdefault(instance.reservation_id, []).append(instance)
    entries = [
        {
            "ReservationId": reservation_id,
            "OwnerId": ACCOUNT,
            "Groups": [],
            "Instances": [instance_entry(region, instance, region.tags_shown(instance.id)) for instance in instances],
        }
        for reservation_id, instances in reservations.items()
    ]
    return {"Reservations": entries, "NextToken": token}


async def describe_instance_status(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Running instances only, unless all are asked for."""
    shown, token = _found(region, params)
    if not params.get("IncludeAllInstances", False):
        shown = [instance for instance in shown if instance.state == "running"]
    return {"InstanceStatuses": [_status_entry(instance) for instance in shown], "NextToken": token}


def _status_entry(instance: Instance) -> dict[str, Any]:
    check = {"Status": "ok" if instance.state == "running" else "not-applicable"}
    return {
        "InstanceId": instance.id,
        "AvailabilityZone": instance.subnet.zone,
        "InstanceState": state_entry(instance.state),
        "InstanceStatus": check,
        "SystemStatus": check,
    }


def _changes(region: Region, before: list[Instance]) -> list[dict[str, Any]]:
    return [
        {
            "InstanceId": instance.id,
            "PreviousState": state_entry(instance.state),
            "CurrentState": state_entry(region.instances[instance.id].state),
        }
        for instance in before
    ]


def _refuse(instances: list[Instance], states: set[str], verb: str) -> None:
    for instance in instances:
        if instance.state in states:
            raise incorrect_state(f"The instance '{instance.id}' is not in a state from which it can be {verb}.")


async def start_instances(
    lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """Stopped ones become pending; running ones stay as they are."""
    named = _named(region, params)
    _refuse(named, {"stopping", "shutting-down", "terminated"}, "started")
    stopped = [instance for instance in named if instance.state == "stopped"]
    for kind, count in Counter((instance.instance_type, instance.subnet.zone) for instance in stopped).items():
        room(region, *kind, count, count)
    for instance in stopped:
        lifecycle.start(region, instance.id)
    return {"StartingInstances": _changes(region, named)}


async def stop_instances(lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Running ones become stopping; stopped ones stay as they are."""
    if params.get("Hibernate"):
        raise Ec2Error("UnsupportedHibernationConfiguration", "Hibernation is not enabled for this instance.")
    named = _named(region, params)
    _refuse(named, {"pending", "shutting-down", "terminated"}, "stopped")
    if protected := [instance for instance in named if instance.is_stop_protected]:
        raise _protected(protected[0], "stopped", "disableApiStop")
    for instance in named:
        if instance.state == "running":
            lifecycle.stop(region, instance.id)
    return {"StoppingInstances": _changes(region, named)}


async def reboot_instances(
    lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """Only what runs can be rebooted; the reply comes before the reboot."""
    named = _named(region, params)
    _refuse(named, set(STATE_CODES) - {"running"}, "rebooted")
    for instance in named:
        lifecycle.reboot(instance.id)
    return {}


async def terminate_instances(
    lifecycle: Lifecycle, _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """A protected instance blocks those of its own zone; the other zones' are terminated all the same."""
    named = _named(region, params)
    # Stop protection also protects from this: EC2 User Guide, "Enable stop protection for your EC2 instances".
    protected = [one for one in named if (one.is_protected or one.is_stop_protected) and one.is_live]
    blocked = {instance.subnet.zone for instance in protected}
    for instance in named:
        if instance.is_live and instance.subnet.zone not in blocked:
            lifecycle.terminate(region, instance.id)
    if protected:
        by = "disableApiTermination" if protected[0].is_protected else "disableApiStop"
        raise _protected(protected[0], "terminated", by)
    return {"TerminatingInstances": _changes(region, named)}


def _protected(instance: Instance, verb: str, attribute: str) -> Ec2Error:
    return Ec2Error(
        "OperationNotPermitted",
        f"The instance '{instance.id}' may not be {verb}. Modify its '{attribute}' instance attribute and try again.",
    )


async def describe_instance_attribute(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """One attribute a call."""
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    match params["Attribute"]:
        case "disableApiTermination":
            value: dict[str, Any] = {"DisableApiTermination": {"Value": instance.is_protected}}
        case "disableApiStop":
            value = {"DisableApiStop": {"Value": instance.is_stop_protected}}
        case "instanceInitiatedShutdownBehavior":
            value = {"InstanceInitiatedShutdownBehavior": {"Value": instance.shutdown_behavior}}
        case "instanceType":
            value = {"InstanceType": {"Value": instance.instance_type.name}}
        case "ebsOptimized":
            value = {"EbsOptimized": {"Value": instance.is_ebs_optimized}}
        case "groupSet":
            value = {"Groups": group_entries(region, region.group_ids_of(instance))}
        case "sourceDestCheck":
            value = {
                "SourceDestCheck": {"Value": region.interfaces[instance.interface_id].checks_source_and_destination}
            }
        case "userData":
            content = instance.user_data.encode("utf-8", errors="surrogateescape")
            value = {"UserData": {"Value": base64.b64encode(content).decode()} if content else {}}
        case other:
            raise unsupported(f"the lab does not model the attribute {other}")
    return {"InstanceId": instance.id} | value


async def modify_instance_attribute(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """One attribute a call."""
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    changes = set(params) - {"InstanceId", "DryRun"}
    if len(changes) != 1:
        raise combination("Exactly one attribute may be modified in a request")
    if instance.state == "terminated":
        raise incorrect_state(f"Instance '{instance.id}' is terminated")
    match changes.pop():
        case "Groups":
            changed_groups(region, region.interfaces[instance.interface_id], params["Groups"])
        case "DisableApiTermination":
            is_protected = params["DisableApiTermination"].get("Value", False)
            region.change(instance.id, is_protected=is_protected)
        case "DisableApiStop":
            region.change(instance.id, is_stop_protected=params["DisableApiStop"].get("Value", False))
        case "SourceDestCheck":
            changed_check(region, region.interfaces[instance.interface_id], params["SourceDestCheck"])
        case "InstanceInitiatedShutdownBehavior":
            behavior = params["InstanceInitiatedShutdownBehavior"].get("Value")
            if behavior not in {"stop", "terminate"}:
                raise invalid(f"Invalid value '{behavior}' for InstanceInitiatedShutdownBehavior.")
            region.change(instance.id, shutdown_behavior=behavior)
        case "EbsOptimized":
            _refuse_unless_stopped(instance)
            region.change(instance.id, is_ebs_optimized=bool(params["EbsOptimized"].get("Value", False)))
        case "InstanceType":
            await _change_type(cloud, region, instance, str(params["InstanceType"].get("Value", "")))
        case other:
            raise unsupported(f"the lab does not model a change of {other}")
    return {}


def _refuse_unless_stopped(instance: Instance) -> None:
    if instance.state != "stopped":
        raise incorrect_state(f"The instance '{instance.id}' is not in the 'stopped' state.")


async def _change_type(cloud: Cloud, region: Region, instance: Instance, name: str) -> None:
    """Of a stopped instance only, and to a type that its image boots on. EC2 User Guide, "Change the instance type"
    and "Compatibility for changing the instance type"."""
    _refuse_unless_stopped(instance)
    kind = await cloud.instance_type(region.name, name)
    if instance.image.architecture not in kind.architectures:
        raise invalid(f"The instance type {name} does not support the architecture '{instance.image.architecture}'.")
    region.change(instance.id, instance_type=kind)


async def monitor_instances(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Detailed monitoring on; of what has it already, nothing changes."""
    return _monitored(region, params, is_monitored=True)


async def unmonitor_instances(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Detailed monitoring off."""
    return _monitored(region, params, is_monitored=False)


def _monitored(region: Region, params: dict[str, Any], *, is_monitored: bool) -> dict[str, Any]:
    named = _named(region, params)
    _refuse(named, {"shutting-down", "terminated"}, "monitored" if is_monitored else "unmonitored")
    for instance in named:
        region.change(instance.id, is_monitored=is_monitored)
    state = "pending" if is_monitored else "disabling"
    return {"InstanceMonitorings": [{"InstanceId": one.id, "Monitoring": {"State": state}} for one in named]}


OPERATIONS = {
    "DescribeInstanceAttribute": describe_instance_attribute,
    "DescribeInstanceStatus": describe_instance_status,
    "DescribeInstances": describe_instances,
    "ModifyInstanceAttribute": modify_instance_attribute,
    "MonitorInstances": monitor_instances,
    "UnmonitorInstances": unmonitor_instances,
}

# These also take the lifecycle, before the other arguments.
TRANSITIONS = {
    "RebootInstances": reboot_instances,
    "StartInstances": start_instances,
    "StopInstances": stop_instances,
    "TerminateInstances": terminate_instances,
}
