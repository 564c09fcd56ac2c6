"""How the fake of EC2 can be made as late, as deaf and as forgetful as EC2 itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fakes.cloud import DEFAULT_VPC, NIXOS_IMAGE, FakeCloud
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OutcomeUnknown
from nixops_operator.facts.cloud import InstanceState, LaunchRequest
from nixops_operator.names import CLUSTER_TAG, UID_TAG

TAGS = {CLUSTER_TAG: "cluster", UID_TAG: "uid"}
SUBNET = "subnet-00000000000000001"


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def turn(self, **span: int) -> None:
        self.time += timedelta(**span)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(clock: Clock) -> FakeCloud:
    return FakeCloud(now=clock)


async def launch(cloud: FakeCloud, token: str = "n1-one", groups: tuple[str, ...] = ()) -> str:
    request = LaunchRequest(NIXOS_IMAGE, "t3.small", SUBNET, "", None, groups, TAGS)
    return await cloud.run_instances(request, token)


async def test_no_two_instances_have_an_address_at_the_same_time(cloud: FakeCloud) -> None:
    running = [await launch(cloud, f"n1-{number}") for number in range(600)]
    cloud.settle()

    assert len({cloud.instances[each].public_address for each in running}) == 600
    assert len({cloud.instances[each].private_address for each in running}) == 600


async def test_ids_are_shown_first_and_tags_are_indexed_later(cloud: FakeCloud, clock: Clock) -> None:
    cloud.lag_of_ids, cloud.lag_of_tags = timedelta(seconds=10), timedelta(seconds=300)
    instance_id = await launch(cloud)

    async def found() -> tuple[int, int, int]:
        return (
            len(await cloud.find_instances(instance_id=instance_id)),
            len(await cloud.find_instances(client_token="n1-one")),
            len(await cloud.sweep_instances("cluster")),
        )

    assert await found() == (0, 0, 0)
    clock.turn(seconds=10)
    assert await found() == (1, 0, 0)
    clock.turn(seconds=290)
    assert await found() == (1, 1, 1)


async def test_each_thing_may_lag_by_itself(cloud: FakeCloud) -> None:
    lags = iter([timedelta(seconds=10), timedelta(0)])
    cloud.lag_of_ids = lambda thing: next(lags) if thing.startswith("i-") else timedelta(0)

    late, early = await launch(cloud, "n1-one"), await launch(cloud, "n1-two")

    assert list(await cloud.sweep_instances("cluster")) == [early]
    assert not cloud.is_shown(late)


async def test_filters_go_by_the_old_tags_for_a_while(cloud: FakeCloud, clock: Clock) -> None:
    cloud.lag_of_tags = timedelta(seconds=60)
    instance_id = await launch(cloud)
    clock.turn(seconds=60)

    await cloud.create_tags([instance_id], {UID_TAG: "other"})

    assert len(await cloud.find_instances(tags={UID_TAG: "uid"})) == 1
    assert await cloud.find_instances(tags={UID_TAG: "other"}) == ()
    clock.turn(seconds=60)
    assert await cloud.find_instances(tags={UID_TAG: "uid"}) == ()
    assert len(await cloud.find_instances(tags={UID_TAG: "other"})) == 1


async def test_a_token_s_instance_is_given_back_before_it_is_shown(cloud: FakeCloud) -> None:
    cloud.lag_of_ids = timedelta(seconds=300)

    assert await launch(cloud) == await launch(cloud)


async def test_a_right_that_was_taken_away_refuses_the_repeat_of_a_launch(cloud: FakeCloud) -> None:
    """Its refusal says nothing about the first call, which made an instance."""
    cloud.effects.drop_reply.add("ec2.run_instances")
    with pytest.raises(OutcomeUnknown):
        await launch(cloud)
    cloud.deny("ec2.run_instances")

    with pytest.raises(Blocked) as refused:
        await launch(cloud)

    assert refused.value.reason is Reason.ACCESS_DENIED
    assert refused.value.is_refusal
    assert len(cloud.live("uid")) == 1


async def test_a_group_that_is_not_shown_yet_is_not_deleted(cloud: FakeCloud, clock: Clock) -> None:
    cloud.lag_of_ids = timedelta(seconds=10)
    group_id = await cloud.create_security_group("web", "", DEFAULT_VPC, TAGS)

    await cloud.delete_security_group(group_id)

    clock.turn(seconds=10)
    assert list(await cloud.sweep_security_groups("cluster")) == [group_id]


async def test_interfaces_outlive_their_instance(cloud: FakeCloud, clock: Clock) -> None:
    cloud.interfaces_linger = timedelta(seconds=90)
    group_id = await cloud.create_security_group("web", "", DEFAULT_VPC, TAGS)
    instance_id = await launch(cloud, groups=(group_id,))
    cloud.set_state(instance_id, InstanceState.TERMINATED)

    assert len(await cloud.interfaces_in_group(group_id)) == 1
    clock.turn(seconds=90)
    assert await cloud.interfaces_in_group(group_id) == ()


async def test_answers_come_in_no_order(cloud: FakeCloud) -> None:
    """Forty looks at ten instances show more than one order but by a chance of 1 in 10! to the 39th."""
    for number in range(10):
        await launch(cloud, f"n1-{number}")

    assert len({tuple(await cloud.sweep_instances("cluster")) for _ in range(40)}) > 1
