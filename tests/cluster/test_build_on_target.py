"""A machine builds its own system from a binary cache over the line of a home, whatever becomes of the operator and of
the cache meanwhile."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import specs
from cluster.hosts import Host, host_that_fetched_nothing, of_the_cache
from cluster.place import Place, condition
from cluster.polling import eventually

PACKAGES = 200
OF_A_HOME_LINE = {"latency_seconds": 0.05, "bytes_per_second": 20_000_000}
PROGRESS = re.compile(
    r"^trying again, (?P<done>[1-9]\d*) of (?P<total>\d+) fetched \((?P<here>[0-9.]+) of (?P<all>[0-9.]+) MiB\), "
    r"\d+ of \d+ built; before: the binary cache"
)


@pytest.fixture
def cache(place: Place) -> Iterator[Any]:
    """The lab's binary cache, full."""
    place.lab.fill_cache()
    control = place.lab.control
    control.reset_cache()
    yield control
    control.reset_cache()


@pytest.fixture
def host(place: Place) -> Host:
    """With Debian 12's Nix, which fetches one path at a time."""
    place.ssh_secret()
    return host_that_fetched_nothing(place.lab, "bookworm")


def archives(control: Any) -> Counter[str]:
    """What was fetched of packages, and how often."""
    return Counter(each["path"] for each in control.cache_log() if each["path"].startswith("/nar/"))


def builds(place: Place, host: Host) -> set[str]:
    """Of each start of a unit that builds, systemd's id."""
    query = ("journalctl", "--unit=nixops-build-*", "--output=json", "--output-fields=INVOCATION_ID", "--no-pager")
    entries = map(json.loads, place.on(host.name, *query).splitlines())
    return {entry["INVOCATION_ID"] for entry in entries if "INVOCATION_ID" in entry}


def test_the_operator_dies_and_nothing_is_fetched_twice(place: Place, cache: Any, host: Host) -> None:
    def built() -> dict[str, Any]:
        return dict(condition(place.find("nixmachine", host.name) or {}, "ConfigurationBuilt"))

    cache.set_cache({"refuses": True})
    module = specs.page("From the cache", f"test.cache.cached = {PACKAGES};" + of_the_cache(place.lab))
    place.apply(host.declared(place.lab, module, "Target"))
    place.await_condition("nixmachine", host.name, {"ConfigurationBuilt": "False/BuildFailed"})
    assert "the binary cache http://203.0.113.80 does not answer the machine" in built()["message"]

    cache.set_cache({"refuses": False, **OF_A_HOME_LINE})
    told = eventually(lambda: PROGRESS.search(built().get("message", "")), "the build tells how far it is")
    place.lab.operator.kill()
    print(told[0])
    # What it has just fetched counts in Nix for a moment both as done and as still expected.
    assert int(told["done"]) < int(told["total"]) in (PACKAGES, PACKAGES + 1)
    assert float(told["here"]) < float(told["all"])
    begun, fetched = builds(place, host), len(archives(cache))
    assert 0 < fetched < PACKAGES
    place.kubectl("delete", "lease", "nixops-operator", "--namespace=nixops-system")
    eventually(lambda: len(archives(cache)) > fetched, "the machine goes on without an operator")
    place.lab.operator.restart()
    place.wait_ready(f"nixmachine/{host.name}")

    assert builds(place, host) == begun, "the build was found again, and not begun anew"
    assert sorted(archives(cache).values()) == [1] * PACKAGES
    assert built()["message"] == "built by the machine itself"
    assert place.get("nixmachine", host.name)["status"]["configuration"]["buildOn"] == "Target"
    assert place.title(host.address) == "From the cache"
    kinds = [reason for _, reason, _ in place.events(host.name)]
    assert "Building" in kinds
    assert "BuildFailed" in kinds
