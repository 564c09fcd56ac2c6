"""What the box of evaluations must refuse, tried at start.

By default Nix reads host files, environment and network during an evaluation, and with import from derivation a builder
does it even in pure and restricted mode. Whether a box and Nix' settings hold depends on the kernel, the pod's security
profile and the version of Nix: so it is tried, not assumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from nixops_operator.adapters.nix import boxes
from nixops_operator.adapters.nix.boxes.box import ENVIRONMENT, BoxKind
from nixops_operator.adapters.nix.child import child
from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.nix.expression import nix_string

_PYTHON = "/usr/bin/python3"  # boxes show /usr; the operator's own may lie elsewhere
_PATH = "/usr/bin:/bin"


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
    folder = scratch / f"probe-{secret}"
    connections: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder)
        file, path, abstract = folder / "file", folder / "socket", f"nixops-probe-{secret}"
        file.write_text(secret)
        (folder / "empty").touch()
        process = await stack.enter_async_context(child(("sleep", "infinity"), {"PATH": _PATH, "SECRET": secret}))

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(str(writer.get_extra_info("sockname")))
            writer.close()

        tcp = await stack.enter_async_context(await asyncio.start_server(connected, "127.0.0.1", 0))
        await stack.enter_async_context(await asyncio.start_unix_server(connected, path))
        await stack.enter_async_context(await asyncio.start_unix_server(connected, f"\0{abstract}"))
        echo, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Echo, ("127.0.0.1", 0))
        stack.callback(echo.close)
        port = tcp.sockets[0].getsockname()[1]
        for attack in _attacks(file, secret, port):
            await _try(evaluator, attack)
        target = {
            "file": str(file),
            "folder": str(folder),
            "secret": secret,
            "pid": process.pid,
            "descriptor": 0,
            "tcp": port,
            "udp": echo.get_extra_info("sockname")[1],
            "unix": str(path),
            "abstract": abstract,
            "shm": int.from_bytes(secrets.token_bytes(3)),
        }
        await _break_out(evaluator, target, evaluator.kind)
    if connections:
        raise SandboxUnsafe(f"an evaluation reached {connections[0]}")


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


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _try(evaluator: Evaluator, attack: _Attack) -> None:
    try:
        value = await evaluator.value(attack.expression)
    except Retry as error:
        raise SandboxUnsafe(f"evaluation is not possible: {error.message}") from error
    except Blocked:
        return
    if attack.got_through(value):
        raise SandboxUnsafe(f"an evaluation {attack.name}")


async def _break_out(evaluator: Evaluator, target: Mapping[str, object], kind: BoxKind) -> None:
    """A program in the place of Nix, as if Nix itself had been broken into."""
    groups = ["files", "processes", "network", *(("kernel",) if kind is BoxKind.LANDLOCK else ())]
    program = await asyncio.to_thread((files(boxes) / "attacks.py").read_text, encoding="utf-8")
    try:
        said = await evaluator.run((_PYTHON, "-ISBc", program), json.dumps({**target, "groups": groups}))
        seen = json.loads(said)
    except OperatorError as error:
        raise SandboxUnsafe(f"the box of evaluations cannot be tried: {error.message}") from error
    except ValueError as error:
        raise SandboxUnsafe(f"the box of evaluations cannot be tried: {_PYTHON} says {said[:100]!r}") from error
    for attack, got in seen["got"].items():
        if got is not None:
            raise SandboxUnsafe(f"what runs in the box of evaluations can {attack}")
    if foreign := set(seen["environment"]) - ENVIRONMENT:
        raise SandboxUnsafe(f"the box of evaluations shows the operator's environment: {min(foreign)}")
    if kind is BoxKind.NAMESPACES:
        for name, ours in _namespaces().items():
            if seen["namespaces"].get(name, "") in ("", ours):
                raise SandboxUnsafe(f"the box of evaluations shares the operator's {name} namespace")


def _namespaces() -> dict[str, str]:
    return {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt", "ipc")}
