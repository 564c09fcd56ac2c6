"""More given hosts of the lab, on other Debians and so with other versions of Nix."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from cluster import specs
from nixops_lab.testing import Lab


@dataclass(frozen=True)
class Host:
    """`name`: among the lab's machines, and of its NixMachine. `nix`: the version of its Nix."""

    name: str
    address: str
    nix: str

    def declared(self, lab: Lab, module: str, build_on: str, **more: Any) -> dict[str, Any]:
        """A NixMachine that is this host; `more`: other fields of its spec."""
        machine = specs.on_host(lab, module, self.name, activation=specs.QUICK, **more)
        machine["spec"]["target"]["host"]["address"] = self.address
        machine["spec"]["configuration"]["build"] = {"on": build_on}
        return machine


def host_of(lab: Lab, release: str) -> Host:
    """The host of that Debian release, booted if it is not there yet."""
    return _host(lab, release, f"on-{release}")


def host_that_fetched_nothing(lab: Lab, release: str) -> Host:
    """As `host_of`, or another one: none of the cache's packages is in its store, which in a lab that was kept may have
    them from an earlier run. Its Nix fetches from the cache."""
    for number in itertools.count(1):
        host = _host(lab, release, f"on-{release}" + (f"-{number}" if number > 1 else ""))
        found = lab.machine_exec(host.name, ["find", "/nix/store", "-maxdepth", "1", "-name", "*-cached-*-1.0"])
        if not found.stdout:
            _trust_the_cache(lab, host)
            return host
    raise AssertionError


def of_the_cache(lab: Lab) -> str:
    """Of a module: the system that it makes goes on fetching from the cache."""
    return f"""
  nix.settings.substituters = [ "{lab.env["LAB_CACHE_URL"]}" ];
  nix.settings.trusted-public-keys = [ "{lab.env["LAB_CACHE_KEY"]}" ];"""


def _host(lab: Lab, release: str, name: str) -> Host:
    here = {each["name"]: each["private_address"] for each in lab.control.machines()}
    address = here.get(name) or lab.command("machine", "add", name, f"--debian={release}").stdout.strip()
    version = lab.machine_exec(name, ["nix-store", "--version"]).stdout.split()[-1]
    return Host(name, address, version)


def _trust_the_cache(lab: Lab, host: Host) -> None:
    more = f"substituters = {lab.env['LAB_CACHE_URL']}\ntrusted-public-keys = {lab.env['LAB_CACHE_KEY']}\n"
    script = "cat /etc/nix/nix.conf - >/etc/nix/new; mv -T /etc/nix/new /etc/nix/nix.conf"
    lab.machine_exec(host.name, ["sh", "-c", script], more)
