"""Everything that a spec can say of an EC2 instance, one row each. Pure.

A row says where the spec has it, where EC2 shows it, what a change means on a live instance, the call that carries it
out, and the words for it. The launch request, the comparison, what is reported and what is forbidden are read off the
rows; a field of Ec2Target that stands in no row cannot exist (a test compares).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.cloud import Instance, InstanceAttribute, LaunchRequest, MetadataOptions, RootVolume
from nixops_operator.machine import root_volume, steps
from nixops_operator.machine.declared import Declared, Resolved
from nixops_operator.planning import SOON, Area, Finding
from nixops_operator.verdict import Outcome

if TYPE_CHECKING:
    from nixops_operator.api.machine_spec import Ec2Target
    from nixops_operator.ports.cloud import Cloud


class Change(Enum):
    """What a changed field means for an instance that lives."""

    ONLINE = "carried out on the running instance"
    NEXT_LAUNCH = "counts at the next launch"
    STOPPED_ONLY = "stops the instance and starts it again, where `disruption.stop` is `WhenNeeded`"
    LAUNCH_ONLY = "replaces the instance by another one, where `disruption.replace` is `WhenNeeded`"
    FIXED = "fixed for the instance's life"


NEVER_CHANGES = "nobody can: EC2 keeps it for the instance's life"
"""Of `by_hand`."""


@dataclass(frozen=True)
class Attribute:
    """One row. `declared` and `shown` give comparable values."""

    field: str  # of spec.target.ec2, camelCase
    launched_as: str | None  # the field of facts.cloud.LaunchRequest; None: EC2 takes it of a live instance alone
    words: str  # what messages call it
    change: Change
    declared: Callable[[Ec2Target, Resolved], Any]
    shown: Callable[[Instance], Any]
    carry_out: Callable[[Cloud, str, Any], Awaitable[None]] | None = None
    """Set where Change is ONLINE or STOPPED_ONLY: called with the instance's id and what `to_set` gives."""
    to_set: Callable[[Any, Any], Any] = lambda declared, shown: declared if declared != shown else None
    """From what is declared and what is shown to what has to be set; None: nothing."""
    drift: Reason = Reason.INSTANCE_DRIFT
    is_pending: Callable[[Instance], bool] = lambda instance: False
    """Whether EC2 shows what was set and still works on it."""
    hidden: InstanceAttribute | None = None
    """Set where no sweep shows it: how it is asked for, once an hour, of instances alone for which it is declared."""
    resets_to: Any = None
    """What an instance is given again when the field has left the spec; None: it keeps what it has."""
    is_told: bool = True
    """Whether a difference can be seen at all."""
    told: str | None = None
    """For people, where another check than `differences` compares: how a change is told."""
    by_hand: str | None = None
    """For people, where it is not as usual for such a change: what follows when somebody changes it in EC2."""


def _missing_tags(declared: Mapping[str, str], shown: Mapping[str, str]) -> tuple[tuple[str, str], ...] | None:
    """Others may tag our instances, too: what is declared must be there, and nothing is said of the rest."""
    return tuple(sorted((key, value) for key, value in declared.items() if shown.get(key) != value)) or None


def _nothing(declared: Any, shown: Any) -> None:
    """Nobody can tell whether it differs."""


def _other(declared: Any, shown: Any) -> Any:
    """Where EC2 does not show it, nothing differs."""
    return declared if shown not in (None, declared) else None


def _metadata(ec2: Ec2Target, resolved: Resolved) -> MetadataOptions:
    wanted = ec2.metadata
    return MetadataOptions(
        wanted.tokens.lower(),
        wanted.hop_limit,
        "enabled" if wanted.tags else "disabled",
        "enabled" if wanted.endpoint or not resolved.has_run else "disabled",
    )


def _other_metadata(declared: MetadataOptions, shown: MetadataOptions) -> MetadataOptions | None:
    """A service that is off has nothing else to be set."""
    are_off = declared.endpoint == shown.endpoint == "disabled"
    return None if are_off or declared == shown else declared


def _root_volume(ec2: Ec2Target, resolved: Resolved) -> RootVolume | None:
    if ec2.root_volume is None or resolved.root_device is None:
        return None
    return RootVolume(resolved.root_device, root_volume.declared(ec2))


def _lower(word: str | None) -> str | None:
    return word.lower() if word is not None else None


