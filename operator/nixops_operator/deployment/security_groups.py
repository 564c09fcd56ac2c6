"""Security groups of a deployment: each entry as one group in EC2, with exactly the declared rules.

EC2 cannot change a group's description or VPC, so both are part of its name, and a changed one is another group. Until
no machine uses the earlier one, an entry has two: `current` is the one with the name that follows from the spec, and
both have the declared rules, so that a rule that is taken away is taken away for every machine.

    RecordCreation ─► CreateGroup ─► rules: missing ones come, surplus ones go (rules.py) ─► used by machines
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from nixops_operator import names
from nixops_operator.api.deployment_spec import SecurityGroupEntry
from nixops_operator.api.machine_of_deployment import ChildMachine
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.deployment import account, creations, proof, rules
from nixops_operator.deployment.desired import Desired, Leaving
from nixops_operator.deployment.observed import GroupUse, Observed, ObservedNetwork
from nixops_operator.ec2.rules import Direction, PeerKind, Rule
from nixops_operator.errors import Blocked, InvalidSpec, MissingReference, NotYet, OperatorError, Retry
from nixops_operator.facts.cloud import SecurityGroup
from nixops_operator.facts.kube import Body
from nixops_operator.informers.cloud import CloudView
from nixops_operator.planning import SOON, Area, Finding, found_error
from nixops_operator.step import Identity, Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World

_INFRASTRUCTURE = ConditionType.INFRASTRUCTURE_READY


# --- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateGroup(Step):
    entry: str
    name: str
    description: str
    vpc_id: str

    @property
    def subject(self) -> Identity:
        return (self.name,)

    @property
    def of_field(self) -> str:
        return f"spec.securityGroups[{self.entry}]"


@dataclass(frozen=True)
class AuthorizeRules(Step):
    """Rules of one direction in one call, which EC2 carries out whole or not at all. `reference`: an id that they all
    name as their peer; one that does not exist keeps no other rule away. `spare`: ids of rules that go where EC2 has no
    room for these."""

    group_id: str
    direction: Direction
    rules: tuple[tuple[Rule, str], ...]  # rule, description
    reference: str = ""
    place: str = ""  # field of the spec that names the reference; empty: it is a group of this deployment
    spare: tuple[str, ...] = ()

    @property
    def subject(self) -> Identity:
        # When some of them have found room, the others are not held for what all of them met.
        return (self.group_id, self.direction.value, self.reference, str(len(self.rules)))


@dataclass(frozen=True)
class RevokeRules(Step):
    group_id: str
    direction: Direction
    rule_ids: tuple[str, ...]

    @property
    def subject(self) -> Identity:
        return (self.group_id, self.direction.value)


@dataclass(frozen=True)
class DescribeRules(Step):
    group_id: str
    descriptions: tuple[tuple[str, str], ...]  # rule id, text

    @property
    def subject(self) -> Identity:
        return (self.group_id,)


@dataclass(frozen=True)
class DeleteGroup(Step):
    """Only after a fresh quorum read of the deployment (proof.py)."""

    group_id: str

    @property
    def subject(self) -> Identity:
        return (self.group_id,)


# --- what is there ------------------------------------------------------------------------------------------------


def observe_uses(groups: Iterable[SecurityGroup], view: CloudView) -> dict[str, GroupUse]:
    """What uses these groups, as far as it is known."""
    found = {}
    for group in groups:
        try:
            found[group.id] = GroupUse(view.interfaces_in_group(group.id), view.groups_naming(group.id))
        except OperatorError as error:
            found[group.id] = GroupUse(error=error)
    return found


def observe_others(group_ids: Iterable[str], view: CloudView) -> dict[str, SecurityGroup | None]:
    """Groups of others with their rules, as far as they are known; None: there is none of that id."""
    found = {}
    for group_id in group_ids:
        with contextlib.suppress(OperatorError):
            found[group_id] = view.security_group_now(group_id)
    return found


@dataclass(frozen=True)
class _Layout:
    """Which group stands for which entry."""

    desired: Desired
    network: ObservedNetwork

    def vpc(self, entry: SecurityGroupEntry) -> str | None:
        return entry.vpc_id or self.network.default_vpc

    def name(self, entry: SecurityGroupEntry) -> str:
        """The name that follows from what EC2 cannot change of a group."""
        vpc = self.vpc(entry) or ""
        return names.security_group_name(self.network.cluster_id, self.desired.uid, entry.name, vpc, entry.description)

    @cached_property
    def current(self) -> Mapping[str, SecurityGroup]:
        """Entry → its group as it is declared now, where that exists."""
        by_name = {group.name: group for group in self.network.groups}
        found = ((entry.name, by_name.get(self.name(entry))) for entry in self.desired.spec.security_groups)
        return {entry: group for entry, group in found if group is not None}

    @cached_property
    def earlier(self) -> Mapping[str, tuple[SecurityGroup, ...]]:
        """Entry → groups of an earlier description or VPC that may still be in use; by id."""
        current = {group.id for group in self.current.values()}
        found: dict[str, tuple[SecurityGroup, ...]] = {}
        for entry in self.desired.spec.security_groups:
            found[entry.name] = tuple(
                group
                for group in self.network.groups
                if group.id not in current
                and group.tags.get(names.ENTRY_TAG) == entry.name
                and not (entry.name in self.current and self._is_unused(group))
            )
        return found

    @cached_property
    def surplus(self) -> tuple[SecurityGroup, ...]:
        """Groups that stand for no entry as it is declared now."""
        current = {group.id for group in self.current.values()}
        entries = {entry.name for entry in self.desired.spec.security_groups}
        return tuple(
            group
            for group in self.network.groups
            if group.id not in current
            # One whose successor could not be made yet stays.
            and (group.tags.get(names.ENTRY_TAG) in self.current or group.tags.get(names.ENTRY_TAG) not in entries)
        )

    @cached_property
    def ids(self) -> Mapping[str, tuple[str, ...]]:
        """Entry → ids of its groups, the current one first."""
        return {entry.name: tuple(group.id for group in self.of(entry)) for entry in self.desired.spec.security_groups}

    def of(self, entry: SecurityGroupEntry) -> tuple[SecurityGroup, ...]:
        current = self.current.get(entry.name)
        return (*((current,) if current is not None else ()), *self.earlier[entry.name])

    @cached_property
    def changes(self) -> Mapping[str, tuple[rules.WantedRules, rules.RuleChanges]]:
        """Group's id → what it is to have, and what makes it so."""
        found = {}
        for entry in self.desired.spec.security_groups:
            for group in self.of(entry):
                wanted = rules.wanted_rules(entry, group.id, self.ids)
                found[group.id] = (wanted, rules.changes(wanted, group))
        return found

    def _is_unused(self, group: SecurityGroup) -> bool:
        use = self.network.use(group.id)
        return use is not None and use.is_unused


