"""What a deployment is for the configurations of its machines. Pure; shared_facts.py tells them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nixops_operator.deployment import account, key_pairs, security_groups
from nixops_operator.deployment.desired import Desired
from nixops_operator.deployment.observed import Observed
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.shared_facts import GROUPS, KEY_PAIRS, NODES, DeploymentFacts

_Attributes = Mapping[str, Mapping[str, str]]  # entry → attribute → value


def facts_of(desired: Desired, observed: Observed) -> DeploymentFacts:
    """As far as this look shows it. A machine is there from its declaration to the beginning of its deletion."""
    machines = {seen.machine: seen.key for seen in observed.children if not seen.is_deleting}
    machines |= {
        child.machine: Key(Kind.MACHINE, desired.key.namespace, child.name)
        for child in desired.children
        if (seen := observed.child(child.name)) is None or not seen.is_deleting
    }
    region = desired.spec.aws.region
    pairs = {one.name: {"region": region} for one in desired.spec.key_pairs}
    groups = {one.name: {"region": region, "description": one.description} for one in desired.spec.security_groups}
    values = {
        NODES: json.dumps(sorted(machines)),
        KEY_PAIRS: json.dumps(pairs, sort_keys=True),
        GROUPS: json.dumps(groups, sort_keys=True),
    }
    awaited = {}
    said: tuple[tuple[str, tuple[str, ...], _Attributes, Mapping[str, object]], ...] = (
        (KEY_PAIRS, ("name",), _pairs_in_ec2(desired, observed), pairs),
        (GROUPS, ("name", "groupId", "vpcId"), _groups_in_ec2(desired, observed), groups),
    )
    for kind, attributes, seen_in_ec2, declared in said:
        for entry in declared:
            for attribute in attributes:
                path = f"{kind}.{entry}.{attribute}"
                if attribute in seen_in_ec2.get(entry, {}):
                    values[path] = json.dumps(seen_in_ec2[entry][attribute])
                else:
                    awaited[path] = "EC2 does not show it yet"
    return DeploymentFacts(desired.uid, machines, values, awaited)


def _pairs_in_ec2(desired: Desired, observed: Observed) -> _Attributes:
    """As last told while nobody can look."""
    network = account.usable(desired, observed)
    if network is None:
        return {one.name: {"name": one.key_name} for one in desired.key_pairs}
    wanted = key_pairs.wanted(desired, observed, network)
    return {one.entry: {"name": one.name} for one in wanted if network.shows(one.name)}


def _groups_in_ec2(desired: Desired, observed: Observed) -> _Attributes:
    """As _pairs_in_ec2."""
    network = account.usable(desired, observed)
    if network is None:
        return {one.name: {"groupId": one.group_id, "vpcId": one.vpc_id} for one in desired.security_groups}
    groups = security_groups.current_groups(desired, network)
    return {entry: {"name": group.name, "groupId": group.id, "vpcId": group.vpc_id} for entry, group in groups.items()}
