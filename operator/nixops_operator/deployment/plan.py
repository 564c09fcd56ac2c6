"""What does this deployment need next? Pure: values in, a Plan out. The first answer of CHECKS decides.

Order: what machines share comes first (keys, key pairs, groups, rules), then the machines, then what is not wanted any
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nixops_operator import names, retain
from nixops_operator.api.conditions import Truth, find_condition
from nixops_operator.api.deployment_spec import SecurityGroupEntry
from nixops_operator.api.machine_spec import DeletionPolicy, DriftPolicy
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment import rules, steps
from nixops_operator.deployment.observed import Desired, Observed, ObservedMachine, ObservedNetwork
from nixops_operator.deployment.steps import Step
from nixops_operator.ec2.rules import Direction, PeerKind, Rule
from nixops_operator.errors import Blocked, OperatorError
from nixops_operator.facts.cloud import KeyPair, SecurityGroup
from nixops_operator.verdict import Outcome, Verdict, suspended_verdict, verdict_of

SOON = timedelta(seconds=2)
_INFRASTRUCTURE = ConditionType.INFRASTRUCTURE_READY


@dataclass(frozen=True)
class Plan:
    """Steps to take now, and how the deployment stands."""

    verdict: Verdict
    steps: tuple[Step, ...] = ()


KEEPING_KEYS = "letting the Secrets with generated private keys stay"

Check = Callable[[Desired, Observed], Plan | None]


def plan(desired: Desired, observed: Observed, now: datetime) -> Plan:
    """The way out, or else the first answer of CHECKS; while suspended, without its steps. `now` is aware UTC."""
    if desired.is_deleting:
        return deleting(desired, observed, now)
    answer = next(answer for check in CHECKS if (answer := check(desired, observed)) is not None)
    return Plan(suspended_verdict(answer.verdict)) if desired.is_paused else answer


# --- deletion ----------------------------------------------------------------------------------------------------


def deleting(desired: Desired, observed: Observed, now: datetime) -> Plan:
    """Machines first, then groups, then key pairs: EC2 refuses to delete a group that is in use. Works from every
    phase."""
    if desired.account_id is not None and observed.going_keys:
        return Plan(_deleting(KEEPING_KEYS), (steps.KeepKeys(observed.going_keys),))
    if observed.children:
        return _machines_go(desired, observed)
    network = observed.network
    if desired.account_id is None or network is None:
        return Plan(Verdict(Outcome.GONE))
    is_over = retain.is_patience_over(desired.status, desired.generation, desired.deleted_at, now)
    if network.error is not None:
        if desired.spec.deletion_policy is DeletionPolicy.RETAIN and isinstance(network.error, Blocked):
            return Plan(retain.without_credentials(network.error, desired.account_id, is_over=is_over))
        message = (
            f"cannot look for what is left in account {desired.account_id}: {network.error.message}; "
            "repair the credentials, or set spec.deletionPolicy to Retain to let go of it"
        )
        outcome = Outcome.WEDGED if isinstance(network.error, Blocked) else Outcome.DELETING
        return Plan(Verdict(outcome, network.error.reason, message, ConditionType.CREDENTIALS_READY))
    if network.account_id != desired.account_id:
        return Plan(Verdict(Outcome.WEDGED, Reason.ACCESS_DENIED, _other_account(desired, network)))
    if desired.spec.deletion_policy is DeletionPolicy.RETAIN:
        things: tuple[SecurityGroup | KeyPair, ...] = (*network.groups, *network.key_pairs)
        untagged = tuple(thing.id for thing in things if names.RETAINED_TAG not in thing.tags)
        if not untagged:
            return Plan(_gone())
        if is_over:
            return Plan(retain.let_go_untagged(Reason.ACCESS_DENIED, _listed(untagged)))
        return Plan(_deleting(f"tagging {_listed(untagged)} as retained"), (steps.Retain(untagged),))
    if network.groups:
        return _groups_go(network, network.groups)
    if network.key_pairs:
        return Plan(
            _deleting("deleting key pairs"), tuple(steps.DeleteKeyPair(pair.name) for pair in network.key_pairs)
        )
    return Plan(_gone())


def _machines_go(desired: Desired, observed: Observed) -> Plan:
    # Machines read their own spec when they go: Retain that came just before the deletion, or after it, counts too.
    if kept := _children_to_retain(desired, observed):
        return Plan(_deleting("telling the machines that their instances stay"), kept)
    going = tuple(steps.DeleteMachine(child.name) for child in observed.children if not child.is_deleting)
    stuck = next((child for child in observed.children if child.is_deleting and child.is_stalled), None)
    if stuck is not None and stuck.ready is not None:
        return Plan(Verdict(Outcome.WEDGED, stuck.ready.reason, f"{stuck.name}: {stuck.ready.message}"), going)
    return Plan(_deleting(f"waiting for {_listed(child.name for child in observed.children)} to go"), going)


def _children_to_retain(desired: Desired, observed: Observed) -> tuple[Step, ...]:
    """Never the other way: a machine that a person told to let go stays so."""
    return tuple(
        steps.ReplaceMachineSpec(child)
        for child in desired.children
        if child.spec.get("deletionPolicy") == DeletionPolicy.RETAIN
        and (seen := observed.child(child.name)) is not None
        and seen.body["spec"].get("deletionPolicy") != DeletionPolicy.RETAIN
    )


def _gone() -> Verdict:
    return Verdict(Outcome.GONE)


def _deleting(message: str) -> Verdict:
    return Verdict(Outcome.DELETING, Reason.DELETING, message, look_again=SOON)


def _groups_go(network: ObservedNetwork, groups: tuple[SecurityGroup, ...]) -> Plan:
    """Delete groups that nothing uses; say of the others what uses them."""
    going: list[Step] = []
    waits: list[str] = []
    for group in groups:
        use = network.uses.get(group.id)
        if use is None or use.interfaces:
            waits.append(
                f"{group.id} is used by {_listed(use.interfaces)}" if use else f"{group.id} is being looked at"
            )
            continue
        ours = {g.id: g for g in network.groups}
        foreign = [naming for naming in use.naming_groups if naming not in ours]
        revocations = [
            step for naming in use.naming_groups if naming in ours for step in _revoke_naming(ours[naming], group.id)
        ]
        if foreign:
            waits.append(f"rules of {_listed(foreign)}, which are not ours, name {group.id}; remove them")
        elif revocations:
            going += revocations
            waits.append(f"{group.id} is named by our own rules")
        else:
            going.append(steps.DeleteGroup(group.id))
    message = "; ".join(waits) if waits else f"deleting {_listed(group.id for group in groups)}"
    return Plan(_deleting(message), tuple(going))


def _revoke_naming(group: SecurityGroup, peer: str) -> list[Step]:
    found: list[Step] = []
    for direction in Direction:
        ids = tuple(
            seen.id
            for seen in group.rules
            if seen.rule.direction is direction and seen.rule.peer_kind is PeerKind.GROUP and seen.rule.peer == peer
        )
        if ids:
            found.append(steps.RevokeRules(group.id, direction, ids))
    return found


def machines_valid(desired: Desired, observed: Observed) -> Plan | None:
    """Every machine's merged settings make a whole spec."""
    return Plan(verdict_of(desired.invalid)) if desired.invalid is not None else None


