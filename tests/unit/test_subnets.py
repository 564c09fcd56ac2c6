"""In which subnet an instance is launched, where EC2 has no room in the first one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import FullSubnetStatus
from nixops_operator.errors import InvalidSpec, Retry
from nixops_operator.facts.cloud import InstanceState, SecurityGroup, Subnet, Volume, VolumeSettings
from nixops_operator.machine import steps
from nixops_operator.machine.subnets import (
    NO_ROOM_AT_LAUNCH,
    agree,
    beside,
    choose,
    in_one_vpc,
    noted,
    others_with_room,
)
from unit.builders import NOON, instance
from unit.fake_time import run
from unit.machine_bench import SUBNET, Bench

A, B, C = (Subnet(f"subnet-{name}", "vpc-1", f"us-west-2{name}") for name in "abc")
ALL = (A, B, C)


def full(subnet: Subnet, age: timedelta = timedelta(0), kind: str = "t3.small") -> FullSubnetStatus:
    return FullSubnetStatus(subnet_id=subnet.id, zone=subnet.zone, instance_type=kind, at=NOON - age)


LONG_AGO = timedelta(minutes=3)


@pytest.mark.parametrize(
    ("marked", "chosen"),
    [
        pytest.param((), A, id="the first"),
        pytest.param((full(A),), B, id="the next"),
        pytest.param((full(A), full(B)), C, id="the last"),
        pytest.param((full(A, LONG_AGO), full(B)), A, id="the first again after a while"),
        pytest.param((full(A, kind="t3.large"),), A, id="another type had no room there"),
        pytest.param(
            (full(B, timedelta(seconds=90)), full(C, timedelta(seconds=60)), full(A)),
            B,
            id="all full: the one asked first",
        ),
    ],
)
def test_the_first_with_room_is_chosen(marked, chosen):
    assert choose(ALL, "t3.small", marked, (), NOON) == chosen


def test_an_instance_that_died_of_missing_room_marks_its_subnet():
    dead = instance(state=InstanceState.TERMINATED, state_reason=NO_ROOM_AT_LAUNCH, subnet_id=A.id, launch_time=NOON)

    assert choose(ALL, "t3.small", (), (dead,), NOON) == B
    assert choose(ALL, "t3.small", (), (dead,), NOON + LONG_AGO) == A


VOLUME = Volume("vol-1", "available", B.zone, VolumeSettings(10, "gp3", 3000, 125, encrypted=False), {})


def test_a_machine_stays_where_its_volumes_are():
    assert beside(ALL, {"data": VOLUME}, "spec.target.ec2.subnetIds") == [B]
    assert beside(ALL, {}, "spec.target.ec2.subnetIds") == list(ALL)


@pytest.mark.parametrize(
    "volumes",
    [
        pytest.param({"data": replace(VOLUME, zone="us-west-2d")}, id="none is there"),
        pytest.param({"data": VOLUME, "logs": replace(VOLUME, id="vol-2", zone=A.zone)}, id="in two zones"),
    ],
)
def test_where_no_subnet_is_beside_its_volumes_nothing_is_launched(volumes):
    with pytest.raises(
        InvalidSpec, match=r"subnetIds: vol-1 \(volume data\) is in us-west-2.*name a subnet of that zone"
    ):
        beside(ALL, volumes, "spec.target.ec2.subnetIds")


def test_a_note_forgets_what_has_left_the_spec():
    marked = (full(C), full(A), full(B))

    found = noted(marked, A, "t3.small", NOON, (A.id, B.id))

    assert found == (full(B), full(A))
    assert others_with_room((A.id, B.id, C.id), A.id, "t3.small", found, NOON) == (C.id,)
    assert others_with_room((A.id, B.id), A.id, "t3.small", found, NOON) == ()


def test_subnets_of_two_vpcs_are_refused():
    assert in_one_vpc(ALL) == ALL
    with pytest.raises(InvalidSpec, match="vpc-1, vpc-2"):
        in_one_vpc((A, Subnet("subnet-z", "vpc-2", "us-west-2a")))


def test_groups_of_another_vpc_are_refused_by_name():
    agree(A, [SecurityGroup("sg-1", "web", "", "vpc-1", {}, ())])
    with pytest.raises(InvalidSpec, match=r"security group web \(sg-1\) is in vpc-2, and subnet-a is in vpc-1"):
        agree(A, [SecurityGroup("sg-1", "web", "", "vpc-2", {}, ())])


# --- beside a fake EC2 ---------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = SUBNET, f"{SUBNET[:-1]}2", f"{SUBNET[:-1]}3"
SEVERAL: dict[str, Any] = {"target": {"ec2": {"instanceType": "t3.small", "subnetIds": [FIRST, SECOND]}}}


async def launched(bench: Bench, attempt: int) -> None:
    """As a pass does where there is no instance."""
    seen = await bench.seen()
    await bench.take(steps.RecordLaunch(attempt, bench.ec2.account, seen.declared))
    launch = bench.read().launch
    assert launch is not None
    await bench.take(steps.Launch(launch))


def attempts(bench: Bench) -> list[str]:
    return [call.arguments["request"].subnet_id for call in bench.ec2.effects.of("ec2.run_instances")]


def test_a_launch_goes_to_the_next_subnet_at_once_and_the_refusal_is_written_down():
    async def script() -> None:
        bench = Bench()
        bench.machine(**SEVERAL)
        bench.ec2.zones_without_capacity.add("us-west-2a")
        await launched(bench, 1)  # no error, which would be held
        (marked,) = bench.body()["status"]["fullSubnets"]
        assert (marked["subnetId"], marked["zone"]) == (FIRST, "us-west-2a")
        await launched(bench, 2)

        assert attempts(bench) == [FIRST, SECOND]
        (made,) = bench.ec2.instances.values()
        assert made.subnet_id == SECOND

    run(script())


def test_where_all_are_full_the_error_names_all_zones():
    async def script() -> None:
        bench = Bench()
        bench.machine(**SEVERAL)
        bench.ec2.zones_without_capacity |= {"us-west-2a", "us-west-2b"}
        await launched(bench, 1)
        with pytest.raises(Retry, match="us-west-2a, us-west-2b") as refused:
            await launched(bench, 2)

        assert refused.value.reason is Reason.INSUFFICIENT_CAPACITY
        assert refused.value.after == timedelta(seconds=30)

    run(script())


def test_a_zone_that_does_not_offer_the_type_is_passed_over():
    async def script() -> None:
        bench = Bench()
        bench.machine(**SEVERAL)
        bench.ec2.not_offered.add(("t3.small", "us-west-2a"))
        await launched(bench, 1)
        await launched(bench, 2)

        assert attempts(bench) == [FIRST, SECOND]
        (made,) = bench.ec2.instances.values()
        assert made.subnet_id == SECOND

    run(script())


@pytest.mark.parametrize("target", [{"subnetId": FIRST}, {"subnetIds": [FIRST]}])
def test_a_type_that_the_only_subnet_does_not_offer_is_a_matter_of_the_spec(target):
    async def script() -> None:
        bench = Bench()
        bench.machine(target={"ec2": {"instanceType": "t3.small", **target}})
        bench.ec2.not_offered.add(("t3.small", "us-west-2a"))
        with pytest.raises(InvalidSpec, match=r"instanceType: .*not supported in your requested Availability Zone"):
            await launched(bench, 1)

    run(script())


def test_one_subnet_alone_is_refused_as_ever():
    async def script() -> None:
        bench = Bench()
        bench.machine(target={"ec2": {"instanceType": "t3.small", "subnetId": FIRST}})
        bench.ec2.subnets_without_addresses.add(FIRST)
        with pytest.raises(Retry, match="InsufficientFreeAddressesInSubnet"):
            await launched(bench, 1)

        assert "fullSubnets" not in bench.body()["status"]

    run(script())


def test_a_refusal_after_an_unknown_outcome_is_not_followed_by_another_attempt():
    """The first call may have made an instance in its subnet: the attempt is doubted, wherever there may be room."""

    async def script() -> None:
        bench = Bench()
        bench.machine(**SEVERAL)
        await bench.seen()
        seen = await bench.seen()
        await bench.take(steps.RecordLaunch(1, bench.ec2.account, seen.declared))
        bench.world.answered_tokens.clear()  # as after a restart
        bench.ec2.zones_without_capacity.add("us-west-2a")
        launch = bench.read().launch
        assert launch is not None
        await bench.take(steps.Launch(launch))

        told = bench.body()["status"]
        assert told["launch"].get("doubtedAt")
        assert "refusedGeneration" not in told["launch"]
        assert [one["subnetId"] for one in told["fullSubnets"]] == [FIRST]

    run(script())


def test_a_subnet_of_ipv6_alone_is_refused_before_anything_is_launched():
    async def script() -> None:
        bench = Bench()
        bench.ec2.subnets[SECOND] = replace(bench.ec2.subnets[SECOND], has_ipv4=False)
        bench.machine(**SEVERAL)
        error = (await bench.seen()).declared_error
        assert isinstance(error, InvalidSpec)
        assert error.field == "spec.target.ec2.subnetIds"
        assert "IPv4" in error.message

    run(script())


def test_a_subnet_that_does_not_exist_is_told():
    async def script() -> None:
        bench = Bench()
        gone = "subnet-0123456789abcdef0"
        bench.machine(target={"ec2": {"instanceType": "t3.small", "subnetIds": [FIRST, gone]}})
        error = (await bench.seen()).declared_error
        assert isinstance(error, InvalidSpec)
        assert (error.field, gone in error.message) == ("spec.target.ec2.subnetIds", True)

    run(script())
