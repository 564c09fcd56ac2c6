"""From an object's body to the models; whatever is wrong becomes `InvalidSpec` with the field's path.

Deletion reads the body another way, with `deletion_view`: what exists must be deletable also where today's model
refuses it, since a rule was tightened or the spec is beyond the limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from nixops_operator.api.deployment_spec import NixDeploymentSpec
from nixops_operator.api.machine_spec import (
    AssumeRole,
    AwsCredentials,
    AwsSettings,
    DeletionPolicy,
    NixMachineSpec,
    SecretReference,
)
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


def _size(spec: Mapping[str, Any]) -> int:
    """As kubectl writes it: what is not ASCII stays as it is, and is not escaped."""
    return len(json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


def _parse(model: type[Model], spec: Mapping[str, Any], field: str) -> Model:
    text = json.dumps(spec)
    if len(text) > SPEC_LIMIT and _size(spec) > SPEC_LIMIT:
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


@dataclass(frozen=True)
class DeletionView:
    """What deletion reads of a spec, each None where it cannot be read; what is absent has its default."""

    policy: DeletionPolicy | None
    """Of the object's EC2 resources. None: nobody knows whether they are to be kept."""
    aws: AwsSettings | None
    """Region and credentials, as far as they are texts; whether they mean something shows in use. Without credentials:
    the operator's own identity, never because what stands there is unreadable."""
    target: Literal["ec2", "host"] | None
    """Which kind of target a NixMachine has; None for a NixDeployment."""
    protections: Mapping[str, bool] = field(default_factory=dict)
    """terminationProtection and stopProtection of target.ec2, if they are said; what cannot be read protects."""
    declares_address: bool = False
    """Whether target.ec2 has elasticIp, whatever stands there."""


def deletion_view(body: Mapping[str, Any]) -> DeletionView:
    """What is needed to delete a NixMachine or NixDeployment, whatever else its spec holds. Raises nothing."""
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        return DeletionView(None, None, None)
    policy, aws, target, protections = _deletion_policy(spec), _aws(spec), _kind_of_target(spec), _protections(spec)
    return DeletionView(policy, aws, target, protections, _ec2(spec).get("elasticIp") is not None)


def _deletion_policy(spec: Mapping[str, Any]) -> DeletionPolicy | None:
    written = spec.get("deletionPolicy", DeletionPolicy.DELETE)
    return next((policy for policy in DeletionPolicy if policy == written), None)


def _aws(spec: Mapping[str, Any]) -> AwsSettings | None:
    """Built without validation: a pattern or limit of today says nothing about what was used when it was written."""
    try:
        aws = _map(spec.get("aws", {}))
        region = _text(aws["region"]) if "region" in aws else None
        return AwsSettings.model_construct(
            region=region, credentials=_credentials(_map(aws["credentials"])) if "credentials" in aws else None
        )
    except _UnreadableError:
        return None


def _credentials(written: Mapping[str, Any]) -> AwsCredentials:
    reference = None
    if "secretRef" in written:
        reference = SecretReference.model_construct(name=_text(_map(written["secretRef"]).get("name")))
    profile = _text(written["profile"]) if "profile" in written else None
    role = _role(_map(written["assumeRole"])) if "assumeRole" in written else None
    return AwsCredentials.model_construct(secret_ref=reference, profile=profile, assume_role=role)


def _role(written: Mapping[str, Any]) -> AssumeRole:
    """Never none because it is unreadable: without it, somebody else would act."""
    external_id = _text(written["externalId"]) if "externalId" in written else None
    return AssumeRole.model_construct(role_arn=_text(written.get("roleArn")), external_id=external_id)


def _kind_of_target(spec: Mapping[str, Any]) -> Literal["ec2", "host"] | None:
    target = spec.get("target")
    if not isinstance(target, Mapping) or ("ec2" in target) == ("host" in target):
        return None
    return "ec2" if "ec2" in target else "host"


def _ec2(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return _map(_map(spec.get("target", {})).get("ec2", {}))
    except _UnreadableError:
        return {}


def _protections(spec: Mapping[str, Any]) -> Mapping[str, bool]:
    ec2 = _ec2(spec)
    said = {name: ec2.get(name) for name in ("terminationProtection", "stopProtection")}
    return {name: value is not False for name, value in said.items() if value is not None}


class _UnreadableError(Exception):
    """Not of the type that belongs here."""


def _map(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _UnreadableError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _UnreadableError
    return value