# --- what machines share ------------------------------------------------------------------------------------------


def credentials_usable(desired: Desired, observed: Observed) -> Plan | None:
    network = observed.network
    if network is None:
        return None
    if network.error is not None:
        return Plan(verdict_of(network.error, ConditionType.CREDENTIALS_READY))
    if desired.account_id is not None and desired.account_id != network.account_id:
        message = _other_account(desired, network)
        return Plan(Verdict(Outcome.STALLED, Reason.ACCESS_DENIED, message, ConditionType.CREDENTIALS_READY))
    return None


def account_recorded(desired: Desired, observed: Observed) -> Plan | None:
    """The account is written down before anything is made in it."""
    if observed.network is None or desired.account_id is not None:
        return None
    return Plan(_provisioning("looking up the account"), (steps.RecordAccount(observed.network.account_id),))


def keys_present(desired: Desired, observed: Observed) -> Plan | None:
    """Each entry of keyPairs has its private key in a Secret."""
    generate: list[Step] = []
    for entry in desired.spec.key_pairs:
        key = observed.keys[entry.name]
        if key.error is not None:
            return Plan(verdict_of(key.error, _INFRASTRUCTURE))
        if key.public_key is None:
            if _knows_key_pair(desired, observed, entry.name):
                secret = names.key_pair_secret(desired.key.name, entry.name)
                message = (
                    f"Secret {secret} with the private key of key pair {entry.name} is gone, and machines may know no "
                    "other key; restore it, or rename the entry to have another key made for new machines"
                )
                return Plan(Verdict(Outcome.STALLED, Reason.SECRET_NOT_FOUND, message, _INFRASTRUCTURE))
            generate.append(steps.GenerateKey(entry.name))
    return Plan(_provisioning("generating keys"), tuple(generate)) if generate else None


