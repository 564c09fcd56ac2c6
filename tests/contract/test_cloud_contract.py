"""What ports.cloud.Cloud promises, on EC2 in memory and on boto3 against the lab's strict EC2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.loaders import Loader

from contract.cloud_worlds import KNOWN, OPERATIONS, PATIENCE, REGION, UNKNOWN, FakeWorld, RealWorld, World, rules_of
from nixops_operator.adapters.aws import Boto3Clouds
from nixops_operator.adapters.aws.clients import model_loader
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress, canonical_rule
from nixops_operator.errors import (
    Blocked,
    InvalidSpec,
    Lost,
    MissingReference,
    NamesNothing,
    OperatorError,
    OutcomeUnknown,
    Retry,
)
from nixops_operator.facts.cloud import (
    Address,
    Instance,
    InstanceAttribute,
    InstanceState,
    LaunchRequest,
    MetadataOptions,
    RootVolume,
    SecurityGroup,
    Volume,
    VolumeSettings,
)
from nixops_operator.names import CLUSTER_TAG, UID_TAG

CLUSTER = "6f1b0c3e-0000-4000-8000-000000000001"
TAGS = {CLUSTER_TAG: CLUSTER, UID_TAG: "uid-1", "Name": "default/web"}
OTHER_OWNER = TAGS | {UID_TAG: "uid-2"}
TOKEN = "n1-one"
OF_ADDRESSES = ("ec2.allocate_address", "ec2.associate_address", "ec2.disassociate_address", "ec2.release_address")
SOURCE_DEST_CHECK = InstanceAttribute.SOURCE_DEST_CHECK
PROTECTIONS = (InstanceAttribute.TERMINATION_PROTECTION, InstanceAttribute.STOP_PROTECTION)
OWNER_OF_IMAGES = "427812963091"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC/9Ue0aRXqnWqvUF1xLqHTnSdm6ysTmHBjtRjNdQPcR"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZ5yVDKqXBh4IyKdDbTCVmXKzYPmlsAOeXMRUsbRKXv"
HTTP = canonical_rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.IPV4, "0.0.0.0/0")
HTTP_V6 = canonical_rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.IPV6, "::/0")
PING = canonical_rule(Direction.INGRESS, "icmp", 8, None, PeerKind.IPV4, "10.0.0.0/8")
ESP = canonical_rule(Direction.INGRESS, "50", None, None, PeerKind.IPV4, "10.1.0.0/16")
DNS_OUT = canonical_rule(Direction.EGRESS, "udp", 53, 53, PeerKind.IPV4, "10.0.0.2")


@pytest.fixture(scope="module")
def models() -> Loader:
    """AWS' service models, read once."""
    return model_loader()


