"""What a machine is for the configurations of others. Pure; shared_facts.py tells them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from nixops_operator.api.status import AddressesStatus, InstanceStatus, read
from nixops_operator.facts.cloud import InstanceState
from nixops_operator.facts.nix import configuration_path
from nixops_operator.jobs import Done
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import Observed
from nixops_operator.machine.system import fetch_steps
from nixops_operator.shared_facts import ADDRESSES, MachineFacts, address_path

_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
"""RFC 1918 and RFC 6598. Python's is_private is also true of networks for documentation."""
_NOBODY_KNOWS = json.dumps(False)


def facts_of(desired: Desired, observed: Observed) -> MachineFacts:
    """As far as this look shows it."""
    system = observed.system
    is_fetched = all(isinstance(observed.jobs.get(step.job), Done) for step in fetch_steps(observed))
    why = system.error.message if system.error is not None else system.waits_for or "its sources, which are fetched"
    found = _addresses(desired, observed)
    values = {address_path(desired.machine, option): found[option] for option in ADDRESSES if option in found}
    lacks = {"privateIPv4": _instance(desired, observed), "publicIPv4": _instance(desired, observed)}
    if _has_elastic(desired, observed):
        lacks["publicIPv4"] = "does not have its elastic address yet"
    awaited = {address_path(desired.machine, option): f"{desired.machine} {lacks[option]}" for option in ADDRESSES}
    return MachineFacts(
        name=desired.machine,
        uuid=desired.uuid,
        values=values,
        configuration=system.input if is_fetched else None,
        revision=system.evaluate_job,
        awaited={**awaited, configuration_path(desired.machine): f"{desired.machine} waits for {why}"},
    )


def _addresses(desired: Desired, observed: Observed) -> Mapping[str, str]:
    """Option → JSON, as far as it is known."""
    if desired.spec.target.host is not None:
        return _of_given_host(desired.spec.target.host.address)
    state, public, private = _seen(desired, observed)
    found: dict[str, str] = {}
    if private is not None:
        found["privateIPv4"] = json.dumps(private)
    if _has_elastic(desired, observed):
        elastic = _elastic(desired, observed)
        return found | ({"publicIPv4": json.dumps(elastic)} if elastic is not None else {})
    if public is not None or state is InstanceState.RUNNING:
        found["publicIPv4"] = json.dumps(public)
    return found


def _has_elastic(desired: Desired, observed: Observed) -> bool:
    """Whether its public address is an elastic one, and EC2 was asked for that."""
    ec2, cloud = desired.spec.target.ec2, observed.cloud
    is_seen = cloud is not None and cloud.error is None and cloud.addresses.error is None
    return ec2 is not None and ec2.elastic_ip is not None and is_seen


def _elastic(desired: Desired, observed: Observed) -> str | None:
    """It is the machine's before any instance has it, and whether one runs or not. None: there is none, or others have
    it."""
    assert observed.cloud is not None  # noqa: S101 - shown by _has_elastic
    record, seen = desired.elastic_ip, observed.cloud.addresses
    recorded_id = record.allocation_id if record is not None else None
    if (given := seen.given) is not None:
        is_free = given.association_id is None or given.instance_id == desired.instance_id
        return given.public_address if is_free or given.id == recorded_id else None
    own = min(seen.ours, key=lambda one: (one.id != recorded_id, one.id), default=None)
    return own.public_address if own is not None else None


@lru_cache(maxsize=4096)  # each pass asks
def _of_given_host(address: str) -> Mapping[str, str]:
    """Of its addresses the one by which it is declared is known, and nobody can be asked for the other one."""
    found = dict.fromkeys(ADDRESSES, _NOBODY_KNOWS)
    try:
        parsed = IPv4Address(address)
    except AddressValueError:
        return found
    is_private = any(parsed in network for network in _PRIVATE)
    return found | {"privateIPv4" if is_private else "publicIPv4": json.dumps(address)}


def _seen(desired: Desired, observed: Observed) -> tuple[InstanceState | None, str | None, str | None]:
    """State of the instance, its public and its private address; as last told while nobody can look."""
    cloud = observed.cloud
    if cloud is not None and cloud.error is None:
        instance = cloud.instance(desired.instance_id)
        if instance is None or not instance.state.is_live:
            return None, None, None
        return instance.state, instance.public_address, instance.private_address
    told = read(InstanceStatus, desired.status.get("instance"))
    addresses = read(AddressesStatus, desired.status.get("addresses")) or AddressesStatus()
    if told is None or told.id != desired.instance_id or told.state not in set(InstanceState):
        return None, None, None
    return InstanceState(told.state), addresses.public, addresses.private


def _instance(desired: Desired, observed: Observed) -> str:
    state, _, _ = _seen(desired, observed)
    return "has no instance yet" if state is None else f"has an instance that is {state.value}"
