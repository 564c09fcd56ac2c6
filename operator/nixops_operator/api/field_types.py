"""What the models of spec and status are made of: strings with limits and patterns, lists as Kubernetes merges them.

Each string has a `maxLength`, each list a `maxItems`, each map a `maxProperties`: the API server refuses CEL rules
whose worst case it cannot bound, and an object must stay small enough for an annotation (kubectl's last-applied).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from nixops_operator.api.durations import DURATION_PATTERN, format_duration, parse_duration


class SpecModel(BaseModel):
    """Part of a spec. Attributes are snake_case, fields camelCase; an unknown field or a converted type is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class StatusModel(BaseModel):
    """Part of a status. Fields that a newer operator wrote are ignored, so that going back a release works."""

    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, extra="ignore", strict=True, use_attribute_docstrings=True
    )


def cel_rules(*rules: tuple[str, str]) -> dict[str, Any]:
    """Schema keywords for CEL rules, each (rule, message); the message says what to do instead."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


MERGED_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
IN_ORDER: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

SECRET_PATTERN = "-----BEGIN [A-Z0-9 ]*PRIVATE KEY|(AKIA|ASIA)[A-Z0-9]{16}"  # noqa: S105 - what a secret looks like
"""A private key in PEM form, or an AWS access key id (IAM User Guide, "IAM identifiers": prefixes AKIA and ASIA)."""

_UNSAFE_PATH_PATTERN = r"^/|(^|/)\.\.(/|$)"


def _without_secret(text: str) -> str:
    if re.search(SECRET_PATTERN, text):
        raise ValueError("holds a private key or an AWS access key id; put it into a Secret, and rotate it")
    return text


def _inside_source(text: str) -> str:
    if re.search(_UNSAFE_PATH_PATTERN, text):
        raise ValueError("must be a path inside the source, without a leading / and without ..")
    return text


def _not_a_group_id(text: str) -> str:
    if text.startswith("sg-"):
        raise ValueError("must not begin with sg-, which marks ids of existing security groups")
    return text


FreeText = Annotated[
    str, AfterValidator(_without_secret), Field(json_schema_extra={"not": {"pattern": SECRET_PATTERN}})
]
"""Text that holds no key: what people paste here, others can read. Each use sets its own `max_length`."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A name that may be part of a host name (RFC 1123)."""

GroupName = Annotated[Label, AfterValidator(_not_a_group_id), Field(json_schema_extra={"not": {"pattern": "^sg-"}})]
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern="^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Name of a Secret or ConfigMap in the same namespace."""

ObjectKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern="^[-._a-zA-Z0-9]+$")]
"""A key of a Secret's or ConfigMap's data."""

SourcePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    AfterValidator(_inside_source),
    Field(json_schema_extra={"not": {"pattern": _UNSAFE_PATH_PATTERN}}),
]
"""A path inside the configuration's source."""

Duration = Annotated[
    timedelta,
    BeforeValidator(lambda value: parse_duration(value) if isinstance(value, str) else value),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "maxLength": 16}),
]
"""Written as `30m`, read as a timedelta."""


def _without_fraction(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Timestamp = Annotated[
    datetime,
    PlainSerializer(_without_fraction, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 32}),
]
"""Whole seconds, UTC, as Kubernetes writes times."""


Word = Annotated[str, StringConstraints(max_length=64)]
Line = Annotated[str, StringConstraints(max_length=256)]
StorePath = Annotated[str, StringConstraints(max_length=512)]
Message = Annotated[str, StringConstraints(max_length=1024)]
"""Strings of a status, which the operator alone writes, by their length."""