@pytest.fixture(params=["fake", "boto3"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld.new()
        return
    layer = request.getfixturevalue("layer")
    with ThreadPoolExecutor(4) as pool:
        clouds = Boto3Clouds(layer.url, pool, loader=request.getfixturevalue("models"))
        world = RealWorld(layer, clouds)
        yield world
        world.close()
        clouds.close()


async def launch_request(world: World, **changes: Any) -> LaunchRequest:
    image = await world.cloud.find_image(OWNER_OF_IMAGES, "nixos/25.11*-x86_64-linux", "x86_64")
    subnet = await world.cloud.default_subnet()
    assert image is not None
    request = LaunchRequest(
        image_id=image.id,
        instance_type="t3.small",
        subnet_id=subnet.id,
        user_data="",
        key_name=None,
        security_group_ids=(),
        tags=TAGS,
    )
    return replace(request, **changes)


async def launch(world: World, token: str = TOKEN, **changes: Any) -> str:
    return await world.cloud.run_instances(await launch_request(world, **changes), token)


async def running(world: World, **changes: Any) -> Instance:
    return await world.until(await launch(world, **changes), InstanceState.RUNNING)


async def the_instance(world: World) -> Instance:
    """The only one."""
    (found,) = (await world.cloud.sweep_instances(CLUSTER)).values()
    return found


async def new_group(world: World, name: str = "web") -> str:
    return await world.cloud.create_security_group(name, "the site", world.default_vpc, TAGS)


async def group(world: World, group_id: str) -> SecurityGroup:
    return (await world.cloud.sweep_security_groups(CLUSTER))[group_id]


# Identity.


async def test_the_account_is_a_number_of_twelve_digits(world: World) -> None:
    account = await world.cloud.account_id()

    assert len(account) == 12
    assert account.isdigit()


async def test_equal_identities_share_a_cloud(world: World) -> None:
    assert world.clouds.cloud(KNOWN, REGION) is world.clouds.cloud(KNOWN, REGION)


async def test_an_unknown_access_key_is_refused_everywhere(world: World) -> None:
    cloud = world.clouds.cloud(UNKNOWN, REGION)

    for call in (cloud.sweep_instances(CLUSTER), cloud.delete_key_pair("web")):
        with pytest.raises(Blocked) as refused:
            await call
        assert refused.value.reason is Reason.AUTH_FAILURE
        assert UNKNOWN.secret_access_key not in str(refused.value)


# Launch.


async def test_a_launched_instance_is_seen_with_its_facts(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.import_key_pair("web", KEY, TAGS)
    request = await launch_request(
        world, key_name="web", security_group_ids=(group_id, world.default_group), user_data="hello", monitoring=True
    )

    instance_id = await world.cloud.run_instances(request, "n1-facts")
    await world.until(instance_id, InstanceState.RUNNING)

    seen = (await world.cloud.sweep_instances(CLUSTER))[instance_id]
    assert seen.state is InstanceState.RUNNING
    assert seen.state_reason == ""
    assert seen.instance_type == "t3.small"
    assert seen.state_reason_message == ""
    assert seen.monitoring
    assert seen.image_id == request.image_id
    assert seen.subnet_id == request.subnet_id
    assert seen.zone == f"{REGION}a"
    assert seen.private_address is not None
    assert seen.private_address.startswith("172.31.")
    assert seen.public_address is not None
    assert seen.public_address.startswith("198.51.100.")
    assert seen.key_name == "web"
    assert seen.security_group_ids == tuple(sorted([group_id, world.default_group]))
    assert dict(seen.tags) == TAGS
    assert seen.client_token == "n1-facts"
    assert seen.launch_time.tzinfo == UTC
    assert abs(datetime.now(UTC) - seen.launch_time) < timedelta(minutes=10)


async def test_an_instance_is_launched_as_asked(world: World) -> None:
    await world.add_placement_group("apart")
    await world.add_instance_profile("web")
    options = MetadataOptions("optional", 3, "enabled", "enabled")
    seen = await running(
        world,
        instance_type="m7i.large",
        metadata=options,
        public_ip=False,
        ebs_optimized=True,
        tenancy="dedicated",
        placement_group="apart",
        instance_profile="web",
        termination_protection=True,
        stop_protection=True,
        shutdown_behavior="terminate",
    )

    assert {one: await world.cloud.attribute(seen.id, one) for one in PROTECTIONS} == dict.fromkeys(PROTECTIONS, True)
    assert await world.cloud.attribute(seen.id, InstanceAttribute.SHUTDOWN_BEHAVIOR) == "terminate"
    assert seen.instance_profile == "web"
    assert (seen.metadata, seen.metadata_pending) == (options, False)
    assert (seen.public_ip, seen.public_address) == (False, None)
    assert (seen.ebs_optimized, seen.tenancy, seen.placement_group) == (True, "dedicated", "apart")


async def test_what_a_launch_leaves_open_is_as_ec2_does(world: World) -> None:
    seen = await running(world)

    assert (seen.metadata, seen.source_dest_check) == (MetadataOptions(), True)
    assert (seen.public_ip, seen.public_address is not None) == (True, True)
    assert (seen.ebs_optimized, seen.tenancy, seen.placement_group) == (False, "default", "")
    assert seen.instance_profile == ""
    assert {one: await world.cloud.attribute(seen.id, one) for one in InstanceAttribute} == {
        InstanceAttribute.SOURCE_DEST_CHECK: True,
        InstanceAttribute.INSTANCE_TYPE: "t3.small",
        InstanceAttribute.EBS_OPTIMIZED: False,
        InstanceAttribute.TERMINATION_PROTECTION: False,
        InstanceAttribute.STOP_PROTECTION: False,
        InstanceAttribute.SHUTDOWN_BEHAVIOR: "stop",
        InstanceAttribute.CREDITS: "unlimited",
    }


async def test_credits_may_be_said_at_launch(world: World) -> None:
    seen = await running(world, credits="standard")

    assert await world.cloud.attribute(seen.id, InstanceAttribute.CREDITS) == "standard"


async def test_a_launch_with_an_unknown_profile_is_refused(world: World) -> None:
    with pytest.raises(NamesNothing) as refused:
        await launch(world, instance_profile="nobody-s")

    assert (refused.value.field, refused.value.is_refusal) == ("spec.target.ec2.instanceProfile", True)


async def test_a_launch_into_an_unknown_placement_group_is_refused(world: World) -> None:
    with pytest.raises(NamesNothing) as refused:
        await launch(world, placement_group="nowhere")

    assert (refused.value.field, refused.value.is_refusal) == ("spec.target.ec2.placementGroup", True)


async def test_a_sweep_shows_only_what_bears_the_clusters_tag(world: World) -> None:
    ours = await launch(world)
    await launch(world, "n1-two", tags={})

    assert list(await world.cloud.sweep_instances(CLUSTER)) == [ours]
    assert await world.cloud.sweep_instances("another-cluster") == {}


async def test_a_repeated_launch_is_the_first_instance(world: World) -> None:
    first = await launch(world)

    assert await launch(world) == first
    assert len(await world.cloud.sweep_instances(CLUSTER)) == 1


async def test_a_launch_whose_reply_was_lost_is_found_by_repeating_it(world: World) -> None:
    world.drop_reply("ec2.run_instances")
    with pytest.raises(OutcomeUnknown):
        await launch(world)

    instance_id = await launch(world)

    assert list(await world.cloud.sweep_instances(CLUSTER)) == [instance_id]


async def test_a_token_goes_with_its_parameters_only(world: World) -> None:
    await launch(world)

    with pytest.raises(Lost) as lost:
        await launch(world, instance_type="t3.medium")

    assert lost.value.reason is Reason.LAUNCH_AMBIGUOUS


async def test_the_token_of_a_terminated_instance_is_spent(world: World) -> None:
    instance = await running(world)
    await world.cloud.terminate_instance(instance.id)
    await world.until(instance.id, InstanceState.TERMINATED)

    with pytest.raises(Lost) as lost:
        await launch(world)

    assert lost.value.reason is Reason.TERMINATED


async def test_a_token_counts_in_its_zone_only(world: World) -> None:
    """Why a launch freezes its subnet."""
    first = await launch(world)
    subnets = {(await world.cloud.default_subnet()).id}
    other = next(one for one in await _subnets(world) if one not in subnets)

    assert await launch(world, subnet_id=other) != first


async def _subnets(world: World) -> list[str]:
    if isinstance(world, FakeWorld):
        return sorted(world.cloud.subnets)
    assert isinstance(world, RealWorld)
    return sorted(one["SubnetId"] for one in world.owner.describe_subnets()["Subnets"])


async def test_no_launch_without_the_callers_token(world: World) -> None:
    with pytest.raises(ValueError, match="token"):
        await launch(world, token="")

    assert await world.cloud.sweep_instances(CLUSTER) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"image_id": "ami-0123456789abcdef0"}, Reason.IMAGE_NOT_FOUND, id="image"),
        pytest.param({"instance_type": "t9.colossal"}, Reason.INVALID_SPEC, id="instance type"),
        pytest.param({"key_name": "nobody"}, Reason.KEY_PAIR_NOT_READY, id="key pair"),
        pytest.param(
            {"security_group_ids": ("sg-0123456789abcdef0",)}, Reason.SECURITY_GROUP_NOT_READY, id="security group"
        ),
        pytest.param({"subnet_id": "subnet-0123456789abcdef0"}, Reason.INVALID_SPEC, id="subnet"),
    ],
)
async def test_a_launch_that_names_something_unknown_is_blocked(
    world: World, changes: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(Blocked) as blocked:
        await launch(world, **changes)

    assert blocked.value.reason is reason
    assert blocked.value.is_refusal
    assert await world.cloud.sweep_instances(CLUSTER) == {}


# Looking for instances.


async def test_instances_are_found_by_id_token_and_tags(world: World) -> None:
    instance_id = await launch(world, "n1-find")
    find = world.cloud.find_instances

    for found in (
        await find(instance_id=instance_id),
        await find(client_token="n1-find"),
        await find(tags={UID_TAG: "uid-1"}),
        await find(instance_id=instance_id, client_token="n1-find", tags=TAGS),
    ):
        assert [one.id for one in found] == [instance_id]


async def test_what_nobody_has_is_an_empty_answer(world: World) -> None:
    instance_id = await launch(world, "n1-find")
    find = world.cloud.find_instances

    assert await find(instance_id="i-0123456789abcdef0") == ()
    assert await find(client_token="n1-other") == ()
    assert await find(tags={UID_TAG: "uid-9"}) == ()
    assert await find(instance_id=instance_id, client_token="n1-other") == ()
    # A star is a wildcard to EC2's filters, not to us.
    assert await find(client_token="n1-*") == ()
    assert await find(tags={UID_TAG: "*"}) == ()


async def test_a_group_is_looked_up_by_its_id_whoever_owns_it(world: World) -> None:
    group_id = await world.add_group("others", {})

    found = await world.cloud.get_security_group(group_id)
    assert found is not None
    assert (found.id, found.name, found.vpc_id) == (group_id, "others", world.default_vpc)
    assert await world.cloud.get_security_group("sg-0123456789abcdef0") is None


async def test_no_look_without_a_filter(world: World) -> None:
    with pytest.raises(ValueError, match="filter"):
        await world.cloud.find_instances()


# States.


async def test_a_stopped_instance_is_started_again(world: World) -> None:
    instance = await running(world)
    await world.stop(instance.id)
    (stopped,) = await world.cloud.find_instances(instance_id=instance.id)
    assert stopped.public_address is None
    assert stopped.private_address == instance.private_address
    assert stopped.state_reason == "Client.UserInitiatedShutdown"

    await world.cloud.start_instance(instance.id)

    again = await world.until(instance.id, InstanceState.RUNNING)
    assert again.public_address is not None
    assert again.launch_time >= instance.launch_time


async def test_starting_a_running_instance_changes_nothing(world: World) -> None:
    instance = await running(world)

    await world.cloud.start_instance(instance.id)

    assert await world.cloud.find_instances(instance_id=instance.id) == (instance,)


async def test_a_stopping_instance_cannot_be_started_yet(world: World) -> None:
    instance = await running(world)
    await world.stopping(instance.id)

    with pytest.raises(Retry) as refused:
        await world.cloud.start_instance(instance.id)

    assert refused.value.reason is Reason.STOPPING
    assert refused.value.is_refusal
    assert f"'{instance.id}' is not in a state from which it can be started" in refused.value.message


async def test_starting_an_unknown_instance_proves_nothing(world: World) -> None:
    with pytest.raises(Retry) as refused:
        await world.cloud.start_instance("i-0123456789abcdef0")

    assert refused.value.reason is Reason.NOT_FOUND


async def test_an_instance_is_stopped_and_keeps_what_it_is(world: World) -> None:
    instance = await running(world)

    await world.cloud.stop_instance(instance.id)
    stopped = await world.until(instance.id, InstanceState.STOPPED)
    await world.cloud.stop_instance(instance.id)

    assert (stopped.public_address, stopped.private_address) == (None, instance.private_address)
    assert await world.cloud.find_instances(instance_id=instance.id) == (stopped,)


async def test_a_stopped_instance_is_given_another_type(world: World) -> None:
    instance = await running(world)
    await world.stop(instance.id)

    await world.cloud.set_attribute(instance.id, InstanceAttribute.INSTANCE_TYPE, "t3.medium")
    await world.cloud.start_instance(instance.id)

    again = await world.until(instance.id, InstanceState.RUNNING)
    assert again.instance_type == "t3.medium"


async def test_a_stopped_instance_is_optimised_for_ebs_or_not(world: World) -> None:
    instance = await running(world)
    await world.stop(instance.id)

    for is_on in (True, False):
        await world.cloud.set_attribute(instance.id, InstanceAttribute.EBS_OPTIMIZED, is_on)
        (shown,) = await world.cloud.find_instances(instance_id=instance.id)
        assert shown.ebs_optimized is is_on


async def test_a_running_instance_keeps_its_type(world: World) -> None:
    instance = await running(world)

    with pytest.raises(Retry) as refused:
        await world.cloud.set_attribute(instance.id, InstanceAttribute.INSTANCE_TYPE, "t3.medium")

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.STOPPING, True)
    assert "is not in the 'stopped' state" in refused.value.message


