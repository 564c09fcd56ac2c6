"""The machines that a deployment asks for, each with its whole spec. Pure.

A machine's settings are, from weak to strong: what the deployment says for all (aws, ssh, suspend, deletionPolicy,
driftPolicy), `defaults`, the machine's own entry. Maps merge, lists and scalars replace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nixops_operator import names
from nixops_operator.api.deployment_spec import MachineEntry, NixDeploymentSpec
from nixops_operator.api.machine_spec import NixMachineSpec
from nixops_operator.api.parse import parse_deployment, parse_machine_spec
from nixops_operator.errors import InvalidSpec

_INHERITED = ("aws", "ssh", "suspend", "deletionPolicy", "driftPolicy")


@dataclass(frozen=True)
class ChildMachine:
    """One machine as the deployment wants it. `name` is the object's, `machine` the name in the deployment; `spec` is
    camelCase, as it goes to the API server; `settings` is the same, parsed. Replicas share both objects."""

    name: str
    machine: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    settings: NixMachineSpec = field(repr=False)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`: maps merge, lists and scalars replace."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]  # `both` says so
    return result


def machines_of(body: Mapping[str, Any]) -> tuple[ChildMachine, ...]:
    """All machines of a NixDeployment, in the order of its list. Raises InvalidSpec with the field's path."""
    deployment = body["metadata"]["name"]
    spec = parse_deployment(body)
    inherited = {key: body["spec"][key] for key in _INHERITED if key in body["spec"]}
    children: dict[str, ChildMachine] = {}
    given: dict[str, str] = {}
    for place, entry in enumerate(spec.machines):
        path = f"spec.machines[{place}]"
        settings = merged(merged(inherited, spec.defaults), entry.settings)
        settings = _with_client_key(deployment, spec, settings)
        _judge_references(spec, settings, path)
        if entry.count == 0:
            continue
        # Once for all replicas: they differ in nothing but the name.
        parsed = parse_machine_spec(settings, path)
        _judge_given(parsed, entry, path, given)
        for machine in _names(entry):
            if machine in children:
                raise InvalidSpec(f"{path}.name", f"two machines would be called {machine}; rename one")
            if len(machine) > names.LABEL_LIMIT:
                raise InvalidSpec(f"{path}.name", f"{machine} is longer than {names.LABEL_LIMIT} characters")
            name = names.machine_object_name(deployment, machine)
            own = {names.DEPLOYMENT_LABEL: names.label_value(deployment), names.MACHINE_LABEL: machine}
            children[machine] = ChildMachine(name, machine, {**entry.labels, **own}, settings, parsed)
    return tuple(children.values())


def _names(entry: MachineEntry) -> Iterator[str]:
    if entry.replicas is None:
        yield entry.name
    else:
        yield from (f"{entry.name}-{number}" for number in range(entry.replicas))


def _judge_given(settings: NixMachineSpec, entry: MachineEntry, path: str, taken: dict[str, str]) -> None:
    """What exists in EC2 is one machine's: an elastic address, a volume. `taken`: those before, and whose they are."""
    for place, given, instead in _given(settings):
        if entry.count > 1:
            message = f"{given} is one thing, and these are {entry.count} machines"
        elif given in taken:
            message = f"{given} is given to machine {taken[given]}, too"
        else:
            taken[given] = entry.name
            continue
        message = f"{message}; name another one for each, in an entry of its own, or {instead}"
        raise InvalidSpec(f"{path}.target.ec2.{place}", message)


def _given(settings: NixMachineSpec) -> Iterator[tuple[str, str, str]]:
    """Field, id or address, and what to have instead."""
    ec2 = settings.target.ec2
    if ec2 is None:
        return
    if ec2.elastic_ip is not None and not ec2.elastic_ip.allocate:
        yield "elasticIp", str(ec2.elastic_ip.id or ec2.elastic_ip.address), "have them allocated: allocate: true"
    for volume in ec2.volumes:
        if volume.volume_id is not None:
            yield f"volumes[{volume.name}].volumeId", volume.volume_id, "have new ones made: size"


def _part(settings: Mapping[str, Any], *path: str) -> Any:
    """The value at that path, None where anything on the way is absent or no map."""
    value: Any = settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _with_client_key(deployment: str, spec: NixDeploymentSpec, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the key pair's private key as client key, unless they name one themselves."""
    wanted = _part(settings, "target", "ec2", "keyPair")
    pair = next((pair for pair in spec.key_pairs if pair.name == wanted), None)
    if pair is None or _part(settings, "ssh", "privateKeySecretRef") is not None:
        return settings
    own = pair.private_key_secret_ref
    reference = {
        "name": own.name if own else names.key_pair_secret(deployment, pair.name),
        "key": own.key if own else names.SSH_PRIVATE_KEY,
    }
    return merged(settings, {"ssh": {"privateKeySecretRef": reference}})


def _judge_references(spec: NixDeploymentSpec, settings: Mapping[str, Any], path: str) -> None:
    """Of settings that already name the client keys of known key pairs."""
    known = {group.name for group in spec.security_groups}
    pair = _part(settings, "target", "ec2", "keyPair")
    if pair is not None and _part(settings, "ssh", "privateKeySecretRef") is None:
        raise InvalidSpec(
            f"{path}.target.ec2.keyPair",
            f"{pair} is none of spec.keyPairs; add it there, or name the Secret with its private key in"
            " ssh.privateKeySecretRef",
        )
    groups = _part(settings, "target", "ec2", "securityGroups")
    for group in groups if isinstance(groups, list) else ():
        if group not in known and not str(group).startswith("sg-"):
            raise InvalidSpec(
                f"{path}.target.ec2.securityGroups",
                f"{group} is none of spec.securityGroups; add it there, or name an existing group by its id sg-…",
            )
