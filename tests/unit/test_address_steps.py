"""What the looks at an elastic address and its steps do, beside a fake API server and a fake EC2."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.kube import CLUSTER_ID
from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict, OutcomeUnknown
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.machine.addresses import AllocateAddress, ReleaseAddress, RetainAddress
from unit.fake_time import run
from unit.machine_bench import WEB, Bench

ALLOCATE: dict[str, Any] = {"target": {"ec2": {"instanceType": "t3.small", "elasticIp": {"allocate": True}}}}
NONE: dict[str, Any] = {"target": {"ec2": {"instanceType": "t3.small"}}}


def status(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.body()["status"].get("elasticIp")
    return found


def test_an_allocation_is_written_down_with_its_answer_and_carries_our_tags():
    async def script() -> None:
        bench = Bench()
        uid = bench.machine(**ALLOCATE)["metadata"]["uid"]
        await bench.take(AllocateAddress())

        (address,) = bench.ec2.addresses.values()
        assert status(bench)["allocationId"] == address.id
        assert address.tags == names.owner_tags(CLUSTER_ID, "default", WEB.name, uid)
        assert [one.id for one in (await bench.seen()).addresses.ours] == [address.id]

    run(script())


def test_nothing_is_asked_of_ec2_before_the_intent_stands():
    async def script() -> None:
        bench = Bench()
        bench.machine(**ALLOCATE)
        bench.kube.effects.next_error["kube.write_intent"] = Conflict("somebody else wrote")
        with pytest.raises(Conflict):
            await bench.take(AllocateAddress())

        assert bench.ec2.effects.of("ec2.allocate_address") == []

    run(script())


def test_a_refused_allocation_is_no_open_one():
    async def script() -> None:
        bench = Bench()
        bench.machine(**ALLOCATE)
        bench.ec2.most_addresses = 0
        with pytest.raises(Blocked) as refused:
            await bench.take(AllocateAddress())

        assert refused.value.reason is Reason.QUOTA_EXCEEDED
        assert status(bench) is None

    run(script())


def test_an_allocation_without_an_answer_stays_open_and_is_found_by_its_tags():
    async def script() -> None:
        bench = Bench()
        bench.machine(**ALLOCATE)
        bench.ec2.effects.drop_reply.add("ec2.allocate_address")
        with pytest.raises(OutcomeUnknown):
            await bench.take(AllocateAddress())

        assert status(bench).keys() & {"allocationId", "calledAt"} == {"calledAt"}
        (address,) = bench.ec2.addresses.values()
        assert [one.id for one in (await bench.seen()).addresses.ours] == [address.id]

    run(script())


def test_a_released_address_is_forgotten():
    async def script() -> None:
        bench = Bench()
        bench.machine(**ALLOCATE)
        await bench.take(AllocateAddress())
        (address,) = bench.ec2.addresses.values()
        await bench.take(ReleaseAddress(address.id))

        assert bench.ec2.addresses == {}
        assert status(bench) is None

    run(script())


@pytest.mark.parametrize("tags", [{}, {names.UID_TAG: "uid-others"}, {names.RETAINED_TAG: "true"}])
def test_an_address_that_is_not_ours_any_more_is_not_released(tags):
    async def script() -> None:
        bench = Bench()
        uid = bench.machine(**ALLOCATE)["metadata"]["uid"]
        ours = names.owner_tags(CLUSTER_ID, "default", WEB.name, uid) if names.RETAINED_TAG in tags else {}
        allocation_id = bench.ec2.allocate(ours | tags)
        with pytest.raises(Conflict, match="does not carry the tags"):
            await bench.take(ReleaseAddress(allocation_id))

        assert allocation_id in bench.ec2.addresses

    run(script())


def test_on_the_way_out_an_address_is_released_only_by_fresh_proof():
    async def script() -> None:
        bench = Bench()
        bench.machine(**ALLOCATE)
        await bench.take(AllocateAddress())
        (address,) = bench.ec2.addresses.values()
        bench.kube.delete(WEB)
        leaving, body = bench.read(), bench.body()
        bench.kube.edit(WEB, lambda known: known["spec"].update(deletionPolicy="Retain"))
        with pytest.raises(Conflict, match="to be retained now"):
            await bench.take(ReleaseAddress(address.id), leaving, body)
        await bench.take(RetainAddress(address.id), leaving, body)

        assert names.is_retained(bench.ec2.addresses[address.id].tags)

    run(script())


def test_a_machine_without_an_address_asks_for_none():
    """Whoever has none needs no right to look at them."""

    async def script() -> None:
        bench = Bench()
        bench.machine(**NONE)
        await bench.seen()

        assert bench.ec2.effects.of("sweep_addresses", "find_addresses") == []

    run(script())


def test_one_in_deletion_looks_for_an_address_whose_record_was_lost():
    async def script() -> None:
        bench = Bench()
        uid = bench.machine(**ALLOCATE)["metadata"]["uid"]
        allocation_id = bench.ec2.allocate(names.owner_tags(CLUSTER_ID, "default", WEB.name, uid))
        bench.kube.delete(WEB)
        bench.cache.put(WEB, bench.body())

        assert [one.id for one in (await bench.seen()).addresses.ours] == [allocation_id]

    run(script())


@pytest.mark.parametrize("by", ["id", "address"])
def test_a_given_address_is_found_by_its_id_and_by_itself(by):
    async def script() -> None:
        bench = Bench()
        allocation_id = bench.ec2.allocate()
        named = {"id": allocation_id, "address": bench.ec2.addresses[allocation_id].public_address}[by]
        bench.machine(target={"ec2": {"instanceType": "t3.small", "elasticIp": {by: named}}})

        given = (await bench.seen()).addresses.given
        assert given is not None
        assert given.id == allocation_id

    run(script())


OTHER = Key(Kind.MACHINE, "theirs", "db")


@pytest.mark.parametrize(
    ("namespace", "who"), [("default", "NixMachine/default/db"), ("theirs", "a NixMachine of another namespace")]
)
def test_an_address_is_the_machines_that_wrote_it_down_first(namespace, who):
    async def script() -> None:
        bench = Bench()
        given = bench.ec2.allocate()
        bench.machine(target={"ec2": {"instanceType": "t3.small", "elasticIp": {"id": given}}})
        other = OTHER._replace(namespace=namespace)
        metadata = {"namespace": namespace, "name": other.name}
        bench.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": {}})

        def tell(called_at: str) -> None:
            record = {"calledAt": called_at, "allocationId": given, "given": True}
            bench.cache.put(other, bench.kube.edit(other, lambda body: body.update(status={"elasticIp": record})))

        assert (await bench.seen()).addresses.given_to == ""
        tell("2026-11-22T12:00:00Z")
        assert (await bench.seen()).addresses.given_to == who
        bench.tell({"elasticIp": {"calledAt": "2026-11-22T11:59:59Z", "allocationId": given, "given": True}})
        assert (await bench.seen()).addresses.given_to == ""
        tell("2026-11-22T11:59:58Z")
        assert (await bench.seen()).addresses.given_to == who

    run(script())
