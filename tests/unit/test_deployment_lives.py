"""Whole lives of deployments beside a fake API server and a fake EC2: what one pass writes down, the next one finds.

Machines are not the matter here: each is ready as soon as it is there, and goes as soon as it is told to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from fakes.cloud import DEFAULT_GROUP, DEFAULT_VPC, NIXOS_IMAGE, NIXOS_OWNER, FakeClouds
from fakes.kube import CLUSTER_ID, FakeKube, Secret, key_of
from nixops_operator import names
from nixops_operator.api.conditions import merge_conditions
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache, resource_version
from nixops_operator.controllers import DeploymentController
from nixops_operator.deployment.machines import DeleteMachine
from nixops_operator.deployment.rules import admits_ssh
from nixops_operator.deployment.security_groups import DeleteGroup
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.errors import Blocked, Conflict, OutcomeUnknown
from nixops_operator.facts.cloud import LaunchRequest, SecurityGroup
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.planning import Finding, Plan
from nixops_operator.reads import Reads
from nixops_operator.ready import ready_conditions
from nixops_operator.reconcile import Reconciler
from nixops_operator.rest import Notes
from nixops_operator.shared_facts import GROUPS, NODES, Reader
from nixops_operator.ssh_keys import generate_ed25519
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.watch import Intake
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import Policy, World
from unit.builders import NOON
from unit.builders_deployment import HTTP, SSH, body
from unit.fake_time import run

RESYNC = timedelta(seconds=30)
DENIED = Blocked(Reason.ACCESS_DENIED, "not allowed")
DENIED_FOR_SURE = Blocked(Reason.ACCESS_DENIED, "not allowed").as_refusal()
UNKNOWN = OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, "no usable reply")
SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
WEB = Key(Kind.MACHINE, "default", "shop-web")
KEY = ("default", "shop-main-ssh")


@dataclass
class Still:
    """A machine's controller: what is there is ready."""

    def noting(self, notes: Notes) -> Still:
        notes.give_up()
        return self

    def desired(self, body: Body) -> Body:
        return body

    async def observe(self, desired: Body) -> None:
        await asyncio.sleep(0)

    def plan(self, desired: Body, observed: None, now: datetime) -> Plan:
        is_leaving = bool(desired["metadata"].get("deletionTimestamp"))
        return Plan((Finding(Outcome.GONE if is_leaving else Outcome.IN_SYNC),))

    async def apply(self, step: Step, desired: Body, body: Body) -> Body:
        raise AssertionError("it has no steps")

    def status(self, desired: Body, observed: None, plan: Plan, now: datetime) -> dict[str, Any]:
        previous, generation = (desired.get("status") or {}).get("conditions") or (), desired["metadata"]["generation"]
        wanted = ready_conditions(previous, generation, plan.verdict, is_serving=True)
        return {"conditions": merge_conditions(previous, wanted, now), "observedGeneration": generation}

    async def leave(self, desired: Body, body: Body) -> Body:
        return body

    def settle(self, desired: Body, observed: None) -> None:
        """Nothing to let go of."""

    async def forget(self, key: Key) -> None:
        """Nothing was remembered."""


@dataclass
class _New:
    """Ids and names that EC2 does not show yet: for a while from the first look that could have shown them."""

    bench: Bench
    since: dict[str, datetime] = field(default_factory=dict)

    def __contains__(self, thing: str) -> bool:
        now = self.bench.now()
        return thing != DEFAULT_GROUP and now - self.since.setdefault(thing, now) < self.bench.shown_after


