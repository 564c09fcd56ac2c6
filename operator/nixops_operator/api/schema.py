"""From pydantic's JSON schema to the OpenAPI subset of a CustomResourceDefinition, refusing what the API server would.

pydantic writes                        the API server says                this module
`X | None` as anyOf with null          "type" inside anyOf is forbidden   drops null: a field is absent, never null
$ref, $defs                            no references                      puts the definition in place
additionalProperties: false            forbidden beside properties        drops it: the server refuses unknown fields
default                                stores it                          says it in the description (see machine_spec)
title                                  accepts it                         drops it
strings, lists, maps without a limit   CEL rules over them cost too much  raises
any other keyword                      "unknown field", or ignores it     raises

Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions", "Specifying a structural
schema".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from nixops_operator.api.field_types import PART_RULES

Schema = dict[str, Any]

_KEPT = frozenset(
    {
        "type",
        "format",
        "description",
        "required",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "not",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-validations",
    }
)
_DROPPED = frozenset({"title", "default", "$defs"})


def schema_of(model: type[BaseModel], *, part: bool = False) -> Schema:
    """The structural schema of a model. Raises TypeError with the path of what Kubernetes would not take.

    `part`: of something that is still to be merged. Every field is optional, down through nested objects but not into
    lists, which replace each other; and instead of an object's rules about the finished whole, those hold that it has
    for parts.
    """
    # As it is written, not as it is read: so defaults appear in the form in which people write them.
    written = model.model_json_schema(by_alias=True, mode="serialization")
    return _converted(written, written.get("$defs", {}), model.__name__, part=part)


def _converted(written: Mapping[str, Any], definitions: Mapping[str, Any], path: str, *, part: bool = False) -> Schema:
    written = _resolved(written, definitions, path)
    rules_of_parts = written.pop(PART_RULES, None)
    if part and "properties" in written:
        written.pop("required", None)
        written.pop("x-kubernetes-validations", None)
        if rules_of_parts:
            written["x-kubernetes-validations"] = rules_of_parts
    schema: Schema = {}
    for keyword, value in written.items():
        if keyword in _KEPT:
            schema[keyword] = copy.deepcopy(value)
        elif keyword == "properties":
            schema["properties"] = {
                name: _described(_converted(field, definitions, f"{path}.{name}", part=part), field)
                for name, field in value.items()
            }
        elif keyword == "items":
            schema["items"] = _converted(value, definitions, f"{path}[]")
        elif keyword == "additionalProperties":
            if isinstance(value, Mapping):
                schema["additionalProperties"] = _converted(value, definitions, f"{path}{{}}")
        elif keyword not in _DROPPED:
            raise TypeError(f"{path}: a CustomResourceDefinition has no keyword {keyword}")
    _judge_limits(schema, path)
    return schema


def _resolved(written: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Without $ref and null; what stands beside a reference wins over what stands in the definition."""
    written = dict(written)
    if "anyOf" in written:
        others = [branch for branch in written.pop("anyOf") if branch != {"type": "null"}]
        if len(others) != 1:
            raise TypeError(f"{path}: a union of {len(others)} types; use one object with optional fields")
        written = {**others[0], **written}
    if "$ref" in written:
        name = written.pop("$ref").removeprefix("#/$defs/")
        written = {**_resolved(definitions[name], definitions, path), **written}
    return written


def _described(schema: Schema, written: Mapping[str, Any]) -> Schema:
    """With the default, if it is a scalar, at the end of the description; line breaks of the docstring joined."""
    text = " ".join(schema.get("description", "").split())
    default = written.get("default")
    if isinstance(default, bool):
        default = str(default).lower()
    if default not in (None, "") and isinstance(default, str | int):
        text = f"{text} Default: {default}."
    return schema | {"description": text}


def _judge_limits(schema: Schema, path: str) -> None:
    kind = schema.get("type")
    if kind not in ("object", "array", "string", "integer", "boolean"):
        raise TypeError(f"{path}: {kind} is no type of ours; floats do not compare well and null is absence")
    if kind == "string" and "maxLength" not in schema and "enum" not in schema:
        raise TypeError(f"{path}: a string needs max_length")
    if kind == "array" and not {"maxItems", "x-kubernetes-list-type"} <= schema.keys():
        raise TypeError(f"{path}: a list needs max_length and a list type")
    if (
        kind == "object"
        and "properties" not in schema
        and not {"additionalProperties", "maxProperties"} <= schema.keys()
    ):
        raise TypeError(f"{path}: a map needs the type of its values and max_length")