def groups_to_ask_about(desired: Desired, network: ObservedNetwork) -> tuple[SecurityGroup, ...]:
    """Groups of which it must be known whether a machine still uses them."""
    current = {group.id for group in _Layout(desired, network).current.values()}
    return tuple(group for group in network.groups if group.id not in current)


def others_to_ask_about(desired: Desired, observed: Observed) -> frozenset[str]:
    """Groups of others beside which a machine is about to lose the last rule of ours that carries SSH."""
    if observed.network is None:
        return frozenset()
    ways = _ways(_Layout(desired, observed.network), observed)
    return frozenset(one for way in ways if way.carrying and not way.stays for one in way.others)


def current_groups(desired: Desired, network: ObservedNetwork) -> Mapping[str, SecurityGroup]:
    """Entry → its group, for those that exist as declared."""
    return _Layout(desired, network).current


# --- each entry is a group ----------------------------------------------------------------------------------------


def created(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Each entry of securityGroups exists."""
    network = account.usable(desired, observed)
    if network is None:
        return
    layout = _Layout(desired, network)
    for entry in desired.spec.security_groups:
        vpc = layout.vpc(entry)
        if vpc is None:
            yield _without_vpc(entry, network)
        elif entry.name not in layout.current:
            call = CreateGroup(entry.name, layout.name(entry), entry.description, vpc)
            taken = (creations.RecordCreation(call.name, "SecurityGroup", call.identity), call)
            yield _differing(desired, f"security group {entry.name} does not exist", taken)


def _without_vpc(entry: SecurityGroupEntry, network: ObservedNetwork) -> Finding:
    error = network.default_vpc_error
    if error is not None and error.reason is not Reason.INVALID_SPEC:
        return found_error(error, _INFRASTRUCTURE)
    field = f"spec.securityGroups[{entry.name}].vpcId"
    return found_error(InvalidSpec(field, "the region has no default VPC; name the VPC"), _INFRASTRUCTURE)


def _differing(desired: Desired, message: str, taken: tuple[Step, ...]) -> Finding:
    reason = Reason.SECURITY_GROUP_DRIFT if desired.was_reached else Reason.PROVISIONING
    return Finding(Outcome.REPAIRING, reason, message, _INFRASTRUCTURE, taken, differs=Area.CLOUD)


# --- rules --------------------------------------------------------------------------------------------------------


def rules_as_declared(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Exactly the declared rules, no other. What is wrong with one keeps no other from being added."""
    network = account.usable(desired, observed)
    if network is None:
        return
    layout = _Layout(desired, network)
    held = _held_for_ssh(layout, observed)
    yield from held.findings
    for entry in desired.spec.security_groups:
        for place, group in enumerate(layout.of(entry)):
            wanted, _ = layout.changes[group.id]
            if place == 0:
                yield from (found_error(error, _INFRASTRUCTURE) for error in wanted.refused)
                for one in wanted.waiting:
                    yield _differing(desired, f"{one.place} waits for group {one.group}, which does not exist", ())
            yield from _changes_of(desired, entry, group, layout, held)


def _changes_of(
    desired: Desired, entry: SecurityGroupEntry, group: SecurityGroup, layout: _Layout, held: _Held
) -> Iterator[Finding]:
    wanted, change = layout.changes[group.id]
    by_reference, plain = _by_reference(change)
    ours = {one.id for one in layout.network.groups}
    for direction in Direction:
        move = rules.next_move(direction, plain, (seen.rule for seen in group.rules), held.kept, held.late)
        revoke = (RevokeRules(group.id, direction, move.revoked),) if move.revoked else ()
        if move.added:
            added = tuple((rule, change.missing[rule]) for rule in move.added)
            taken = (*revoke, AuthorizeRules(group.id, direction, added, spare=move.spare))
            yield _differing(desired, f"{direction.value} rules of security group {entry.name} are missing", taken)
        elif revoke:
            message = f"security group {entry.name} has {direction.value} rules that are not declared"
            yield _differing(desired, message, revoke)
        for reference, missing in by_reference.items():
            added = tuple((rule, text) for rule, text in missing.items() if rule.direction is direction)
            if added:
                place = "" if reference in ours else wanted.places[added[0][0]]
                step = AuthorizeRules(group.id, direction, added, reference, place, move.spare)
                message = f"{direction.value} rules of security group {entry.name} that name {reference} are missing"
                yield _differing(desired, message, (step,))
    if change.descriptions:
        message = f"descriptions of rules of security group {entry.name} differ"
        yield _differing(desired, message, (DescribeRules(group.id, change.descriptions),))


def _by_reference(change: rules.RuleChanges) -> tuple[dict[str, dict[Rule, str]], rules.RuleChanges]:
    """Missing rules that name an id, by that id; and the change without them."""
    found: dict[str, dict[Rule, str]] = {}
    for rule, text in change.missing.items():
        if rule.peer_kind in (PeerKind.GROUP, PeerKind.PREFIX_LIST):
            found.setdefault(rule.peer, {})[rule] = text
    named = {rule for some in found.values() for rule in some}
    return found, replace(change, missing={rule: text for rule, text in change.missing.items() if rule not in named})


@dataclass(frozen=True)
class _Held:
    """Surplus rules that must stay for now, so that the operator is not locked out."""

    kept: frozenset[str] = frozenset()  # no declared rule would take their place
    late: frozenset[str] = frozenset()  # those that would are not there yet
    findings: tuple[Finding, ...] = field(default=())


@dataclass(frozen=True)
class _Way:
    """How the operator gets to a machine, as far as our groups let it."""

    child: ChildMachine
    others: frozenset[str]  # groups of others that it is in
    stays: bool  # rules that carry SSH are among those that stay
    carrying: frozenset[str]  # ids of surplus rules that carry it


def _ways(layout: _Layout, observed: Observed) -> Iterator[_Way]:
    """Of the machines whose groups are known."""
    known = {group.id: group for group in layout.network.groups}
    for child in layout.desired.children:
        groups = _groups_of(child, layout, observed)
        if groups is None:
            continue
        ours = groups & known.keys()
        surplus = [one for group in ours if group in layout.changes for one in layout.changes[group][1].surplus]
        gone = {rule_id for rule_id, _ in surplus}
        left = [seen.rule for group in ours for seen in known[group].rules if seen.id not in gone]
        carrying = frozenset(rule_id for rule_id, rule in surplus if rules.admits_ssh([rule]))
        yield _Way(child, groups - ours, rules.admits_ssh(left), carrying)


def _held_for_ssh(layout: _Layout, observed: Observed) -> _Held:
    """At every moment the groups that a machine is in keep a rule for SSH, if they have one."""
    kept: set[str] = set()
    late: set[str] = set()
    findings: list[Finding] = []
    others = layout.network.others
    for way in _ways(layout, observed):
        is_passing = _admits_when_declared(way.child, layout)
        if way.stays:
            if not is_passing:  # it is to be in other groups, and stays in these (machine/instance.py)
                findings.append(_closing(way.child, is_passing))
            continue
        if not way.carrying or any(_group_admits(others.get(group)) for group in way.others):
            continue
        is_passing = is_passing or not way.others <= others.keys()  # others' groups may admit it
        (late if is_passing else kept).update(way.carrying)
        findings.append(_closing(way.child, is_passing))
    return _Held(frozenset(kept), frozenset(late), tuple(findings))


def _group_admits(group: SecurityGroup | None) -> bool:
    return group is not None and rules.admits_ssh(seen.rule for seen in group.rules)


def _groups_of(child: ChildMachine, layout: _Layout, observed: Observed) -> frozenset[str] | None:
    """The groups that the machine's instance is in, or is to be in; None: not known, or none of ours."""
    seen = observed.child(child.name)
    attached = layout.network.attached.get(seen.uid) if seen is not None else None
    if attached:
        return attached
    ec2 = child.settings.target.ec2
    if ec2 is None or not ec2.security_groups or any(name not in layout.ids for name in ec2.security_groups):
        return None
    return frozenset(group for name in ec2.security_groups for group in layout.ids[name])


def _admits_when_declared(child: ChildMachine, layout: _Layout) -> bool:
    """Whether the machine can be reached once everything is as declared, as far as that is known."""
    ec2, others = child.settings.target.ec2, layout.network.others
    entries = ec2.security_groups if ec2 is not None else ()
    if not entries or any(not layout.ids.get(name) and name not in others for name in entries):
        return True  # the VPC's default group, others' of which nobody has asked, or one that is to be made
    wanted = [rule for name in entries if name in layout.ids for rule in layout.changes[layout.ids[name][0]][0].rules]
    return rules.admits_ssh(wanted) or any(_group_admits(others.get(name)) for name in entries)


def _closing(child: ChildMachine, is_passing: bool) -> Finding:
    if is_passing:
        message = f"the rule for SSH that reaches {child.machine} stays until another one does"
        return Finding(Outcome.REPAIRING, Reason.ROLLING_OUT, message, _INFRASTRUCTURE, look_again=SOON)
    message = (
        f"the declared rules let nobody reach {child.machine} on port {rules.SSH_PORT}, the operator included; "
        "no rule for SSH is taken from it: add one to one of its groups"
    )
    return Finding(Outcome.STALLED, Reason.CHANGE_FORBIDDEN, message, _INFRASTRUCTURE)


# --- what goes ----------------------------------------------------------------------------------------------------


def surplus(desired: Desired, observed: Observed, now: datetime) -> Iterator[Finding]:
    """Groups that the spec does not mean any more."""
    network = account.usable(desired, observed)
    if network is None:
        return
    going = [group for group in _Layout(desired, network).surplus if not names.is_retained(group.tags)]
    # Rules of groups that stay are the business of `rules_as_declared`: they name no group that goes.
    for message, taken in deletions(going, network, going):
        yield Finding(Outcome.REPAIRING, Reason.ROLLING_OUT, message, _INFRASTRUCTURE, taken, look_again=SOON)


def deletions(
    going: Sequence[SecurityGroup], network: ObservedNetwork, revoked: Sequence[SecurityGroup]
) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """What each of these groups waits for, and what is to be done about it. `revoked`: groups whose rules that name one
    which goes are to be revoked."""
    for group in going:
        use = network.use(group.id)
        if use is None or isinstance(use.error, NotYet):
            yield f"{group.id} is being looked at", ()
        elif use.error is not None:
            yield f"it is not known what uses {group.id}: {use.error.message}", ()
        elif use.interfaces:
            yield f"{group.id} is used by {_listed(use.interfaces)}", ()
        else:
            yield _deletion(group, use, network, revoked)


def _deletion(
    group: SecurityGroup, use: GroupUse, network: ObservedNetwork, revoked: Sequence[SecurityGroup]
) -> tuple[str, tuple[Step, ...]]:
    ours = {one.id for one in network.groups}
    foreign = [naming for naming in use.naming_groups if naming not in ours]
    if foreign:
        return f"rules of {_listed(foreign)}, which are not ours, name {group.id}; remove them", ()
    taken = tuple(step for naming in revoked for step in _revoke_naming(naming, group.id))
    if taken or use.naming_groups:
        return f"{group.id} is named by our own rules, which are being removed", taken
    return f"deleting {group.id}", (DeleteGroup(group.id), creations.ForgetThing(group.name, group.id))


def _revoke_naming(group: SecurityGroup, peer: str) -> list[Step]:
    if group.id == peer:
        return []  # a group that names itself can be deleted
    found: list[Step] = []
    for direction in Direction:
        ids = tuple(
            seen.id
            for seen in group.rules
            if seen.rule.direction is direction and seen.rule.peer_kind is PeerKind.GROUP and seen.rule.peer == peer
        )
        if ids:
            found.append(RevokeRules(group.id, direction, ids))
    return found


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted(texts))


