"""From an object's body to the models; whatever is wrong becomes `InvalidSpec` with the field's path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nixops_operator.api.deployment_spec import NixDeploymentSpec
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.errors import InvalidSpec

SPEC_LIMIT = 65536
"""Bytes of a spec as JSON: kubectl copies it into an annotation, and all annotations share 256 KiB."""

Model = TypeVar("Model", bound=BaseModel)


def parse_machine(body: Mapping[str, Any]) -> NixMachineSpec:
    """The spec of a NixMachine. Raises InvalidSpec."""
    return parse_machine_spec(body.get("spec", {}), "spec")


def parse_machine_spec(spec: Mapping[str, Any], field: str) -> NixMachineSpec:
    """A NixMachine's spec that stands at `field`, as `spec.machines[web]`. Raises InvalidSpec."""
    return _parse(NixMachineSpec, spec, field)


def parse_deployment(body: Mapping[str, Any]) -> NixDeploymentSpec:
    """The spec of a NixDeployment; its machines' settings are judged by `machines_of`. Raises InvalidSpec."""
    return _parse(NixDeploymentSpec, body.get("spec", {}), "spec")


def _parse(model: type[Model], spec: Mapping[str, Any], field: str) -> Model:
    text = json.dumps(spec)
    if len(text.encode()) > SPEC_LIMIT:
        raise InvalidSpec(field, f"is larger than {SPEC_LIMIT // 1024} KiB; move modules into a ConfigMap")
    try:
        # From JSON, where strict typing still reads lists as tuples and strings as enumerations.
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        message = "is not a field of this object" if first["type"] == "extra_forbidden" else message
        raise InvalidSpec(field_path(field, first["loc"]), message) from None


def field_path(start: str, location: Sequence[int | str]) -> str:
    """`spec`, (`machines`, 0, `target`) as `spec.machines[0].target`."""
    return start + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
