"""Small named values for tests of plans and statuses: a row shows only what matters, everything else is a machine that
has nothing to complain about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nixops_operator import names
from nixops_operator.api.machine_of_deployment import machines_of
from nixops_operator.api.parse import parse_deployment, parse_machine
from nixops_operator.deployment.observed import Desired as DesiredDeployment
from nixops_operator.deployment.observed import Observed as ObservedDeployment
from nixops_operator.deployment.observed import ObservedKey, ObservedMachine, ObservedNetwork, desired_deployment
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import Image, Instance, InstanceState, KeyPair, ObservedRule, SecurityGroup, Subnet
from nixops_operator.facts.host import ActivationFacts, ActivationState, HostFacts
from nixops_operator.facts.nix import Evaluation, Module
from nixops_operator.jobs import Done, JobState
from nixops_operator.machine.host_keys import Pins
from nixops_operator.machine.observed import (
    Desired,
    LaunchParameters,
    Observed,
    ObservedCloud,
    ObservedHost,
    ObservedSystem,
    SystemInput,
    desired_machine,
)
from nixops_operator.machine.plan import Plan, plan
from nixops_operator.machine.status import status
from nixops_operator.verdict import Outcome

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DEADLINE = timedelta(minutes=30)
CLUSTER = "00000000-0000-4000-8000-000000000000"
UID = "00000000-0000-4000-8000-000000000001"
ACCOUNT = "123456789012"
OTHER_ACCOUNT = "999999999999"
ADDRESS = "198.51.100.7"

OLD = "/nix/store/00000000000000000000000000000old-nixos-system-web-25.11"
NEW = "/nix/store/11111111111111111111111111111new-nixos-system-web-25.11"
BY_HAND = "/nix/store/2222222222222222222222222222hand-nixos-system-web-25.11"
DRV = "/nix/store/33333333333333333333333333333drv-nixos-system-web-25.11.drv"
EVALUATE = "evaluate:input"
BUILD = f"build:{DRV}"
COPY = f"copy:{UID}:{NEW}"

_HOST_SPEC: dict[str, Any] = {
    "target": {"host": {"address": ADDRESS}},
    "ssh": {"privateKeySecretRef": {"name": "client"}, "hostKeys": ["ssh-ed25519 AAAA"]},
    "configuration": {"modules": [{"inline": "{ }"}]},
}
_EC2_SPEC: dict[str, Any] = {
    "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}},
    "target": {"ec2": {"instanceType": "t3.small"}},
    "ssh": {"privateKeySecretRef": {"name": "client"}},
    "configuration": {"modules": [{"inline": "{ }"}]},
}


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the object -----------------------------------------------------------------------------------------------------


def _desired(
    spec: Mapping[str, Any],
    status: Mapping[str, Any] | None,
    generation: int,
    deleting: bool,
    annotations: Mapping[str, str] | None,
) -> Desired:
    metadata: dict[str, Any] = {
        "namespace": "default",
        "name": "web",
        "uid": UID,
        "generation": generation,
        "annotations": dict(annotations or {}),
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOON)
    body = {"kind": "NixMachine", "metadata": metadata, "spec": dict(spec), "status": dict(status or {})}
    return desired_machine(body, parse_machine(body))


def ec2_machine(
    status: Mapping[str, Any] | None = None,
    *,
    generation: int = 1,
    deleting: bool = False,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Desired:
    """A NixMachine on EC2 whose account is recorded, unless `status` says otherwise."""
    return _desired(_EC2_SPEC | spec, {"accountId": ACCOUNT} | dict(status or {}), generation, deleting, annotations)


def host_machine(
    status: Mapping[str, Any] | None = None,
    *,
    generation: int = 1,
    deleting: bool = False,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Desired:
    """A NixMachine on a given host."""
    return _desired(_HOST_SPEC | spec, status, generation, deleting, annotations)


def launch(
    attempt: int = 1, *, instance: str | None = None, age: timedelta = timedelta(hours=1), refused: int | None = None
) -> dict[str, Any]:
    """`status.launch`, as an intent leaves it."""
    return {
        "launch": {
            "attempt": attempt,
            "token": f"token-{attempt}",
            "parametersHash": "hash",
            "accountId": ACCOUNT,
            "region": "us-west-2",
            "subnetId": "subnet-1",
            "requestedAt": stamp(NOON - age),
            "instanceId": instance,
            "refusedGeneration": refused,
        }
    }


def activation(toplevel: str = NEW, attempt: int = 1, result: str | None = None) -> dict[str, Any]:
    """`status.activation`, as an intent leaves it."""
    name = activation_id(toplevel, attempt)
    return {
        "activation": {
            "id": name,
            "unit": f"nixops-activate-{name}.service",
            "toplevel": toplevel,
            "attempt": attempt,
            "startedAt": stamp(NOON),
            "result": result,
        }
    }


def activation_id(toplevel: str, attempt: int) -> str:
    return f"{toplevel.removeprefix('/nix/store/')[:8]}-{attempt}"


def ran(toplevel: str = NEW, booted: str = OLD) -> dict[str, Any]:
    """`status.system` of a machine on which that system was confirmed."""
    return {"system": {"desired": toplevel, "current": toplevel, "booted": booted, "activatedAt": stamp(NOON)}}


def ready(generation: int = 1, truth: str = "True", reason: str = "Succeeded") -> dict[str, Any]:
    """Conditions with this Ready."""
    return {"conditions": [condition("Ready", truth, reason, generation)], "observedGeneration": generation}


def condition(
    kind: str, truth: str = "True", reason: str = "Succeeded", generation: int = 1, since: datetime = NOON
) -> dict[str, Any]:
    return {
        "type": kind,
        "status": truth,
        "reason": reason,
        "message": "as before",
        "observedGeneration": generation,
        "lastTransitionTime": stamp(since),
    }


def wedged(since: datetime, generation: int = 1) -> dict[str, Any]:
    """Conditions of a way out that has been Stalled since then."""
    return {"conditions": [condition("Stalled", generation=generation, since=since)]}


PATIENCE_WITH_REFUSALS = pytest.mark.parametrize(
    ("status", "minutes", "outcome"),
    [
        pytest.param({}, 0, Outcome.WEDGED, id="a passing refusal is waited out"),
        pytest.param(wedged(NOON), 4.9, Outcome.WEDGED, id="less than five minutes"),
        pytest.param(wedged(NOON - timedelta(hours=1)), 4.9, Outcome.WEDGED, id="stalled long before the deletion"),
        pytest.param(wedged(NOON, generation=0), 5, Outcome.WEDGED, id="not tried for this generation"),
        pytest.param(wedged(NOON), 5, Outcome.GONE, id="five minutes"),
    ],
)
"""How long both kinds wait with deletionPolicy Retain before they let go untagged."""


# --- EC2 ------------------------------------------------------------------------------------------------------------


def instance(
    name: str = "i-1", state: InstanceState = InstanceState.RUNNING, attempt: int = 1, **fields: Any
) -> Instance:
    made = Instance(
        id=name,
        state=state,
        state_reason="",
        instance_type="t3.small",
        image_id="ami-1",
        zone="us-west-2a",
        subnet_id="subnet-1",
        private_address="172.31.0.4",
        public_address=ADDRESS,
        key_name=None,
        security_group_ids=("sg-1",),
        tags={names.UID_TAG: UID, names.ATTEMPT_TAG: str(attempt)},
        launch_time=NOON - timedelta(hours=1),
        client_token=f"token-{attempt}",
    )
    return replace(made, **fields)


PARAMETERS = LaunchParameters(
    Image("ami-1", "nixos/25.11.1-x86_64-linux"), Subnet("subnet-1", "vpc-1", "us-west-2a"), "t3.small", None, (), {}
)


def cloud(*instances: Instance, missing_for: timedelta | None = None, **fields: Any) -> ObservedCloud:
    """A complete look that shows these instances; the first one's host key is pinned."""
    made = ObservedCloud(
        account_id=ACCOUNT,
        instances=instances,
        missing_for=missing_for,
        parameters=PARAMETERS,
        pins=Pins(instances[0].id, ("ssh-ed25519 AAAA",)) if instances else Pins(),
    )
    return replace(made, **fields)


