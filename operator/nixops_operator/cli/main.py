"""`kubectl nixops`: what NixOps users do at a machine, by kubectl and their own ssh."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from nixops_operator.cli.ssh_command import NotReachableError, SshLogin, known_hosts, login_of, ssh_arguments
from nixops_operator.errors import Blocked
from nixops_operator.machine.host_keys import CLIENT_KEY
from nixops_operator.ssh_keys import PrivateKey, parse_private_key

app = typer.Typer(
    help="Work with NixOS machines that nixops-operator keeps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the NixMachine; default as kubectl's.")
]


class CliError(Exception):
    """What went wrong and what to do, for people; exit code 1."""


@app.callback()
def _commands() -> None:
    """Keeps `ssh` a command of its own while there is only one."""


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    name: Annotated[str, typer.Argument(help="The NixMachine.")],
    command: Annotated[list[str] | None, typer.Argument(help="What to run there; a login shell if absent.")] = None,
    namespace: Namespace = None,
) -> None:
    """Log in to a machine, checking the host key that the operator pinned.

    The client key is read from its Secret into a private file that is removed afterwards, and so is the one that an
    instance was launched with; your own ssh configuration and known hosts are not used.
    """
    machine = _kubectl_json(["get", "nixmachines.nixops.dev", name], namespace)
    try:
        login = login_of(machine)
    except NotReachableError as error:
        raise CliError(str(error)) from None
    raise typer.Exit(_run_ssh(login, _client_keys(login), command or []))


def _client_keys(login: SshLogin) -> list[PrivateKey]:
    """As the operator offers them: what the spec names, and after it what the instance was launched with. A key pair
    that was renamed, or a Secret that was replaced, counts at the next launch."""
    launched_with = None
    if login.launch_secret is not None:
        with contextlib.suppress(CliError):
            launched_with = _key_in(login.launch_secret, CLIENT_KEY, login.namespace)
    try:
        declared = _key_in(login.secret, login.secret_key, login.namespace)
    except CliError:
        if launched_with is None:
            raise
        return [launched_with]
    return [declared] if launched_with in (None, declared) else [declared, launched_with]


def _key_in(secret: str, name: str, namespace: str) -> PrivateKey:
    found = _kubectl_json(["get", "secret", secret], namespace)
    try:
        data = base64.b64decode(found.get("data", {})[name], validate=True)
    except (KeyError, binascii.Error):
        raise CliError(f"Secret {secret} has no usable key {name}") from None
    try:
        return parse_private_key(data, f"key {name} of Secret {secret}")
    except Blocked as error:
        raise CliError(error.message) from None


def _run_ssh(login: SshLogin, keys: list[PrivateKey], command: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="kubectl-nixops-") as folder:
        key_files, hosts_file = [], Path(folder, "known_hosts")
        for number, key in enumerate(keys):
            key_file = Path(folder, f"key-{number}")
            key_file.touch(mode=0o600)
            key_file.write_text(key.text)
            key_files.append(str(key_file))
        hosts_file.write_text(known_hosts(login))
        arguments = ssh_arguments(login, key_files, str(hosts_file), command)
        return subprocess.run(["ssh", *arguments], check=False).returncode


def _kubectl_json(arguments: list[str], namespace: str | None) -> dict[str, Any]:
    scope = ["--namespace", namespace] if namespace is not None else []
    try:
        done = subprocess.run(
            ["kubectl", *arguments, *scope, "--output", "json"], check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise CliError("kubectl is not on PATH; install it, this plugin reads objects through it") from None
    if done.returncode != 0:
        # kubectl repeats a failed connection several times; its last line says what is wrong.
        said = done.stderr.strip().splitlines() or [f"kubectl {' '.join(arguments)} failed"]
        raise CliError(said[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Entry point `kubectl-nixops`. Exit codes: 0 ok, 1 error, else what ssh returned."""
    try:
        app()
    except CliError as error:
        print(f"kubectl nixops: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
