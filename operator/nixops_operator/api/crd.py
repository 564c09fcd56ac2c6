"""The CustomResourceDefinitions, generated from the models: `python -m nixops_operator.api.crd [--check] [FOLDER]`.

Writes `crds/` and the chart's copies below FOLDER (the checkout, by default the current folder); `--check` only
compares and exits 1 with the command to run.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from nixops_operator import generated
from nixops_operator.api.deployment_spec import MachineEntry, NixDeploymentSpec
from nixops_operator.api.field_types import CelRule
from nixops_operator.api.group import GROUP, VERSION
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.api.schema import Schema, schema_of
from nixops_operator.api.status import OBSERVED_AT_FIRST, NixDeploymentStatus, NixMachineStatus

_NOTE = "# Generated from operator/nixops_operator/api by `make generate`; do not edit.\n"
# Deleting a CustomResourceDefinition deletes every object of its kind, and with them the machines: Helm must not.
_KEEP = {"helm.sh/resource-policy": "keep"}


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


def _column(name: str, path: str, description: str, kind: str = "string", *, priority: int = 0) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": priority}


_READY = (
    _column("Ready", _condition("Ready", "status"), "Whether the whole promise holds."),
    _column("Status", _condition("Ready", "reason"), "Why it is ready or not."),
    # Ready stays what it was then, so nothing else on the line tells.
    _column("Paused", _condition("Paused", "status"), "True while it is suspended: looked at, and nothing is changed."),
)
_AGE = _column("Age", ".metadata.creationTimestamp", "Since when the object exists.", "date")
_MESSAGE = _column("Message", _condition("Ready", "message"), "What, where, what next.", priority=1)

MACHINE_COLUMNS = (
    *_READY,
    _column("Target", ".status.target", "Instance type, or host."),
    _column("Address", ".status.addresses.ssh", "Where SSH goes."),
    _column("System", ".status.system.generation", "Generation of the system profile.", "integer"),
    _AGE,
    _column("Instance", ".status.instance.id", "The EC2 instance.", priority=1),
    _column("Zone", ".status.instance.zone", "Its availability zone.", priority=1),
    _column("Toplevel", ".status.system.revision", "Start of the running system's store hash.", priority=1),
    _column("UpToDate", _condition("UpToDate", "status"), "Whether nothing differs from the spec.", priority=1),
    _MESSAGE,
)
DEPLOYMENT_COLUMNS = (
    *_READY,
    _column("Machines", ".status.machines.summary", "Ready machines of those desired."),
    _column("Updated", ".status.machines.updated", "Machines with the newest settings.", "integer"),
    _column("Revision", ".status.revision.current", "Revision that the machines run."),
    _AGE,
    _MESSAGE,
)


def deployment_spec_schema() -> Schema:
    """A NixDeployment's spec; its machines and `defaults` have a NixMachine's fields, all optional."""
    settings = schema_of(NixMachineSpec, part=True)
    schema = schema_of(NixDeploymentSpec)
    fields = schema["properties"]
    fields["defaults"] = settings | {"description": fields["defaults"]["description"]}
    entry = schema_of(MachineEntry)
    fields["machines"]["items"] = settings | {
        "description": entry["description"],
        "properties": entry["properties"] | settings["properties"],
        "required": entry["required"],
    }
    return schema


def crd(
    kind: str, short_name: str, spec: Schema, status: Schema, columns: tuple[dict[str, Any], ...], root: Schema
) -> Schema:
    """One CustomResourceDefinition; `root` holds the rules that see name and status, too."""
    status = status | {"default": {"observedGeneration": OBSERVED_AT_FIRST}}
    schema = {
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        **root,
    }
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short_name],
                "categories": ["nixops"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(columns),
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


# What cannot be changed counts from what was carried out, never from what was written: a mistake can be taken back as
# long as nothing came of it. So these rules stand at the root, where they see the status. Each of them holds for an
# object that stays as it is, whatever it is: otherwise nobody could take its finalizer off.
# The API server calls the root `<nil>` in its answer, unless a rule says which field it is about. It knows none of the
# metadata's.
def _root(*rules: tuple[str | None, CelRule]) -> Schema:
    """(path of a field, the rule about it)."""
    return {
        "x-kubernetes-validations": [
            {"rule": rule, "message": message} | ({"fieldPath": f".{path}"} if path is not None else {})
            for path, (rule, message) in rules
        ]
    }


def _has(owner: str, path: str) -> str:
    """CEL for: everything on the way to `owner.path` is there, also what the schema requires."""
    fields = path.split(".")
    return " && ".join(f"has({owner}.{'.'.join(fields[: end + 1])})" for end in range(len(fields)))


def _same(path: str) -> str:
    return f"{_has('self', path)} && self.{path} == oldSelf.{path}"


def _shorter_than(limit: int) -> CelRule:
    return (
        f"size(self.metadata.name) <= {limit}",
        f"the name is longer than {limit} characters; take a shorter one",
    )


def _region_is_fixed(kind: str) -> tuple[str, str]:
    region = "spec.aws.region"
    return (
        f"!({_has('oldSelf', 'status.accountId')}) || !({_has('oldSelf', region)}) || {_same(region)}",
        (
            "spec.aws.region cannot be changed any more, since something was made there: put the old region back, and"
            f" create a new {kind} for another region"
        ),
    )


def _stays(target: str) -> str:
    return f"(!({_has('oldSelf', target)}) || {_has('self', target)})"


_KIND_OF_TARGET_IS_FIXED = (
    (
        f"!({_has('oldSelf', 'status.accountId')}) && !({_has('oldSelf', 'status.activation')})"
        f" || {_stays('spec.target.ec2')} && {_stays('spec.target.host')}"
    ),
    (
        "the kind of spec.target cannot be changed any more, since the machine is in use: put the old target back, and"
        " create a new machine for the other kind"
    ),
)

_SUBNET = "spec.target.ec2.subnetId"
_SUBNETS = "spec.target.ec2.subnetIds"
_MADE_IN = "status.instance.subnetId"
_SUBNET_IS_FIXED = (
    (
        f"!({_has('oldSelf', _MADE_IN)}) || {_has('oldSelf', _SUBNET)} && {_same(_SUBNET)}"
        f" || !({_has('oldSelf', _SUBNET)}) && !({_has('self', _SUBNET)})"
        f" || {_has('self', _SUBNET)} && self.{_SUBNET} == oldSelf.{_MADE_IN}"
        f" || !({_has('self', _SUBNET)}) && {_has('self', _SUBNETS)} && oldSelf.{_MADE_IN} in self.{_SUBNETS}"
        # Another one than the instance's, written while the launch was under way, may be taken back.
        f" || {_has('oldSelf', _SUBNET)} && !({_has('self', _SUBNET)}) && oldSelf.{_SUBNET} != oldSelf.{_MADE_IN}"
    ),
    (
        "spec.target.ec2.subnetId cannot be changed any more, since the instance exists: put the old value back, and"
        " create a new machine for another subnet"
    ),
)


def all_crds() -> dict[str, Schema]:
    """Plural → CustomResourceDefinition."""
    return {
        "nixmachines": crd(
            "NixMachine",
            "nixm",
            schema_of(NixMachineSpec),
            schema_of(NixMachineStatus),
            MACHINE_COLUMNS,
            # Secrets are called <name>-launch-<attempt>, and 253 characters is the most for a name.
            _root(
                (None, _shorter_than(200)),
                ("spec.aws.region", _region_is_fixed("NixMachine")),
                ("spec.target", _KIND_OF_TARGET_IS_FIXED),
                ("spec.target.ec2.subnetId", _SUBNET_IS_FIXED),
            ),
        ),
        "nixdeployments": crd(
            "NixDeployment",
            "nixd",
            deployment_spec_schema(),
            schema_of(NixDeploymentStatus),
            DEPLOYMENT_COLUMNS,
            # The name is the value of a label.
            _root(
                (None, _shorter_than(63)),
                ("spec.aws.region", _region_is_fixed("NixDeployment")),
            ),
        ),
    }


def files() -> dict[str, str]:
    """Path below the checkout → content."""
    written = {}
    for plural, definition in all_crds().items():
        written[f"crds/{GROUP}_{plural}.yaml"] = _NOTE + _yaml(definition)
        kept = definition | {"metadata": definition["metadata"] | {"annotations": _KEEP}}
        written[f"helm/nixops-operator/templates/crds/{plural}.yaml"] = (
            _NOTE + "{{- if .Values.crds.enabled }}\n" + _yaml(kept) + "{{- end }}\n"
        )
    return written


def _yaml(definition: Schema) -> str:
    text = yaml.safe_dump(definition, sort_keys=True, width=120, allow_unicode=True)
    if "{{" in text:
        raise TypeError("a description or pattern holds {{, which Helm would take for a template")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if --check finds that a file differs, else 0."""
    return generated.main(files(), "nixops_operator.api.crd", "the CRDs", arguments)


if __name__ == "__main__":
    sys.exit(main())
