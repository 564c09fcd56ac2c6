"""What the evaluator's sandbox must refuse, tried at start.

By default Nix reads host files, environment and network during an evaluation, and with import from derivation a builder
does it even in pure and restricted mode. Whether bubblewrap and Nix' settings hold depends on the kernel, the pod's
security profile and the version of Nix: so it is tried, not assumed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.nix.expression import nix_string


class SandboxUnsafe(Blocked):
    """An evaluation would reach what it must not, or cannot run at all. Nothing may be evaluated."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.EVALUATION_FAILED, message)


@dataclass(frozen=True)
class _Attack:
    name: str
    expression: str
    got_through: Callable[[str], bool]  # judges the JSON of the value, if there is one


async def probe(evaluator: Evaluator, scratch: Path) -> None:
    """Try each attack. Raises SandboxUnsafe for the first that gets through, or if a harmless evaluation fails."""
    try:
        answer = await evaluator.value("1 + 1")
    except OperatorError as error:
        raise SandboxUnsafe(f"evaluation is not possible: {error.message}") from error
    if answer != "2":
        raise SandboxUnsafe(f"evaluation is not possible: 1 + 1 gave {answer}")
    secret = secrets.token_hex(16)
    file = scratch / f"probe-{secret}"
    connections: list[str] = []
    server = await asyncio.start_server(lambda _, writer: _count(connections, writer), "127.0.0.1", 0)
    try:
        await asyncio.to_thread(file.write_text, secret)
        port = server.sockets[0].getsockname()[1]
        for attack in _attacks(file, secret, port):
            await _try(evaluator, attack)
        await _look_around(evaluator, file, secret)
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.to_thread(file.unlink, missing_ok=True)
    if connections:
        raise SandboxUnsafe("an evaluation reached the network")


def _attacks(file: Path, secret: str, port: int) -> tuple[_Attack, ...]:
    builder = f'derivation {{ name = "probe"; system = "{os.uname().machine}-linux"; builder = "/bin/sh"; '
    builder += f'args = [ "-c" {nix_string(f"read x <{file}; echo $x >$out")} ]; }}'
    return (
        _Attack("reads host files", f"builtins.readFile {nix_string(str(file))}", lambda value: secret in value),
        _Attack("reads the environment", 'builtins.getEnv "HOME"', lambda value: value != '""'),
        _Attack("reaches the network", f'builtins.fetchurl "http://127.0.0.1:{port}/"', lambda _: True),
        _Attack("runs builders (import from derivation)", f"builtins.readFile ({builder})", lambda _: True),
        _Attack("runs programs (builtins.exec)", "builtins ? exec", lambda value: value != "false"),
    )


async def _try(evaluator: Evaluator, attack: _Attack) -> None:
    try:
        value = await evaluator.value(attack.expression)
    except Retry as error:
        raise SandboxUnsafe(f"evaluation is not possible: {error.message}") from error
    except Blocked:
        return
    if attack.got_through(value):
        raise SandboxUnsafe(f"an evaluation {attack.name}")


async def _look_around(evaluator: Evaluator, file: Path, secret: str) -> None:
    """A program in the evaluator's place, as if Nix itself had been broken into."""
    script = 'cat "$0" || :; env; cd /proc/self/ns; for kind in *; do echo "ns $kind $(readlink $kind)"; done'
    try:
        seen = await evaluator.run(("sh", "-c", script, str(file)))
    except OperatorError as error:
        raise SandboxUnsafe(f"evaluation is not possible: {error.message}") from error
    if secret in seen:
        raise SandboxUnsafe("the evaluator's sandbox shows host files")
    if str(file.parent) in seen.replace(str(file), ""):
        raise SandboxUnsafe("the evaluator's sandbox shows the operator's environment")
    inside = dict(line.split()[1:3] for line in seen.splitlines() if line.startswith("ns "))
    for kind, ours in _namespaces().items():
        if inside.get(kind, "") in ("", ours):
            raise SandboxUnsafe(f"the evaluator's sandbox shares the operator's {kind} namespace")


def _namespaces() -> dict[str, str]:
    return {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt", "ipc")}


def _count(connections: list[str], writer: asyncio.StreamWriter) -> None:
    connections.append(str(writer.get_extra_info("peername")))
    writer.close()