async def test_a_type_that_does_not_exist_is_refused_for_good(world: World) -> None:
    instance = await running(world)
    await world.stop(instance.id)

    with pytest.raises(Blocked) as refused:
        await world.cloud.set_attribute(instance.id, InstanceAttribute.INSTANCE_TYPE, "t9.huge")

    assert refused.value.is_refusal
    (kept,) = await world.cloud.find_instances(instance_id=instance.id)
    assert kept.instance_type == instance.instance_type


async def test_a_terminated_instance_stays_in_sight(world: World) -> None:
    instance = await running(world)

    await world.cloud.terminate_instance(instance.id)
    await world.cloud.terminate_instance(instance.id)

    gone = await world.until(instance.id, InstanceState.TERMINATED)
    assert gone.state_reason == "Client.UserInitiatedShutdown"
    assert gone.public_address is None
    assert (await world.cloud.sweep_instances(CLUSTER))[instance.id].state is InstanceState.TERMINATED
    await world.cloud.terminate_instance(instance.id)


async def test_terminating_an_unknown_instance_succeeds(world: World) -> None:
    await world.cloud.terminate_instance("i-0123456789abcdef0")


async def test_an_instances_groups_are_replaced_as_a_set(world: World) -> None:
    instance = await running(world)
    group_id = await new_group(world)

    await world.cloud.set_security_groups(instance.id, [group_id])

    (changed,) = await world.cloud.find_instances(instance_id=instance.id)
    assert changed.security_group_ids == (group_id,)
    with pytest.raises(ValueError, match="at least one"):
        await world.cloud.set_security_groups(instance.id, [])
    with pytest.raises(Retry) as refused:
        await world.cloud.set_security_groups(instance.id, [group_id, "sg-0123456789abcdef0"])
    assert refused.value.reason is Reason.SECURITY_GROUP_NOT_READY
    assert await world.cloud.find_instances(instance_id=instance.id) == (changed,)


async def test_tags_are_added_and_overwritten(world: World) -> None:
    instance_id = await launch(world)
    group_id = await new_group(world)

    await world.cloud.create_tags([instance_id, group_id], {"Name": "new", "extra": ""})
    await world.cloud.create_tags([instance_id], {})

    assert dict((await world.cloud.sweep_instances(CLUSTER))[instance_id].tags) == TAGS | {"Name": "new", "extra": ""}
    assert dict((await group(world, group_id)).tags) == TAGS | {"Name": "new", "extra": ""}


async def test_tags_are_removed_by_key_whatever_their_value(world: World) -> None:
    instance_id = await launch(world)
    group_id = await new_group(world)
    await world.cloud.create_tags([instance_id, group_id], {"extra": "1", "other": ""})

    await world.cloud.delete_tags([instance_id, group_id], ["extra", "never-there"])
    await world.cloud.delete_tags([instance_id], ["extra"])

    assert dict((await world.cloud.sweep_instances(CLUSTER))[instance_id].tags) == TAGS | {"other": ""}
    assert dict((await group(world, group_id)).tags) == TAGS | {"other": ""}


async def test_no_removal_of_tags_without_a_key(world: World) -> None:
    """EC2 takes it for every tag, the ones that things are found by included."""
    instance_id = await launch(world)

    with pytest.raises(ValueError, match="every tag"):
        await world.cloud.delete_tags([instance_id], [])

    assert dict((await world.cloud.sweep_instances(CLUSTER))[instance_id].tags) == TAGS


async def test_monitoring_is_switched_on_and_off(world: World) -> None:
    instance = await running(world)
    assert not instance.monitoring

    for enabled in (True, True, False, False):
        await world.cloud.set_monitoring(instance.id, enabled)
        (seen,) = await world.cloud.find_instances(instance_id=instance.id)
        assert seen.monitoring is enabled


async def test_monitoring_an_unknown_instance_proves_nothing(world: World) -> None:
    with pytest.raises(Retry) as refused:
        await world.cloud.set_monitoring("i-0123456789abcdef0", True)

    assert refused.value.reason is Reason.NOT_FOUND


async def test_the_source_and_destination_check_is_switched(world: World) -> None:
    instance = await running(world)

    for is_on in (False, False, True):
        await world.cloud.set_attribute(instance.id, SOURCE_DEST_CHECK, is_on)
        assert (await the_instance(world)).source_dest_check is is_on


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        pytest.param(InstanceAttribute.TERMINATION_PROTECTION, (True, True, False), id="termination protection"),
        pytest.param(InstanceAttribute.STOP_PROTECTION, (True, True, False), id="stop protection"),
        pytest.param(InstanceAttribute.SHUTDOWN_BEHAVIOR, ("terminate", "terminate", "stop"), id="shutdown"),
        pytest.param(InstanceAttribute.CREDITS, ("standard", "standard", "unlimited"), id="credits"),
    ],
)
async def test_what_no_sweep_shows_is_changed_and_asked_for(
    world: World, attribute: InstanceAttribute, values: tuple[bool | str, ...]
) -> None:
    instance = await running(world)

    for value in values:
        await world.cloud.set_attribute(instance.id, attribute, value)
        assert await world.cloud.attribute(instance.id, attribute) == value


async def test_an_unknown_instance_has_no_attributes(world: World) -> None:
    for attribute in InstanceAttribute:
        word = {InstanceAttribute.INSTANCE_TYPE: "t3.micro", InstanceAttribute.SHUTDOWN_BEHAVIOR: "stop"}
        word[InstanceAttribute.CREDITS] = "standard"
        for call in (
            world.cloud.attribute("i-0123456789abcdef0", attribute),
            world.cloud.set_attribute("i-0123456789abcdef0", attribute, word.get(attribute, True)),
        ):
            with pytest.raises(Retry) as refused:
                await call
            assert refused.value.reason is Reason.NOT_FOUND


async def test_an_instance_that_is_not_burstable_has_no_credits(world: World) -> None:
    instance = await running(world, instance_type="m7i.large")
    credit = InstanceAttribute.CREDITS

    for call in (
        world.cloud.attribute(instance.id, credit),
        world.cloud.set_attribute(instance.id, credit, "standard"),
    ):
        with pytest.raises(InvalidSpec) as refused:
            await call
        assert refused.value.field == "spec.target.ec2.credits"


@pytest.mark.parametrize("attribute", PROTECTIONS)
async def test_a_protected_instance_is_not_terminated(world: World, attribute: InstanceAttribute) -> None:
    instance = await running(world)
    await world.cloud.set_attribute(instance.id, attribute, True)

    with pytest.raises(Blocked) as refused:
        await world.cloud.terminate_instance(instance.id)

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.CHANGE_FORBIDDEN, True)
    await world.cloud.set_attribute(instance.id, attribute, False)
    await world.cloud.terminate_instance(instance.id)


async def test_a_stop_protected_instance_is_not_stopped(world: World) -> None:
    instance = await running(world, stop_protection=True)

    with pytest.raises(Blocked) as refused:
        await world.cloud.stop_instance(instance.id)

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.CHANGE_FORBIDDEN, True)


async def test_a_stopped_instance_gets_another_profile_too(world: World) -> None:
    for name in ("web", "db"):
        await world.add_instance_profile(name)
    instance = await running(world, instance_profile="web")
    await world.stop(instance.id)

    await world.cloud.set_instance_profile(instance.id, "db")

    assert (await the_instance(world)).instance_profile == "db"


async def test_only_what_runs_is_rebooted(world: World) -> None:
    instance = await running(world)

    await world.cloud.reboot_instance(instance.id)

    assert (await the_instance(world)).state is InstanceState.RUNNING
    await world.stop(instance.id)
    with pytest.raises(Retry) as refused:
        await world.cloud.reboot_instance(instance.id)
    assert (refused.value.reason, refused.value.is_refusal) == (Reason.STOPPING, True)


