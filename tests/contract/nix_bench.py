"""What the suites of `in_private_store/` share: a Nix port on the real programs, and small requests to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from nixops_operator.adapters.nix.boxes.box import BoxKind, EvaluationLimits
from nixops_operator.adapters.nix.disk import Disk
from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.adapters.nix.programs import output_of, trusted_environment
from nixops_operator.adapters.nix.sandboxed_nix import box_of
from nixops_operator.facts.nix import EvaluationRequest, Module, Source

BOX = BoxKind(os.environ.get("BOX", BoxKind.NAMESPACES))
"""The box of this run."""

PYTHON = "/usr/bin/python3"
"""Every box shows it."""

MODEL = """\
{ config, pkgs, ... }: {
  services.httpd.enable = true;
  services.httpd.adminAddr = "webmaster@example.org";
  services.httpd.virtualHosts.localhost.documentRoot = "${pkgs.valgrind.doc}/share/doc/valgrind/html";
  networking.firewall.allowedTCPPorts = [ 80 ];
}
"""


def nixpkgs_folder(which: str = "") -> Path:
    """The assembled miniature nixpkgs; `OF_2020`: with the names of that year."""
    return Path(os.environ["NIXPKGS"], which or "TODAY")


def request(
    nixpkgs: Source, *texts: str, public_key: str = "test-1:key", source: Source | None = None
) -> EvaluationRequest:
    """An EC2 machine with these modules."""
    return EvaluationRequest(
        name="webserver",
        deployment="example",
        uuid="11111111-2222-3333-4444-555555555555",
        system="x86_64-linux",
        is_ec2=True,
        nixpkgs=nixpkgs,
        nixpkgs_folder="",
        source=source,
        modules=tuple(Module(f"modules[{index}]", text=text) for index, text in enumerate(texts)),
        state_version="25.11",
        trusted_public_key=public_key,
        tenant="team",
    )


def file_built_by(script: str, name: str = "seen") -> str:
    """A module whose system needs a file that this shell script makes at $out."""
    return f"""{{ pkgs, ... }}: {{
      environment.etc.{name}.source = derivation {{
        name = "{name}";
        system = "x86_64-linux";
        builder = "/bin/sh";
        PATH = "/usr/bin:/bin";
        args = [ "-c" ''{script}'' ];
      }};
    }}"""


def evaluator_in(scratch: Path, limits: EvaluationLimits) -> Evaluator:
    """One that evaluates one thing at a time, on whatever disk there is."""
    return evaluator_with(scratch, limits, Disk((scratch,), 0))


def evaluator_with(scratch: Path, limits: EvaluationLimits, disk: Disk) -> Evaluator:
    """As `evaluator_in`, on this disk."""
    return Evaluator(scratch, box_of(BOX, scratch, limits, disk), limits, 1, disk)


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[int, list[object]]]:
    """A port of 127.0.0.1 and what connected to it."""
    seen: list[object] = []

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()


async def store(*arguments: str) -> str:
    """A question to the store of this process."""
    return await output_of(arguments, trusted_environment(None))


def listing(folder: Path) -> list[str]:
    """All that lies in it, sorted."""
    return sorted(str(path) for path in folder.rglob("*"))


def children() -> set[int]:
    """Living processes that this one started."""
    return {pid for pid, parent in _parents().items() if parent == os.getpid()}


def descendants() -> set[int]:
    """Living processes that this one started, directly or not."""
    parents = _parents()
    found: set[int] = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if after_name[0] != "Z":
            parents[int(folder.name)] = int(after_name[1])
    return parents


def runs(pid: int) -> bool:
    """Whether this process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def arguments_of(pid: int) -> str:
    """Its command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens outside of this process; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - nothing in this process could set an event
        await asyncio.sleep(0.01)
