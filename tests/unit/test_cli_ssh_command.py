"""`kubectl nixops ssh`: the user's own ssh, with the machine's key and pinned host keys, and nothing of the user's."""

from __future__ import annotations

from typing import Any

import pytest

from nixops_operator.cli.ssh_command import NotReachableError, known_hosts, login_of, ssh_arguments

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG7EhRzGbuacAu4P0n2CLR6iO3DfgXG+dMCPOMJEpXXO"


def machine(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A NixMachine `web` that can be logged in to, but for what is given."""
    usual = {"addresses": {"ssh": "198.51.100.7"}, "hostKeys": [HOST_KEY]}
    reference = {"privateKeySecretRef": {"name": "web-key"}}
    return {
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"ssh": reference, **spec},
        "status": usual if status is None else status,
    }


def test_who_logs_in_where_with_what():
    login = login_of(machine())

    assert (login.address, login.port, login.user) == ("198.51.100.7", 22, "root")
    assert (login.secret, login.secret_key, login.host_keys) == ("web-key", "ssh-privatekey", (HOST_KEY,))


def test_a_given_hosts_port_counts():
    assert login_of(machine(target={"host": {"address": "192.0.2.10", "port": 2222}})).port == 2222


@pytest.mark.parametrize(
    ("status", "message"),
    [
        pytest.param({}, "web has no address yet (the operator has not looked at it yet)", id="never looked at"),
        pytest.param(
            {"conditions": [{"type": "Ready", "reason": "WaitingForInstance", "message": "i-1 is starting"}]},
            "web has no address yet (WaitingForInstance: i-1 is starting)",
            id="the reason of Ready says what it waits for",
        ),
        pytest.param(
            {"addresses": {"ssh": "198.51.100.7"}},
            "web has no host key yet (the operator has not looked at it yet)",
            id="no pinned host key: never blindly",
        ),
    ],
)
def test_what_cannot_be_reached_says_what_it_waits_for(status, message):
    with pytest.raises(NotReachableError) as caught:
        login_of(machine(status))
    assert str(caught.value) == message


def test_only_the_pinned_keys_are_known():
    assert known_hosts(login_of(machine())) == f"web {HOST_KEY}\n"


def test_nothing_of_the_users_ssh_is_used():
    arguments = ssh_arguments(login_of(machine()), ["KEY", "FORMER"], "KNOWN", [])

    assert arguments[:2] == ["-F", "/dev/null"]
    assert arguments[arguments.index("-i") :][:4] == ["-i", "KEY", "-i", "FORMER"]
    for option in ("StrictHostKeyChecking=yes", "UserKnownHostsFile=KNOWN", "HostKeyAlias=web", "IdentityAgent=none"):
        assert option in arguments
    assert arguments[-2:] == ["--", "198.51.100.7"]


def test_a_command_arrives_as_it_was_given():
    """ssh joins its words with spaces for the remote shell; quoting keeps them apart."""
    assert ssh_arguments(login_of(machine()), ["KEY"], "KNOWN", ["echo", "a  b", "$(id)"])[-1] == "echo 'a  b' '$(id)'"