class Bench:
    """One life of the core, with both worlds around it. Made inside a running loop."""

    def __init__(self) -> None:
        self.kube = FakeKube(now=self.now)
        self.clouds = FakeClouds(now=self.now)
        self.ec2 = self.clouds.world()
        self.kube.secrets["default", "aws"] = Secret({"accessKeyId": b"AKIDTEST", "secretAccessKey": b"secret"})
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        self.intake = Intake(self.cache, self.queue)
        self.is_watching = True
        self.woken: list[Key] = []  # by passes
        self.kube.watchers.append(self._hear)
        self.world = World(
            cluster_id=CLUSTER_ID,
            policy=Policy(NIXOS_OWNER, "nixos/25.11*", HostPolicy(), None, timedelta(minutes=30)),
            kube=cast(Any, self.kube),
            nix=cast(Any, None),
            cache=self.cache,
            clouds=CloudInformers(cast(Any, self.clouds), RESYNC / 3, RESYNC, self.queue.add),
            hosts=cast(Any, None),
            jobs=cast(Any, None),
            reads=Reads(cast(Any, self.kube), RESYNC),
            wake=self._wake,
            now=self.now,
            digest_key=b"for tests",
        )
        self.deployments = DeploymentController(self.world)
        both = {Kind.MACHINE: Still(), Kind.DEPLOYMENT: self.deployments}
        self.reconciler = Reconciler(cast(Any, self.kube), self.cache, self.queue, cast(Any, both), RESYNC, self.now)
        self.shown_after = timedelta(0)
        self.ec2.hidden = cast(Any, _New(self))
        self._worker = asyncio.create_task(self.reconciler.work())

    def now(self) -> datetime:
        return NOON + timedelta(seconds=asyncio.get_running_loop().time())

    def _wake(self, key: Key) -> None:
        self.woken.append(key)
        self.queue.add(key)

    def _hear(self, what: str, body: Body) -> None:
        if not self.is_watching:
            return
        if what == "DELETED":
            self.intake.gone(key_of(body), resource_version(body))
        else:
            self.intake.saw(key_of(body).kind, body)

    def apply(self, **fields: Any) -> Body:
        wanted = body(**fields)
        metadata = {key: wanted["metadata"][key] for key in ("namespace", "name", "annotations")}
        return self.kube.apply({"kind": "NixDeployment", "metadata": metadata, "spec": wanted["spec"]})

    def told(self, key: Key = SHOP) -> dict[str, tuple[str, str, str]]:
        found = self.kube.body(key)
        conditions = (found or {}).get("status", {}).get("conditions") or ()
        return {one["type"]: (one["status"], one["reason"], one["message"]) for one in conditions}

    @property
    def is_ready(self) -> bool:
        return self.told().get("Ready", ("",))[0] == "True" and "Reconciling" not in self.told()

    @property
    def groups(self) -> dict[str, SecurityGroup]:
        """Entry → group; what the account had before left out."""
        return {one.tags[names.ENTRY_TAG]: one for one in self.ec2.security_groups.values() if one.tags}

    async def passing(self, **time: float) -> None:
        await asyncio.sleep(timedelta(**time).total_seconds())


def living(test: Coroutine[Any, Any, None]) -> None:
    run(test)


def effects(bench: Bench) -> list[str]:
    return [call.effect for call in bench.ec2.effects.calls if call.effect.startswith("ec2.")]


async def made(bench: Bench, **fields: Any) -> Body:
    bench.apply(**fields)
    await bench.passing(minutes=2)
    found = bench.kube.body(SHOP)
    assert found is not None
    return found


# --- making -----------------------------------------------------------------------------------------------------------


def test_a_deployment_becomes_ready_and_rests():
    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        assert bench.is_ready, bench.told()
        assert set(bench.groups) == {"http", "ssh"}
        assert set(bench.kube.body(SHOP)["status"]) >= {"accountId", "keyPairs", "securityGroups"}
        assert bench.kube.body(SHOP)["status"]["creations"] == []
        before = len(effects(bench)), bench.kube.body(SHOP)["metadata"]["resourceVersion"]
        await bench.passing(minutes=10)
        assert (len(effects(bench)), bench.kube.body(SHOP)["metadata"]["resourceVersion"]) == before

    living(test())


def test_a_request_to_look_finds_a_rotated_secret():
    async def test() -> None:
        bench = Bench()
        await made(bench)
        bench.kube.secrets["default", "aws"] = Secret({"accessKeyId": b"AKIDTEST"})
        bench.apply(annotations={names.RECONCILE_ANNOTATION: "now"})
        await bench.passing(seconds=10)
        assert bench.told()["CredentialsReady"][0] == "False", bench.told()
        assert bench.kube.body(SHOP)["status"]["lastHandledReconcileAt"] == "now"

    living(test())


