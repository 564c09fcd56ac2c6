"""Binary caches that fail, for a machine that builds its own system and for the operator that builds another's: it is
told why, and as soon as the cache is well again both go on by themselves."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cluster import specs
from cluster.conftest import PERIODS
from cluster.hosts import Host, host_of, host_that_fetched_nothing, of_the_cache
from cluster.place import Place, condition, is_ready, standing
from cluster.polling import eventually
from nixops_lab.testing import Lab

pytestmark = pytest.mark.long(instead="cluster/test_build_on_target.py")

RELEASES = {"Target": "bookworm", "Operator": "trixie"}
"""Where it is built → the Debian of the machine that it is for."""
OF_A_HOME_LINE = {"latency_seconds": 0.05, "bytes_per_second": 20_000_000}


@pytest.fixture(scope="module")
def hosts(running_operator: Lab) -> dict[str, Host]:
    """Where it is built → a host. What the operator builds is copied, whatever the host has."""
    return {
        "Target": host_that_fetched_nothing(running_operator, RELEASES["Target"]),
        "Operator": host_of(running_operator, RELEASES["Operator"]),
    }


@pytest.fixture(scope="module")
def cache(running_operator: Lab) -> Iterator[Any]:
    """Full, and the operator's too, whose store is empty at first, as that of a new pod."""
    env, operator = running_operator.env, running_operator.operator
    running_operator.fill_cache()
    of_the_lab = {"url": env["LAB_CACHE_URL"], "publicKeys": [env["LAB_CACHE_KEY"]]}
    operator.stop()
    shutil.rmtree(running_operator.paths.operator / "nix")
    operator.start(settings={**PERIODS, "nix.substituters": [of_the_lab]})
    yield running_operator.control
    running_operator.control.reset_cache()
    operator.stop()
    operator.start(settings=PERIODS)


def asking(lab: Lab, host: Host, build_on: str, title: str, more: str) -> dict[str, Any]:
    """The host with a system that needs what the cache alone has."""
    return host.declared(lab, specs.page(title, more + of_the_cache(lab)), build_on)


def standings(place: Place) -> str:
    return "\n".join(map(standing, place.objects()))


def test_from_an_empty_store_over_a_line_of_a_home(
    shared_place: Place, hosts: Mapping[str, Host], cache: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shared_place
    place.ssh_secret()
    cache.set_cache(OF_A_HOME_LINE)
    for build_on, host in hosts.items():
        place.apply(asking(place.lab, host, build_on, "From the cache", "test.cache.cached = 140;"))
    told: dict[str, dict[str, None]] = {build_on: {} for build_on in hosts}

    def are_ready() -> bool:
        """Meanwhile it is written down what is told of the builds."""
        found = {build_on: place.get("nixmachine", host.name) for build_on, host in hosts.items()}
        for build_on, machine in found.items():
            told[build_on][condition(machine, "ConfigurationBuilt").get("message", "")] = None
        return all(is_ready(machine) for machine in found.values())

    eventually(are_ready, "both are ready", last=lambda: standings(place))
    for build_on, host in hosts.items():
        assert place.title(host.address) == "From the cache"
        assert place.get("nixmachine", host.name)["status"]["configuration"]["buildOn"] == build_on
    with capsys.disabled():
        print("\n" + "\n".join(f"  {build_on:<9} {text}" for build_on, texts in told.items() for text in texts))


@dataclass(frozen=True)
class Fault:
    """`knobs` of the cache. `number`: of the package that cannot be had. `says`: where it is built → of the message."""

    name: str
    knobs: dict[str, object]
    number: int
    says: Mapping[str, str]


FAULTS = [
    Fault("nobody listens", {"refuses": True}, 160, {"Target": "Couldn't connect", "Operator": "does not answer"}),
    Fault(
        "a wrong signature",
        {"wrong_signature": True},
        170,
        {"Target": "no signature", "Operator": "lacks a signature"},
    ),
    Fault("a path is missing", {"missing": "cached-180-"}, 180, {"Target": "cached-180", "Operator": "cached-180"}),
    Fault("it breaks off", {"truncated": True}, 190, {"Target": "unable to download", "Operator": "broke off"}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_cache_that_fails_is_told_and_recovered_from(
    shared_place: Place, hosts: Mapping[str, Host], cache: Any, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shared_place
    place.ssh_secret()
    cache.reset_cache()
    cache.set_cache(fault.knobs)
    title = f"After {fault.name}"
    need = f'environment.etc.it.text = "${{pkgs.prebuilt.cached {fault.number}}}";'
    for build_on, host in hosts.items():
        place.apply(asking(place.lab, host, build_on, title, need))

    def told(host: Host, words: str) -> str:
        message = str(condition(place.get("nixmachine", host.name), "ConfigurationBuilt").get("message", ""))
        return message if words in message else ""

    for build_on, host in hosts.items():
        look = functools.partial(told, host, fault.says[build_on])
        said = eventually(look, f"{build_on}: {fault.says[build_on]}", last=lambda: standings(place))
        with capsys.disabled():
            print(f"\n  {fault.name:<18} {build_on:<9} {said}")

    cache.reset_cache()
    place.wait_ready(*(f"nixmachine/{host.name}" for host in hosts.values()))
    assert [place.title(host.address) for host in hosts.values()] == [title, title]
