"""What somebody changes by hand on a machine: put back, told, or left alone, as docs/explanation/by-hand.md says. How
long each took is printed. Beside what is not looked at, a key's mode is changed, too: when that is put back, the
operator has looked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from cluster.polling import eventually

pytestmark = pytest.mark.long(instead="cluster/test_healing.py")

HOST = "host"
KEY = "/var/lib/site/token"
FIRST, SECOND = "The first page", "The second page"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
READY = {"Ready": "True/Succeeded", "UpToDate": "True/Succeeded"}

Tell = Callable[[str, float], None]


def declare(place: Place, title: str) -> None:
    key = {"name": "token", "secretRef": {"name": "tokens", "key": "token"}, "directory": "/var/lib/site"}
    place.apply(specs.on_host(place.lab, specs.page(title), HOST, activation=specs.QUICK, keys=[key]))


@pytest.fixture(scope="module")
def host(shared_place: Place) -> Place:
    """The given host, which runs its second system and has a key on its disk."""
    shared_place.ssh_secret()
    shared_place.secret("tokens", {"token": "hush"})
    for title in (FIRST, SECOND):
        declare(shared_place, title)
        shared_place.wait_ready(f"nixmachine/{HOST}", limit=240)
    return shared_place


def on(host: Place, script: str) -> str:
    return host.on(GIVEN_HOST, "sh", "-c", script)


def title(host: Place) -> str:
    return host.title(host.lab.env["LAB_HOST_ADDRESS"])


def standing(host: Place) -> Any:
    return host.get("nixmachine", HOST)["status"]["conditions"]


def state_of_key(host: Place) -> str:
    return on(host, f"stat -c '%a %U %G' {KEY} 2>/dev/null || true")


def await_look(host: Place) -> None:
    """Until the operator has looked at all of the machine, and put back what it puts back."""
    on(host, f"chmod 0644 {KEY}")
    eventually(lambda: state_of_key(host) == "600 root root", "the key's mode is put back", last=lambda: standing(host))
    host.await_condition("nixmachine", HOST, READY)


def test_mode_and_owner_of_a_key_are_put_back(host: Place, tell: Tell) -> None:
    since, begun = host.mark(), time.monotonic()
    on(host, f"chmod 0666 {KEY}; chown nobody:nogroup {KEY}")
    eventually(lambda: state_of_key(host) == "600 root root", "as declared", last=lambda: state_of_key(host))
    tell("mode and owner of a key", begun)
    host.await_condition("nixmachine", HOST, READY)
    eventually(lambda: ("False", "KeyDrift") in host.told(HOST, "UpToDate", since), "it is told")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("rm /etc/motd; echo by hand >/etc/motd; echo by hand >/etc/by-hand", id="a file in /etc"),
        pytest.param("hostname by-hand", id="the host name"),
    ],
)
def test_what_is_not_looked_at_stays_and_nothing_is_activated_for_it(host: Place, script: str) -> None:
    attempts, system = host.activations(GIVEN_HOST), host.system_of(GIVEN_HOST)
    on(host, f"{script} || true")
    await_look(host)
    assert host.activations(GIVEN_HOST) == attempts
    assert host.system_of(GIVEN_HOST) == system
    assert "by" in on(host, "hostname; cat /etc/by-hand")


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param("/nix/var/nix/gcroots/nixops", id="the operator's roots"),
        pytest.param("/var/lib/nixops/agent-*", id="its agent"),
        pytest.param("/var/lib/nixops", id="all that it keeps there"),
    ],
)
def test_what_the_operator_keeps_there_comes_again_as_it_is_needed(host: Place, gone: str, tell: Tell) -> None:
    system, since, begun = host.system_of(GIVEN_HOST), host.mark(), time.monotonic()
    on(host, f"rm -r {gone}")
    await_look(host)
    tell(f"{gone} removed", begun)
    on(host, "nix-collect-garbage")
    assert on(host, f"nix-store --check-validity {system} && echo valid") == "valid"
    assert host.system_of(GIVEN_HOST) == system
    assert on(host, "cut -d ' ' -f 3 /var/lib/nixops/owner") == f"{host.namespace}/{HOST}"
    assert "False" not in {status for status, _ in host.told(HOST, "ConfigurationActive", since)}
    assert title(host) == SECOND


def test_a_machine_that_boots_another_generation_gets_the_declared_one(host: Place, tell: Tell) -> None:
    system, since = host.system_of(GIVEN_HOST), host.mark()
    other = on(host, "for one in /nix/var/nix/profiles/system-*-link; do readlink --canonicalize $one; done").split()
    former = next(one for one in other if one != system)
    on(host, f"echo {former} >/boot/nixos-entry")
    host.lab.control.cut_power(GIVEN_HOST)
    begun = time.monotonic()
    host.lab.control.switch_on(GIVEN_HOST)
    eventually(
        lambda: ("False", "BootDrift") in host.told(HOST, "UpToDate", since),
        "it is told",
        last=lambda: host.told(HOST, "UpToDate", since),
    )
    eventually(lambda: title(host) == SECOND, "the declared one runs", last=lambda: standing(host))
    host.await_condition("nixmachine", HOST, READY)
    tell("booted another generation", begun)
    assert host.system_of(GIVEN_HOST) == on(host, "cat /boot/nixos-entry") == system


def test_a_machine_with_another_host_key_is_told_and_not_logged_in_to(host: Place, tell: Tell) -> None:
    on(host, f"cp -p {HOST_KEY} /root/kept; cp -p {HOST_KEY}.pub /root/kept.pub; rm {HOST_KEY} {HOST_KEY}.pub")
    on(host, f"ssh-keygen -q -t ed25519 -N '' -f {HOST_KEY}")
    host.lab.control.cut_power(GIVEN_HOST)
    begun = time.monotonic()
    host.lab.control.switch_on(GIVEN_HOST)
    told = host.await_condition("nixmachine", HOST, {"Reachable": "False/HostKeyMismatch"})
    tell("another host key", begun)
    assert "No login was tried" in condition(told, "Reachable")["message"]
    begun = time.monotonic()
    on(host, f"mv /root/kept {HOST_KEY}; mv /root/kept.pub {HOST_KEY}.pub")
    on(host, "systemctl restart sshd.service 2>/dev/null || systemctl restart ssh.service")
    host.await_condition("nixmachine", HOST, READY)
    tell("the former one again", begun)
