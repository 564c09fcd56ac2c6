"""Systems that would lock everybody out of a machine: with the operator alive, and with one that dies while the machine
switches. Afterwards the machine can be reached and runs its old system, nothing of the new one, and its conditions say
so.

The other rows of the table are shown elsewhere: the first four on real machines, too; of the last two the decision, and
the words, alone.

    sshd is killed, with the operator dead                  cluster/test_crashes.py
    sshd is killed, the network is down, without operator   contract/test_host_activation.py
    the switch hangs; exits 1, 2, 3, 4, 11, 100, 255        contract/test_host_activation.py
    what was booted and is not confirmed, or does not
      come up                                               contract/test_host_modes.py
    the group closes port 22                                unit/test_plan_groups.py
    the disk is full                                        contract/test_host_copy.py
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place
from cluster.polling import eventually
from cluster.test_crashes import activation_of, kill, state_on

HOST = "host"
OLD, NEW = "The old page", "The new page"
QUICK = {"timeout": "20s", "confirmTimeout": "10s"}
SLOW = "test.stc.slow = 4;"  # long enough for the operator to die in


ROWS = {
    "sshd is disabled": "services.openssh.enable = lib.mkForce false;",
    "the firewall closes port 22": "services.openssh.openFirewall = lib.mkForce false;",
    "another key is authorised": 'services.openssh.authorizedKeysFiles = lib.mkForce [ "/etc/nobody-s-keys" ];',
}


def declare(place: Place, title: str, more: str = "") -> None:
    place.apply(specs.on_host(place.lab, specs.page(title, more), HOST, activation=QUICK))


@pytest.fixture(scope="module")
def given_host(shared_place: Place) -> Place:
    shared_place.ssh_secret()
    return shared_place


@pytest.fixture
def old(given_host: Place) -> Iterator[str]:
    """The given host runs the old system, which is returned."""
    declare(given_host, OLD)
    given_host.wait_ready(f"nixmachine/{HOST}")
    yield given_host.system_of(GIVEN_HOST)
    if not given_host.lab.operator.is_running:
        given_host.lab.operator.restart()


@pytest.mark.parametrize("operator", ["alive", "dead"])
@pytest.mark.parametrize("row", ROWS)
def test_nobody_is_locked_out_where(given_host: Place, old: str, row: str, operator: str) -> None:
    place, new = given_host, f"{NEW}, operator {operator}"  # what went wrong once is not tried again
    before = activation_of(place, HOST).get("id")
    declare(place, new, ROWS[row] + SLOW)
    if operator == "dead":
        begun = str(
            eventually(lambda: (found := activation_of(place, HOST).get("id")) != before and found, "a new activation")
        )
        eventually(lambda: state_on(place, GIVEN_HOST, begun) == "switching", "the machine switches")
        kill(place)
        eventually(lambda: state_on(place, GIVEN_HOST, begun) == "rolledback", "the machine has returned by itself")
        assert place.system_of(GIVEN_HOST) == old, "whole, before any operator is there again"
        place.lab.operator.restart()

    wanted = {"Ready": "False/ActivationFailed", "ConfigurationActive": "False/RolledBack"}
    machine = place.await_condition("nixmachine", HOST, {**wanted, "Reachable": "True/Succeeded"})

    assert place.system_of(GIVEN_HOST) == machine["status"]["system"]["current"] == old
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == OLD
