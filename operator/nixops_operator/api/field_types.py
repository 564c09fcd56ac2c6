"""What the models of spec and status are made of: strings with limits and patterns, lists as Kubernetes merges them.

Each string has a `maxLength`, each list a `maxItems`, each map a `maxProperties`: the API server refuses CEL rules
whose worst case it cannot bound, and an object must stay small enough for an annotation (kubectl's last-applied).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
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
        alias_generator=to_camel,
        populate_by_name=True,  # we write them, by their Python names
        frozen=True,
        extra="ignore",
        strict=True,
        use_attribute_docstrings=True,
    )


PART_RULES = "x-part-validations"
"""Keyword of this package alone: the rules of an object of which some fields may still be missing (schema.py)."""


CelRule = tuple[str, str]
"""An expression, and the words for who breaks it: they say what to do instead."""


def cel_rules(*whole: CelRule, always: Sequence[CelRule] = (), of_parts: Sequence[CelRule] = ()) -> dict[str, Any]:
    """Schema keywords for CEL rules: of the finished `whole`, of parts that are still to be merged, and of both.

    A rule that names `oldSelf` belongs to the root of the CRD: everywhere else it would not see what was carried out
    (crd.py).
    """
    keywords = {"x-kubernetes-validations": (*whole, *always), PART_RULES: (*of_parts, *always)}
    return {
        keyword: [{"rule": rule, "message": message} for rule, message in given]
        for keyword, given in keywords.items()
        if given
    }


MERGED_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
IN_ORDER: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

SECRET_PATTERNS = ("-----BEGIN [A-Z0-9 ]*PRIVATE KEY", "A[KS]IA[A-Z0-9]{16}")
"""A private key in PEM form; an AWS access key id (IAM User Guide, "IAM identifiers": prefixes AKIA and ASIA)."""

_SECRET = "holds a private key or an AWS access key id; put it into a Secret, and rotate it"  # noqa: S105 - words
_UNSAFE_PATH = "must be a path inside the source, without a leading / and without .."
_GROUP_ID = "must not begin with sg-, which marks ids of existing security groups"


def without_secret(text: str) -> str:
    if any(re.search(pattern, text) for pattern in SECRET_PATTERNS):
        raise ValueError(_SECRET)
    return text


def without_nul(text: str) -> str:
    """Nix and shells end a text at its first NUL character, without a word: half of it would count."""
    if "\0" in text:
        raise ValueError("holds a NUL character, as UTF-16 text does; write it as UTF-8")
    return text


def _inside_source(text: str) -> str:
    """In its plain form, without the `./` that paths begin with in Nix: a ConfigMap has no key of that name."""
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError(_UNSAFE_PATH)
    return str(PurePosixPath(text))


def _not_a_group_id(text: str) -> str:
    if text.startswith("sg-"):
        raise ValueError(_GROUP_ID)
    return text


def no_secret_in(field: str) -> list[CelRule]:
    """Rules of an object: its field of type FreeText holds no secret. They stand there, and not at the text, because
    the API server repeats a refused text in its answer, from where it gets into other tools' status and logs."""
    # One rule each: the API server limits what a single rule may cost.
    return [
        (f"!has(self.{field}) || !self.{field}.matches('{pattern}')", f"{field} {_SECRET}")
        for pattern in SECRET_PATTERNS
    ]


FreeText = Annotated[str, AfterValidator(without_secret)]
"""Text that holds no key: what people paste here, others can read. Each use sets its own `max_length`, and the rules of
`no_secret_in` stand at its owner."""

UNPRINTABLE = r"\x00-\x08\x0b\x0c\x0e-\x1f"
"""Control characters, for use between brackets, that no XML document can hold, and so no answer of EC2."""

TagValue = Annotated[
    str,
    StringConstraints(max_length=256, pattern=f"^[^{UNPRINTABLE}]*$"),
    AfterValidator(without_secret),
]
"""Value of an EC2 tag, which many may read; their map has the rules NO_SECRET_IN_VALUES."""

NO_SECRET_IN_VALUES: list[CelRule] = [
    (f"self.all(key, !self[key].matches('{pattern}'))", f"a value {_SECRET}") for pattern in SECRET_PATTERNS
]

LongText = Annotated[
    str,
    AfterValidator(without_secret),
    AfterValidator(without_nul),
    Field(json_schema_extra={"not": {"pattern": "|".join((*SECRET_PATTERNS, r"\x00"))}}),
]
"""As FreeText, where CEL rules for all machines of a deployment would be beyond the API server's limit. The words with
which it refuses a `not` help nobody, so the field's description says what is refused."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A name that may be part of a host name (RFC 1123)."""

GroupName = Annotated[
    Label,
    AfterValidator(_not_a_group_id),
    Field(json_schema_extra=cel_rules(("!self.startsWith('sg-')", _GROUP_ID))),
]
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern="^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Name of a Secret or ConfigMap in the same namespace."""

ObjectKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern="^[-._a-zA-Z0-9]+$")]
"""A key of a Secret's or ConfigMap's data."""

SourcePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00]*$"),
    AfterValidator(_inside_source),
    Field(
        json_schema_extra=cel_rules(
            (
                (
                    "self != '..' && !self.startsWith('/') && !self.startsWith('../') && !self.endsWith('/..')"
                    " && !self.contains('/../')"
                ),
                _UNSAFE_PATH,
            )
        )
    ),
]
"""A path inside the configuration's source."""

LONGEST_TIMEOUT = timedelta(seconds=999_999)
"""The timers on the machine are given seconds of at most six digits (adapters/ssh/agent.sh)."""


def _of_at_most(longest: timedelta) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_duration(value, longest) if isinstance(value, str) else value)


def _duration_schema(longest: timedelta) -> WithJsonSchema:
    text = format_duration(longest)
    rule = f"duration(self) > duration('0s') && duration(self) <= duration('{text}')"
    return WithJsonSchema(
        {
            "type": "string",
            "pattern": DURATION_PATTERN,
            "maxLength": 16,
            **cel_rules((rule, f"is not between 1s and {text}")),
        }
    )


_AS_TEXT = PlainSerializer(format_duration, return_type=str)
Duration = Annotated[timedelta, _of_at_most(LONGEST_TIMEOUT), _AS_TEXT, _duration_schema(LONGEST_TIMEOUT)]
"""How long something on the machine may take. Written as `30m`, read as a timedelta."""

HALF_A_MINUTE, THREE_MINUTES = timedelta(seconds=30), timedelta(minutes=3)
UpToHalfAMinute = Annotated[timedelta, _of_at_most(HALF_A_MINUTE), _AS_TEXT, _duration_schema(HALF_A_MINUTE)]
UpToThreeMinutes = Annotated[timedelta, _of_at_most(THREE_MINUTES), _AS_TEXT, _duration_schema(THREE_MINUTES)]


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