# --- the steps, carried out ---------------------------------------------------------------------------------------


async def create(step: CreateGroup, desired: Desired, view: CloudView, world: World) -> None:
    key = desired.key
    tags = names.entry_tags(world.cluster_id, key.namespace, key.name, desired.uid, step.entry)
    await view.cloud.create_security_group(step.name, step.description, step.vpc_id, tags)


async def authorize(step: AuthorizeRules, view: CloudView) -> None:
    """A reference of the user's that EC2 does not know is the user's business; one of ours shows up."""
    try:
        await view.cloud.authorize_rules(step.group_id, step.direction, dict(step.rules))
    except MissingReference as error:
        if step.place and step.reference in error.references:
            message = f"{step.reference} does not exist in this region; name one that does"
            raise InvalidSpec(step.place, message) from None
        # A group that the deployment itself has just made is shown soon.
        raise Retry(Reason.SECURITY_GROUP_NOT_READY, error.message) from error
    except Blocked as error:
        if error.reason is not Reason.QUOTA_EXCEEDED or not step.spare:
            raise
        # What goes waits for what comes, and that for room: nobody else ends it.
        await view.cloud.revoke_rules(step.group_id, step.direction, step.spare)
        message = f"{error.message} Rules of {step.group_id} that are not declared have made room"
        raise Retry(Reason.PROGRESSING_WITH_RETRY, message) from error


async def revoke(step: RevokeRules, view: CloudView) -> None:
    await view.cloud.revoke_rules(step.group_id, step.direction, step.rule_ids)


async def describe(step: DescribeRules, view: CloudView) -> None:
    await view.cloud.describe_rules(step.group_id, dict(step.descriptions))


async def delete(step: DeleteGroup, given: Desired | Leaving, body: Body, view: CloudView, world: World) -> None:
    await proof.still_stands(given.key, given.uid, body, world)
    await view.cloud.delete_security_group(step.group_id)
