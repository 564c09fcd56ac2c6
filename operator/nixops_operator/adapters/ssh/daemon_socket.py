"""A Unix socket whose connections each reach an own `nix-daemon --stdio` on the host.

The socket lies in a folder that only this user may enter: whoever can connect can add paths to the host's store (the
signature is still checked there).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

CHUNK_BYTES = 1 << 16


@asynccontextmanager
async def daemon_socket(connection: asyncssh.SSHClientConnection, command: str, preamble: bytes) -> AsyncIterator[Path]:
    """`command` runs on the host for each connection; `preamble` is what it reads first. Open conversations are cut
    when the context ends."""
    conversations: set[asyncio.Task[None]] = set()

    # A plain function: asyncio reports the cancellation of a coroutine that it made a task itself as an error.
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(_converse(connection, command, preamble, reader, writer))
        conversations.add(conversation)
        conversation.add_done_callback(conversations.discard)

    with tempfile.TemporaryDirectory(prefix="nixops-daemon-") as folder:
        path = Path(folder) / "socket"
        server = await asyncio.start_unix_server(accept, path)
        path.chmod(0o600)
        try:
            yield path
        finally:
            server.close()
            for conversation in conversations:
                conversation.cancel()
            await asyncio.gather(*conversations, return_exceptions=True)
            await server.wait_closed()


async def _converse(
    connection: asyncssh.SSHClientConnection,
    command: str,
    preamble: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        await _join(connection, command, preamble, reader, writer)
    except* (asyncssh.Error, OSError):
        pass  # the process at the socket's other end sees it close, and says what it missed
    finally:
        writer.close()


async def _join(
    connection: asyncssh.SSHClientConnection,
    command: str,
    preamble: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    process = await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)
    try:
        process.stdin.write(preamble)
        async with asyncio.TaskGroup() as group:
            upward = group.create_task(_pump_to_host(reader, process))
            await _pump_from_host(process, writer)
            upward.cancel()  # the daemon has ended: nobody reads what still comes
    finally:
        process.close()


async def _pump_to_host(reader: asyncio.StreamReader, process: asyncssh.SSHClientProcess[bytes]) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        process.stdin.write(chunk)
        await process.stdin.drain()
    process.stdin.write_eof()


async def _pump_from_host(process: asyncssh.SSHClientProcess[bytes], writer: asyncio.StreamWriter) -> None:
    while chunk := await process.stdout.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
