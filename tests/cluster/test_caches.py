"""Binary caches that fail, for a machine that builds its own system and for the operator that builds another's: it is
told why, and as soon as the cache is well again both go on by themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cluster import specs
from cluster.conftest import PERIODS
from cluster.hosts import Host, host_of
from cluster.place import Place, condition, is_ready, standing
from cluster.polling import eventually
from nixops_lab.testing import Lab

RELEASES = {"Target": "bookworm", "Operator": "trixie"}
"""Where it is built → the Debian of the machine that it is for."""
OF_A_HOME_LINE = {"latency_seconds": 0.05, "bytes_per_second": 20_000_000}


@pytest.fixture(scope="module")
def hosts(running_operator: Lab) -> dict[str, Host]:
    """Where it is built → a host that takes substitutes from the lab's cache."""
    env = running_operator.env
    trusting = f"substituters = {env['LAB_CACHE_URL']}\ntrusted-public-keys = {env['LAB_CACHE_KEY']}\n"
    found = {build_on: host_of(running_operator, release) for build_on, release in RELEASES.items()}
    running_operator.machine_exec(
        found["Target"].name,
        ["sh", "-c", "cat /etc/nix/nix.conf - >/etc/nix/new; mv -T /etc/nix/new /etc/nix/nix.conf"],
        trusting,
    )
    return found


@pytest.fixture(scope="module")
def cache(running_operator: Lab) -> Iterator[Any]:
    """Full, and the operator's too."""
    env, operator = running_operator.env, running_operator.operator
    running_operator.fill_cache()
    of_the_lab = {"url": env["LAB_CACHE_URL"], "publicKeys": [env["LAB_CACHE_KEY"]]}
    operator.stop()
    operator.start(settings={**PERIODS, "nix.substituters": [of_the_lab]})
    yield running_operator.control
    running_operator.control.reset_cache()
    operator.stop()
    operator.start(settings=PERIODS)


def asking(lab: Lab, host: Host, build_on: str, title: str, more: str) -> dict[str, Any]:
    """The host with a system that needs what the cache alone has, and goes on trusting the cache."""
    env = lab.env
    trusting = f"""
  nix.settings.substituters = [ "{env["LAB_CACHE_URL"]}" ];
  nix.settings.trusted-public-keys = [ "{env["LAB_CACHE_KEY"]}" ];"""
    return host.declared(lab, specs.page(title, more + trusting), build_on)


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
