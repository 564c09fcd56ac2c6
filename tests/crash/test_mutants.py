"""A guard that is taken out turns plans red: what the matrix promises, it can also miss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from crash import faults
from crash.plans import read
from crash.workloads import at_rest
from fakes.cloud import FakeCloud
from nixops_operator import absence, names
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.api.status import LaunchStatus
from nixops_operator.cache import Cache
from nixops_operator.controllers import MachineController
from nixops_operator.deployment import creations, key_pairs, rules
from nixops_operator.deployment import deletion as deployment_deletion
from nixops_operator.deployment.observed import ObservedKey
from nixops_operator.errors import Retry
from nixops_operator.facts.cloud import Instance, LaunchRequest
from nixops_operator.machine import (
    addresses,
    apply,
    deletion,
    host_keys,
    launch,
    observe_cloud,
    replacement,
    restarts,
    steps,
    subnets,
    system,
    volumes,
)
from nixops_operator.machine import host as machine_host
from nixops_operator.machine import plan as machine_plan
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.planning import Finding, Plan
from nixops_operator.verdict import Outcome

Mutant = Callable[[], AbstractContextManager[object]]


@contextmanager
def tags_after_the_launch() -> Iterator[None]:
    original = launch.launch_request

    def untagged(*arguments: Any) -> LaunchRequest:
        return replace(original(*arguments), tags={})

    with mock.patch.object(launch, "launch_request", untagged):
        yield


@contextmanager
def another_token_for_each_call() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: LaunchRequest, token: str) -> str:
        return await original(self, request, f"{token}{next(numbers)}")

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def call_before_the_intent() -> Iterator[None]:
    original = launch.record_launch

    async def record_launch(step: Any, desired: Any, body: Any, world: Any) -> Any:
        view = await world.cloud(desired.key, desired.uids, desired.spec.aws)
        request = launch.launch_request(step.declared, "")
        await view.cloud.run_instances(request, names.client_token(world.cluster_id, desired.uid, 1))
        return await original(step, desired, body, world)

    with mock.patch.object(launch, "record_launch", record_launch):
        yield


@contextmanager
def spec_of_today_under_an_old_token() -> Iterator[None]:
    original, numbers = FakeCloud.run_instances, itertools.count()

    async def run_instances(self: FakeCloud, request: LaunchRequest, token: str) -> str:
        request = replace(request, user_data=f"{request.user_data}\n# {next(numbers)}")
        return await original(self, request, token)

    with mock.patch.object(FakeCloud, "run_instances", run_instances):
        yield


@contextmanager
def finalizer_off_at_the_reply_of_terminate() -> Iterator[None]:
    original = MachineController.plan

    def plan(self: MachineController, desired: Any, observed: Any, now: Any) -> Plan:
        found = original(self, desired, observed, now)
        is_asked_for = found.verdict.outcome is Outcome.DELETING and not found.steps
        return replace(found, findings=(Finding(Outcome.GONE),)) if is_asked_for else found

    with mock.patch.object(MachineController, "plan", plan):
        yield


def _patched(target: object, name: str, substitute: object) -> Mutant:
    return lambda: mock.patch.object(target, name, substitute)


def _any_dead_instance_counts(self: ObservedCloud, token: str) -> Instance | None:
    return next((one for one in self.instances if not one.state.is_live), None)


@contextmanager
def _another_attempt_proves_it() -> Iterator[None]:
    original = deletion._answered

    def answered(leaving: Any, cloud: ObservedCloud) -> Any:
        return () if _any_dead_instance_counts(cloud, "") else original(leaving, cloud)

    with mock.patch.object(deletion, "_answered", answered):
        yield


def _one_empty_look(last_call: object, looked_at: object, missing_for: object) -> bool:
    return looked_at is not None and missing_for is not None


async def _closed(intent: Any, desired: Any, body: Any, world: Any, error: Any = None) -> None:
    await launch.close_launch(desired, body, world)


async def _left_open(intent: Any, desired: Any, body: Any, world: Any, error: Any = None) -> None:
    """Nothing is written down."""


def _greatest_id(name: str, desired: Any, snapshot: Any, world: Any) -> str:
    found = [group.id for group in snapshot.security_groups.values() if group.tags.get(names.ENTRY_TAG) == name]
    if not found:
        raise Retry(Reason.SECURITY_GROUP_NOT_READY, f"security group {name} does not exist yet")
    return max(found)


def _whose_ever(desired: Any, entry: Any, secret: Any, network: Any, world: Any) -> ObservedKey:
    return ObservedKey(key_pairs._public_key(secret, names.SSH_PRIVATE_KEY))


def _pins_of_whomever(secret: Any, uid: str) -> host_keys.Pins:
    return _PINS(secret, next(iter(secret.owner_uids), uid) if secret is not None else uid)


_PINS = host_keys.pins
_WITH_STAGED = host_keys.with_staged


def _pins_the_staged_alone(pinned: Any, staged: str) -> dict[str, bytes]:
    return _WITH_STAGED((), staged)


async def _terminate_unproven(instance_id: str, leaving: Any, world: Any) -> None:
    view = await apply._view(leaving, world)
    await view.cloud.terminate_instance(instance_id)


def _for_its_id_alone(leaving: Any, instance: Instance) -> Any:
    return (deletion._deleting("terminating it", steps.TerminateInstance(instance.id)),)


@contextmanager
def _terminated_for_its_id() -> Iterator[None]:
    with (
        mock.patch.object(deletion, "_untagged", _for_its_id_alone),
        mock.patch.object(apply, "_terminate", _terminate_unproven),
    ):
        yield


@contextmanager
def _activated_beside_the_former_one() -> Iterator[None]:
    checks = tuple(one for one in machine_plan.CHECKS if one.check is not replacement.taken_over)
    with mock.patch.object(machine_plan, "CHECKS", checks):
        yield


def _checked_before(check: object, other: object) -> AbstractContextManager[object]:
    moved = [one for one in machine_plan.CHECKS if one.check is check]
    others = [one for one in machine_plan.CHECKS if one.check is not check]
    place = next(place for place, one in enumerate(others) if one.check is other)
    return mock.patch.object(machine_plan, "CHECKS", (*others[:place], *moved, *others[place:]))


def _volumes_are_let_go_of_first() -> AbstractContextManager[object]:
    return _checked_before(volumes.released, replacement.taken_over)


@contextmanager
def _former_one_goes_at_once() -> Iterator[None]:
    with (
        mock.patch.object(system, "is_on_machine", return_value=True),
        _checked_before(replacement.taken_over, machine_host.reachable),
    ):
        yield


async def _unproven(leaving: Any, world: Any) -> None:
    """Nobody asks what the policy is by now."""


@contextmanager
def _address_of_a_retained_instance_goes() -> Iterator[None]:
    with (
        mock.patch.object(addresses, "retained", return_value=()),
        mock.patch.object(apply, "_proof_of_deletion", _unproven),
    ):
        yield


def _all_additions_first(direction: Any, change: Any, *others: Any) -> rules.Move:
    return rules.Move(added=tuple(rule for rule in change.missing if rule.direction is direction))


MUTANTS = (
    pytest.param(
        tags_after_the_launch,
        "create/ec2.run_instances.1/not-recorded~4-8",
        "carries no tags of ours",
        id="tags after the launch",
    ),
    pytest.param(
        another_token_for_each_call,
        "create/ec2.run_instances.1/reply-lost~4-8",
        "before its intent was written",
        id="another token for each call",
    ),
    pytest.param(
        call_before_the_intent,
        "create/kube.write_intent.4/before~4-8",
        "before its intent was written",
        id="intent after the call",
    ),
    pytest.param(
        spec_of_today_under_an_old_token,
        "create/ec2.run_instances.1/reply-lost~4-8",
        "other parameters",
        id="new parameters under an old token",
    ),
    pytest.param(
        finalizer_off_at_the_reply_of_terminate,
        "delete/ec2.terminate_instance.1/not-recorded~4-8",
        "was let go while",
        id="finalizer off at the reply of terminate",
    ),
    pytest.param(
        _patched(Cache, "children", lambda self, owner, uid: self.owned_by(uid)),
        faults.neighbour_names_our_deployment,
        "",
        id="children by uid over all namespaces",
    ),
    pytest.param(
        _patched(LaunchStatus, "last_call", property(lambda self: self.requested_at)),
        faults.capacity_returns_and_all_is_deleted,
        "was let go while|nobody answers",
        id="absence counts from the first call",
    ),
    pytest.param(
        _another_attempt_proves_it,
        "replace+delete@ec2.run_instances.1/not-recorded~60-300",
        "was let go while|nobody answers",
        id="another attempt's instance counts",
    ),
    pytest.param(
        _patched(absence, "is_gone", _one_empty_look),
        "create+delete@ec2.run_instances.1/not-recorded~60-300",
        "was let go while|nobody answers",
        id="one empty look suffices",
    ),
    pytest.param(
        _patched(creations, "unseen", lambda leaving, network: ()),
        "create+delete@ec2.create_security_group.2/not-recorded~60-300",
        "was let go while",
        id="groups and key pairs are not waited for",
    ),
    pytest.param(
        _patched(launch, "_refused", _closed),
        faults.refused_after_an_unknown_outcome,
        "two live instances",
        id="the refusal of a repeat closes the attempt",
    ),
    pytest.param(
        _patched(observe_cloud, "_group_of_deployment", _greatest_id),
        faults.descriptions_change,
        "",
        id="the greatest id of two groups",
    ),
    pytest.param(
        _patched(key_pairs, "_judge_foreign", _whose_ever),
        "create+delete_and_apply@host.commit.2~4-8",
        "goes with another life",
        id="the owner of a key's Secret is not looked at",
    ),
    pytest.param(
        _patched(host_keys, "pins", _pins_of_whomever),
        faults.machine_deleted_by_hand,
        "of another life was written",
        id="the owner of a host key's Secret is not looked at",
    ),
    pytest.param(
        _patched(host_keys, "public_key_of", lambda user_data: user_data),
        "create/ec2.run_instances.1/not-recorded~4-8",
        "patch_status tells a private key",
        id="the private half is pinned, too",
    ),
    pytest.param(
        _patched(host_keys, "with_staged", _pins_the_staged_alone),
        "create/host.install_host_key.1/before~4-8",
        "host key that nobody pinned",
        id="the first host key is dropped before the other is shown",
    ),
    pytest.param(
        _patched(host_keys, "with_staged", lambda pinned, staged: {}),
        "create/host.install_host_key.1/not-recorded~4-8",
        "host key that nobody pinned",
        id="the other host key is shown before it is pinned",
    ),
    pytest.param(
        _terminated_for_its_id,
        faults.deleted_without_tags,
        "does not carry our tags",
        id="terminated for its recorded id",
    ),
    pytest.param(
        _terminated_for_its_id,
        faults.moved_with_its_status,
        "its machine is to stay",
        id="terminated for a moved object",
    ),
    pytest.param(
        _patched(launch, "_refused", _left_open),
        faults.capacity_returns_after_an_edit,
        "",
        id="the intent stays open when it is refused",
    ),
    pytest.param(
        _patched(addresses, "_is_absent", lambda record, seen: True),
        "settle/ec2.allocate_address.1/reply-lost~60-300",
        "two addresses of one machine",
        id="an address is asked for again after a lost reply",
    ),
    pytest.param(
        _patched(addresses, "_is_absent", lambda record, seen: True),
        faults.address_lost_and_deleted,
        "was let go while",
        id="a lost reply about an address is not waited for",
    ),
    pytest.param(
        _patched(addresses, "way_out", lambda leaving, cloud: ()),
        "leave/ec2.terminate_instance.1/before~4-8",
        "was let go while",
        id="an address is left behind",
    ),
    pytest.param(
        _patched(subnets, "choose", lambda candidates, *_: candidates[0]),
        "crowd/ec2.run_instances.1/before~4-8",
        "",
        id="the first subnet for ever",
    ),
    pytest.param(
        _patched(launch, "_moves_on", lambda *_: False),
        "crowd/ec2.run_instances.2/before~4-8",
        "",
        id="a subnet without room counts as a short life",
    ),
    pytest.param(
        _volumes_are_let_go_of_first,
        "disks/ec2.attach_volume.1/before~4-8",
        "before the configuration without it was live",
        id="a volume goes before the configuration without it is live",
    ),
    pytest.param(
        _address_of_a_retained_instance_goes,
        "settle+retain@ec2.associate_address.2~4-8",
        "was released, and is to stay",
        id="the address of a retained instance is released",
    ),
    pytest.param(
        _former_one_goes_at_once,
        "substitute/ec2.run_instances.1/before~4-8",
        "before the other one was ready",
        id="the former instance goes before the other one is ready",
    ),
    pytest.param(
        _patched(restarts, "waiting", lambda desired, now, died_of: None),
        faults.dead_while_starting,
        "",
        id="short lives are not counted",
    ),
    pytest.param(
        _activated_beside_the_former_one,
        "substitute/ec2.run_instances.1/not-recorded~4-8",
        "two instances serve as one machine",
        id="both instances of a replacement are activated",
    ),
    pytest.param(
        _patched(rules, "ALL_IPV6", None),
        faults.ipv6_egress_stays,
        "",
        id="egress by IPv6 is revoked",
    ),
    pytest.param(
        _patched(rules, "next_move", _all_additions_first),
        faults.forty_rules_for_forty,
        "more than 60 rules",
        id="additions first",
    ),
    pytest.param(
        _patched(deployment_deletion, "TRIED", ConditionType.STALLED),
        faults.machines_are_refused_for_five_minutes,
        "",
        id="machines' refusals start the deployment's clock",
    ),
)
"""What a mutant breaks, the plan or fault that finds it, and what that says; empty: it ends otherwise than it
should."""


@pytest.mark.parametrize(("mutant", "found_by", "says"), MUTANTS)
def test_a_mutant_turns_its_plan_red(mutant, found_by, says):
    if isinstance(found_by, str):
        plan = read(found_by)
        plan.run()  # the beginning is sound
        found_by = plan.run
    at_rest()
    with mutant(), pytest.raises(AssertionError, match=says or None):
        found_by()