def keys_kept(desired: Desired, observed: Observed) -> Plan | None:
    """With Retain from the first, not only in deletion: the garbage collector may come before us then."""
    del desired
    if not observed.going_keys:
        return None
    return Plan(_provisioning(KEEPING_KEYS), (steps.KeepKeys(observed.going_keys),))


def _knows_key_pair(desired: Desired, observed: Observed, entry: str) -> bool:
    pairs = observed.network.key_pairs if observed.network is not None else ()
    recorded = desired.status.get("keyPairs") or ()
    return any(pair.tags.get(names.ENTRY_TAG) == entry for pair in pairs) or any(r["name"] == entry for r in recorded)


def key_pairs_imported(desired: Desired, observed: Observed) -> Plan | None:
    """EC2 knows the public half of each key, under the name that follows from it."""
    network = observed.network
    if network is None:
        return None
    present = {pair.name for pair in network.key_pairs}
    wanted = _wanted_key_pairs(desired, observed, network)
    imports = tuple(steps.ImportKeyPair(entry, name, key) for entry, name, key in wanted if name not in present)
    if not imports:
        return None
    text = f"key pair {_listed(step.entry for step in imports)}"
    return _repair(desired, Reason.INSTANCE_DRIFT, f"{text} is not in EC2; importing", imports)


def _wanted_key_pairs(desired: Desired, observed: Observed, network: ObservedNetwork) -> list[tuple[str, str, str]]:
    """Entry, EC2 name, public key."""
    wanted = []
    for entry in desired.spec.key_pairs:
        key = observed.keys[entry.name].public_key
        if key is not None:
            wanted.append((entry.name, names.key_pair_name(network.cluster_id, desired.uid, entry.name, key), key))
    return wanted


def groups_created(desired: Desired, observed: Observed) -> Plan | None:
    """Each entry of securityGroups exists, under the name that follows from what EC2 cannot change of it."""
    network = observed.network
    if network is None:
        return None
    missing = []
    for entry in desired.spec.security_groups:
        vpc = entry.vpc_id or network.default_vpc
        if vpc is None:
            message = "the region has no default VPC; name spec.securityGroups[].vpcId"
            return Plan(Verdict(Outcome.STALLED, Reason.INVALID_SPEC, message, _INFRASTRUCTURE))
        if _group_of(desired, network, entry) is None:
            name = names.security_group_name(network.cluster_id, desired.uid, entry.name, vpc, entry.description)
            missing.append(steps.CreateGroup(entry.name, name, entry.description, vpc))
    if not missing:
        return None
    text = f"security group {_listed(step.entry for step in missing)} does not exist; creating"
    return _repair(desired, Reason.SECURITY_GROUP_DRIFT, text, tuple(missing))


def _group_of(desired: Desired, network: ObservedNetwork, entry: SecurityGroupEntry) -> SecurityGroup | None:
    """The group of an entry as it is declared now, not one of an earlier description or VPC."""
    vpc = entry.vpc_id or network.default_vpc or ""
    name = names.security_group_name(network.cluster_id, desired.uid, entry.name, vpc, entry.description)
    return next((group for group in network.groups if group.name == name), None)


def rules_as_declared(desired: Desired, observed: Observed) -> Plan | None:
    """Exactly the declared rules, no other. Missing ones are added before surplus ones go, so that SSH never closes in
    between."""
    network = observed.network
    if network is None:
        return None
    try:
        found = rule_changes(desired, network)
    except OperatorError as error:
        return Plan(verdict_of(error, _INFRASTRUCTURE))
    if not any(found.values()):
        return None
    additions = tuple(step for group, change in found.items() for step in _additions(group, change))
    if additions:
        return _repair(desired, Reason.SECURITY_GROUP_DRIFT, "adding the rules that are missing", additions)
    if (closing := _closes_ssh(desired, network)) is not None:
        return Plan(Verdict(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, closing, _INFRASTRUCTURE))
    removals = tuple(step for group, change in found.items() for step in _removals(group, change))
    return _repair(desired, Reason.SECURITY_GROUP_DRIFT, "removing the rules that are not declared", removals)