async def test_a_stopped_instance_is_moved_between_placement_groups(world: World) -> None:
    for name in ("near", "apart"):
        await world.add_placement_group(name)
    instance = await running(world)
    with pytest.raises(Retry) as refused:
        await world.cloud.set_placement_group(instance.id, "near")
    assert (refused.value.reason, refused.value.is_refusal) == (Reason.STOPPING, True)
    await world.stop(instance.id)

    for name in ("near", "near", "apart", ""):
        await world.cloud.set_placement_group(instance.id, name)
        assert (await the_instance(world)).placement_group == name

    with pytest.raises(InvalidSpec) as unknown:
        await world.cloud.set_placement_group(instance.id, "nowhere")
    assert (unknown.value.field, unknown.value.is_refusal) == ("spec.target.ec2.placementGroup", True)


async def test_an_instance_profile_is_given_replaced_and_taken(world: World) -> None:
    instance = await running(world)
    for name in ("web", "db"):
        await world.add_instance_profile(name)

    for name in ("web", "web", "db", "", ""):
        await world.cloud.set_instance_profile(instance.id, name)
        assert (await the_instance(world)).instance_profile == name


async def test_an_unknown_profile_is_refused(world: World) -> None:
    instance = await running(world)

    with pytest.raises(NamesNothing) as refused:
        await world.cloud.set_instance_profile(instance.id, "nobody-s")

    assert (refused.value.field, refused.value.is_refusal) == ("spec.target.ec2.instanceProfile", True)


async def test_the_metadata_service_is_changed_and_ec2_carries_it_out(world: World) -> None:
    instance = await running(world)
    options = MetadataOptions("optional", 64, "enabled", "enabled")

    for asked, expected in (
        (options, options),
        (MetadataOptions(endpoint="disabled"), replace(options, endpoint="disabled")),
        (MetadataOptions(), MetadataOptions()),
    ):
        await world.cloud.set_metadata(instance.id, asked)
        seen = await the_instance(world)
        assert (seen.metadata, seen.metadata_pending) == (expected, False)


async def the_root_volume(world: World) -> Volume:
    instance = await the_instance(world)
    return (await world.cloud.sweep_volumes(CLUSTER))[instance.root_volume_id]


async def test_a_root_volume_is_launched_as_asked_with_the_tags_of_its_instance(world: World) -> None:
    wanted = VolumeSettings(40, "gp3", 4000, 250, encrypted=True)
    instance = await running(world, root_volume=RootVolume("/dev/xvda", wanted))

    volume = await the_root_volume(world)

    assert (volume.settings, volume.tags, volume.zone) == (wanted, instance.tags, instance.zone)
    assert await world.cloud.get_volume(volume.id) == volume
    assert await world.cloud.volume_change(volume.id) == ""


async def test_a_root_volume_of_which_nothing_is_said_is_as_the_image_has_it(world: World) -> None:
    await running(world)

    assert (await the_root_volume(world)).settings == VolumeSettings(4, "gp3", 3000, 125, encrypted=False)


async def test_a_volume_in_use_is_changed_and_what_is_not_named_stays(world: World) -> None:
    await running(world)
    volume = await the_root_volume(world)

    await world.cloud.modify_volume(volume.id, VolumeSettings(size_gib=20, throughput_mib=250))

    changed = await the_root_volume(world)
    assert changed.settings == VolumeSettings(20, "gp3", 3000, 250, encrypted=False)
    assert await world.cloud.volume_change(volume.id) in {"modifying", "optimizing", "completed"}


async def test_a_volume_is_never_made_smaller(world: World) -> None:
    await running(world)
    volume = await the_root_volume(world)

    with pytest.raises(Blocked) as refused:
        await world.cloud.modify_volume(volume.id, VolumeSettings(size_gib=1))

    assert refused.value.is_refusal
    assert await the_root_volume(world) == volume


async def test_a_root_volume_goes_with_its_instance(world: World) -> None:
    instance = await running(world)
    await world.cloud.terminate_instance(instance.id)
    await world.until(instance.id, InstanceState.TERMINATED)

    assert await world.cloud.get_volume(instance.root_volume_id) is None
    assert await world.cloud.sweep_volumes(CLUSTER) == {}


async def test_a_volume_is_tagged_as_anything_else(world: World) -> None:
    instance = await running(world)

    await world.cloud.create_tags([instance.id, instance.root_volume_id], {"team": "web"})
    assert (await the_root_volume(world)).tags == {**instance.tags, "team": "web"}

    await world.cloud.delete_tags([instance.id, instance.root_volume_id], ["team"])
    assert (await the_root_volume(world)).tags == instance.tags


ENTRY = TAGS | {"nixops.dev:entry": "data"}
DATA = VolumeSettings(10, "gp3", 3000, 125, encrypted=False)


async def new_volume(world: World, token: str = "v1-one", zone: str = "us-west-2a", **changes: Any) -> str:
    return await world.cloud.create_volume(zone, replace(DATA, **changes), ENTRY, token)


async def the_volume(world: World, volume_id: str) -> Volume:
    return (await world.cloud.sweep_volumes(CLUSTER))[volume_id]


async def test_a_volume_is_made_once_for_each_token(world: World) -> None:
    volume_id = await new_volume(world)

    assert await new_volume(world) == volume_id
    assert await new_volume(world, "v1-two") != volume_id
    assert await the_volume(world, volume_id) == Volume(volume_id, "available", "us-west-2a", DATA, ENTRY)


async def test_a_token_with_other_parameters_makes_no_volume(world: World) -> None:
    await new_volume(world)

    with pytest.raises(Lost) as refused:
        await new_volume(world, size_gib=20)

    assert refused.value.reason is Reason.LAUNCH_AMBIGUOUS
    assert len(await world.cloud.sweep_volumes(CLUSTER)) == 1


async def test_a_volume_is_made_of_a_snapshot(world: World) -> None:
    snapshot_id = await world.add_snapshot(await new_volume(world))

    made = await new_volume(world, "v1-two", snapshot_id=snapshot_id)

    assert (await the_volume(world, made)).settings == replace(DATA, snapshot_id=snapshot_id)


async def test_no_volume_is_made_of_a_snapshot_that_does_not_exist(world: World) -> None:
    with pytest.raises(Blocked) as refused:
        await new_volume(world, snapshot_id="snap-0123456789abcdef1")

    assert refused.value.reason is Reason.INVALID_SPEC


async def test_a_volume_without_a_token_is_not_made(world: World) -> None:
    with pytest.raises(ValueError, match="token"):
        await new_volume(world, "")


async def test_a_volume_is_attached_and_detached_and_stays(world: World) -> None:
    instance = await running(world)
    volume_id = await new_volume(world, zone=instance.zone)

    for _ in range(2):
        await world.cloud.attach_volume(volume_id, instance.id, "/dev/sdf")
        volume = await the_volume(world, volume_id)
        assert (volume.state, volume.instance_id, volume.device) == ("in-use", instance.id, "/dev/sdf")
    for _ in range(2):
        await world.cloud.detach_volume(volume_id, instance.id)
        volume = await the_volume(world, volume_id)
        assert (volume.state, volume.instance_id, volume.attachment) == ("available", "", "")


async def test_a_volume_is_attached_once_to_a_free_device_of_its_zone(world: World) -> None:
    instance = await running(world)
    there, other = await new_volume(world, zone=instance.zone), await new_volume(world, "v1-two", instance.zone)
    elsewhere = await new_volume(world, "v1-three", "us-west-2b" if instance.zone != "us-west-2b" else "us-west-2a")
    await world.cloud.attach_volume(there, instance.id, "/dev/sdf")

    with pytest.raises(Retry):
        await world.cloud.attach_volume(there, instance.id, "/dev/sdg")
    for volume_id, device in ((other, "/dev/sdf"), (elsewhere, "/dev/sdg")):
        with pytest.raises(Blocked) as refused:
            await world.cloud.attach_volume(volume_id, instance.id, device)
        assert refused.value.reason is Reason.INVALID_SPEC


