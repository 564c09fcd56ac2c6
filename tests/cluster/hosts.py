"""More given hosts of the lab, on other Debians and so with other versions of Nix."""

from __future__ import annotations

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
    name = f"on-{release}"
    here = {each["name"]: each["private_address"] for each in lab.control.machines()}
    address = here.get(name) or lab.command("machine", "add", name, f"--debian={release}").stdout.strip()
    version = lab.machine_exec(name, ["nix-store", "--version"]).stdout.split()[-1]
    return Host(name, address, version)