def rule_changes(desired: Desired, network: ObservedNetwork) -> dict[str, rules.RuleChanges]:
    """Group id → what makes its rules as declared. Raises InvalidSpec."""
    groups = {entry.name: _group_of(desired, network, entry) for entry in desired.spec.security_groups}
    ids = {name: group.id for name, group in groups.items() if group is not None}
    return {
        group.id: rules.changes(rules.wanted_rules(entry, ids), group)
        for entry in desired.spec.security_groups
        if (group := groups[entry.name]) is not None
    }


def _additions(group_id: str, change: rules.RuleChanges) -> list[Step]:
    found: list[Step] = []
    for direction in Direction:
        missing = tuple((rule, text) for rule, text in change.missing.items() if rule.direction is direction)
        if missing:
            found.append(steps.AuthorizeRules(group_id, direction, missing))
    return found


def _removals(group_id: str, change: rules.RuleChanges) -> list[Step]:
    found: list[Step] = []
    for direction in Direction:
        surplus = tuple(rule_id for rule_id, rule in change.surplus if rule.direction is direction)
        if surplus:
            found.append(steps.RevokeRules(group_id, direction, surplus))
    if change.descriptions:
        found.append(steps.DescribeRules(group_id, change.descriptions))
    return found


def _closes_ssh(desired: Desired, network: ObservedNetwork) -> str | None:
    """Why the declared rules would lock the operator out of a machine, if they would."""
    entries = {entry.name: entry for entry in desired.spec.security_groups}
    ids = {entry.name: group.id for entry in entries.values() if (group := _group_of(desired, network, entry))}
    for child in desired.children:
        ec2 = child.settings.target.ec2
        if ec2 is None or not ec2.security_groups or any(name not in entries for name in ec2.security_groups):
            continue
        allowed: list[Rule] = [rule for name in ec2.security_groups for rule in rules.wanted_rules(entries[name], ids)]
        if not rules.admits_ssh(allowed):
            return (
                f"the declared rules let nobody reach {child.machine} on port {rules.SSH_PORT}, the operator included; "
                "nothing is removed: add a rule for SSH to one of its groups"
            )
    return None


# --- the machines -------------------------------------------------------------------------------------------------


def machines_as_declared(desired: Desired, observed: Observed) -> Plan | None:
    """A NixMachine for each, with exactly the spec that follows from this one; edits by hand are put back."""
    changes: list[Step] = []
    for child in desired.children:
        seen = observed.child(child.name)
        if seen is None:
            changes.append(steps.CreateMachine(child))
        elif not seen.is_deleting and _differs(child.spec, child.labels, seen):
            changes.append(steps.ReplaceMachineSpec(child))
    if not changes:
        return None
    return Plan(Verdict(Outcome.WORKING, Reason.ROLLING_OUT, "writing the machines' specs"), tuple(changes))


def _differs(spec: Mapping[str, Any], labels: Mapping[str, str], seen: ObservedMachine) -> bool:
    present = seen.body["metadata"].get("labels") or {}
    return seen.body["spec"] != spec or any(present.get(key) != value for key, value in labels.items())


def machines_ready(desired: Desired, observed: Observed) -> Plan | None:
    """The deployment is as ready as its machines."""
    wanted = {child.name: child.machine for child in desired.children}
    waiting = [child for child in observed.children if child.name in wanted and not child.is_ready]
    if not waiting:
        return None
    stalled = [child for child in waiting if child.is_stalled]
    first = (stalled or waiting)[0]
    ready = first.ready if first.is_observed else None
    reason = ready.reason if ready is not None else Reason.ROLLING_OUT
    what = ready.message if ready is not None else "suspended" if first.is_paused else "not looked at yet"
    message = f"{wanted[first.name]}: {what}"
    if stalled:
        return Plan(Verdict(Outcome.STALLED, reason, message))
    if ready is None or ready.status is not Truth.FALSE:
        return Plan(Verdict(Outcome.WORKING, reason, message))
    # False without being worked on is what driftPolicy Report leaves.
    return Plan(Verdict(Outcome.RETRYING if first.is_reconciling else Outcome.DRIFT_REPORTED, reason, message))


def groups_to_go(desired: Desired, observed: Observed) -> tuple[str, ...]:
    """Ids of the groups that are to be deleted as soon as nothing uses them: all in deletion, else those of no
    entry."""
    network = observed.network
    if network is None or (desired.is_paused and not desired.is_deleting):
        return ()
    if desired.is_deleting:
        keeps = bool(observed.children) or desired.spec.deletion_policy is DeletionPolicy.RETAIN
        return () if keeps else tuple(group.id for group in network.groups)
    return tuple(group.id for group in _old_groups(desired, network))