# --- the host -------------------------------------------------------------------------------------------------------

BOOT = "boot-1"


def host(
    current: str | None = NEW,
    profile: str | None = NEW,
    booted: str = OLD,
    activation: ActivationFacts | None = None,
    highest_attempt: int = 1,
    **fields: Any,
) -> ObservedHost:
    """A machine that answers."""
    facts = HostFacts(
        boot_id=BOOT,
        current_system=current,
        booted_system=booted,
        profile_system=profile,
        profile_generation=2,
        boot_entry_unsure=False,
        lists_left=False,
        is_nixos=True,
        version_id="25.11",
        state_version="25.11",
        machine="x86_64",
        failed_units=(),
        free_bytes=1,
        activation=activation,
        highest_attempt=highest_attempt,
    )
    return ObservedHost(ADDRESS, None, replace(facts, **fields), ("ssh-ed25519 AAAA",))


def silent(error: OperatorError | None = None) -> ObservedHost:
    """A machine without facts: not looked at yet, or with this error."""
    return ObservedHost(ADDRESS, error, None, ("ssh-ed25519 AAAA",))


def on_host(
    state: ActivationState,
    toplevel: str = NEW,
    attempt: int = 1,
    *,
    unit: bool = False,
    boot: str = BOOT,
    exit_status: int | None = None,
    result: str = "",
    previous: str = OLD,
) -> ActivationFacts:
    """An activation directory."""
    return ActivationFacts(
        id=activation_id(toplevel, attempt),
        attempt=attempt,
        state=state,
        toplevel=toplevel,
        previous=previous,
        boot_id=boot,
        is_unit_active=unit,
        is_timer_armed=True,
        exit_status=exit_status,
        service_result=result,
    )


