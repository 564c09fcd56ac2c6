"""Nix' programs outside of the sandboxes: short, and fed with nothing but paths and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nixops_operator.adapters.nix.child import Lines, child, feed
from nixops_operator.nix import internal_json
from nixops_operator.nix.progress import moved
from nixops_operator.nix.texts import plain

_PATH = "/usr/local/bin:/usr/bin:/bin"

# Given as a variable and not as a file, so that no file of the machine is read and none has to be written.
_CONFIG = """\
build-users-group =
experimental-features = nix-command
max-jobs = 0
builders =
substituters =
substitute = false
plugin-files =
sandbox = true
min-free = 0
"""


class NixFailedError(Exception):
    """A program of Nix ended badly; the text is its last word."""


def trusted_environment(scratch: Path | None) -> dict[str, str]:
    """The whole environment of such a program. Nothing is built or fetched there. `scratch` is where caches go, None
    for programs that have none."""
    home = "/homeless" if scratch is None else str(scratch)
    return {
        "PATH": _PATH,
        "HOME": home,
        "USER": "nixops",
        "NIX_CONF_DIR": "/homeless",
        "NIX_REMOTE": "local",
        "NIX_CONFIG": _CONFIG,
    }


async def output_of(argv: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int] = ()) -> str:
    """What a program writes to stdout, stripped. Raises NixFailedError if it fails, or if that is not UTF-8."""
    messages = Lines()
    async with child(argv, environment, inherited) as process:
        assert process.stdout is not None  # noqa: S101 - child() makes pipes
        await feed(process.stdin, b"")
        written, _ = await asyncio.gather(process.stdout.read(), messages.read(process.stderr))
        if await process.wait() != 0:
            raise NixFailedError(last_word(messages.kept) or f"exit status {process.returncode}")
    try:
        return written.decode().strip()
    except UnicodeDecodeError as error:
        raise NixFailedError("its output is not UTF-8") from error


async def follow(
    argv: Sequence[str],
    environment: Mapping[str, str],
    on_event: Callable[[dict[str, object]], None],
    inherited: Sequence[int] = (),
) -> tuple[int, str]:
    """Run a program that reports with internal-json messages: its exit status (negative: the signal that ended it),
    and its last word besides those messages and what is said of bytes that moved."""

    def on_line(line: str) -> None:
        if (event := internal_json.event(line) or moved(line)) is not None:
            on_event(event)

    messages = Lines(on_line)
    async with child(argv, environment, inherited) as process:
        await feed(process.stdin, b"")
        await asyncio.gather(messages.read(process.stderr), Lines().read(process.stdout))
        status = await process.wait()
    return status, last_word([line for line in messages.kept if not line.startswith(("@nix ", "@moved "))])


def last_word(lines: Sequence[str]) -> str:
    """The last line that says something, without terminal escapes; a mere warning only if there is nothing else."""
    said = [text for line in lines if (text := plain(line).strip())]
    return next((text for text in reversed(said) if not text.startswith("warning:")), said[-1] if said else "")