def _old_groups(desired: Desired, network: ObservedNetwork) -> tuple[SecurityGroup, ...]:
    current = {group.id for e in desired.spec.security_groups if (group := _group_of(desired, network, e)) is not None}
    return tuple(group for group in network.groups if group.id not in current)


def surplus_gone(desired: Desired, observed: Observed) -> Plan | None:
    """What the spec does not name any more goes last, once the new state is live: machines, groups, key pairs."""
    wanted = {child.name for child in desired.children}
    surplus = [child for child in observed.children if child.name not in wanted]
    if surplus:
        going = tuple(steps.DeleteMachine(child.name) for child in surplus if not child.is_deleting)
        message = f"removing {_listed(child.name for child in surplus)}"
        return Plan(Verdict(Outcome.REPAIRING, Reason.ROLLING_OUT, message, look_again=SOON), going)
    network = observed.network
    if network is None:
        return None
    if old_groups := _old_groups(desired, network):
        found = _groups_go(network, old_groups)
        verdict = Verdict(Outcome.REPAIRING, Reason.ROLLING_OUT, found.verdict.message, look_again=SOON)
        return Plan(verdict, found.steps)
    names_now = {name for _, name, _ in _wanted_key_pairs(desired, observed, network)}
    old_pairs: tuple[KeyPair, ...] = tuple(pair for pair in network.key_pairs if pair.name not in names_now)
    if old_pairs:
        verdict = Verdict(Outcome.REPAIRING, Reason.ROLLING_OUT, "deleting key pairs that nothing names any more")
        return Plan(verdict, tuple(steps.DeleteKeyPair(pair.name) for pair in old_pairs))
    return None


def in_sync(desired: Desired, observed: Observed) -> Plan | None:
    if _reports(desired) and _differs_in_cloud(desired, observed):
        message = "security groups or key pairs differ from the declared ones; driftPolicy is Report, so they stay"
        return Plan(Verdict(Outcome.IN_SYNC, Reason.SECURITY_GROUP_DRIFT, message, ConditionType.UP_TO_DATE))
    count = len(desired.children)
    return Plan(Verdict(Outcome.IN_SYNC, Reason.SUCCEEDED, f"{count} of {count} machines ready"))


def _differs_in_cloud(desired: Desired, observed: Observed) -> bool:
    network = observed.network
    if network is None:
        return False
    present = {pair.name for pair in network.key_pairs}
    return (
        any(name not in present for _, name, _ in _wanted_key_pairs(desired, observed, network))
        or any(_group_of(desired, network, entry) is None for entry in desired.spec.security_groups)
        or any(rule_changes(desired, network).values())
    )


CHECKS: tuple[Check, ...] = (
    machines_valid,
    credentials_usable,
    account_recorded,
    keys_present,
    keys_kept,
    key_pairs_imported,
    groups_created,
    rules_as_declared,
    machines_as_declared,
    machines_ready,
    surplus_gone,  # last, so that nothing goes before what replaces it is live
    in_sync,
)


def _repair(desired: Desired, drift: Reason, message: str, found: tuple[Step, ...]) -> Plan | None:
    """What was as declared and is not any more is repaired, which leaves Ready alone, or left if policy says so;
    everything
    else is new, and provisioned."""
    if not _was_ready(desired):
        return Plan(_provisioning(message), found)
    if _reports(desired):
        return None
    return Plan(Verdict(Outcome.REPAIRING, drift, message, ConditionType.UP_TO_DATE), found)


def _was_ready(desired: Desired) -> bool:
    """Whether this very generation was reached once; then a difference is drift."""
    ready = find_condition({"status": desired.status}, ConditionType.READY)
    return ready is not None and ready.status is Truth.TRUE and ready.observed_generation == desired.generation


def _reports(desired: Desired) -> bool:
    return desired.spec.drift_policy is DriftPolicy.REPORT


def _provisioning(message: str) -> Verdict:
    return Verdict(Outcome.WORKING, Reason.PROVISIONING, message, _INFRASTRUCTURE)


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted(texts))


def _other_account(desired: Desired, network: ObservedNetwork) -> str:
    return (
        f"the credentials are of account {network.account_id}, this deployment is in account {desired.account_id}; "
        "nothing is touched: bring back the credentials of that account"
    )