def test_who_has_read_of_a_deployment_is_woken_when_it_becomes_otherwise():
    """The id of a group that did not exist, and which machines there are."""

    async def test() -> None:
        bench = Bench()
        uid = bench.apply()["metadata"]["uid"]
        group_id, reader = f"{GROUPS}.http.groupId", Key(Kind.MACHINE, "default", "reader")
        of_shop = Reader(reader, "reader", uid, SHOP)

        assert bench.world.facts.told(of_shop, [group_id]) == {group_id: None}
        await bench.passing(minutes=2)
        assert reader in bench.woken
        assert bench.world.facts.told(of_shop, [group_id]) == {group_id: f'"{bench.groups["http"].id}"'}

        bench.woken.clear()
        assert bench.world.facts.told(of_shop, [NODES]) == {NODES: '["web"]'}
        bench.apply(machines=("db", "web"))
        await bench.passing(minutes=2)
        assert reader in bench.woken
        assert bench.world.facts.told(of_shop, [NODES]) == {NODES: '["db", "web"]'}

    living(test())


def test_a_missing_reference_is_the_users_business_and_keeps_no_other_rule_away():
    """`Reconciling` for an hour, and none of the group's rules."""
    wrong = {"fromPort": 443, "toPort": 443, "groups": ["sg-0123456789abcdef0"]}

    async def test() -> None:
        bench = Bench()
        bench.apply(groups=({**HTTP, "ingress": [wrong, *HTTP["ingress"]]}, SSH))
        await bench.passing(minutes=2)
        status, reason, message = bench.told()["Stalled"]
        assert (status, reason) == ("True", Reason.INVALID_SPEC)
        assert "spec.securityGroups[http].ingress[0]" in message
        assert "sg-0123456789abcdef0" in message
        ports = {one.rule.from_port for one in bench.groups["http"].rules if one.rule != allow_all_egress()}
        assert ports == {80}
        assert bench.kube.body(WEB) is not None

    living(test())


def test_blanks_around_the_description_of_a_rule_are_no_difference():
    """EC2 takes them off (terraform-provider-aws issue 2831); each look found another description than the declared
    one, and it was written for ever."""

    async def test() -> None:
        bench = Bench()
        await made(bench, groups=({**HTTP, "ingress": [tcp(80, cidrs=["10.0.0.0/8"]) | {"description": " for all "}]},))
        assert bench.is_ready, bench.told()
        assert [one.description for one in bench.groups["http"].rules if one.rule != allow_all_egress()] == ["for all"]
        before = len(effects(bench))
        await bench.passing(minutes=10)
        assert len(effects(bench)) == before

    living(test())


def test_ssh_closes_once_a_group_of_others_admits_it():
    both = {"name": "web", "target": {"ec2": {"instanceType": "t3.small", "keyPair": "main"}}}
    both["target"]["ec2"]["securityGroups"] = ["http", DEFAULT_GROUP]

    async def test() -> None:
        bench = Bench()
        await made(bench, groups=({**HTTP, "ingress": [tcp(80), tcp(22)]},), machines=(both,))
        tags = names.instance_tags(CLUSTER_ID, "default", "shop-web", bench.kube.body(WEB)["metadata"]["uid"], 1, {})
        groups = (bench.groups["http"].id, DEFAULT_GROUP)
        subnet = next(iter(bench.ec2.subnets))
        await bench.ec2.run_instances(LaunchRequest(NIXOS_IMAGE, "t3.small", subnet, "", None, groups, tags), "token")
        await bench.passing(minutes=1)
        bench.apply(groups=({**HTTP, "ingress": [tcp(80)]},), machines=(both,))
        await bench.passing(minutes=5)
        assert bench.told()["Stalled"][1] == Reason.CHANGE_FORBIDDEN, bench.told()
        assert admits_ssh(one.rule for one in bench.groups["http"].rules)

        bench.ec2.grant(DEFAULT_GROUP, Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.IPV4, "10.0.0.0/8"))
        await bench.passing(minutes=3)
        assert bench.is_ready, bench.told()
        assert not admits_ssh(one.rule for one in bench.groups["http"].rules)

    living(test())