# --- the configuration ----------------------------------------------------------------------------------------------

INPUT = SystemInput("web", "web", UID, "x86_64-linux", False, None, None, (Module("modules[0]", "{ }"),), "25.11", {})
RESOLVED = ObservedSystem(input=INPUT, evaluate_job=EVALUATE)
EVALUATED: dict[str, JobState] = {EVALUATE: Done(Evaluation(DRV, NEW))}
BUILT: dict[str, JobState] = {**EVALUATED, BUILD: Done(NEW)}
COPIED: dict[str, JobState] = {**BUILT, COPY: Done(None)}


def seen(
    cloud: ObservedCloud | None = None,
    host: ObservedHost | None = None,
    *,
    system: ObservedSystem = RESOLVED,
    jobs: Mapping[str, JobState] = COPIED,
    working_since: datetime | None = None,
    deadline_passed: bool = False,
) -> Observed:
    """What a pass sees; by default everything about the configuration is done."""
    return Observed(cloud, host or ObservedHost(), system, jobs, working_since, deadline_passed)


def planned(desired: Desired, observed: Observed, now: datetime = NOON) -> Plan:
    return plan(desired, observed, now, DEADLINE)


def trio_of(desired: Desired, observed: Observed, now: datetime = NOON) -> dict[str, str]:
    """All conditions that the pass would write, as type → `status/reason`."""
    return told(status(desired, observed, planned(desired, observed, now), now))


def told(fields: Mapping[str, Any]) -> dict[str, str]:
    return {entry["type"]: f"{entry['status']}/{entry['reason']}" for entry in fields["conditions"]}


# --- deployments ----------------------------------------------------------------------------------------------------

HTTP = {"name": "http", "description": "Web", "ingress": [{"fromPort": 80, "toPort": 80, "cidrs": ["0.0.0.0/0"]}]}
SSH = {"name": "ssh", "description": "SSH", "ingress": [{"fromPort": 22, "toPort": 22, "cidrs": ["0.0.0.0/0"]}]}
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="
KEY_NAME = names.key_pair_name(CLUSTER, UID, "main", PUBLIC_KEY)


