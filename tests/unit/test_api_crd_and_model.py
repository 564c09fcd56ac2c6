"""What the CRD's schema lets in, the model reads: value by value, for every string and number of both specs.

CEL rules are not evaluated here. A value that the schema's keywords accept may be refused by the model, but then in the
very words of a rule of that place; that API server and model agree on those is shown by the files in `tests/data`
(tests/component/test_crds_judge_specs.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixops_operator.api import crd
from nixops_operator.api.machine_of_deployment import machines_of
from nixops_operator.api.parse import parse_deployment, parse_machine
from nixops_operator.errors import InvalidSpec

VALID = Path(__file__).parents[1] / "data/valid"
ENTRY = "[]"
VALUE = "{}"


@dataclass(frozen=True)
class Leaf:
    """A string or number of a spec: where it is, its schema, and the words of all rules on the way to it."""

    kind: str
    path: tuple[str, ...]
    schema: dict[str, Any]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}.{'.'.join(self.path)}"


def _leaves(kind: str, schema: dict[str, Any], path: tuple[str, ...], words: tuple[str, ...]) -> Iterator[Leaf]:
    words += tuple(rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    if schema["type"] in ("string", "integer"):
        yield Leaf(kind, path, schema, words)
    for name, field in schema.get("properties", {}).items():
        yield from _leaves(kind, field, (*path, name), words)
    if "items" in schema:
        yield from _leaves(kind, schema["items"], (*path, ENTRY), words)
    if "additionalProperties" in schema:
        yield from _leaves(kind, schema["additionalProperties"], (*path, VALUE), words)


def _all_leaves() -> list[Leaf]:
    found = []
    for definition in crd.all_crds().values():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        kind = definition["spec"]["names"]["kind"]
        found += _leaves(kind, schema["properties"]["spec"], (), ())
    return found


# The same models, once below machines and once below defaults, are judged as a NixMachine's.
LEAVES = [leaf for leaf in _all_leaves() if leaf.path[0] not in ("machines", "defaults") or leaf.path[2:3] == ("name",)]


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """All that the schema's keywords accept."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "integer":
        return st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1))
    least, most = schema.get("minLength", 0), schema["maxLength"]
    letters = st.characters(codec="utf-8")
    if "pattern" not in schema:
        texts = st.text(letters, min_size=least, max_size=min(most, 300))
    else:
        # `\Z`: Python's `$` would also match before a final line break, which neither Go's nor the model's does.
        pattern = re.sub(r"\$$", r"\\Z", schema["pattern"])
        texts = st.from_regex(pattern, alphabet=letters).filter(lambda text: least <= len(text) <= most)
    excluded = schema.get("not", {}).get("pattern")
    return texts if excluded is None else texts.filter(lambda text: not re.search(excluded, text))


OBJECTS = [yaml.safe_load(path.read_text()) for path in sorted(VALID.glob("*.yaml"))]


def _places(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str | int, ...]]:
    """Where in `part` a value of that path could stand: its owner is there."""
    if not path:
        yield ()
        return
    step, rest = path[0], path[1:]
    keys: list[str | int]
    if step == ENTRY:
        keys = list(range(len(part)))
    elif step == VALUE:
        keys = list(part)
    else:
        keys = [step] if not rest or step in part else []
    for key in keys:
        for place in _places(part[key], rest) if rest else [()]:
            yield (key, *place)


def _holder(leaf: Leaf) -> tuple[dict[str, Any], tuple[str | int, ...]]:
    """A valid object, and a place in it for the leaf."""
    for body in OBJECTS:
        if body["kind"] == leaf.kind:
            for place in _places(body["spec"], leaf.path):
                return body, place
    raise AssertionError(f"no file in tests/data/valid has a place for {leaf}")


def _with(body: dict[str, Any], place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    body = copy.deepcopy(body)
    *way, last = place
    owner = body["spec"]
    for key in way:
        owner = owner[key]
    owner[last] = value
    return body


def _refusal(body: dict[str, Any]) -> str | None:
    """The model's words, without the field's path; None if it accepts."""
    try:
        if body["kind"] == "NixMachine":
            parse_machine(body)
        else:
            parse_deployment(body)
    except InvalidSpec as error:
        return error.message.partition(": ")[2]
    return None


def _says(words: str, rule: str) -> bool:
    """The model may name what it found where a rule can only say `one of them`, and its path may say what a rule's
    words say: `description holds …`."""
    return rule.partition("one of them ")[2] in words if "one of them " in rule else rule in words or words in rule


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_the_model_reads_what_the_schema_accepts(leaf: Leaf) -> None:
    body, place = _holder(leaf)

    @settings(
        max_examples=30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(_values(leaf.schema))
    def judge(value: object) -> None:
        refusal = _refusal(_with(body, place, value))
        assert refusal is None or any(_says(refusal, rule) for rule in leaf.words), f"{value!r}: {refusal}"

    judge()


def test_there_are_fields_to_judge() -> None:
    assert len(LEAVES) > 60


@pytest.mark.parametrize("path", sorted(VALID.glob("deployment*.yaml")), ids=lambda path: path.stem)
def test_settings_that_are_valid_below_machines_are_valid_after_merging(path: Path) -> None:
    assert machines_of(yaml.safe_load(path.read_text()))
