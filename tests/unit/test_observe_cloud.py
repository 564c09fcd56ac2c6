"""What a machine's spec stands for in EC2: which of two things of one name is meant, and what does not fit together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from fakes.cloud import DEFAULT_GROUP, DEFAULT_VPC
from fakes.kube import CLUSTER_ID
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.rules import Direction, PeerKind, Rule
from nixops_operator.errors import Blocked, InvalidSpec, Retry
from nixops_operator.facts.cloud import InstanceAttribute, KeyPair, SecurityGroup, Volume, VolumeSettings
from nixops_operator.machine import steps
from nixops_operator.machine.attributes import differences
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.ssh_keys import generate_ed25519
from unit.builders import launch
from unit.counting import lines_run
from unit.fake_time import run
from unit.machine_bench import SHOP, Bench

AWS = {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}}


def seen(test: Coroutine[Any, Any, ObservedCloud]) -> ObservedCloud:
    return run(test)


def ec2(**fields: Any) -> dict[str, Any]:
    return {"ec2": {"instanceType": "t3.small", **fields}}


SUBNETS = [f"subnet-0000000000000000{number}" for number in (1, 2, 3)]
OWN_KEY = {"privateKeySecretRef": {"name": "client"}}
KEY_OF_ENTRY = {"privateKeySecretRef": {"name": names.key_pair_secret(SHOP.name, "main")}}
REPLACED = Retry(Reason.KEY_PAIR_NOT_READY, "key pair main is being replaced")


@pytest.mark.parametrize(
    ("pairs", "ssh", "found"),
    [
        pytest.param(("other", "client"), KEY_OF_ENTRY, "client", id="two: the one whose private half logs in"),
        pytest.param(("client", "other"), KEY_OF_ENTRY, "client", id="whichever is the younger"),
        pytest.param(("other",), KEY_OF_ENTRY, REPLACED, id="the old one alone is no choice"),
        pytest.param(("other",), OWN_KEY, "other", id="a machine with a key of its own takes the pair for others"),
        pytest.param(("other", "third"), OWN_KEY, REPLACED, id="two for others: one of them is going"),
    ],
)
def test_an_instance_is_launched_with_the_key_that_the_operator_logs_in_with(
    pairs: tuple[str, ...], ssh: dict[str, Any], found: str | Retry
):
    """It launched with the old key, and the operator logged in with the new one."""

    async def test() -> tuple[ObservedCloud, dict[str, str]]:
        bench = Bench()
        shop = bench.deployment(aws=AWS, keyPairs=[{"name": "main"}])
        bench.machine(owner=shop, target=ec2(keyPair="main"), ssh=ssh)
        bench.kube.secrets["default", KEY_OF_ENTRY["privateKeySecretRef"]["name"]] = bench.kube.secrets[
            "default", "client"
        ]
        keys = {name: bench.client if name == "client" else generate_ed25519() for name in pairs}
        names_of = {name: bench.key_pair(key, shop["metadata"]["uid"]) for name, key in keys.items()}
        return await bench.seen(), names_of

    seen_now, names_of = run(test())
    if isinstance(found, Retry):
        assert seen_now.declared_error == found
    else:
        assert (seen_now.declared_error, seen_now.declared["keyPair"]) == (None, names_of[found])


def test_nothing_is_launched_that_nobody_has_the_key_of():
    async def test() -> ObservedCloud:
        bench = Bench()
        shop = bench.deployment(aws=AWS, keyPairs=[{"name": "main"}])
        bench.machine(owner=shop, target=ec2(keyPair="main"), ssh=KEY_OF_ENTRY)
        bench.key_pair(bench.client, shop["metadata"]["uid"])
        return await bench.seen()

    error = seen(test()).declared_error
    assert error is not None
    assert error.reason is Reason.SECRET_NOT_FOUND


def test_a_live_instance_keeps_the_key_pair_that_it_was_launched_with():
    async def test() -> tuple[ObservedCloud, str]:
        bench = Bench()
        shop = bench.deployment(aws=AWS, keyPairs=[{"name": "main"}])
        bench.machine(owner=shop, target=ec2(keyPair="main"))
        earlier = bench.key_pair(generate_ed25519(), shop["metadata"]["uid"])
        bench.key_pair(bench.client, shop["metadata"]["uid"])
        bench.tell(launch(instance=await bench.instance(key_name=earlier)))
        return await bench.seen(), earlier

    found, earlier = run(test())
    assert (found.declared_error, found.declared["keyPair"]) == (None, earlier)


@pytest.mark.parametrize("is_ours", [True, False], ids=["the deployment's", "a person's"])
def test_the_key_pair_of_a_person_is_known_where_an_instance_was_launched_with_it(*, is_ours: bool):
    async def test() -> tuple[ObservedCloud, KeyPair]:
        bench = Bench()
        shop = bench.deployment(aws=AWS, keyPairs=[{"name": "main"}])
        bench.machine(owner=shop, target=ec2(keyPair="alice"))
        name = bench.key_pair(bench.client, shop["metadata"]["uid"])
        alice = KeyPair("key-of-alice", "alice", generate_ed25519().public, {})
        bench.ec2.key_pairs["alice"] = alice
        bench.tell(launch(instance=await bench.instance(key_name=name if is_ours else "alice")))
        return await bench.seen(), alice

    found, alice = run(test())
    assert found.users_key_pair == (None if is_ours else alice)


def test_the_default_group_takes_the_place_of_the_last_one():
    """The group that was taken off stayed, and its deployment waited for it for ever."""

    async def test() -> ObservedCloud:
        bench = Bench()
        bench.machine()
        bench.ec2.security_groups["sg-00000000000000002"] = bench.ec2.security_groups[DEFAULT_GROUP]
        bench.tell(launch(instance=await bench.instance(security_group_ids=("sg-00000000000000002",))))
        return await bench.seen()

    assert seen(test()).declared["securityGroups"] == (DEFAULT_GROUP,)


def test_a_new_instance_gets_its_default_group_from_ec2():
    async def test() -> ObservedCloud:
        bench = Bench()
        bench.machine()
        return await bench.seen()

    found = seen(test())
    assert (found.declared_error, found.declared["securityGroups"]) == (None, None)


OTHER_VPC = "vpc-00000000000000009"
FOREIGN, ELSEWHERE, NOWHERE = (f"sg-0000000000000000{digit}" for digit in "789")


@pytest.mark.parametrize("is_live", [pytest.param(False, id="to launch"), pytest.param(True, id="of a live instance")])
@pytest.mark.parametrize(
    ("group", "says"),
    [
        pytest.param(FOREIGN, None, id="one that exists"),
        pytest.param(NOWHERE, f"{NOWHERE} does not exist in us-west-2", id="one that does not"),
        pytest.param(ELSEWHERE, f"is in {OTHER_VPC}", id="one of another VPC"),
    ],
)
def test_groups_of_others_are_judged_before_ec2_is_asked(group: str, says: str | None, is_live: bool):
    """In a deployment a mistyped id was waited for, as if it were about to be made."""

    async def test() -> ObservedCloud:
        bench = Bench()
        bench.machine(owner=bench.deployment(aws=AWS), target=ec2(securityGroups=[group]))
        for group_id, vpc in ((FOREIGN, DEFAULT_VPC), (ELSEWHERE, OTHER_VPC)):
            bench.ec2.security_groups[group_id] = SecurityGroup(group_id, "others", "", vpc, {}, ())
        if is_live:
            bench.tell(launch(instance=await bench.instance()))
        return await bench.seen()

    found = seen(test())
    if says is None:
        assert (found.declared_error, found.declared["securityGroups"]) == (None, (group,))
    else:
        assert isinstance(found.declared_error, InvalidSpec)
        assert found.declared_error.field == "spec.target.ec2.securityGroups"
        assert says in found.declared_error.message


@pytest.mark.parametrize("is_ours", [True, False], ids=["the deployment's", "others'"])
@pytest.mark.parametrize(
    ("port", "is_in_it", "expected"),
    [
        pytest.param(22, False, True, id="SSH"),
        pytest.param(80, False, False, id="no SSH"),
        pytest.param(80, True, None, id="its own"),
    ],
)
def test_whether_declared_groups_let_anybody_in_is_known_before_a_machine_is_moved(
    port: int, is_in_it: bool, expected: bool | None, is_ours: bool
):
    async def test() -> ObservedCloud:
        bench = Bench()
        shop = bench.deployment(aws=AWS, securityGroups=[{"name": "ssh", "description": "SSH"}])
        group = bench.group(shop["metadata"]["uid"], "ssh")
        if not is_ours:
            group = FOREIGN
            bench.ec2.security_groups[FOREIGN] = SecurityGroup(FOREIGN, "others", "", DEFAULT_VPC, {}, ())
        bench.ec2.grant(group, Rule(Direction.INGRESS, "tcp", port, port, PeerKind.IPV4, "0.0.0.0/0"))
        bench.machine(owner=shop, target=ec2(securityGroups=["ssh" if is_ours else group]))
        bench.tell(launch(instance=await bench.instance(security_group_ids=(group if is_in_it else DEFAULT_GROUP,))))
        return await bench.seen()

    found = seen(test())
    assert (found.declared_error, found.others_admit_ssh) == (None, expected)


@pytest.mark.parametrize(
    ("pairs", "kind"),
    [
        pytest.param([{"name": "main"}], Retry, id="of the deployment: it is imported in a moment"),
        pytest.param([], InvalidSpec, id="of nobody"),
    ],
)
def test_a_key_pair_that_does_not_exist_is_waited_for_only_where_somebody_makes_it(pairs: list[Any], kind: type):
    async def test() -> ObservedCloud:
        bench = Bench()
        bench.machine(owner=bench.deployment(aws=AWS, keyPairs=pairs), target=ec2(keyPair="main"), ssh=OWN_KEY)
        return await bench.seen()

    error = seen(test()).declared_error
    assert type(error) is kind
    assert "key pair main does not exist" in str(error)


@pytest.mark.parametrize(
    ("instance_type", "system", "says"),
    [
        pytest.param("t3.small", "aarch64-linux", "aarch64-linux does not run on t3.small", id="arm64 on x86_64"),
        pytest.param("t4g.small", "x86_64-linux", "x86_64-linux does not run on t4g.small", id="x86_64 on arm64"),
    ],
)
def test_a_configuration_for_another_architecture_is_told_before_anything_is_launched(
    instance_type: str, system: str, says: str
):
    async def test() -> ObservedCloud:
        bench = Bench()
        configuration = {"modules": [{"inline": "{ }"}], "system": system}
        bench.machine(target=ec2(instanceType=instance_type), configuration=configuration)
        return await bench.seen()

    error = seen(test()).declared_error
    assert isinstance(error, InvalidSpec)
    assert (error.field, says in error.message) == ("spec.configuration.system", True)


def test_an_image_that_does_not_exist_is_named_with_its_architecture():
    async def test() -> ObservedCloud:
        bench = Bench()
        bench.machine(target=ec2(instanceType="t4g.small"))
        return await bench.seen()

    error = seen(test()).declared_error
    assert isinstance(error, Blocked)
    assert (error.reason, "for arm64" in error.message) == (Reason.IMAGE_NOT_FOUND, True)


def test_groups_of_a_deployment_in_another_region_are_no_groups_of_ours():
    """It waited for ever: `security group http does not exist yet`."""

    async def test() -> ObservedCloud:
        bench = Bench()
        shop = bench.deployment(aws={"region": "eu-west-1"}, securityGroups=[{"name": "http", "description": "Web"}])
        bench.machine(owner=shop, target=ec2(securityGroups=["http"]))
        return await bench.seen()

    error = seen(test()).declared_error
    assert isinstance(error, InvalidSpec)
    assert "http is in the deployment's region eu-west-1, this machine is in us-west-2" in error.message


@pytest.mark.parametrize("has_rules", [False, True])
def test_a_machine_moves_to_the_group_of_another_description_once_that_has_rules(*, has_rules: bool):
    """It moved to the empty group at once, and nobody got to what it serves until the rules were there."""
    entry = {"name": "http", "description": "New", "ingress": [{"fromPort": 80, "toPort": 80, "cidrs": ["0.0.0.0/0"]}]}
    http = Rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.IPV4, "0.0.0.0/0")

    async def test() -> tuple[ObservedCloud, str, str]:
        bench = Bench()
        uid = (shop := bench.deployment(aws=AWS, securityGroups=[entry]))["metadata"]["uid"]
        bench.machine(owner=shop, target=ec2(securityGroups=["http"]))
        before = bench.group(uid, "http")
        bench.ec2.grant(before, http)
        name = names.security_group_name(CLUSTER_ID, uid, "http", DEFAULT_VPC, "New")
        tags = bench.ec2.security_groups[before].tags
        after = await bench.ec2.create_security_group(name, "New", DEFAULT_VPC, tags)
        if has_rules:
            bench.ec2.grant(after, http)
        bench.tell(launch(instance=await bench.instance(security_group_ids=(before,))))
        return await bench.seen(), before, after

    found, before, after = run(test())
    assert (found.declared_error, found.declared["securityGroups"]) == (None, (after if has_rules else before,))


def test_a_look_costs_what_its_own_things_cost():
    """Whatever the number of others in the account; counted in lines, not in seconds. Each of a thousand machines
    went through all thousand."""

    def lines_of(others: int) -> int:
        async def test() -> int:
            bench = Bench()
            shop = bench.deployment(aws=AWS, keyPairs=[{"name": "main"}], securityGroups=[{"name": "ssh"}])
            bench.machine(owner=shop, target=ec2(keyPair="main", securityGroups=["ssh"]))
            uid = shop["metadata"]["uid"]
            pair, group = bench.key_pair(bench.client, uid), bench.group(uid, "ssh")
            instance = await bench.instance(key_name=pair, security_group_ids=(group,))
            bench.tell(launch(instance=instance))
            for number in range(others):
                bench.key_pair(bench.client, f"uid-{number}")
                bench.group(f"uid-{number}", "ssh")
                tags = names.instance_tags(CLUSTER_ID, "default", "another", f"uid-{number}", 1, {})
                await bench.instance(f"token-of-{number}", tags=tags)
            found = await bench.seen()
            assert (found.declared["keyPair"], found.declared["securityGroups"]) == (pair, (group,))
            return lines_run(lambda: at_once(bench.seen()))

        return run(test())

    # Some lines are not the look's: the interpreter clears away what earlier work has left.
    assert lines_of(others=500) - lines_of(others=1) < 499, "less than a line for each of them"


def at_once(work: Coroutine[Any, Any, Any]) -> None:
    """Work that waits for nothing but its turn."""
    with contextlib.suppress(StopIteration):
        while True:
            work.send(None)


def test_what_no_sweep_shows_is_asked_for_where_it_is_declared_and_for_an_hour():
    """DescribeInstances shows neither protection nor shutdown behaviour."""

    async def test() -> None:
        bench = Bench()
        bench.machine(target=ec2(terminationProtection=True, shutdownBehavior="Stop"))
        instance = await bench.instance()
        bench.tell(launch(instance=instance))
        found = (await bench.seen()).instance(instance)
        assert found is not None
        assert (found.termination_protection, found.shutdown_behavior) == (False, "stop")
        assert (found.stop_protection, found.credits) == (None, None)
        assert len(bench.ec2.effects.of("attribute")) == 2

        bench.ec2.attributes[instance][InstanceAttribute.TERMINATION_PROTECTION] = True
        await asyncio.sleep(3500)
        await bench.seen()
        assert len(bench.ec2.effects.of("attribute")) == 2
        await asyncio.sleep(200)
        found = (await bench.seen()).instance(instance)
        assert found is not None
        assert found.termination_protection is True

    run(test())


def test_a_request_to_look_has_what_no_sweep_shows_asked_for_anew_once():
    async def test() -> None:
        bench = Bench()
        bench.machine(target=ec2(terminationProtection=True))
        instance = await bench.instance()
        bench.tell(launch(instance=instance))
        await bench.seen()
        bench.ec2.attributes[instance][InstanceAttribute.TERMINATION_PROTECTION] = True
        await asyncio.sleep(1)
        bench.annotate({names.RECONCILE_ANNOTATION: "now"})
        found = (await bench.seen()).instance(instance)
        assert found is not None
        assert found.termination_protection is True
        asked = len(bench.ec2.effects.of("attribute"))
        await asyncio.sleep(60)
        await bench.seen()
        assert len(bench.ec2.effects.of("attribute")) == asked

    run(test())


def test_an_own_change_of_what_no_sweep_shows_is_looked_at_at_once():
    async def test() -> None:
        bench = Bench()
        bench.machine(target=ec2(terminationProtection=True))
        instance = await bench.instance()
        bench.tell(launch(instance=instance))
        found = await bench.seen()
        (step,) = [
            step
            for one in differences(found.declared, found.instances[0])
            for step in one.steps
            if isinstance(step, steps.SetAttribute)
        ]
        await bench.take(step)
        found = await bench.seen()
        assert differences(found.declared, found.instances[0]) == ()

    run(test())


def test_a_machine_that_declares_none_of_it_costs_no_call():
    async def test() -> None:
        bench = Bench()
        bench.machine()
        bench.tell(launch(instance=await bench.instance()))
        await bench.seen()
        assert bench.ec2.effects.of("attribute") == []

    run(test())


def test_what_has_left_the_spec_is_asked_for_until_it_is_undone():
    async def test() -> None:
        bench = Bench()
        bench.machine()
        instance = await bench.instance(termination_protection=True)
        bench.tell(launch(instance=instance) | {"appliedFields": ["terminationProtection"]})
        found = await bench.seen()
        assert (found.declared["terminationProtection"], found.instances[0].termination_protection) == (False, True)

    run(test())


def test_a_right_that_is_missing_for_it_is_told_and_hides_nothing_else():
    async def test() -> None:
        bench = Bench()
        bench.machine(target=ec2(terminationProtection=True))
        bench.tell(launch(instance=await bench.instance()))
        bench.ec2.deny("attribute")
        found = await bench.seen()
        assert isinstance(found.declared_error, Blocked)
        assert found.declared_error.reason is Reason.ACCESS_DENIED
        assert found.instances[0].termination_protection is None
        assert found.declared["instanceType"] == "t3.small"

    run(test())


@pytest.mark.parametrize(
    ("place", "zone", "says"),
    [
        pytest.param({"subnetIds": SUBNETS}, "us-west-2b", None, id="several: the one beside its volume"),
        pytest.param(
            {"subnetIds": SUBNETS}, "us-west-2d", "subnetIds: vol-1 (volume data) is in us-west-2d", id="none"
        ),
        pytest.param(
            {"subnetId": SUBNETS[0]}, "us-west-2b", "subnetId: vol-1 (volume data) is in us-west-2b", id="one"
        ),
        pytest.param({}, "us-west-2b", "subnetId: vol-1 (volume data) is in us-west-2b", id="the default subnet"),
        pytest.param({}, "us-west-2a", None, id="the default subnet, and the volume is there"),
    ],
)
def test_an_instance_is_launched_beside_the_volumes_that_it_is_to_have(
    place: dict[str, Any], zone: str, says: str | None
):
    async def test() -> ObservedCloud:
        bench = Bench()
        settings = VolumeSettings(10, "gp3", 3000, 125, encrypted=False)
        bench.ec2.volumes["vol-1"] = Volume("vol-1", "available", zone, settings, {})
        bench.machine(target=ec2(**place, volumes=[{"name": "data", "device": "/dev/sdf", "volumeId": "vol-1"}]))
        return await bench.seen()

    found = seen(test())
    if says is None:
        assert (found.declared_error, found.declared["subnetId"]) == (None, SUBNETS["abc".index(zone[-1])])
    else:
        assert says in str(found.declared_error)


@pytest.mark.parametrize(
    ("groups", "denied", "wanted", "says"),
    [
        pytest.param({"near"}, False, ("t3.medium", "near"), None, id="it exists"),
        pytest.param(set(), False, (None, None), "placement group near does not exist", id="mistyped: nothing is done"),
        pytest.param(set(), True, ("t3.medium", "near"), None, id="nobody may look: EC2 says it of the stopped one"),
    ],
)
def test_a_placement_group_is_looked_for_before_an_instance_is_stopped_for_it(
    groups: set[str], denied: bool, wanted: tuple[str | None, str | None], says: str | None
):
    async def test() -> ObservedCloud:
        bench = Bench()
        bench.ec2.placement_groups |= groups
        if denied:
            bench.ec2.deny("find_placement_group")
        bench.machine(target={"ec2": {"instanceType": "t3.medium", "placementGroup": "near"}})
        bench.tell(launch(instance=await bench.instance()))
        return await bench.seen()

    found = seen(test())
    assert (found.declared["instanceType"], found.declared["placementGroup"]) == wanted
    assert (found.declared_error is None) is (says is None)
    assert says is None or says in str(found.declared_error)


def test_an_instance_in_its_placement_group_costs_no_look_for_that():
    async def test() -> int:
        bench = Bench()
        bench.ec2.placement_groups.add("near")
        bench.machine(target=ec2(placementGroup="near"))
        bench.tell(launch(instance=await bench.instance(placement_group="near")))
        await bench.seen()
        return len(bench.ec2.effects.of("find_placement_group"))

    assert run(test()) == 0
