"""Small named values for tests of deployments: a row shows only what matters, everything else is a deployment that has
nothing to complain about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from nixops_operator import names
from nixops_operator.api.machine_of_deployment import ChildMachine
from nixops_operator.deployment import plan as deployment_plan
from nixops_operator.deployment.desired import Desired, Leaving, read_deployment
from nixops_operator.deployment.observed import Observed, ObservedKey, ObservedMachine, ObservedNetwork
from nixops_operator.deployment.status import status as status_of
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.facts.cloud import KeyPair, ObservedRule, SecurityGroup
from nixops_operator.names import APPLIED_LABELS_ANNOTATION
from nixops_operator.planning import Plan
from nixops_operator.step import Step
from unit.builders import ACCOUNT, CLUSTER, DEADLINE, NOON, UID, ready, stamp, told

HTTP = {"name": "http", "description": "Web", "ingress": [{"fromPort": 80, "toPort": 80, "cidrs": ["0.0.0.0/0"]}]}
SSH = {"name": "ssh", "description": "SSH", "ingress": [{"fromPort": 22, "toPort": 22, "cidrs": ["0.0.0.0/0"]}]}
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="
KEY_NAME = names.key_pair_name(CLUSTER, UID, "main", PUBLIC_KEY)
LONG_AGO = NOON - timedelta(hours=1)
_AWS = {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}}


def body(
    status: Mapping[str, Any] | None = None,
    *,
    machines: tuple[str | Mapping[str, Any], ...] = ("web",),
    groups: tuple[Mapping[str, Any], ...] = (HTTP, SSH),
    key_pairs: tuple[str, ...] = ("main",),
    generation: int = 1,
    deleting: bool = False,
    annotations: Mapping[str, str] | None = None,
    finalizers: tuple[str, ...] = (names.FINALIZER,),
    **spec: Any,
) -> dict[str, Any]:
    """A NixDeployment on EC2 whose account is recorded, unless `status` says otherwise. Machines by name have all
    groups and the first key pair."""
    ec2: dict[str, Any] = {"instanceType": "t3.small", "securityGroups": [group["name"] for group in groups]}
    if key_pairs:
        ec2["keyPair"] = key_pairs[0]
    common = {"target": {"ec2": ec2}, "configuration": {"modules": [{"inline": "{ }"}]}}
    metadata: dict[str, Any] = {
        "namespace": "default",
        "name": "shop",
        "uid": UID,
        "generation": generation,
        "annotations": dict(annotations or {}),
        "finalizers": list(finalizers),
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOON)
    return {
        "kind": "NixDeployment",
        "metadata": metadata,
        "spec": {
            "aws": _AWS,
            "keyPairs": [{"name": name} for name in key_pairs],
            "securityGroups": list(groups),
            "machines": [{**common, **({"name": one} if isinstance(one, str) else one)} for one in machines],
            **spec,
        },
        "status": {"accountId": ACCOUNT} | dict(status or {}),
    }


def deployment(status: Mapping[str, Any] | None = None, **fields: Any) -> Desired:
    """As `body`, living."""
    found = read_deployment(body(status, **fields))
    assert isinstance(found, Desired)
    return found


def leaving(status: Mapping[str, Any] | None = None, **fields: Any) -> Leaving:
    """As `body`, in deletion."""
    found = read_deployment(body(status, deleting=True, **fields))
    assert isinstance(found, Leaving)
    return found


# --- EC2 ------------------------------------------------------------------------------------------------------------


def rule(port: int, direction: Direction = Direction.INGRESS, peer: str = "0.0.0.0/0") -> Rule:
    kind = PeerKind.IPV4
    if peer.startswith(("sg-", "pl-")):
        kind = PeerKind.GROUP if peer.startswith("sg-") else PeerKind.PREFIX_LIST
    return Rule(direction, "tcp", port, port, kind, peer)


def group_name(entry: Mapping[str, Any]) -> str:
    return names.security_group_name(CLUSTER, UID, entry["name"], "vpc-1", entry["description"])


def tags(entry: str, **more: str) -> dict[str, str]:
    """Of a thing of this deployment."""
    return {names.CLUSTER_TAG: CLUSTER, names.UID_TAG: UID, names.ENTRY_TAG: entry, **more}


RETAINED = {names.RETAINED_TAG: "true"}


def group(entry: Mapping[str, Any], *rules: Rule, **fields: Any) -> SecurityGroup:
    """The EC2 group of an entry, with these ingress rules and AWS' own egress rule."""
    made = SecurityGroup(
        id=f"sg-{entry['name']}",
        name=group_name(entry),
        description=entry["description"],
        vpc_id="vpc-1",
        tags=tags(entry["name"]),
        rules=tuple(
            ObservedRule(f"sgr-{entry['name']}-{n}", one, "") for n, one in enumerate((allow_all_egress(), *rules))
        ),
    )
    return replace(made, **fields)


