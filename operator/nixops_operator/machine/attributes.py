"""Everything that a spec can say of an EC2 instance, one row each. Pure.

A row says where the spec has it, where EC2 shows it, what a change means on a live instance, the step that carries it
out, and the words for it. The launch request, the comparison, what is reported and what is forbidden are read off the
rows; a field of Ec2Target that stands in no row cannot exist (a test compares).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from nixops_operator import names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.facts.cloud import Instance, LaunchRequest
from nixops_operator.machine import steps
from nixops_operator.planning import Area, Finding
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome


@dataclass(frozen=True)
class Declared:
    """What the spec asks of the instance, with names resolved to EC2's ids. None: left to EC2, or, of a live instance,
    not known now; then it is not compared."""

    instance_type: str | None = None
    image_id: str | None = None
    subnet_id: str | None = None
    key_name: str | None = None
    security_group_ids: tuple[str, ...] | None = None  # sorted
    tags: Mapping[str, str] | None = None  # all that it carries by us, the operator's own tags included
    monitoring: bool | None = None

    @property
    def digest(self) -> str:
        """sha256: of equal declarations equal. The attempt's number, which stands in a tag, is no part of it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["tags"] = {key: value for key, value in (self.tags or {}).items() if key != names.ATTEMPT_TAG}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Change(Enum):
    """What a changed field means for an instance that lives."""

    ONLINE = "carried out on the running instance"
    NEXT_LAUNCH = "counts at the next launch"
    STOPPED_ONLY = "EC2 changes it on a stopped instance only, which the operator does not do"
    FIXED = "fixed for the instance's life"


@dataclass(frozen=True)
class Attribute:
    """One row. `declared` and `shown` give comparable values; `step` is set where Change is ONLINE."""

    field: str  # of spec.target.ec2, camelCase
    launched_as: str  # the field of facts.cloud.LaunchRequest
    words: str  # what messages call it
    change: Change
    reason: Reason
    declared: Callable[[Declared], Any]
    shown: Callable[[Instance], Any]
    step: Callable[[Instance, Declared], Step] | None = None
    differs: Callable[[Any, Any], bool] = lambda declared, shown: declared != shown


def _sets_tags(instance: Instance, declared: Declared) -> Step:
    wanted = declared.tags or {}
    return steps.SetTags(
        instance.id, tuple(sorted((key, value) for key, value in wanted.items() if instance.tags.get(key) != value))
    )


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "instanceType",
        "instance_type",
        "instance type",
        Change.STOPPED_ONLY,
        Reason.INSTANCE_DRIFT,
        lambda declared: declared.instance_type,
        lambda instance: instance.instance_type,
    ),
    Attribute(
        "image",
        "image_id",
        "image",
        Change.NEXT_LAUNCH,
        Reason.INSTANCE_DRIFT,
        lambda declared: declared.image_id,
        lambda instance: instance.image_id,
    ),
    Attribute(
        "subnetId",
        "subnet_id",
        "subnet",
        Change.FIXED,
        Reason.INSTANCE_DRIFT,
        lambda declared: declared.subnet_id,
        lambda instance: instance.subnet_id,
    ),
    Attribute(
        "keyPair",
        "key_name",
        "key pair",
        Change.NEXT_LAUNCH,
        Reason.INSTANCE_DRIFT,
        lambda declared: declared.key_name,
        lambda instance: instance.key_name,
    ),
    Attribute(
        "securityGroups",
        "security_group_ids",
        "security groups",
        Change.ONLINE,
        Reason.SECURITY_GROUP_DRIFT,
        lambda declared: declared.security_group_ids,
        lambda instance: instance.security_group_ids,
        lambda instance, declared: steps.SetSecurityGroups(instance.id, declared.security_group_ids or ()),
    ),
    Attribute(
        "tags",
        "tags",
        "tags",
        Change.ONLINE,
        Reason.TAG_DRIFT,
        lambda declared: declared.tags,
        lambda instance: instance.tags,
        _sets_tags,
        # Others may tag our instances, too: what is declared must be there, and nothing is said of the rest.
        differs=lambda declared, shown: not declared.items() <= shown.items(),
    ),
    Attribute(
        "monitoring",
        "monitoring",
        "detailed monitoring",
        Change.ONLINE,
        Reason.INSTANCE_DRIFT,
        lambda declared: declared.monitoring,
        lambda instance: instance.monitoring,
        lambda instance, declared: steps.SetMonitoring(instance.id, enabled=bool(declared.monitoring)),
    ),
)


def launch_request(declared: Declared, user_data: str) -> LaunchRequest:
    """RunInstances' parameters, all of them: what is not said at launch stays unsaid."""
    said = {row.launched_as: value for row in ATTRIBUTES if (value := row.declared(declared)) is not None}
    return LaunchRequest(user_data=user_data, **said)


def differences(declared: Declared, instance: Instance) -> tuple[Finding, ...]:
    """One finding for each row in which the live instance is not as declared."""
    found = []
    for row in ATTRIBUTES:
        wanted, shown = row.declared(declared), row.shown(instance)
        if wanted is not None and row.differs(wanted, shown):
            found.append(_finding(row, declared, instance))
    return tuple(found)


def _finding(row: Attribute, declared: Declared, instance: Instance) -> Finding:
    wanted, shown = row.declared(declared), row.shown(instance)
    what, kind = f"{instance.id}: {row.words}", ConditionType.UP_TO_DATE
    if row.change is Change.NEXT_LAUNCH:
        # Nothing differs that a running instance could have otherwise; it is told, so that nobody wonders.
        message = f"{what} {_text(shown)}; {_text(wanted)} counts at the next launch"
        return Finding(Outcome.IN_SYNC, Reason.SUCCEEDED, message, kind)
    if row.step is None:
        message = (
            f"{instance.id} has {row.words} {_text(shown)}, the spec says {_text(wanted)}; "
            f"a running instance keeps its {row.words}: put the old value back, or delete this machine to get another"
        )
        return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, kind, differs=Area.CLOUD)
    message = f"{what} differ from the declared ones" if row.words.endswith("s") else f"{what} differs"
    step = row.step(instance, declared)
    return Finding(Outcome.REPAIRING, row.reason, message, kind, (step,), differs=Area.CLOUD)


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