async def test_an_attached_volume_is_not_deleted_and_a_free_one_is(world: World) -> None:
    instance = await running(world)
    volume_id = await new_volume(world, zone=instance.zone)
    await world.cloud.attach_volume(volume_id, instance.id, "/dev/sdf")
    with pytest.raises(Retry) as refused:
        await world.cloud.delete_volume(volume_id)
    assert refused.value.reason is Reason.DELETING

    await world.cloud.detach_volume(volume_id, instance.id)
    for _ in range(2):
        await world.cloud.delete_volume(volume_id)
    assert await world.cloud.get_volume(volume_id) is None


async def test_a_volume_that_was_attached_outlives_its_instance(world: World) -> None:
    instance = await running(world)
    volume_id = await new_volume(world, zone=instance.zone)
    await world.cloud.attach_volume(volume_id, instance.id, "/dev/sdf")

    await world.cloud.terminate_instance(instance.id)
    await world.until(instance.id, InstanceState.TERMINATED)

    assert await the_volume(world, volume_id) == Volume(volume_id, "available", instance.zone, DATA, ENTRY)


async def test_changing_an_unknown_volume_proves_nothing(world: World) -> None:
    with pytest.raises(Retry) as refused:
        await world.cloud.modify_volume("vol-0123456789abcdef0", VolumeSettings(size_gib=20))

    assert refused.value.reason is Reason.NOT_FOUND


async def test_tagging_an_unknown_instance_proves_nothing(world: World) -> None:
    with pytest.raises(Retry) as refused:
        await world.cloud.create_tags(["i-0123456789abcdef0"], {"a": "b"})

    assert refused.value.reason is Reason.NOT_FOUND


# Key pairs.


async def test_a_key_pair_is_imported_with_its_tags(world: World) -> None:
    await world.cloud.import_key_pair("web", f"{KEY} someone@example.org", TAGS)

    pair = (await world.cloud.sweep_key_pairs(CLUSTER))["web"]
    assert pair.public_key == KEY
    assert dict(pair.tags) == TAGS
    assert pair.id.startswith("key-")
    assert await world.cloud.find_key_pair("web") == pair
    assert await world.cloud.find_key_pair("w*") is None


async def test_importing_the_same_key_pair_again_is_done(world: World) -> None:
    world.drop_reply("ec2.import_key_pair")
    with pytest.raises(OutcomeUnknown):
        await world.cloud.import_key_pair("web", KEY, TAGS)

    await world.cloud.import_key_pair("web", f"{KEY} other comment", TAGS)

    assert len(await world.cloud.sweep_key_pairs(CLUSTER)) == 1


@pytest.mark.parametrize(
    ("public_key", "tags"),
    [
        pytest.param(OTHER_KEY, TAGS, id="another key"),
        pytest.param(KEY, OTHER_OWNER, id="another owner"),
        pytest.param(KEY, {}, id="no owner"),
    ],
)
async def test_a_key_pair_of_that_name_that_is_not_ours_is_left_alone(
    world: World, public_key: str, tags: dict[str, str]
) -> None:
    await world.add_key_pair("web", public_key, tags)
    before = await world.cloud.find_key_pair("web")

    with pytest.raises(Blocked) as blocked:
        await world.cloud.import_key_pair("web", KEY, TAGS)

    assert blocked.value.reason is Reason.ADOPTION_CONFLICT
    assert await world.cloud.find_key_pair("web") == before


async def test_a_key_pair_is_deleted_once_and_again(world: World) -> None:
    await world.cloud.import_key_pair("web", KEY, TAGS)

    await world.cloud.delete_key_pair("web")
    await world.cloud.delete_key_pair("web")

    assert await world.cloud.find_key_pair("web") is None


# Security groups.


async def test_a_new_group_lets_everything_out_and_nothing_in(world: World) -> None:
    group_id = await new_group(world)

    seen = (await world.cloud.sweep_security_groups(CLUSTER))[group_id]
    assert (seen.name, seen.description, seen.vpc_id) == ("web", "the site", world.default_vpc)
    assert dict(seen.tags) == TAGS
    assert rules_of(seen) == {allow_all_egress()}
    assert all(one.id.startswith("sgr-") for one in seen.rules)
    assert await world.cloud.find_security_group_by_name("web", world.default_vpc) == seen


async def test_a_group_whose_reply_was_lost_is_found_by_repeating_it(world: World) -> None:
    world.drop_reply("ec2.create_security_group")
    with pytest.raises(OutcomeUnknown):
        await new_group(world)

    group_id = await new_group(world)

    assert list(await world.cloud.sweep_security_groups(CLUSTER)) == [group_id]


@pytest.mark.parametrize("tags", [OTHER_OWNER, {}], ids=["another owner", "no owner"])
async def test_a_group_of_that_name_that_is_not_ours_is_left_alone(world: World, tags: dict[str, str]) -> None:
    await world.add_group("web", tags)

    with pytest.raises(Blocked) as blocked:
        await new_group(world)

    assert blocked.value.reason is Reason.ADOPTION_CONFLICT


async def test_rules_come_back_in_canonical_form(world: World) -> None:
    group_id = await new_group(world)
    peer = await new_group(world, "db")
    from_peer = canonical_rule(Direction.INGRESS, "tcp", 5432, 5433, PeerKind.GROUP, peer)
    from_self = canonical_rule(Direction.INGRESS, "all", None, None, PeerKind.GROUP, group_id)
    wanted = {HTTP: "anyone", HTTP_V6: "", PING: "", ESP: "", from_peer: "", from_self: ""}

    await world.cloud.authorize_rules(group_id, Direction.INGRESS, wanted)
    await world.cloud.authorize_rules(group_id, Direction.EGRESS, {DNS_OUT: ""})

    seen = await group(world, group_id)
    assert rules_of(seen) == {*wanted, DNS_OUT, allow_all_egress()}
    assert {one.rule: one.description for one in seen.rules}[HTTP] == "anyone"
    assert [one.id for one in seen.rules] == sorted(one.id for one in seen.rules)


async def test_blanks_around_the_description_of_a_rule_are_taken_off(world: World) -> None:
    """terraform-provider-aws issue 2831: one of a blank alone was shown as empty."""
    group_id = await new_group(world)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: " ", PING: " for all "})

    shown = {one.rule: one for one in (await group(world, group_id)).rules}
    assert (shown[HTTP].description, shown[PING].description) == ("", "for all")

    await world.cloud.describe_rules(group_id, {shown[HTTP].id: " of one "})
    assert {one.rule: one.description for one in (await group(world, group_id)).rules}[HTTP] == "of one"


async def test_rules_that_exist_already_do_not_keep_others_out(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: ""})

    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: "", PING: "", ESP: ""})
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: ""})
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {})

    assert rules_of(await group(world, group_id)) == {HTTP, PING, ESP, allow_all_egress()}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        pytest.param(PeerKind.GROUP, "sg-0123456789abcdef0", id="security group"),
        pytest.param(PeerKind.PREFIX_LIST, "pl-0123456789abcdef0", id="prefix list"),
    ],
)
async def test_a_rule_that_names_what_does_not_exist_keeps_no_other_out(
    world: World, direction: Direction, kind: PeerKind, reference: str
) -> None:
    group_id = await new_group(world)
    good = canonical_rule(direction, "tcp", 80, 80, PeerKind.IPV4, "10.0.0.0/8")
    to_itself = canonical_rule(direction, "tcp", 80, 80, PeerKind.GROUP, group_id)
    bad = canonical_rule(direction, "tcp", 443, 443, kind, reference)

    with pytest.raises(MissingReference) as refused:
        await world.cloud.authorize_rules(group_id, direction, {good: "", bad: "", to_itself: ""})

    assert refused.value.references == (reference,)
    assert refused.value.reason is Reason.INVALID_SPEC
    assert reference in refused.value.message
    assert group_id in refused.value.message
    assert rules_of(await group(world, group_id)) == {good, to_itself, allow_all_egress()}


