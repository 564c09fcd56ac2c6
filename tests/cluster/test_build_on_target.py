"""A machine builds its own system from a binary cache, whatever becomes of the operator and of the cache meanwhile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from cluster.polling import eventually

HOST = "host"
PROGRESS = re.compile(
    r"^trying again, \d+ of \d+ fetched \([0-9.]+ of [0-9.]+ MiB\), \d+ of \d+ built; before: the binary cache"
)


def trusting(place: Place) -> str:
    """Nix settings with which a machine fetches from the lab's cache."""
    env = place.lab.env
    return f"substituters = {env['LAB_CACHE_URL']}\ntrusted-public-keys = {env['LAB_CACHE_KEY']}\n"


@pytest.fixture
def cache(place: Place) -> Iterator[Any]:
    """The lab's binary cache, full, and trusted by the given host's own Nix."""
    place.lab.fill_cache()
    control = place.lab.control
    control.reset_cache()
    place.ssh_secret()
    conf = place.on(GIVEN_HOST, "cat", "/etc/nix/nix.conf")
    kept = "\n".join(line for line in conf.splitlines() if not line.startswith(("substituters", "trusted-public-keys")))
    place.lab.machine_exec(
        GIVEN_HOST,
        ["sh", "-c", "cat >/etc/nix/nix.conf.new; mv -T /etc/nix/nix.conf.new /etc/nix/nix.conf"],
        f"{kept}\n{trusting(place)}",
    )
    yield control
    control.reset_cache()


def built_there(place: Place, packages: str) -> dict[str, Any]:
    """A system with that many packages, which only the machine may build; it goes on trusting the cache."""
    env = place.lab.env
    more = f"""
  test.cache.{packages};
  nix.settings.substituters = [ "{env["LAB_CACHE_URL"]}" ];
  nix.settings.trusted-public-keys = [ "{env["LAB_CACHE_KEY"]}" ];"""
    machine = specs.on_host(place.lab, specs.page(packages, more), HOST, activation=specs.QUICK)
    machine["spec"]["configuration"]["build"] = {"on": "Target"}
    return machine


def built(place: Place) -> dict[str, Any]:
    return dict(condition(place.find("nixmachine", HOST) or {}, "ConfigurationBuilt"))


def archives(control: Any) -> Counter[str]:
    """What was fetched of packages, and how often."""
    return Counter(each["path"] for each in control.cache_log() if each["path"].startswith("/nar/"))


def test_the_operator_dies_and_nothing_is_fetched_twice(place: Place, cache: Any) -> None:
    cache.set_cache({"refuses": True})
    place.apply(built_there(place, "cached = 200"))
    down = place.await_condition("nixmachine", HOST, {"ConfigurationBuilt": "False/BuildFailed"})
    assert (
        "the binary cache http://203.0.113.80 does not answer the machine"
        in condition(down, "ConfigurationBuilt")["message"]
    )

    cache.set_cache({"refuses": False, "latency_seconds": 0.05, "bytes_per_second": 1_000_000})
    told = eventually(lambda: PROGRESS.search(built(place).get("message", "")), "the build tells how far it is")
    print(told[0])
    place.lab.operator.kill()
    place.kubectl("delete", "lease", "nixops-operator", "--namespace=nixops-system")
    fetched = len(archives(cache))
    eventually(lambda: len(archives(cache)) > fetched, "the machine goes on without an operator")
    cache.set_cache({"latency_seconds": 0.05, "bytes_per_second": 20_000_000})
    place.lab.operator.restart()
    place.wait_ready(f"nixmachine/{HOST}")

    machine = place.get("nixmachine", HOST)
    assert condition(machine, "ConfigurationBuilt")["message"] == "built by the machine itself"
    assert machine["status"]["configuration"]["buildOn"] == "Target"
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == "cached = 200"
    assert archives(cache)
    assert set(archives(cache).values()) == {1}
    kinds = [reason for _, reason, _ in place.events(HOST)]
    assert "Building" in kinds
    assert "BuildFailed" in kinds
