"""From a NixMachine to the arguments of the user's own ssh. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixops_operator.names import host_keys_secret


class NotReachableError(Exception):
    """The machine has no address or pinned host key yet; the text says what it waits for."""


@dataclass(frozen=True)
class SshLogin:
    """Where to log in, as whom, with which key, and which host keys may be shown."""

    namespace: str
    name: str
    address: str
    port: int
    user: str
    secret: str
    secret_key: str
    launch_secret: str | None  # may hold the key that the instance was launched with
    host_keys: tuple[str, ...]


def login_of(machine: Mapping[str, Any]) -> SshLogin:
    """What a NixMachine's spec and status say. Raises NotReachableError."""
    metadata, spec, status = machine["metadata"], machine["spec"], machine.get("status") or {}
    name = metadata["name"]
    address = (status.get("addresses") or {}).get("ssh")
    host_keys = tuple(status.get("hostKeys") or ())
    if not address or not host_keys:
        ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), None)
        why = f"{ready['reason']}: {ready['message']}" if ready else "the operator has not looked at it yet"
        raise NotReachableError(f"{name} has no {'host key' if address else 'address'} yet ({why})")
    ssh = spec.get("ssh") or {}
    reference = ssh.get("privateKeySecretRef") or {}
    return SshLogin(
        namespace=metadata["namespace"],
        name=name,
        address=address,
        port=((spec.get("target") or {}).get("host") or {}).get("port", 22),
        user=ssh.get("user", "root"),
        secret=reference.get("name", ""),
        secret_key=reference.get("key", "ssh-privatekey"),
        launch_secret=host_keys_secret(name) if "ec2" in (spec.get("target") or {}) else None,
        host_keys=host_keys,
    )


def known_hosts(login: SshLogin) -> str:
    """A known_hosts file with the pinned keys alone, under the machine's own alias."""
    return "".join(f"{login.name} {key}\n" for key in login.host_keys)


def ssh_arguments(
    login: SshLogin, key_files: Sequence[str], known_hosts_file: str, command: Sequence[str]
) -> list[str]:
    """ssh's arguments: no configuration, agent or known hosts of the user; only these keys, only these host keys."""
    options = (
        f"HostKeyAlias={login.name}",
        f"UserKnownHostsFile={known_hosts_file}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PasswordAuthentication=no",
        "LogLevel=ERROR",
    )
    arguments = ["-F", "/dev/null", "-p", str(login.port), "-l", login.user]
    for key_file in key_files:
        arguments += ["-i", key_file]
    for option in options:
        arguments += ["-o", option]
    # ssh joins what follows with spaces for the remote shell; quoted, it arrives as it was given.
    return [*arguments, "--", login.address, *([shlex.join(command)] if command else [])]