async def test_as_many_rules_as_there_is_room_for_are_made_in_the_order_given(world: World) -> None:
    """Amazon VPC User Guide, "Amazon VPC quotas": 60 of one direction."""
    group_id = await new_group(world)
    many = [canonical_rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.IPV4, f"10.0.0.{n}/32") for n in range(59)]
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, dict.fromkeys(many, ""))
    last, first = (canonical_rule(Direction.INGRESS, "tcp", at, at, PeerKind.IPV4, "10.1.0.0/16") for at in (22, 443))

    with pytest.raises(Blocked) as refused:
        await world.cloud.authorize_rules(group_id, Direction.INGRESS, {first: "", last: ""})

    assert refused.value.reason is Reason.QUOTA_EXCEEDED
    assert not refused.value.is_refusal
    assert rules_of(await group(world, group_id)) == {*many, first, allow_all_egress()}


async def test_rules_of_a_group_that_does_not_exist_are_no_fault_of_the_rules(world: World) -> None:
    """It may have been made a moment ago."""
    to_another = canonical_rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, world.default_group)
    to_itself = canonical_rule(Direction.INGRESS, "tcp", 80, 80, PeerKind.GROUP, "sg-0123456789abcdef0")

    for rules in ({HTTP: ""}, {HTTP: "", to_another: ""}, {to_itself: ""}):
        with pytest.raises(Retry) as refused:
            await world.cloud.authorize_rules("sg-0123456789abcdef0", Direction.INGRESS, rules)
        assert refused.value.reason is Reason.NOT_FOUND
        assert refused.value.is_refusal


async def test_rules_are_revoked_by_id(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: "", PING: ""})
    ids = {one.rule: one.id for one in (await group(world, group_id)).rules}

    await world.cloud.revoke_rules(group_id, Direction.INGRESS, [ids[HTTP]])
    await world.cloud.revoke_rules(group_id, Direction.EGRESS, [ids[allow_all_egress()]])

    assert rules_of(await group(world, group_id)) == {PING}


async def test_revoking_what_is_gone_already_revokes_the_rest(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: "", PING: ""})
    ids = [one.id for one in (await group(world, group_id)).rules if one.rule in (HTTP, PING)]
    await world.cloud.revoke_rules(group_id, Direction.INGRESS, ids[:1])

    await world.cloud.revoke_rules(group_id, Direction.INGRESS, ids)
    await world.cloud.revoke_rules(group_id, Direction.INGRESS, ids)
    await world.cloud.revoke_rules(group_id, Direction.INGRESS, [])

    assert rules_of(await group(world, group_id)) == {allow_all_egress()}


async def test_descriptions_change_and_rules_stay(world: World) -> None:
    group_id = await new_group(world)
    by_group = canonical_rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, group_id)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: "old", PING: "old", ESP: "", by_group: ""})
    ids = {one.rule: one.id for one in (await group(world, group_id)).rules}

    new = {HTTP: "new", ESP: "tunnel", by_group: "us", allow_all_egress(): "out"}
    await world.cloud.describe_rules(group_id, {ids[rule]: text for rule, text in new.items()})
    await world.cloud.describe_rules(group_id, {})

    seen = await group(world, group_id)
    assert {one.rule: one.id for one in seen.rules} == ids
    assert {one.rule: one.description for one in seen.rules} == {PING: "old", **new}


async def test_a_group_in_use_is_not_deleted_and_says_by_what(world: World) -> None:
    group_id = await new_group(world)
    instance = await running(world, security_group_ids=(group_id,))

    with pytest.raises(Retry) as refused:
        await world.cloud.delete_security_group(group_id)

    assert refused.value.reason is Reason.DELETING
    (user,) = await world.cloud.interfaces_in_group(group_id)
    assert user.startswith("eni-")
    assert user.endswith(f"({instance.id})")


async def test_a_group_that_a_rule_names_is_not_deleted(world: World) -> None:
    group_id = await new_group(world)
    others = {direction: await new_group(world, direction.value) for direction in Direction}
    for direction, other in others.items():
        rule = canonical_rule(direction, "tcp", 22, 22, PeerKind.GROUP, group_id)
        await world.cloud.authorize_rules(other, direction, {rule: ""})
    own = canonical_rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, group_id)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {own: ""})

    with pytest.raises(Retry) as refused:
        await world.cloud.delete_security_group(group_id)

    assert refused.value.reason is Reason.DELETING
    assert await world.cloud.groups_naming(group_id) == tuple(sorted(others.values()))
    for other in others.values():
        await world.cloud.delete_security_group(other)
    await world.cloud.delete_security_group(group_id)


async def test_a_group_is_deleted_once_and_again(world: World) -> None:
    group_id = await new_group(world)

    await world.cloud.delete_security_group(group_id)
    await world.cloud.delete_security_group(group_id)

    assert group_id not in await world.cloud.sweep_security_groups(CLUSTER)
    assert await world.cloud.interfaces_in_group(group_id) == ()
    assert await world.cloud.groups_naming(group_id) == ()


async def test_the_default_group_cannot_be_deleted(world: World) -> None:
    with pytest.raises(Blocked) as refused:
        await world.cloud.delete_security_group(world.default_group)

    assert refused.value.reason is Reason.CHANGE_FORBIDDEN


# Eventual consistency: what was just made may not be shown yet.


async def test_what_is_not_shown_yet_is_not_made_twice(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.import_key_pair("web", KEY, TAGS)
    instance_id = await launch(world)
    world.hide(group_id, "web", instance_id)
    assert await world.cloud.sweep_instances(CLUSTER) == {}
    assert await world.cloud.sweep_security_groups(CLUSTER) == {}
    assert await world.cloud.sweep_key_pairs(CLUSTER) == {}

    with pytest.raises(Retry):
        await new_group(world)
    with pytest.raises(Retry):
        await world.cloud.import_key_pair("web", KEY, TAGS)
    assert await launch(world) == instance_id

    world.show()
    assert await new_group(world) == group_id
    await world.cloud.import_key_pair("web", KEY, TAGS)
    assert list(await world.cloud.sweep_instances(CLUSTER)) == [instance_id]


async def test_what_is_not_shown_yet_is_not_ended_either(world: World) -> None:
    """And the replies do not say so: a reply to TerminateInstances proves nothing."""
    instance_id = await launch(world)
    world.hide(instance_id)

    await world.cloud.terminate_instance(instance_id)

    world.show()
    assert (await world.cloud.sweep_instances(CLUSTER))[instance_id].state.is_live


async def test_a_key_pair_that_is_not_shown_yet_is_deleted_by_its_name(world: World) -> None:
    await world.cloud.import_key_pair("web", KEY, TAGS)
    world.hide("web")

    await world.cloud.delete_key_pair("web")

    world.show()
    assert await world.cloud.find_key_pair("web") is None


async def test_what_is_not_shown_yet_cannot_be_named(world: World) -> None:
    group_id = await new_group(world)
    await world.cloud.import_key_pair("web", KEY, TAGS)
    instance = await running(world)
    await world.add_instance_profile("web")
    world.hide(group_id, "web", instance.id)

    for call, reason in (
        (lambda: world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: ""}), Reason.NOT_FOUND),
        (lambda: world.cloud.create_tags([instance.id], {"a": "b"}), Reason.NOT_FOUND),
        (lambda: world.cloud.set_monitoring(instance.id, True), Reason.NOT_FOUND),
        (lambda: world.cloud.set_attribute(instance.id, SOURCE_DEST_CHECK, False), Reason.NOT_FOUND),
        (lambda: world.cloud.set_metadata(instance.id, MetadataOptions()), Reason.NOT_FOUND),
        (lambda: world.cloud.set_instance_profile(instance.id, "web"), Reason.NOT_FOUND),
        (lambda: world.cloud.set_placement_group(instance.id, ""), Reason.NOT_FOUND),
        (lambda: launch(world, "n1-two", security_group_ids=(group_id,)), Reason.SECURITY_GROUP_NOT_READY),
        (lambda: launch(world, "n1-three", key_name="web"), Reason.KEY_PAIR_NOT_READY),
    ):
        with pytest.raises(OperatorError) as refused:
            await call()
        assert refused.value.reason is reason
        assert refused.value.is_refusal


