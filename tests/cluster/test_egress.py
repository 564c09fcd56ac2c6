"""What tenants let the operator fetch: nothing reaches an address inside, whichever way it is named.

Servers stand at the addresses that are tried, and a name server that leads to them: each would answer, and tells of
every connection.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import specs, trap
from cluster.conftest import PERIODS
from cluster.place import Place, condition
from cluster.polling import eventually
from nixops_lab.network import entering
from nixops_lab.testing import Lab

METADATA, SERVICE, POD, LOOPBACK = "169.254.169.254", "10.96.0.1", "10.244.1.5", "127.0.0.1"
MACHINE = "tried"
HASH = f"sha256-{'A' * 43}="


@dataclass(frozen=True)
class Traps:
    """`connections`: the addresses that were connected to so far."""

    file: Path

    @property
    def connections(self) -> list[str]:
        return self.file.read_text().splitlines()[1:]


@pytest.fixture(scope="module")
def traps(running_operator: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    paths = running_operator.paths
    file = tmp_path_factory.mktemp("traps") / "connections"
    file.touch()
    inside = (METADATA, SERVICE, POD)
    for address in inside:
        running_operator.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    argv = [*entering(paths.namespace), sys.executable, trap.__file__, str(file), LOOPBACK, *inside]
    process = subprocess.Popen(argv, env=os.environ)
    try:
        eventually(file.read_text, "the traps are set")
        yield Traps(file)
    finally:
        process.terminate()
        process.wait()
        for address in inside:
            running_operator.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"])


@dataclass(frozen=True)
class Probe:
    """`url`: what the tenant names. `says`: of the message."""

    name: str
    url: str
    says: str


def redirect(to: str) -> str:
    return f"http://203.0.113.80/onward?to={to}"


PROBES = [
    Probe("instance metadata", f"http://{METADATA}/latest/meta-data/iam", "link-local"),
    Probe("a service", f"http://{SERVICE}/x", "private"),
    Probe("a pod", f"http://{POD}/x", "private"),
    Probe("loopback", f"http://{LOOPBACK}/x", "loopback"),
    Probe("loopback in IPv6", "http://[::1]/x", "loopback"),
    Probe("metadata mapped into IPv6", f"http://[::ffff:{METADATA}]/x", "link-local"),
    Probe("loopback as one number", "http://2130706433/x", "four decimal numbers"),
    Probe("another port", "http://203.0.113.80:8080/x", "port 8080"),
    Probe("a name that shows a service", "http://at-10-96-0-1.example/x", "private"),
    Probe("a name that shows metadata", "http://at-169-254-169-254.example/x", "link-local"),
    Probe("a name that shows both in- and outside", "http://at-203-0-113-80-and-10-96-0-1.example/x", "private"),
    Probe("sent on to metadata", redirect(f"http://{METADATA}/latest"), "link-local"),
    Probe("sent on to a pod", redirect(f"http://{POD}/x"), "private"),
    Probe("sent on to a name that shows a service", redirect("http://at-10-96-0-1.example/x"), "private"),
    Probe("sent on to a file", redirect("file:///etc/passwd"), "sends on to"),
]


def with_source(lab: Lab, url: str) -> dict[str, Any]:
    machine = specs.on_host(lab, specs.page("Never"), MACHINE)
    machine["spec"]["configuration"] |= {
        "source": {"archive": {"url": url, "hash": HASH}},
        "modules": [{"path": "machine.nix"}],
    }
    return machine


def judged(place: Place, machine: Mapping[str, Any], reason: str) -> str:
    """The message of the condition with which the spec as it is now is stalled."""
    place.apply(machine)
    found = place.await_condition("nixmachine", MACHINE, {"Stalled": f"True/{reason}"})
    return str(condition(found, "Stalled")["message"])


def test_no_source_leads_to_an_address_inside(
    shared_place: Place, traps: Traps, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shared_place
    place.ssh_secret()
    api = place.lab.state.ports["api"]
    at_the_api_server = Probe("the API server", f"https://{LOOPBACK}:{api}/version", f"port {api}")
    rows = []
    for probe in (*PROBES, at_the_api_server):
        before = len(traps.connections)
        said = judged(place, with_source(place.lab, probe.url), "SourceForbidden")
        assert probe.says in said, probe
        assert traps.connections[before:] == [], probe
        rows.append(f"  {probe.name:<42} refused, nothing sent: {said.split('is not fetched: ')[-1].split(';')[0]}")
    with capsys.disabled():
        print("\n" + "\n".join(rows))


def test_no_fixed_output_leads_to_an_address_inside(shared_place: Place, traps: Traps) -> None:
    """What a module lets the operator fetch for a build."""
    place = shared_place
    place.ssh_secret()
    for url in (f"http://{METADATA}/x", "http://at-10-96-0-1.example/x", redirect(f"http://{POD}/x")):
        fetched = f'pkgs.fetchurl {{ url = "{url}"; sha256 = "{"0" * 64}"; }}'
        machine = specs.on_host(place.lab, specs.page("Never", f"environment.etc.it.source = {fetched};"), MACHINE)
        machine["spec"]["configuration"]["build"] = {"on": "Operator"}
        assert "could not be fetched" in judged(place, machine, "BuildFailed")
        assert traps.connections == []


@pytest.fixture
def opened(running_operator: Lab) -> Iterator[None]:
    """The administrator has allowed the service's address."""
    operator = running_operator.operator
    operator.stop()
    operator.start(settings={**PERIODS, "nix.egress.allowedCidrs": [f"{SERVICE}/32"]})
    yield
    operator.stop()
    operator.start(settings=PERIODS)


@pytest.mark.usefixtures("opened")
def test_the_administrator_may_open_one_address(shared_place: Place, traps: Traps) -> None:
    """The harmless twin: the same servers are reached, by address and by name, and no others."""
    place = shared_place
    place.ssh_secret()
    for url in (f"http://{SERVICE}/a", "http://at-10-96-0-1.example/b"):
        before = len(traps.connections)
        assert "no tarball" in judged(place, with_source(place.lab, url), "SourceNotFound")
        assert set(traps.connections[before:]) == {SERVICE}
    before = len(traps.connections)
    assert "private" in judged(place, with_source(place.lab, f"http://{POD}/c"), "SourceForbidden")
    assert traps.connections[before:] == []
