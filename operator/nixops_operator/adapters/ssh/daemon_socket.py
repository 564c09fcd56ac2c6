"""A Unix socket whose connections each reach an own `nix-daemon --stdio` on the host.

The socket lies in a folder that only this user may enter: whoever can connect can add paths to the host's store (the
signature is still checked there).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

from nixops_operator.adapters.ssh.agent import NOISE_BYTES, Call
from nixops_operator.adapters.ssh.facts import last_useful_line

CHUNK_BYTES = 1 << 16
WORDS_BYTES = 4 << 10


class DaemonWords:
    """The end of what the daemons of one socket wrote to stderr: where a daemon dies, its client sees an end of file,
    and only this says why."""

    def __init__(self) -> None:
        self._tail = b""

    def add(self, words: bytes) -> None:
        self._tail = (self._tail + words)[-WORDS_BYTES:]

    @property
    def last_line(self) -> str:
        """The last line with something on it; empty if there is none."""
        return last_useful_line(self._tail.decode(errors="replace"))


@asynccontextmanager
async def daemon_socket(
    connection: asyncssh.SSHClientConnection, call: Callable[[], Call], preamble: bytes, said: DaemonWords
) -> AsyncIterator[Path]:
    """A new `call` runs on the host for each connection; `preamble` is what it reads first. Open conversations are cut
    when the context ends."""
    conversations: set[asyncio.Task[None]] = set()
    daemons = _Daemons(connection, preamble, said)

    # A plain function: asyncio reports the cancellation of a coroutine that it made a task itself as an error.
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(daemons.converse(call(), reader, writer))
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


class _Daemons:
    """Conversations with daemons on one host."""

    def __init__(self, connection: asyncssh.SSHClientConnection, preamble: bytes, said: DaemonWords) -> None:
        self._connection = connection
        self._preamble = preamble
        self._said = said

    async def converse(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._join(call, reader, writer)
        except* (asyncssh.Error, OSError):
            pass  # the process at the socket's other end sees it close, and says what it missed
        finally:
            writer.close()

    async def _join(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = await self._connection.create_process(call.line, encoding=None)
        try:
            process.stdin.write(self._preamble)
            async with asyncio.TaskGroup() as group:
                upward = group.create_task(_pump_to_host(reader, process))
                group.create_task(self._listen(call, process))
                await _pump_from_host(call, process, writer)
                upward.cancel()  # the daemon has ended: nobody reads what still comes
        finally:
            process.close()

    async def _listen(self, call: Call, process: asyncssh.SSHClientProcess[bytes]) -> None:
        """To its end, which comes with the process': an unread stream would stop the daemon when it is full."""
        begin = call.begin.encode()
        while chunk := await process.stderr.read(CHUNK_BYTES):
            self._said.add(chunk.rpartition(begin)[2])


async def _pump_to_host(reader: asyncio.StreamReader, process: asyncssh.SSHClientProcess[bytes]) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        process.stdin.write(chunk)
        await process.stdin.drain()
    process.stdin.write_eof()


async def _pump_from_host(call: Call, process: asyncssh.SSHClientProcess[bytes], writer: asyncio.StreamWriter) -> None:
    """From the mark on: what the account's shell says before it is not the daemon's protocol."""
    begin, before = call.begin.encode(), b""
    while begin not in before and len(before) <= NOISE_BYTES and (chunk := await process.stdout.read(CHUNK_BYTES)):
        before += chunk
    _, mark, first = before.partition(begin)
    if not mark:
        return
    writer.write(first)
    await writer.drain()
    while chunk := await process.stdout.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
