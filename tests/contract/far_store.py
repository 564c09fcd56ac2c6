"""Another store, behind a socket like Host.nix_daemon's, and what goes over the line to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Line:
    """Bytes each way. `round_trips`: how often the near end spoke after it had heard the far one."""

    sent: int = 0
    received: int = 0
    round_trips: int = 0
    has_heard: bool = True

    def send(self, count: int) -> None:
        self.sent += count
        self.round_trips += self.has_heard
        self.has_heard = False

    def receive(self, count: int) -> None:
        self.received += count
        self.has_heard = True


@asynccontextmanager
async def far_store(folder: Path, trusted_public_key: str, line: Line | None = None) -> AsyncIterator[tuple[Path, str]]:
    """The socket, and that store's name."""
    counted = line or Line()
    name = f"local?root={folder / 'root'}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "USER": "far",
        "NIX_REMOTE": name,
        "NIX_CONF_DIR": str(folder),
        "NIX_CONFIG": f"build-users-group =\nrequire-sigs = true\ntrusted-public-keys = {trusted_public_key}\n",
    }

    conversations: set[asyncio.Task[None]] = set()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        conversations.add(conversation)
        process = await asyncio.create_subprocess_exec(
            "nix-daemon", "--stdio", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        await asyncio.gather(
            _pumped(reader, process.stdin, counted.send), _pumped(process.stdout, writer, counted.receive)
        )
        await process.wait()
        await writer.wait_closed()

    socket = folder / "socket"
    server = await asyncio.start_unix_server(joined, socket)
    try:
        yield socket, name
    finally:
        server.close()
        # The far end hears of the end after the near one: a loop that closes between the two leaves an open socket.
        await asyncio.gather(*conversations)
        await server.wait_closed()


async def _pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    try:
        while chunk := await reader.read(65536):
            count(len(chunk))
            writer.write(chunk)
            await writer.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass
    writer.close()