def deployment(
    status: Mapping[str, Any] | None = None,
    *,
    machines: tuple[str, ...] = ("web",),
    groups: tuple[Mapping[str, Any], ...] = (HTTP, SSH),
    key_pairs: tuple[str, ...] = ("main",),
    generation: int = 1,
    deleting: bool = False,
    **spec: Any,
) -> DesiredDeployment:
    """A NixDeployment on EC2 whose account is recorded, unless `status` says otherwise."""
    ec2: dict[str, Any] = {"instanceType": "t3.small", "securityGroups": [group["name"] for group in groups]}
    if key_pairs:
        ec2["keyPair"] = key_pairs[0]
    metadata: dict[str, Any] = {"namespace": "default", "name": "shop", "uid": UID, "generation": generation}
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOON)
    body = {
        "kind": "NixDeployment",
        "metadata": metadata,
        "spec": {
            "aws": _EC2_SPEC["aws"],
            "keyPairs": [{"name": name} for name in key_pairs],
            "securityGroups": list(groups),
            "machines": [
                {"name": name, "target": {"ec2": ec2}, "configuration": {"modules": [{"inline": "{ }"}]}}
                for name in machines
            ],
            **spec,
        },
        "status": {"accountId": ACCOUNT} | dict(status or {}),
    }
    return desired_deployment(body, parse_deployment(body), machines_of(body), None)


def rule(port: int, direction: Direction = Direction.INGRESS, peer: str = "0.0.0.0/0") -> Rule:
    kind = PeerKind.GROUP if peer.startswith("sg-") else PeerKind.IPV4
    return Rule(direction, "tcp", port, port, kind, peer)


def group(entry: Mapping[str, Any], *rules: Rule, name: str = "", **fields: Any) -> SecurityGroup:
    """The EC2 group of an entry, with these ingress rules and AWS' own egress rule."""
    found = (allow_all_egress(), *rules)
    made = SecurityGroup(
        id=f"sg-{entry['name']}",
        name=name or names.security_group_name(CLUSTER, UID, entry["name"], "vpc-1", entry["description"]),
        description=entry["description"],
        vpc_id="vpc-1",
        tags={names.UID_TAG: UID, names.ENTRY_TAG: entry["name"]},
        rules=tuple(ObservedRule(f"sgr-{entry['name']}-{n}", one, "") for n, one in enumerate(found)),
    )
    return replace(made, **fields)


GROUPS = (group(HTTP, rule(80)), group(SSH, rule(22)))


def key_pair(name: str = KEY_NAME, entry: str = "main") -> KeyPair:
    return KeyPair("key-1", name, PUBLIC_KEY, {names.UID_TAG: UID, names.ENTRY_TAG: entry})


def network(**fields: Any) -> ObservedNetwork:
    """EC2 as a deployment wants it, but for `fields`."""
    made = ObservedNetwork(
        account_id=ACCOUNT, cluster_id=CLUSTER, default_vpc="vpc-1", groups=GROUPS, key_pairs=(key_pair(),)
    )
    return replace(made, **fields)


def child(desired: DesiredDeployment, machine: str = "web", truth: str = "True", **changes: Any) -> ObservedMachine:
    """The NixMachine of an entry, as the deployment wants it, with this Ready."""
    wanted = next(one for one in desired.children if one.machine == machine)
    metadata: dict[str, Any] = {"name": wanted.name, "generation": 1, "labels": dict(wanted.labels)}
    if changes.pop("deleting", False):
        metadata["deletionTimestamp"] = stamp(NOON)
    body: dict[str, Any] = {"metadata": metadata, "spec": dict(wanted.spec), "status": ready(truth=truth)}
    return ObservedMachine({**body, **changes})


def sees(
    desired: DesiredDeployment,
    *,
    network: ObservedNetwork | None = None,
    children: tuple[ObservedMachine, ...] | None = None,
    keys: Mapping[str, ObservedKey] | None = None,
    going_keys: tuple[str, ...] = (),
) -> ObservedDeployment:
    """What a pass over a deployment sees; by default everything is as declared."""
    if children is None:
        children = tuple(child(desired, one.machine) for one in desired.children)
    known = {entry.name: ObservedKey(PUBLIC_KEY) for entry in desired.spec.key_pairs} if keys is None else keys
    return ObservedDeployment(network, known, children, going_keys)