CLOUDFRONT = "pl-0123456789abcdef0"


def tcp(port: int, **peers: Any) -> dict[str, Any]:
    return {"fromPort": port, "toPort": port, **(peers or {"cidrs": ["10.0.0.0/8"]})}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([tcp(81), tcp(82), tcp(83)], [tcp(91), tcp(92), tcp(93)], id="beside the list"),
        pytest.param(
            [tcp(81), tcp(82), tcp(83), tcp(22)], [tcp(91), tcp(92), tcp(93), tcp(22)], id="SSH beside it stays"
        ),
        pytest.param(
            [tcp(22, cidrs=[f"10.{n}.0.0/16"]) for n in range(5)],
            [tcp(22, cidrs=[f"11.{n}.0.0/16"]) for n in range(5)],
            id="SSH beside it moves",
        ),
    ],
)
def test_rules_beside_a_prefix_list_can_be_replaced(before, after):
    """A list weighs its most entries, which nobody here knows: 55 of the 60 rules of a group for CloudFront's. The
    rules to come met the quota, those to go waited for them, and both stood still."""
    from_list = tcp(443, prefixLists=[CLOUDFRONT])

    async def test() -> None:
        bench = Bench()
        bench.ec2.prefix_lists[CLOUDFRONT] = 55
        http = {**HTTP, "ingress": [from_list, *before]}
        await made(bench, groups=(http,))
        assert bench.is_ready, bench.told()

        bench.apply(groups=({**HTTP, "ingress": [from_list, *after]},))
        for _ in range(120):
            await bench.passing(seconds=1)
            ingress = [one.rule for one in bench.groups["http"].rules if one.rule.direction is Direction.INGRESS]
            assert admits_ssh(ingress) or not any(one["fromPort"] == 22 for one in before)
        assert bench.is_ready, bench.told()
        assert len(ingress) == 1 + len(after)

    living(test())


def test_a_prefix_list_takes_the_place_of_another():
    other = "pl-0fedcba9876543210"

    async def test() -> None:
        bench = Bench()
        bench.ec2.prefix_lists |= {CLOUDFRONT: 55, other: 55}
        await made(bench, groups=({**HTTP, "ingress": [tcp(443, prefixLists=[CLOUDFRONT]), tcp(81)]},))
        assert bench.is_ready, bench.told()
        await made(bench, groups=({**HTTP, "ingress": [tcp(443, prefixLists=[other]), tcp(82)]},))
        assert bench.is_ready, bench.told()

    living(test())


def test_what_is_over_the_quota_is_told_and_keeps_nothing_else():
    async def test() -> None:
        bench = Bench()
        bench.ec2.prefix_lists[CLOUDFRONT] = 59
        await made(bench, groups=({**HTTP, "ingress": [tcp(443, prefixLists=[CLOUDFRONT]), tcp(81), tcp(82)]}, SSH))
        await bench.passing(minutes=20)
        status, reason, message = bench.told()["Stalled"]
        assert (status, reason) == ("True", Reason.QUOTA_EXCEEDED)
        assert "RulesPerSecurityGroupLimitExceeded" in message
        assert len(bench.groups["http"].rules) >= 2
        assert len(effects(bench)) < 30

    living(test())


def test_a_changed_description_narrows_both_groups_and_lets_the_earlier_one_go():
    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        before = bench.groups["http"].id
        bench.apply(groups=({**HTTP, "description": "Changed", "ingress": []}, SSH))
        await bench.passing(minutes=3)
        assert bench.is_ready, bench.told()
        assert before not in bench.ec2.security_groups
        assert bench.groups["http"].description == "Changed"

    living(test())