GROUPS = (group(HTTP, rule(80)), group(SSH, rule(22)))


def key_pair(name: str = KEY_NAME, entry: str = "main", **more: str) -> KeyPair:
    return KeyPair("key-1", name, PUBLIC_KEY, tags(entry, **more))


def network(**fields: Any) -> ObservedNetwork:
    """EC2 as a deployment wants it, but for `fields`; looked at just now."""
    made = ObservedNetwork(
        account_id=ACCOUNT,
        cluster_id=CLUSTER,
        default_vpc="vpc-1",
        groups=GROUPS,
        key_pairs=(key_pair(),),
        looked_at=NOON,
    )
    return replace(made, **fields)


# --- machines -------------------------------------------------------------------------------------------------------


def wanted_child(desired: Desired, machine: str = "web") -> ChildMachine:
    return next(one for one in desired.children if one.machine == machine)


def child_uid(name: str) -> str:
    return f"uid-of-{name}"


def machine(wanted: ChildMachine, truth: str = "True", **changes: Any) -> ObservedMachine:
    """The NixMachine of an entry, as the deployment wants it, with this Ready."""
    metadata: dict[str, Any] = {
        "namespace": "default",
        "name": wanted.name,
        "uid": child_uid(wanted.name),
        "generation": 1,
        "labels": dict(wanted.labels) | changes.pop("labels", {}),
        "annotations": {APPLIED_LABELS_ANNOTATION: ",".join(sorted(wanted.labels))} | changes.pop("annotations", {}),
    }
    if changes.pop("deleting", False):
        metadata["deletionTimestamp"] = stamp(NOON)
    made = {"kind": "NixMachine", "metadata": metadata, "spec": dict(wanted.spec), "status": ready(truth=truth)}
    return ObservedMachine({**made, **changes})


def child(desired: Desired, of: str = "web", truth: str = "True", **changes: Any) -> ObservedMachine:
    return machine(wanted_child(desired, of), truth, **changes)


def sees(desired: Desired, **fields: Any) -> Observed:
    """What a pass over a living deployment sees; by default everything is as declared, and EC2 is not asked."""
    made = Observed(
        keys={entry.name: ObservedKey(PUBLIC_KEY) for entry in desired.spec.key_pairs},
        children=tuple(machine(one) for one in desired.children),
    )
    return replace(made, **fields)


def gone(*children: ObservedMachine, **fields: Any) -> Observed:
    """What a pass over a deployment in deletion sees."""
    return replace(Observed(network(), children=children), **fields)


# --- what comes of it -----------------------------------------------------------------------------------------------


def plan(given: Desired | Leaving, observed: Observed, now: datetime = NOON) -> Plan:
    return deployment_plan.plan(given, observed, now, DEADLINE)


def taken(given: Desired | Leaving, observed: Observed, now: datetime = NOON) -> tuple[Step, ...]:
    """The steps of the plan, intents left out: those stand before each call and have a test of their own."""
    return tuple(one for one in plan(given, observed, now).steps if type(one).__name__ not in _INTENTS)


_INTENTS = ("RecordCreation", "ForgetThing")


def fields_of(given: Desired | Leaving, observed: Observed, now: datetime = NOON) -> dict[str, Any]:
    """The status that the pass would write."""
    return status_of(given, observed, plan(given, observed, now), now)


def conditions_told(given: Desired | Leaving, observed: Observed, now: datetime = NOON) -> dict[str, str]:
    return told(fields_of(given, observed, now))


def kinds(steps: Iterable[Step]) -> list[str]:
    return [type(one).__name__ for one in steps]