def _set(attribute: InstanceAttribute) -> Callable[[Cloud, str, Any], Awaitable[None]]:
    return lambda cloud, instance_id, value: cloud.set_attribute(instance_id, attribute, value)


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "instanceType",
        "instance_type",
        "instance type",
        Change.STOPPED_ONLY,
        lambda ec2, resolved: resolved.instance_type,
        lambda instance: instance.instance_type,
        _set(InstanceAttribute.INSTANCE_TYPE),
    ),
    Attribute(
        "image",
        "image_id",
        "image",
        Change.NEXT_LAUNCH,
        lambda ec2, resolved: resolved.image_id,
        lambda instance: instance.image_id,
        by_hand=NEVER_CHANGES,
    ),
    Attribute(
        "subnetId",
        "subnet_id",
        "subnet",
        Change.FIXED,
        lambda ec2, resolved: resolved.subnet_id,
        lambda instance: instance.subnet_id,
        by_hand=NEVER_CHANGES,
    ),
    Attribute(
        "subnetIds",
        None,
        "subnet",
        Change.LAUNCH_ONLY,
        lambda ec2, resolved: ec2.subnet_ids or None,
        lambda instance: instance.subnet_id,
        to_set=lambda declared, shown: None if shown in declared else declared,
        by_hand=NEVER_CHANGES,
    ),
    Attribute(
        "keyPair",
        "key_name",
        "key pair",
        Change.NEXT_LAUNCH,
        lambda ec2, resolved: resolved.key_name,
        lambda instance: instance.key_name,
        by_hand=NEVER_CHANGES,
    ),
    Attribute(
        "securityGroups",
        "security_group_ids",
        "security groups",
        Change.ONLINE,
        lambda ec2, resolved: resolved.security_group_ids,
        lambda instance: instance.security_group_ids,
        lambda cloud, instance_id, groups: cloud.set_security_groups(instance_id, groups),
        drift=Reason.SECURITY_GROUP_DRIFT,
        by_hand="the declared groups take the place of the others",
    ),
    Attribute(
        "tags",
        "tags",
        "tags",
        Change.ONLINE,
        lambda ec2, resolved: resolved.tags,
        lambda instance: instance.tags,
        lambda cloud, instance_id, tags: cloud.create_tags([instance_id], dict(tags)),
        _missing_tags,
        drift=Reason.TAG_DRIFT,
        by_hand="what is declared is put back; tags of others stay",
    ),
    Attribute(
        "monitoring",
        "monitoring",
        "detailed monitoring",
        Change.ONLINE,
        lambda ec2, resolved: ec2.monitoring,
        lambda instance: instance.monitoring,
        lambda cloud, instance_id, enabled: cloud.set_monitoring(instance_id, enabled=enabled),
    ),
    Attribute(
        "sourceDestCheck",
        None,
        "source and destination check",
        Change.ONLINE,
        lambda ec2, resolved: ec2.source_dest_check,
        lambda instance: instance.source_dest_check,
        _set(InstanceAttribute.SOURCE_DEST_CHECK),
    ),
    Attribute(
        "metadata",
        "metadata",
        "metadata service",
        Change.ONLINE,
        _metadata,
        lambda instance: instance.metadata,
        lambda cloud, instance_id, options: cloud.set_metadata(instance_id, options),
        _other_metadata,
        is_pending=lambda instance: instance.metadata_pending,
    ),
    Attribute(
        "instanceProfile",
        "instance_profile",
        "instance profile",
        Change.ONLINE,
        lambda ec2, resolved: ec2.instance_profile,
        lambda instance: instance.instance_profile,
        lambda cloud, instance_id, name: cloud.set_instance_profile(instance_id, name),
        resets_to="",
    ),
    Attribute(
        "terminationProtection",
        "termination_protection",
        "termination protection",
        Change.ONLINE,
        lambda ec2, resolved: ec2.termination_protection,
        lambda instance: instance.termination_protection,
        _set(InstanceAttribute.TERMINATION_PROTECTION),
        _other,
        hidden=InstanceAttribute.TERMINATION_PROTECTION,
        resets_to=False,
    ),
    Attribute(
        "stopProtection",
        "stop_protection",
        "stop protection",
        Change.ONLINE,
        lambda ec2, resolved: ec2.stop_protection,
        lambda instance: instance.stop_protection,
        _set(InstanceAttribute.STOP_PROTECTION),
        _other,
        hidden=InstanceAttribute.STOP_PROTECTION,
        resets_to=False,
    ),
    Attribute(
        "shutdownBehavior",
        "shutdown_behavior",
        "shutdown behaviour",
        Change.ONLINE,
        lambda ec2, resolved: _lower(ec2.shutdown_behavior),
        lambda instance: instance.shutdown_behavior,
        _set(InstanceAttribute.SHUTDOWN_BEHAVIOR),
        _other,
        hidden=InstanceAttribute.SHUTDOWN_BEHAVIOR,
        resets_to="stop",
    ),
    Attribute(
        "credits",
        "credits",
        "CPU credits",
        Change.ONLINE,
        lambda ec2, resolved: _lower(ec2.credits),
        lambda instance: instance.credits,
        _set(InstanceAttribute.CREDITS),
        _other,
        hidden=InstanceAttribute.CREDITS,
    ),
    Attribute(
        "publicIp",
        "public_ip",
        "public address",
        Change.NEXT_LAUNCH,
        lambda ec2, resolved: ec2.public_ip,
        lambda instance: instance.public_ip,
        to_set=_other,
    ),
    Attribute(
        "ebsOptimized",
        "ebs_optimized",
        "EBS optimisation",
        Change.STOPPED_ONLY,
        lambda ec2, resolved: ec2.ebs_optimized,
        lambda instance: instance.ebs_optimized,
        _set(InstanceAttribute.EBS_OPTIMIZED),
    ),
    Attribute(
        "tenancy",
        "tenancy",
        "tenancy",
        Change.LAUNCH_ONLY,
        lambda ec2, resolved: _lower(ec2.tenancy),
        lambda instance: instance.tenancy,
    ),
    Attribute(
        "placementGroup",
        "placement_group",
        "placement group",
        Change.STOPPED_ONLY,
        lambda ec2, resolved: ec2.placement_group,
        lambda instance: instance.placement_group,
        lambda cloud, instance_id, name: cloud.set_placement_group(instance_id, name),
        resets_to="",
    ),
    Attribute(
        "rootVolume",
        "root_volume",
        "root volume",
        Change.ONLINE,
        _root_volume,
        # root_volume.py compares it: EC2 shows it as a thing of its own.
        lambda instance: None,
        to_set=_nothing,
        told=(
            "`UpToDate=False` with `InstanceDrift` until it is done; a smaller `size`: `Stalled` with "
            "`ChangeForbidden`; `encrypted`: a note in `UpToDate`, since it counts at the next launch"
        ),
        by_hand=(
            "type, IOPS and throughput are put back; a larger size is told with `ChangeForbidden`, since EC2 makes no "
            "volume smaller"
        ),
    ),
    Attribute(
        "userDataExtra",
        None,
        "user data",
        Change.NEXT_LAUNCH,
        lambda ec2, resolved: ec2.user_data_extra,
        # Only to those who may read its first host key, which nobody has to.
        lambda instance: None,
        to_set=_nothing,
        is_told=False,
        by_hand="not seen",
    ),
)