@pytest.mark.parametrize("error", [DENIED, DENIED_FOR_SURE, UNKNOWN])
def test_what_goes_on_being_refused_is_told_once(error):
    """After each try EC2 is looked at anew; until the answer is there, what was told stands."""

    async def test() -> None:
        bench = Bench()
        bench.ec2.effects.standing_error["ec2.authorize_rules"] = error
        bench.apply()
        await bench.passing(minutes=2)
        before = bench.kube.effects.of("kube.post_event"), len(effects(bench))
        told = bench.told()["Ready"]
        await bench.passing(minutes=20)
        assert bench.kube.effects.of("kube.post_event") == before[0]
        assert len(effects(bench)) > before[1], "it is tried again"
        assert bench.told()["Ready"] == told

    living(test())


# --- the way out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.5, 3, 5, 8, 20, 60, 200])
def test_nothing_is_left_whenever_the_deletion_comes_and_however_late_ec2_shows_what_it_made(seconds):
    """Made, and deleted within the lag of looks by tag: the groups and the key pair were left behind."""

    async def test() -> None:
        bench = Bench()
        bench.shown_after = timedelta(minutes=4)
        bench.apply()
        await bench.passing(seconds=seconds)
        bench.kube.delete(SHOP)
        await bench.passing(minutes=30)
        assert bench.kube.body(SHOP) is None
        assert bench.groups == {}
        assert bench.ec2.key_pairs == {}

    living(test())


def test_a_reply_that_is_lost_leaves_nothing_behind():
    async def test() -> None:
        bench = Bench()
        bench.shown_after = timedelta(minutes=4)
        bench.ec2.effects.drop_reply |= {"ec2.create_security_group", "ec2.import_key_pair"}
        bench.apply()
        await bench.passing(seconds=10)
        bench.kube.delete(SHOP)
        await bench.passing(minutes=30)
        assert (bench.groups, bench.ec2.key_pairs, bench.kube.body(SHOP)) == ({}, {}, None)

    living(test())


def test_a_terminating_namespace_lets_everything_go():
    """It takes no new object, Events included."""

    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        refused = Blocked(Reason.ACCESS_DENIED, "namespace default is being terminated")
        for effect in ("kube.post_event", "kube.create_machine"):
            bench.kube.effects.standing_error[effect] = refused
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        assert bench.kube.body(SHOP) is None
        assert bench.groups == {}

    living(test())


def test_a_spec_that_the_model_refuses_goes_all_the_same():
    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        bench.kube.edit(SHOP, lambda found: found["spec"].update(machines=[{"name": "web", "target": 7}], extra=1))
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        assert bench.kube.body(SHOP) is None
        assert (bench.groups, bench.ec2.key_pairs) == ({}, {})

    living(test())


def test_retained_groups_are_let_go_and_stay():
    async def test() -> None:
        bench = Bench()
        bench.apply(deletionPolicy="Retain")
        await bench.passing(minutes=2)
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        bench.kube.collect_garbage()
        assert bench.kube.body(SHOP) is None
        assert set(bench.groups) == {"http", "ssh"}
        assert all(names.is_retained(one.tags) for one in bench.groups.values())
        assert bench.kube.secrets[KEY].owner is None

    living(test())


def test_retain_lets_go_untagged_after_five_minutes_of_own_tries():
    """Each try is followed by a new look, and the wait does not begin anew with it."""

    async def test() -> None:
        bench = Bench()
        await made(bench, deletionPolicy="Retain")
        bench.ec2.effects.standing_error["ec2.create_tags"] = DENIED
        bench.kube.delete(SHOP)
        await bench.passing(minutes=4.9)
        assert bench.kube.body(SHOP) is not None
        await bench.passing(minutes=1)
        assert bench.kube.body(SHOP) is None
        told = [call.arguments["event"].message for call in bench.kube.effects.of("kube.post_event")]
        assert len([one for one in told if "not allowed" in one]) == 1
        assert "without tagging" in told[-1]

    living(test())


# --- an earlier life, and others' objects -----------------------------------------------------------------------------


