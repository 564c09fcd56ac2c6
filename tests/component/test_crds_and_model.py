"""API server and model judge alike: specs with one field taken away or one value at the edge of what is allowed.

The server runs what tests/unit/test_api_crd_and_model.py cannot: the rules in CEL.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from component.conftest import ROOT
from nixops_operator.api import crd
from nixops_operator.api.parse import parse_deployment, parse_machine
from nixops_operator.errors import InvalidSpec

if TYPE_CHECKING:
    from pathlib import Path

    from component.conftest import ApiServer

VALID = sorted((ROOT / "tests/data/valid").glob("*.yaml"))
AT_THE_EDGE = ("0s", "1s", "277h46m39s", "277h46m40s", "a/b", "./b", "..", "/", "sg-1", "AKIAIOSFODNN7EXAMPLE", "aws:x")


def _schema(kind: str) -> dict[str, Any]:
    for definition in crd.all_crds().values():
        if definition["spec"]["names"]["kind"] == kind:
            root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            return dict(root["properties"]["spec"])
    raise AssertionError(kind)


def _other_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Values of the right type, on both sides of each limit."""
    if schema["type"] == "integer":
        for limit in {schema.get("minimum", 0), schema.get("maximum", 0)}:
            yield from (limit - 1, limit, limit + 1)
    elif schema["type"] == "string":
        longest = schema.get("maxLength", 0)
        yield from ("", "a" * min(longest, 300), "a" * (longest + 1), *AT_THE_EDGE)
        yield from schema.get("enum", ())


def _variants(part: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """`part` with one thing in it changed: a field, entry or key taken away, a value replaced."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield {other: kept for other, kept in part.items() if other != key}
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if below is not None:
                yield from ({**part, key: changed} for changed in _variants(value, below))
        if "additionalProperties" in schema:
            yield from ({**part, key: "x"} for key in ("", "k" * 127, "k" * 128, "a b", *AT_THE_EDGE))
    elif isinstance(part, list):
        for place, value in enumerate(part):
            yield part[:place] + part[place + 1 :]
            for changed in _variants(value, schema["items"]):
                yield [*part[:place], changed, *part[place + 1 :]]
    else:
        yield from _other_values(schema)


def _refusal(body: dict[str, Any]) -> str | None:
    try:
        if body["kind"] == "NixMachine":
            parse_machine(body)
        else:
            parse_deployment(body)
    except InvalidSpec as error:
        return error.message
    return None


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_variants_of_a_valid_spec_are_judged_alike(crds: ApiServer, path: Path) -> None:
    """What the server takes, the model reads; and of a machine, whose spec is whole, also the other way round."""
    original = yaml.safe_load(path.read_text())
    variants = {}
    for number, spec in enumerate(_variants(original["spec"], _schema(original["kind"]))):
        variants[f"v{number}"] = copy.deepcopy(original) | {"spec": spec, "metadata": {"name": f"v{number}"}}

    everything = {"apiVersion": "v1", "kind": "List", "items": list(variants.values())}
    how = ("--dry-run=server", "--validate=ignore", "--output=name")
    answer = crds.run("kubectl", "create", *how, "-f", "-", stdin=json.dumps(everything))

    taken = {line.partition("/")[2] for line in answer.stdout.splitlines()}
    refused = {name: refusal for name, body in variants.items() if (refusal := _refusal(body)) is not None}
    assert taken, answer.stderr
    assert {name: refused[name] for name in taken & refused.keys()} == {}
    if original["kind"] == "NixMachine":
        assert [variants[name]["spec"] for name in variants.keys() - taken - refused.keys()] == []
