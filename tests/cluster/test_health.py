"""What has to work on a machine is asked before a new system is confirmed, and ever after."""

from __future__ import annotations

from typing import Any

from cluster import specs
from cluster.place import Place
from cluster.polling import eventually

MACHINE = "site-web"
PAGE = {"name": "page", "http": {"port": 80}, "period": "1s", "timeout": "5s"}
FIRST, SECOND = "The first page", "The second page"


def declared(module: str) -> dict[str, Any]:
    return specs.on_ec2(module, healthChecks=[PAGE], activation=specs.QUICK)


def test_a_machine_is_confirmed_when_it_is_well_and_says_when_it_is_not(place: Place) -> None:
    place.aws_secret()
    place.apply(declared(specs.page(FIRST)))
    place.wait_ready("nixdeployment/site")
    found = place.get("nixmachine", MACHINE)
    machine, address = found["status"]["instance"]["id"], found["status"]["addresses"]["ssh"]
    place.await_condition("nixmachine", MACHINE, {"Healthy": "True/Succeeded"})
    attempts, good = place.activations(machine), place.system_of(machine)

    # By hand: told, and nothing is activated for it.
    place.on(machine, "systemctl", "stop", "httpd.service")
    place.await_condition("nixmachine", MACHINE, {"Healthy": "False/CheckFailed"})
    told = place.await_condition("nixmachine", MACHINE, {"Ready": "False/CheckFailed"})
    (ready,) = [one for one in told["status"]["conditions"] if one["type"] == "Ready"]
    assert ready["message"] == "page: nothing listens on port 80"
    assert place.activations(machine) == attempts
    place.on(machine, "systemctl", "start", "httpd.service")
    place.wait_ready("nixdeployment/site")
    assert place.title(address) == FIRST

    # Declared: rolled back, remembered.
    place.apply(declared(specs.page(SECOND, "systemd.services.httpd.enable = lib.mkForce false;")))
    told = place.await_condition("nixmachine", MACHINE, {"Ready": "False/HealthCheckFailed"})
    assert place.system_of(machine) == good
    assert place.title(address) == FIRST
    (bad,) = told["status"]["failedRevisions"]
    assert (bad["toplevel"], bad["reason"]) == (told["status"]["system"]["desired"], "HealthCheckFailed")
    assert bad["message"] == "health checks failed: page: nothing listens on port 80"

    place.apply(declared(specs.page(SECOND)))
    place.wait_ready("nixdeployment/site")
    eventually(lambda: place.title(address) == SECOND, "the second page is served")