OF_OTHER_CHECKS = {
    "powerState": (
        "the instance is stopped, or started",
        "started again, or stopped again",
        "`InfrastructureReady` with `Stopping`",
    ),
    "elasticIp": (
        "allocated, associated, disassociated and released beside the running instance",
        "taken off: associated again; released: another one is allocated, some six minutes later",
        "`UpToDate` with `InstanceDrift`",
    ),
    "volumes": (
        "made and attached, grown and changed while in use; off the spec, detached when the system without it runs",
        "detached: attached again; deleted: told with `NotFound`, and none is made in its place",
        "`InfrastructureReady` with `Provisioning` until it is done; what EC2 cannot change: `ChangeForbidden`",
    ),
}
"""Fields of Ec2Target that are no attribute of an instance: what an edit means, what a change by hand in EC2, and how
both are told. power.py, addresses.py and volumes.py have the checks."""

STOPPED_ONLY = tuple(row.field for row in ATTRIBUTES if row.change is Change.STOPPED_ONLY)
_BY_FIELD = {row.field: row for row in ATTRIBUTES}


def declare(ec2: Ec2Target, resolved: Resolved) -> Declared:
    """What the spec asks for."""
    declared = {row.field: row.declared(ec2, resolved) for row in ATTRIBUTES}
    left = {row.field: row.resets_to for row in ATTRIBUTES if row.field in resolved.applied}
    return Declared({field: left.get(field) if value is None else value for field, value in declared.items()})


def to_remember(declared: Declared) -> frozenset[str]:
    """Fields that go back to what EC2 does when they leave the spec: it has to be written down that they were set."""
    return frozenset(row.field for row in ATTRIBUTES if row.resets_to is not None and declared[row.field] is not None)