def test_the_secret_of_an_earlier_life_is_waited_out():
    """Deleted and applied again: the key went into the predecessor's Secret, and the garbage collector took it."""

    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        first = bench.kube.secrets[KEY]
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        bench.apply()
        await bench.passing(minutes=2)
        assert bench.kube.secrets[KEY] is first, "nothing is done to it"
        assert bench.ec2.key_pairs == {}
        assert "waiting for it to go" in bench.told()["Ready"][2]
        bench.kube.collect_garbage()
        await bench.passing(minutes=2)
        assert bench.kube.secrets[KEY].data != first.data
        assert len(bench.ec2.key_pairs) == 1
        assert bench.is_ready

    living(test())


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        pytest.param(Secret({"password": b"x"}), Reason.ADOPTION_CONFLICT, id="a user's own"),
        pytest.param(
            Secret({names.SSH_PRIVATE_KEY: generate_ed25519().text.encode()}),
            Reason.ADOPTION_CONFLICT,
            id="a user's own with a key",
        ),
    ],
)
def test_a_secret_of_somebody_else_is_neither_used_nor_changed(secret, reason):
    async def test() -> None:
        bench = Bench()
        before = replace(secret)
        bench.kube.secrets[KEY] = secret
        bench.apply()
        await bench.passing(minutes=2)
        assert bench.kube.secrets[KEY] == before
        assert bench.ec2.key_pairs == {}
        assert bench.told()["Stalled"][1] == reason
        assert set(bench.groups) == {"http", "ssh"}, "the rest is made"

    living(test())


def test_a_key_that_was_let_go_of_is_known_again():
    """With Retain the Secret has no owner; the deployment goes on using it, also after a restart."""

    async def test() -> None:
        bench = Bench()
        bench.apply(deletionPolicy="Retain")
        await bench.passing(minutes=2)
        assert bench.kube.secrets[KEY].owner is None
        bench.world.reads.forget_secret(*KEY)
        await bench.passing(minutes=2)
        assert bench.is_ready, bench.told()
        assert effects(bench).count("ec2.import_key_pair") == 1

    living(test())


def owned(name: str, namespace: str, uid: str, deployment: str = "shop") -> dict[str, Any]:
    owner = {
        "apiVersion": "nixops.dev/v1alpha1",
        "kind": "NixDeployment",
        "name": deployment,
        "uid": uid,
        "controller": True,
    }
    metadata = {"namespace": namespace, "name": name, "ownerReferences": [owner]}
    return {"kind": "NixMachine", "metadata": metadata, "spec": {}}


def test_a_machine_of_another_namespace_that_names_our_uid_is_not_ours():
    """`b/db` named the uid of `a`'s deployment as its controller, and `a/db`, which nobody had made for it, was deleted
    with its instance."""

    async def test() -> None:
        bench = Bench()
        bench.apply()
        await bench.passing(minutes=2)
        uid = bench.kube.body(SHOP)["metadata"]["uid"]
        bench.kube.apply({"kind": "NixMachine", "metadata": {"namespace": "default", "name": "db"}, "spec": {}})
        bench.kube.apply(owned("db", "tenant-b", uid))
        await bench.passing(minutes=5)
        machines = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in bench.kube.bodies(Kind.MACHINE)}
        assert machines == {("default", "shop-web"), ("default", "db"), ("tenant-b", "db")}
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        machines = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in bench.kube.bodies(Kind.MACHINE)}
        assert machines == {("default", "db"), ("tenant-b", "db")}
        assert bench.kube.body(SHOP) is None, "nor is it waited for"

    living(test())


@pytest.mark.parametrize("is_known", [pytest.param(True, id="known"), pytest.param(False, id="not watched yet")])
def test_a_foreign_machine_of_a_childs_name_is_told_of(is_known):
    async def test() -> None:
        bench = Bench()
        bench.is_watching = is_known
        bench.kube.apply({"kind": "NixMachine", "metadata": {"namespace": "default", "name": "shop-web"}, "spec": {}})
        bench.is_watching = True
        bench.apply()
        await bench.passing(minutes=2)
        assert bench.told()["Stalled"][1] == Reason.ADOPTION_CONFLICT
        assert bench.kube.body(WEB)["spec"] == {}
        assert len(bench.kube.effects.of("kube.create_machine")) <= 1

    living(test())


