"""Every Nix that is out there on the machines, both boxes for evaluations and both places for builds, under an operator
with its image's Nix: evaluated, built, copied, activated, and returned from what fails."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from cluster import specs
from cluster.conftest import PERIODS
from cluster.hosts import Host, host_of
from cluster.place import Place, condition
from nixops_lab import image
from nixops_lab.testing import Lab

pytestmark = pytest.mark.long(instead="contract/test_host_nix_versions.py")

RELEASES = {"bookworm": "2.8.", "trixie": "2.26.", "forky": "2.34."}
"""Debian release → how the version of its Nix begins."""


@pytest.fixture(scope="module")
def hosts(running_operator: Lab) -> list[Host]:
    return [host_of(running_operator, release) for release in RELEASES]


@pytest.fixture(scope="module", params=["Landlock", "Namespaces"])
def box(request: pytest.FixtureRequest, running_operator: Lab) -> Iterator[str]:
    """What the operator evaluates in; one that does not hold ends its start."""
    operator = running_operator.operator
    operator.stop()
    operator.start(settings={**PERIODS, "nix.box": request.param})
    yield request.param
    operator.stop()
    operator.start(settings=PERIODS)


def assert_runs(place: Place, host: Host, title: str, build_on: str) -> str:
    """The declared system, built where it was to be; the system."""
    status = place.get("nixmachine", host.name)["status"]
    running = place.system_of(host.name)
    assert status["configuration"]["buildOn"] == build_on
    assert status["system"]["current"] == running
    assert place.title(host.address) == title
    return running


def await_returned(place: Place, host: Host) -> None:
    wanted = {"Ready": "False/ActivationFailed", "ConfigurationActive": "False/RolledBack"}
    machine = place.await_condition("nixmachine", host.name, wanted)
    assert "the previous system runs again" in condition(machine, "Stalled")["message"]


@pytest.mark.timeout(900)  # root file systems may have to be made first
@pytest.mark.parametrize("build_on", ["Target", "Operator"])
def test_a_system_comes_to_machines_with_every_nix_and_is_returned_from(
    shared_place: Place, hosts: Sequence[Host], box: str, build_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shared_place
    place.ssh_secret()
    assert all(host.nix.startswith(begin) for host, begin in zip(hosts, RELEASES.values(), strict=True))
    titles = {host: f"Nix {host.nix}, built on {build_on}, evaluated in {box}" for host in hosts}

    began = time.monotonic()
    for host in hosts:
        place.apply(host.declared(place.lab, specs.page(titles[host]), build_on))
    ready = {}
    for host in hosts:
        place.wait_ready(f"nixmachine/{host.name}")
        ready[host] = time.monotonic() - began
    good = {host: assert_runs(place, host, titles[host], build_on) for host in hosts}

    began = time.monotonic()
    for host in hosts:
        module = specs.page(f"fails after {titles[host]}", "test.stc.failSnippet = true;")
        place.apply(host.declared(place.lab, module, build_on))
    returned = {}
    for host in hosts:
        await_returned(place, host)
        returned[host] = time.monotonic() - began
        assert place.system_of(host.name) == good[host]
        assert place.title(host.address) == titles[host]
    place.kubectl("delete", "nixmachines", "--all", "--timeout=60s")  # by the operator that knows the hosts

    with capsys.disabled():
        print(f"\n  box {box}, build on {build_on}; the operator's Nix {operators_nix()}")
        for host in hosts:
            seconds = f"active after {ready[host]:4.1f} s, returned after {returned[host]:4.1f} s"
            print(f"    machine's Nix {host.nix:8} evaluated, built, copied: {seconds}")


def operators_nix() -> str:
    """The version in the image, as Debian calls it."""
    argv = ["chroot", str(image.build_root()), "dpkg-query", "--show", "--showformat=${Version}", "nix-bin"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
