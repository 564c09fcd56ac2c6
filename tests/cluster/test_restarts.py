"""Machines are restarted where that is allowed or asked for, and come back with what was declared, or with what ran."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import specs
from cluster.place import Place
from cluster.polling import eventually

MACHINE = "site-web"
FIRST, SECOND, THIRD = "The first page", "The second page", "The third page"
QUIET = "boot.kernelParams = [ ''quiet'' ];"


def declared(module: str, **disruption: str) -> dict[str, Any]:
    return specs.on_ec2(module, activation=specs.QUICK, disruption=disruption)


def inhibited(value: str) -> str:
    """A running machine cannot switch to a system with another value."""
    return f"system.switch.inhibitors.init = ''{value}'';"


def boot_of(place: Place, machine: str) -> str:
    return place.on(machine, "cat", "/proc/sys/kernel/random/boot_id")


def guard_of(place: Place, machine: str, before: str) -> str:
    """The unit that ends the guard's patience, once the machine has booted and it waits; empty till then."""
    listing = ["systemctl", "list-units", "--plain", "--no-legend", "nixops-confirm-*.timer"]
    command = ["sh", "-c", f"cat /proc/sys/kernel/random/boot_id; {' '.join(listing)}"]
    boot, *units = place.lab.machine_exec(machine, command, check=False).stdout.split() or [before]
    return units[0].removesuffix(".timer") + ".service" if boot != before and units else ""


@pytest.mark.timeout(1200)
def test_a_machine_is_restarted_for_its_kernel_where_that_is_allowed(place: Place) -> None:
    place.aws_secret()
    place.apply(declared(specs.page(FIRST)))
    place.wait_ready("nixdeployment/site")
    found = place.get("nixmachine", MACHINE)
    machine, address = found["status"]["instance"]["id"], found["status"]["addresses"]["ssh"]
    boot = boot_of(place, machine)

    place.apply(declared(specs.page(SECOND, f"{inhibited('old')} {QUIET}")))
    place.await_condition("nixmachine", MACHINE, {"UpToDate": "False/RebootRequired", "Ready": "True/Succeeded"})
    assert boot_of(place, machine) == boot

    place.apply(declared(specs.page(SECOND, f"{inhibited('old')} {QUIET}"), reboot="WhenNeeded"))
    place.await_condition("nixmachine", MACHINE, {"UpToDate": "True/Succeeded", "Ready": "True/Succeeded"})
    restarted = boot_of(place, machine)
    assert restarted != boot
    assert place.system_of(machine) == place.on(machine, "readlink", "--canonicalize", "/run/booted-system")
    eventually(lambda: place.title(address) == SECOND, "the page is served")

    # A system that has to be booted, and cannot be reached then: its guard brings the previous one back.
    good = place.system_of(machine)
    deaf = "services.openssh.enable = lib.mkForce false;"
    place.apply(declared(specs.page(THIRD, f"{inhibited('new')} {deaf}"), reboot="WhenNeeded"))
    guard = eventually(lambda: guard_of(place, machine, restarted), "the guard of the new system waits")
    place.on(machine, "systemctl", "start", "--no-block", guard)  # as if its minutes were over
    told = place.await_condition("nixmachine", MACHINE, {"Ready": "False/ActivationFailed"})
    assert place.system_of(machine) == good
    (bad,) = told["status"]["failedRevisions"]
    assert bad["toplevel"] == told["status"]["system"]["desired"]
    assert bad["message"].startswith("the machine was restarted")