async def test_filters_by_tag_and_token_find_later_than_ids(world: World) -> None:
    old = await launch(world, "n1-old", tags={})
    world.hide_from_filters()
    group_id = await new_group(world)
    await world.cloud.import_key_pair("web", KEY, TAGS)
    instance_id = await launch(world)
    await world.cloud.create_tags([old], TAGS)

    assert await world.cloud.sweep_instances(CLUSTER) == {}
    assert await world.cloud.sweep_security_groups(CLUSTER) == {}
    assert await world.cloud.sweep_key_pairs(CLUSTER) == {}
    assert await world.cloud.find_instances(client_token=TOKEN) == ()
    assert await world.cloud.find_instances(tags={UID_TAG: "uid-1"}) == ()
    assert [one.id for one in await world.cloud.find_instances(instance_id=instance_id)] == [instance_id]
    assert [dict(one.tags) for one in await world.cloud.find_instances(instance_id=old)] == [TAGS]
    # Names are known at once.
    assert await new_group(world) == group_id
    await world.cloud.import_key_pair("web", KEY, TAGS)


async def test_ids_say_nothing_about_age(world: World) -> None:
    """Of twenty groups made one after the other, the ids are in order by a chance of 1 in 20!."""
    made = [await new_group(world, f"web-{number}") for number in range(20)]

    assert made not in (sorted(made), sorted(made, reverse=True))


# What a launch is resolved from.


async def test_the_newest_matching_image_is_found(world: World) -> None:
    image = await world.cloud.find_image(OWNER_OF_IMAGES, "nixos/25.11*-x86_64-linux", "x86_64")

    assert image is not None
    assert image.name.startswith("nixos/25.11")
    assert await world.cloud.get_image(image.id) == image
    if isinstance(world, RealWorld):
        names = [
            one["Name"]
            for one in world.owner.describe_images(Owners=[OWNER_OF_IMAGES])["Images"]
            if one["Name"].startswith("nixos/25.11") and one["Architecture"] == "x86_64"
        ]
        assert len(names) > 1
        assert image.name == max(names)


async def test_an_image_that_does_not_exist_is_none(world: World) -> None:
    assert await world.cloud.find_image(OWNER_OF_IMAGES, "nixos/13.10*", "x86_64") is None
    assert await world.cloud.find_image("123456789012", "nixos/25.11*", "x86_64") is None
    assert await world.cloud.get_image("ami-0123456789abcdef0") is None


async def test_the_default_subnet_lies_in_the_lowest_zone(world: World) -> None:
    subnet = await world.cloud.default_subnet()

    assert subnet.zone == f"{REGION}a"
    assert subnet.vpc_id == world.default_vpc
    assert await world.cloud.get_subnet(subnet.id) == subnet
    assert await world.cloud.get_subnet("subnet-0123456789abcdef0") is None


async def test_a_placement_group_is_known_by_its_very_name(world: World) -> None:
    await world.add_placement_group("near")

    assert await world.cloud.find_placement_group("near") == "available"
    assert await world.cloud.find_placement_group("nea*") is None
    assert await world.cloud.find_placement_group("nowhere") is None


async def test_an_instance_type_has_an_architecture(world: World) -> None:
    assert await world.cloud.architecture("t3.small") == "x86_64"
    assert await world.cloud.architecture("t4g.small") == "arm64"

    with pytest.raises(InvalidSpec) as refused:
        await world.cloud.architecture("t9.colossal")
    assert refused.value.field == "spec.target.ec2.instanceType"
    with pytest.raises(InvalidSpec):
        await world.cloud.architecture("t3.*")


# Elastic addresses.


async def allocated(world: World) -> Address:
    return await shown(world, await world.cloud.allocate_address(TAGS))


async def shown(world: World, allocation_id: str) -> Address:
    (address,) = await world.cloud.find_addresses(allocation_id=allocation_id)
    return address


async def reached_at(world: World, instance_id: str, expected: Callable[[Instance], bool]) -> Instance:
    """The instance once that is so: EC2 carries it out in a moment."""
    async with asyncio.timeout(PATIENCE):
        while True:
            (found,) = await world.cloud.find_instances(instance_id=instance_id)
            if expected(found):
                return found
            await asyncio.sleep(0.02)


async def test_an_address_is_allocated_with_its_tags(world: World) -> None:
    allocation_id = await world.cloud.allocate_address(TAGS)

    swept = await world.cloud.sweep_addresses(CLUSTER)

    assert list(swept) == [allocation_id]
    address = swept[allocation_id]
    assert (address.id, address.tags) == (allocation_id, TAGS)
    assert (address.association_id, address.instance_id) == (None, None)
    assert await world.cloud.find_addresses(public_address=address.public_address) == (address,)
    assert await world.cloud.find_addresses(tags={UID_TAG: "uid-1"}) == (address,)
    assert await world.cloud.find_addresses(tags={UID_TAG: "uid-*"}) == ()
    assert await world.cloud.find_addresses(allocation_id="eipalloc-0123456789abcdef0") == ()


async def test_each_allocation_gives_another_address_up_to_the_quota(world: World) -> None:
    made = {await world.cloud.allocate_address(TAGS) for _ in range(5)}

    with pytest.raises(Blocked) as refused:
        await world.cloud.allocate_address(TAGS)

    assert len(made) == 5
    assert refused.value.reason is Reason.QUOTA_EXCEEDED
    assert refused.value.is_refusal


async def test_an_associated_address_is_the_instance_s_public_one(world: World) -> None:
    instance, address = await running(world), await allocated(world)
    assert instance.public_ip is True

    await world.cloud.associate_address(address.id, instance.id)
    await world.cloud.associate_address(address.id, instance.id)

    seen = await reached_at(world, instance.id, lambda one: one.public_address == address.public_address)
    assert seen.public_ip is None
    associated = await shown(world, address.id)
    assert associated.instance_id == instance.id
    assert associated.association_id is not None

    await world.cloud.disassociate_address(associated.association_id)
    await world.cloud.disassociate_address(associated.association_id)

    seen = await reached_at(world, instance.id, lambda one: one.public_ip is True)
    assert seen.public_address not in (None, address.public_address)
    assert await shown(world, address.id) == address


async def test_an_address_stays_with_a_stopped_instance_and_goes_with_a_terminated_one(world: World) -> None:
    instance, address = await running(world), await allocated(world)
    await world.stop(instance.id)

    await world.cloud.associate_address(address.id, instance.id)

    await reached_at(world, instance.id, lambda one: one.public_address == address.public_address)
    await world.cloud.start_instance(instance.id)
    started = await world.until(instance.id, InstanceState.RUNNING)
    assert started.public_address == address.public_address
    await world.cloud.terminate_instance(instance.id)
    await world.until(instance.id, InstanceState.TERMINATED)
    assert await shown(world, address.id) == address


async def test_a_pending_instance_takes_no_address(world: World) -> None:
    await world.slow_boots()
    instance_id, address = await launch(world), await allocated(world)

    with pytest.raises(Retry) as refused:
        await world.cloud.associate_address(address.id, instance_id)

    assert (refused.value.reason, refused.value.is_refusal) == (Reason.PENDING, True)


async def test_an_association_that_stands_is_never_moved(world: World) -> None:
    first, second = await running(world), await running(world, token="n1-two")
    address, other = await allocated(world), await allocated(world)
    await world.cloud.associate_address(address.id, first.id)

    for allocation_id, instance_id in ((address.id, second.id), (other.id, first.id)):
        with pytest.raises(Blocked) as refused:
            await world.cloud.associate_address(allocation_id, instance_id)
        assert refused.value.reason is Reason.ADOPTION_CONFLICT

    assert (await shown(world, address.id)).instance_id == first.id


async def test_an_address_is_released_once_and_again_but_not_in_use(world: World) -> None:
    instance, address = await running(world), await allocated(world)
    await world.cloud.associate_address(address.id, instance.id)
    with pytest.raises(Retry) as refused:
        await world.cloud.release_address(address.id)
    assert refused.value.reason is Reason.DELETING
    await world.cloud.disassociate_address(str((await shown(world, address.id)).association_id))

    await world.cloud.release_address(address.id)
    await world.cloud.release_address(address.id)

    assert await world.cloud.sweep_addresses(CLUSTER) == {}


async def test_what_does_not_exist_is_not_associated(world: World) -> None:
    instance, address = await running(world), await allocated(world)

    for pair in (("eipalloc-0123456789abcdef0", instance.id), (address.id, "i-0123456789abcdef0")):
        with pytest.raises(Retry) as refused:
            await world.cloud.associate_address(*pair)
        assert refused.value.reason is Reason.NOT_FOUND