def hidden(declared: Declared) -> tuple[tuple[str, InstanceAttribute], ...]:
    """(field of Instance, what EC2 is asked for) of what is declared and no sweep shows."""
    return tuple(
        (row.launched_as, row.hidden)
        for row in ATTRIBUTES
        if row.launched_as is not None and row.hidden is not None and declared[row.field] is not None
    )


def launch_request(declared: Declared, user_data: str) -> LaunchRequest:
    """RunInstances' parameters, all of them: what is not said at launch stays unsaid."""
    said = {row.launched_as: declared[row.field] for row in ATTRIBUTES if row.launched_as is not None}
    said = {name: value for name, value in said.items() if value is not None}
    return LaunchRequest(user_data=user_data + (declared["userDataExtra"] or ""), **said)


def differences(declared: Declared, instance: Instance) -> tuple[Finding, ...]:
    """One finding for each row in which the live instance is not as declared, but for what needs a stop (power.py) or
    another instance (replacement.py)."""
    return tuple(
        _finding(row, instance, declared[row.field], to_set) if to_set is not None else _pending(row, instance)
        for row, to_set in _differing(declared, instance)
        if row.change not in (Change.STOPPED_ONLY, Change.LAUNCH_ONLY)
    )


@dataclass(frozen=True)
class Difference:
    """One value that a running instance cannot be given."""

    field: str
    words: str
    wanted: Any
    shown: Any


def of_stopped(declared: Declared, instance: Instance) -> tuple[Difference, ...]:
    """What is not as declared, and can be made so on a stopped instance only."""
    return _of(Change.STOPPED_ONLY, declared, instance)


def of_another(declared: Declared, instance: Instance) -> tuple[Difference, ...]:
    """What is not as declared, and what only another instance can have."""
    return _of(Change.LAUNCH_ONLY, declared, instance)


def _of(change: Change, declared: Declared, instance: Instance) -> tuple[Difference, ...]:
    return tuple(
        Difference(row.field, row.words, to_set, row.shown(instance))
        for row, to_set in _differing(declared, instance)
        if row.change is change
    )


def told(instance: Instance, differences: Iterable[Difference]) -> str:
    """For people."""
    return f"{instance.id} has " + ", ".join(f"{one.words} {one.shown} instead of {one.wanted}" for one in differences)


def _differing(declared: Declared, instance: Instance) -> Iterator[tuple[Attribute, Any]]:
    """Rows in which the instance is not as declared, with what has to be set; None where EC2 is at work on that."""
    for row in ATTRIBUTES:
        wanted, shown = declared[row.field], row.shown(instance)
        to_set = row.to_set(wanted, shown) if wanted is not None else None
        if wanted is not None and (to_set is not None or row.is_pending(instance)):
            yield row, to_set


def is_as_declared(field: str, declared: Declared, instance: Instance) -> bool:
    """Whether EC2 shows it so; False where it was not looked at."""
    return bool(_BY_FIELD[field].shown(instance) == declared[field])


async def carry_out(step: steps.SetAttribute | steps.ChangeStopped, cloud: Cloud) -> None:
    """Make it so on the live instance. Raises what the port raises."""
    call = _BY_FIELD[step.field].carry_out
    assert call is not None  # noqa: S101 - only rows that have one make such a step
    await call(cloud, step.instance_id, step.value)


def _finding(row: Attribute, instance: Instance, wanted: Any, to_set: Any) -> Finding:
    kind, shown = ConditionType.UP_TO_DATE, row.shown(instance)
    if row.change is Change.NEXT_LAUNCH:
        # Nothing differs that a running instance could have otherwise; it is told, so that nobody wonders.
        message = f"{instance.id}: {row.words} {_text(shown)}; {_text(wanted)} counts at the next launch"
        return Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, message, kind)
    if row.change is not Change.ONLINE:
        message = (
            f"{instance.id} has {row.words} {_text(shown)}, the spec says {_text(wanted)}; "
            f"a running instance keeps its {row.words}: put the old value back, or delete this machine to get another"
        )
        return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, kind, differs=Area.CLOUD)
    message = f"{instance.id}: {row.words} not as declared"
    step = steps.SetAttribute(instance.id, row.field, to_set)
    return Finding(Outcome.REPAIRING, row.drift, message, kind, (step,), differs=Area.CLOUD)


def _pending(row: Attribute, instance: Instance) -> Finding:
    message = f"{instance.id}: {row.words} is being changed by EC2"
    kind = ConditionType.UP_TO_DATE
    return Finding(Outcome.REPAIRING, row.drift, message, kind, look_again=SOON, differs=Area.CLOUD)


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
