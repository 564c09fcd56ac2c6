"""At rest the operator only looks: nothing is written, nothing is changed, and looking costs the same however many
machines there are."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, operator_writes
from cluster.polling import eventually

pytestmark = pytest.mark.long(instead="crash/test_hot_loops.py")

REST_SECONDS = 90  # the longest period of its own looks is 60
START_SECONDS = 20  # reading everything anew after a start takes half of that
PERIOD_SECONDS = 5
LEASE = ("update", "leases", "nixops-operator")


@pytest.fixture(scope="module")
def resting(shared_place: Place) -> Place:
    """Two deployments of one account and a given host, all ready and told so."""
    shared_place.aws_secret()
    shared_place.ssh_secret()
    shared_place.apply(
        specs.on_ec2(specs.page("One"), "one"),
        specs.on_ec2(specs.page("Two"), "two"),
        specs.on_host(shared_place.lab, specs.page("Host")),
    )
    shared_place.wait_ready("nixdeployment/one", "nixdeployment/two", "nixmachine/host")
    quiet_since(shared_place)
    return shared_place


def quiet_since(place: Place) -> None:
    """Until what follows Ready (the other conditions, Events) is written: no write during a whole period."""
    seen, until = -1, 0.0

    def is_quiet() -> bool:
        nonlocal seen, until
        count = len(written(place, 0))
        if count != seen:
            seen, until = count, time.monotonic() + PERIOD_SECONDS
        return time.monotonic() > until

    eventually(is_quiet, "nothing more is written")


def written(place: Place, since: int) -> list[tuple[str, str, str]]:
    """(verb, resource, name) of each of the operator's writes in the whole cluster, but the Lease's renewal."""
    found = [
        (entry["verb"], entry["objectRef"]["resource"], entry["objectRef"].get("name", ""))
        for entry in operator_writes(place.lab.audit_log()[since:])
    ]
    return [each for each in found if each != LEASE]


def calls(place: Place, since: int) -> list[dict[str, Any]]:
    """The operator's requests to EC2."""
    return [each for each in place.lab.ec2_log()[since:] if each["caller"] == place.operator_identity[0]]


def is_reading(call: dict[str, Any]) -> bool:
    return str(call["operation"]).startswith(("Describe", "Get"))


def watch(seconds: float) -> None:
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, "the time of watching is over", limit=seconds + 60)


def test_a_started_operator_writes_nothing_about_what_is_as_declared(resting: Place) -> None:
    resting.lab.operator.stop()
    writes, requests = resting.mark(), len(resting.lab.ec2_log())
    resting.lab.operator.restart()
    watch(START_SECONDS)

    assert [each for each in written(resting, writes) if each[1] != "leases"] == []
    assert any(call["operation"] == "DescribeInstances" for call in calls(resting, requests)), "it has looked"
    assert [call["operation"] for call in calls(resting, requests) if not is_reading(call)] == []


def test_at_rest_there_is_one_sweep_per_period_and_no_write(resting: Place) -> None:
    quiet_since(resting)
    writes, requests, began = resting.mark(), len(resting.lab.ec2_log()), time.monotonic()
    watch(REST_SECONDS)
    made = calls(resting, requests)
    periods = (time.monotonic() - began) / PERIOD_SECONDS

    assert written(resting, writes) == []
    assert [call["operation"] for call in made if not is_reading(call)] == []
    counts = Counter(call["operation"] for call in made)
    assert counts["DescribeInstances"] >= 1
    assert {name: count for name, count in counts.items() if count > periods + 1} == {}