async def test_an_address_is_found_by_its_tags_later_than_by_its_id(world: World) -> None:
    world.hide_from_filters()

    allocation_id = await world.cloud.allocate_address(TAGS)

    assert await world.cloud.sweep_addresses(CLUSTER) == {}
    assert await world.cloud.find_addresses(tags=TAGS) == ()
    assert [one.id for one in await world.cloud.find_addresses(allocation_id=allocation_id)] == [allocation_id]


async def test_an_address_whose_reply_was_lost_is_there(world: World) -> None:
    world.drop_reply("ec2.allocate_address")

    with pytest.raises(OutcomeUnknown):
        await world.cloud.allocate_address(TAGS)

    assert len(await world.cloud.find_addresses(tags={UID_TAG: "uid-1"})) == 1


@pytest.mark.parametrize("effect", OF_ADDRESSES[1:])
async def test_a_lost_reply_about_an_address_is_told_and_the_call_may_be_repeated(world: World, effect: str) -> None:
    instance, address = await running(world), await allocated(world)
    if effect == "ec2.disassociate_address":
        await world.cloud.associate_address(address.id, instance.id)
    association_id = str((await shown(world, address.id)).association_id)
    calls = {
        "ec2.associate_address": lambda: world.cloud.associate_address(address.id, instance.id),
        "ec2.disassociate_address": lambda: world.cloud.disassociate_address(association_id),
        "ec2.release_address": lambda: world.cloud.release_address(address.id),
    }
    world.drop_reply(effect)
    with pytest.raises(OutcomeUnknown):
        await calls[effect]()
    after_lost_reply = await world.cloud.sweep_addresses(CLUSTER)

    await calls[effect]()

    assert await world.cloud.sweep_addresses(CLUSTER) == after_lost_reply
    assert after_lost_reply != {address.id: address} or effect == "ec2.disassociate_address"


# Lost replies: every other effect but AllocateAddress may be repeated.


async def _prepare(world: World) -> tuple[str, str, dict[Rule, str]]:
    group_id = await new_group(world)
    await world.cloud.authorize_rules(group_id, Direction.INGRESS, {HTTP: ""})
    instance = await running(world, security_group_ids=(world.default_group,))
    await world.add_instance_profile("web")
    await world.add_placement_group("near")
    ids = {one.rule: one.id for one in (await group(world, group_id)).rules}
    return group_id, instance.id, ids


async def _placed(world: World, instance_id: str) -> None:
    await world.stop(instance_id)
    await world.cloud.set_placement_group(instance_id, "near")


async def _attach(world: World, instance_id: str) -> None:
    zone = (await the_instance(world)).zone
    await world.cloud.attach_volume(await new_volume(world, zone=zone), instance_id, "/dev/sdf")


async def _detach(world: World, instance_id: str) -> None:
    await world.cloud.detach_volume(await _attached_once(world, instance_id), instance_id)


async def _attached_once(world: World, instance_id: str) -> str:
    """Attached, the first time that this is called."""
    known = [one.id for one in (await world.cloud.sweep_volumes(CLUSTER)).values() if one.tags == ENTRY]
    if not known:
        await _attach(world, instance_id)
    return known[0] if known else await new_volume(world, zone=(await the_instance(world)).zone)


async def _delete(world: World) -> None:
    """A volume that is there the first time, and gone the second."""
    made = [one.id for one in (await world.cloud.sweep_volumes(CLUSTER)).values() if one.tags == ENTRY]
    await world.cloud.delete_volume(made[0] if made else "vol-0123456789abcdef0")


async def _enlarge(world: World) -> None:
    """Until EC2 has done with the last one it takes no other, not even the same."""
    try:
        await world.cloud.modify_volume((await the_instance(world)).root_volume_id, VolumeSettings(size_gib=20))
    except Retry as error:
        if error.reason is not Reason.PENDING:
            raise


CALLS: dict[str, Callable[[World, str, str, dict[Rule, str]], Awaitable[Any]]] = {
    "ec2.import_key_pair": lambda world, *_: world.cloud.import_key_pair("web", KEY, TAGS),
    "ec2.delete_key_pair": lambda world, *_: world.cloud.delete_key_pair("web"),
    "ec2.create_security_group": lambda world, *_: new_group(world, "db"),
    "ec2.authorize_rules": lambda world, group_id, *_: world.cloud.authorize_rules(
        group_id, Direction.INGRESS, {PING: ""}
    ),
    "ec2.revoke_rules": lambda world, group_id, _, ids: world.cloud.revoke_rules(
        group_id, Direction.INGRESS, [ids[HTTP]]
    ),
    "ec2.describe_rules": lambda world, group_id, _, ids: world.cloud.describe_rules(group_id, {ids[HTTP]: "new"}),
    "ec2.delete_security_group": lambda world, group_id, *_: world.cloud.delete_security_group(group_id),
    "ec2.run_instances": lambda world, *_: launch(world, "n1-two"),
    "ec2.start_instance": lambda world, _, instance_id, __: world.cloud.start_instance(instance_id),
    "ec2.reboot_instance": lambda world, _, instance_id, __: world.cloud.reboot_instance(instance_id),
    "ec2.stop_instance": lambda world, _, instance_id, __: world.cloud.stop_instance(instance_id),
    "ec2.terminate_instance": lambda world, _, instance_id, __: world.cloud.terminate_instance(instance_id),
    "ec2.set_security_groups": lambda world, group_id, instance_id, _: world.cloud.set_security_groups(
        instance_id, [group_id]
    ),
    "ec2.set_monitoring": lambda world, _, instance_id, __: world.cloud.set_monitoring(instance_id, True),
    "ec2.set_attribute": lambda world, _, instance_id, __: world.cloud.set_attribute(
        instance_id, SOURCE_DEST_CHECK, False
    ),
    "ec2.set_instance_profile": lambda world, _, instance_id, __: world.cloud.set_instance_profile(instance_id, "web"),
    "ec2.set_metadata": lambda world, _, instance_id, __: world.cloud.set_metadata(
        instance_id, MetadataOptions(hop_limit=2)
    ),
    "ec2.set_placement_group": lambda world, _, instance_id, __: _placed(world, instance_id),
    "ec2.create_volume": lambda world, *_: new_volume(world),
    "ec2.attach_volume": lambda world, _, instance_id, __: _attach(world, instance_id),
    "ec2.detach_volume": lambda world, _, instance_id, __: _detach(world, instance_id),
    "ec2.delete_volume": lambda world, *_: _delete(world),
    "ec2.modify_volume": lambda world, *_: _enlarge(world),
    "ec2.create_tags": lambda world, _, instance_id, __: world.cloud.create_tags([instance_id], {"a": "b"}),
    "ec2.delete_tags": lambda world, _, instance_id, __: world.cloud.delete_tags([instance_id], ["Name"]),
}


@pytest.mark.parametrize("effect", sorted(OPERATIONS.keys() - set(OF_ADDRESSES)))
async def test_a_lost_reply_is_told_and_the_call_may_be_repeated(world: World, effect: str) -> None:
    prepared = await _prepare(world)
    if effect == "ec2.delete_volume":
        await new_volume(world)
    world.drop_reply(effect)
    with pytest.raises(OutcomeUnknown):
        await CALLS[effect](world, *prepared)
    after_lost_reply = await _everything(world)

    await CALLS[effect](world, *prepared)

    assert await _everything(world) == after_lost_reply


_BY_THEMSELVES: dict[str, Any] = {
    "state": InstanceState.UNKNOWN,
    "state_reason": "",
    "state_reason_message": "",
    "private_address": None,
    "public_address": None,
    "public_ip": None,
    "metadata_pending": False,
    "launch_time": datetime.min.replace(tzinfo=UTC),
    "security_group_ids": (),
}


async def _everything(world: World) -> tuple[Any, ...]:
    """What is there, states left out: they move by themselves."""
    instances = await world.cloud.sweep_instances(CLUSTER)
    groups = await world.cloud.sweep_security_groups(CLUSTER)
    key_pairs = await world.cloud.sweep_key_pairs(CLUSTER)
    return (
        {one.id: replace(one, **_BY_THEMSELVES) for one in instances.values()},
        dict(groups),
        dict(key_pairs),
        dict(await world.cloud.sweep_volumes(CLUSTER)),
    )
