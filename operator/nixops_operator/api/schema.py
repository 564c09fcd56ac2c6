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


def schema_of(model: type[BaseModel]) -> Schema:
    """The structural schema of a model. Raises TypeError with the path of what Kubernetes would not take."""
    # As it is written, not as it is read: so defaults appear in the form in which people write them.
    written = model.model_json_schema(by_alias=True, mode="serialization")
    return _converted(written, written.get("$defs", {}), model.__name__)


def partial(schema: Schema) -> Schema:
    """The same object with every field optional, down through nested objects but not into lists and maps.

    Rules about the finished whole go, too: they hold only after merging. Rules that compare with the old object stay.
    """
    if "properties" not in schema:
        return copy.deepcopy(schema)
    part = {key: value for key, value in schema.items() if key not in ("required", "x-kubernetes-validations")}
    part["properties"] = {name: partial(field) for name, field in schema["properties"].items()}
    kept = [rule for rule in schema.get("x-kubernetes-validations", ()) if "oldSelf" in rule["rule"]]
    return part | ({"x-kubernetes-validations": kept} if kept else {})


def _converted(written: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    written = _resolved(written, definitions, path)
    schema: Schema = {}
    for keyword, value in written.items():
        if keyword in _KEPT:
            schema[keyword] = copy.deepcopy(value)
        elif keyword == "properties":
            schema["properties"] = {
                name: _described(_converted(field, definitions, f"{path}.{name}"), field)
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