def test_a_machine_of_an_earlier_life_is_waited_for():
    async def test() -> None:
        bench = Bench()
        bench.kube.apply(owned("shop-web", "default", "uid-of-an-earlier-life"))
        bench.apply()
        await bench.passing(minutes=2)
        assert "waiting for NixMachine shop-web" in bench.told()["Ready"][2]
        bench.kube.collect_garbage()
        await bench.passing(minutes=1)
        assert bench.is_ready, bench.told()

    living(test())


# --- fresh proof ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda bench: bench.kube.edit(SHOP, lambda found: found["spec"].update(deletionPolicy="Retain")),
            id="deletionPolicy was changed",
        ),
        pytest.param(lambda bench: bench.kube.delete(SHOP), id="it is being deleted"),
    ],
)
def test_nothing_is_destroyed_on_an_old_word(change):
    """The policy was read from a cache: `Retain`, set a moment before, came too late."""

    async def test() -> None:
        bench = Bench()
        before = await made(bench)
        bench.is_watching = False
        change(bench)
        desired = bench.deployments.desired(before)
        web = bench.kube.body(WEB)
        for step in (DeleteGroup(bench.groups["http"].id), DeleteMachine(WEB, web["metadata"]["uid"])):
            with pytest.raises(Conflict):
                await bench.deployments.apply(step, desired, before)
        assert "ec2.delete_security_group" not in effects(bench)
        assert bench.kube.effects.of("kube.delete_machine") == []

    living(test())


def test_a_machine_that_was_orphaned_meanwhile_is_not_deleted():
    async def test() -> None:
        bench = Bench()
        before = await made(bench)
        web = bench.kube.body(WEB)
        bench.is_watching = False
        bench.kube.edit(WEB, lambda found: found["metadata"].pop("ownerReferences"))
        desired = bench.deployments.desired(before)
        with pytest.raises(Conflict):
            await bench.deployments.apply(DeleteMachine(WEB, web["metadata"]["uid"]), desired, before)
        assert bench.kube.effects.of("kube.delete_machine") == []

    living(test())


def test_a_step_acts_on_the_object_of_its_uid_alone():
    async def test() -> None:
        bench = Bench()
        before = await made(bench)
        desired = bench.deployments.desired(before)
        await bench.deployments.apply(DeleteMachine(WEB, "uid-of-an-earlier-one"), desired, before)
        assert bench.kube.effects.of("kube.delete_machine") == []

    living(test())


def test_orphaned_machines_keep_what_they_use():
    """`kubectl delete --cascade=orphan`: the instance was terminated."""

    async def test() -> None:
        bench = Bench()
        await made(bench)
        bench.kube.edit(SHOP, lambda found: found["metadata"]["finalizers"].append("orphan"))
        bench.kube.delete(SHOP)
        await bench.passing(minutes=2)
        assert bench.kube.effects.of("kube.delete_machine") == []
        bench.kube.edit(WEB, lambda found: found["metadata"].pop("ownerReferences"))
        bench.kube.edit(SHOP, lambda found: found["metadata"]["finalizers"].remove("orphan"))
        await bench.passing(minutes=5)
        assert bench.kube.body(SHOP) is None
        assert bench.kube.body(WEB) is not None
        assert all(names.is_retained(one.tags) for one in bench.groups.values())
        assert set(bench.groups) == {"http", "ssh"}
        bench.kube.collect_garbage()
        assert KEY in bench.kube.secrets, "the machine is reached by no other key"

    living(test())


def test_groups_of_another_cluster_with_our_uid_are_not_ours():
    """The object was moved here from another cluster, with its status."""

    async def test() -> None:
        bench = Bench()
        await made(bench)
        uid = bench.kube.body(SHOP)["metadata"]["uid"]
        tags = {names.CLUSTER_TAG: "another-cluster", names.UID_TAG: uid, names.ENTRY_TAG: "old"}
        bench.ec2.security_groups["sg-alien"] = SecurityGroup("sg-alien", "alien", "Old", DEFAULT_VPC, tags, ())
        bench.kube.delete(SHOP)
        await bench.passing(minutes=5)
        assert bench.kube.body(SHOP) is None
        assert "sg-alien" in bench.ec2.security_groups

    living(test())
