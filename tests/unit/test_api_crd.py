"""The generator refuses what the API server would refuse or silently drop, and its files in git are fresh."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import botocore
import pytest
from botocore.loaders import Loader
from pydantic import BaseModel, ConfigDict, Field

from nixops_operator.api import crd
from nixops_operator.api.field_types import MERGED_BY_NAME, cel_rules
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.api.schema import schema_of

ROOT = Path(__file__).parents[2]


def model(annotation: Any, default: Any = ...) -> type[BaseModel]:
    namespace = {"__annotations__": {"field": annotation}, "__doc__": "A part."}
    return type("Part", (BaseModel,), namespace if default is ... else namespace | {"field": default})


def field(annotation: Any, default: Any = ...) -> dict[str, Any]:
    return dict(schema_of(model(annotation, default))["properties"]["field"])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        pytest.param(str, r"Part\.field: a string needs max_length", id="string without a limit"),
        pytest.param(list[int], r"Part\.field: a list needs max_length and a list type", id="list without a limit"),
        pytest.param(
            Annotated[list[int], Field(max_length=3)], r"a list needs max_length and a list type", id="list of no type"
        ),
        pytest.param(dict[str, int], r"Part\.field: a map needs", id="map without a limit"),
        pytest.param(
            Annotated[dict[str, str], Field(max_length=3)], r"Part\.field\{\}: a string needs", id="limit inside a map"
        ),
        pytest.param(int | Literal["all"], r"Part\.field: a union of 2 types", id="union"),
        pytest.param(Literal["one"], r"no keyword const", id="constant"),
        pytest.param(Annotated[int, Field(gt=0)], r"no keyword exclusiveMinimum", id="exclusive limit, a number here"),
        pytest.param(Annotated[int, Field(examples=[1])], r"no keyword examples", id="examples"),
        pytest.param(float, r"number is no type of ours", id="float"),
        pytest.param(Any, r"None is no type of ours", id="anything"),
    ],
)
def test_what_kubernetes_would_not_take_stops_the_generator(annotation: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        field(annotation)


def test_absent_is_not_null() -> None:
    assert field(Annotated[int, Field(ge=1)] | None, None) == {"type": "integer", "minimum": 1, "description": ""}


def test_a_default_is_told_not_stored() -> None:
    assert field(Annotated[int, Field(description="A port.")], 22) == {
        "type": "integer",
        "description": "A port. Default: 22.",
    }


def test_a_reference_is_put_in_place_and_the_field_s_words_win() -> None:
    class Inner(BaseModel):
        """The inner one."""

        model_config = ConfigDict(extra="forbid")
        title: bool

    schema = field(Annotated[Inner, Field(description="Said outside.")])

    assert schema["description"] == "Said outside."
    assert schema["properties"] == {"title": {"type": "boolean", "description": ""}}
    assert "additionalProperties" not in schema


def _rules(schema: Any) -> Iterator[dict[str, str]]:
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
        for part in schema.values():
            yield from _rules(part)


class _Entry(BaseModel):
    """An entry of a list."""

    b: int


class _Inner(BaseModel):
    """A nested object."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(("whole", "Whole."), always=[("always", "Always.")], of_parts=[("part", "Part.")])
    )
    b: int


class _Outer(BaseModel):
    """An object with everything."""

    model_config = ConfigDict(json_schema_extra=cel_rules(("whole", "Whole.")))
    a: _Inner
    entries: Annotated[list[_Entry], Field(max_length=2, json_schema_extra=MERGED_BY_NAME)]


def test_a_part_requires_nothing_but_inside_lists() -> None:
    whole, part = schema_of(_Outer), schema_of(_Outer, part=True)

    assert (whole["required"], whole["properties"]["a"]["required"]) == (["a", "entries"], ["b"])
    assert "required" not in part
    assert "required" not in part["properties"]["a"]
    assert part["properties"]["entries"] == whole["properties"]["entries"]


def test_a_part_has_rules_of_its_own() -> None:
    whole, part = schema_of(_Outer), schema_of(_Outer, part=True)

    assert [rule["rule"] for rule in _rules(whole)] == ["whole", "whole", "always"]
    assert [rule["rule"] for rule in _rules(part)] == ["part", "always"]


def test_the_files_in_git_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check", str(ROOT)]) == 0, capsys.readouterr().err


def test_a_stale_file_is_named_with_the_command_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "crds/nixops.dev_nixmachines.yaml").write_text("old")

    assert crd.main(["--check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "out of date: crds/nixops.dev_nixmachines.yaml; run `make generate`\n"
    assert (tmp_path / "crds/nixops.dev_nixmachines.yaml").read_text() == "old"


@pytest.mark.parametrize("plural", ["nixmachines", "nixdeployments"])
def test_a_definition_fits_into_an_annotation(plural: str) -> None:
    # Client-side apply copies it there as JSON; all annotations of an object share 262144 bytes (Kubernetes API
    # validation).
    assert len(json.dumps(crd.all_crds()[plural]).encode()) < 200_000


def test_status_and_spec_limits_reach_every_machine_of_a_deployment() -> None:
    """The fields of a NixMachine's spec are those of a deployment's machine, with the same limits."""
    machine = crd.all_crds()["nixmachines"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    deployment = crd.deployment_spec_schema()["properties"]

    entry = deployment["machines"]["items"]["properties"]
    assert set(entry) == set(machine["properties"]) | {"name", "replicas", "labels"}
    assert set(deployment["defaults"]["properties"]) == set(machine["properties"])
    assert (
        entry["configuration"]["properties"]["modules"]
        == machine["properties"]["configuration"]["properties"]["modules"]
    )


def test_every_rule_has_a_spec_that_it_refuses() -> None:
    """Rules that compare with the old object are tried in tests/component/test_crds_over_time.py."""
    refused = [path.read_text().splitlines()[0] for path in (ROOT / "tests/data/invalid").glob("*.yaml")]
    texts = [text.removeprefix("# refused: ") for text in refused]

    unseen = {
        rule["message"]
        for definition in crd.all_crds().values()
        for rule in _rules(definition)
        if "oldSelf" not in rule["rule"] and not any(text in rule["message"] for text in texts)
    }

    assert unseen == set()


@pytest.mark.parametrize("plural", ["nixmachines", "nixdeployments"])
def test_only_rules_that_see_the_status_compare_with_the_old_object(plural: str) -> None:
    """Elsewhere they would count what was written and never carried out, and could refuse what nobody changed."""
    root = crd.all_crds()[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    assert [rule["rule"] for rule in _rules(root["properties"]) if "oldSelf" in rule["rule"]] == []
    assert all(
        "oldSelf.status" in rule["rule"] for rule in root["x-kubernetes-validations"] if "oldSelf" in rule["rule"]
    )


def _words_of_ec2(shape: str) -> list[str]:
    return list(Loader().load_service_model("ec2", "service-2")["shapes"][shape]["enum"])


def _regions() -> list[str]:
    partitions = json.loads((Path(botocore.__file__).parent / "data/endpoints.json").read_text())["partitions"]
    return [region for partition in partitions for region in partition["regions"]]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        pytest.param(("aws", "region"), _regions(), id="region"),
        pytest.param(("target", "ec2", "instanceType"), _words_of_ec2("InstanceType"), id="instance type"),
    ],
)
def test_what_ec2_has_can_be_written(path: tuple[str, ...], words: list[str]) -> None:
    schema = schema_of(NixMachineSpec)
    for step in path:
        schema = schema["properties"][step]

    assert len(words) > 30
    assert [word for word in words if not re.search(schema["pattern"], word) or len(word) > schema["maxLength"]] == []
