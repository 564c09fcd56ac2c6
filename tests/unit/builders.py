"""Small named values for tests of plans and statuses: a row shows only what matters, everything else is a machine that
has nothing to complain about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nixops_operator import names
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import Instance, InstanceState
from nixops_operator.facts.host import ActivationFacts, ActivationState, HostFacts, Mode
from nixops_operator.facts.nix import Evaluation, Module, SystemInput
from nixops_operator.jobs import Done, JobState
from nixops_operator.machine.declared import Declared
from nixops_operator.machine.desired import Desired, Leaving, read_machine
from nixops_operator.machine.host_keys import Pins
from nixops_operator.machine.keys import ObservedKeys
from nixops_operator.machine.observed import (
    Observed,
    ObservedCloud,
    ObservedHost,
    ObservedLeaving,
    ObservedSystem,
)
from nixops_operator.machine.plan import plan, plan_way_out
from nixops_operator.machine.status import status, status_leaving
from nixops_operator.planning import Plan
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
) -> Desired | Leaving:
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
    return read_machine(body, has_owner=True)


def ec2_machine(
    status: Mapping[str, Any] | None = None,
    *,
    generation: int = 1,
    deleting: bool = False,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Any:
    """A NixMachine on EC2 whose account is recorded, unless `status` says otherwise."""
    return _desired(_EC2_SPEC | spec, {"accountId": ACCOUNT} | dict(status or {}), generation, deleting, annotations)


def host_machine(
    status: Mapping[str, Any] | None = None,
    *,
    generation: int = 1,
    deleting: bool = False,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Any:
    """A NixMachine on a given host."""
    return _desired(_HOST_SPEC | spec, status, generation, deleting, annotations)


def launch(
    attempt: int = 1,
    *,
    instance: str | None = None,
    age: timedelta = timedelta(hours=1),
    refused: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """`status.launch`, as an intent leaves it; `age` of the last call."""
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
            **more,
        }
    }


def activation(
    toplevel: str = NEW,
    attempt: int = 1,
    result: str | None = None,
    *,
    awaited: bool = True,
    repeated: bool = False,
    boot: str | None = None,
    restarts: bool = False,
) -> dict[str, Any]:
    """`status.activation`, as an intent leaves it, and a process that is there for its end."""
    name = activation_id(toplevel, attempt)
    return {
        "activation": {
            "id": name,
            "unit": f"nixops-activate-{name}.service",
            "toplevel": toplevel,
            "attempt": attempt,
            "startedAt": stamp(NOON),
            "result": result,
            "bootId": boot,
            "awaited": awaited,
            "repeated": repeated,
            "restarts": restarts,
        }
    }


def failed(
    *toplevels: str,
    reason: str = "ActivationFailed",
    message: str = "switch-to-configuration ended with exit code 2",
) -> dict[str, Any]:
    """`status.failedRevisions`, the newest last."""
    one = {"reason": reason, "message": message, "exitStatus": 2}
    return {"failedRevisions": [{"toplevel": toplevel, **one} for toplevel in toplevels]}


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


def wedged_since(text: str) -> dict[str, Any]:
    """The same with any text for the time."""
    return {"conditions": [condition("Stalled") | {"lastTransitionTime": text}]}


PATIENCE_WITH_REFUSALS = pytest.mark.parametrize(
    ("status", "minutes", "outcome"),
    [
        pytest.param({}, 0, Outcome.WEDGED, id="a passing refusal is waited out"),
        pytest.param(wedged(NOON), 4.9, Outcome.WEDGED, id="less than five minutes"),
        pytest.param(wedged(NOON - timedelta(hours=1)), 4.9, Outcome.WEDGED, id="stalled long before the deletion"),
        pytest.param(wedged(NOON, generation=0), 5, Outcome.WEDGED, id="not tried for this generation"),
        pytest.param(wedged(NOON), 5, Outcome.GONE, id="five minutes"),
        pytest.param(wedged_since("2026-11-22T12:00:00x5z"), 5, Outcome.WEDGED, id="somebody wrote what is no time"),
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


DECLARED = Declared(
    {"instanceType": "t3.small", "image": "ami-1", "subnetId": "subnet-1", "tags": {}, "monitoring": False}
)


def cloud(*instances: Instance, missing_for: timedelta | None = None, **fields: Any) -> ObservedCloud:
    """A complete look, at noon, that shows these instances; the first one's host key is pinned."""
    made = ObservedCloud(
        account_id=ACCOUNT,
        instances=instances,
        looked_at=NOON,
        missing_for=missing_for,
        declared=DECLARED,
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
    mode: Mode = Mode.SWITCH,
    returns: bool = True,
    needs_restart: bool = False,
    held: bool = False,
    failed_before: tuple[str, ...] = (),
    previous_boots: bool = False,
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
        mode=mode,
        returns=returns,
        needs_restart=needs_restart,
        is_held=held,
        failed_before=failed_before,
        previous_boots=previous_boots,
    )


# --- the configuration ----------------------------------------------------------------------------------------------

INPUT = SystemInput(
    name="web",
    deployment="web",
    uuid=UID,
    system="x86_64-linux",
    is_ec2=False,
    files=None,
    archive=None,
    nixpkgs_path="nixpkgs",
    nixpkgs=None,
    modules=(Module("modules[0]", "{ }"),),
    state_version="25.11",
    arguments={},
)
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
    keys: ObservedKeys | None = None,
) -> Observed:
    """What a pass sees; by default everything about the configuration is done."""
    return Observed(cloud, host or ObservedHost(), system, jobs, keys=keys or ObservedKeys())


def planned(desired: Desired | Leaving, observed: Observed, now: datetime = NOON) -> Plan:
    if isinstance(desired, Leaving):
        return plan_way_out(desired, ObservedLeaving(observed.cloud), now)
    return plan(desired, observed, now, DEADLINE)


def status_of(desired: Desired | Leaving, observed: Observed, now: datetime = NOON) -> dict[str, Any]:
    """The whole status that the pass would write."""
    found = planned(desired, observed, now)
    if isinstance(desired, Leaving):
        return status_leaving(desired, ObservedLeaving(observed.cloud), found, now)
    return status(desired, observed, found, now)


def trio_of(desired: Desired | Leaving, observed: Observed, now: datetime = NOON) -> dict[str, str]:
    """All conditions that the pass would write, as type → `status/reason`."""
    return told(status_of(desired, observed, now))


def told(fields: Mapping[str, Any]) -> dict[str, str]:
    return {entry["type"]: f"{entry['status']}/{entry['reason']}" for entry in fields["conditions"]}
