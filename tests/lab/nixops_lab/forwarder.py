"""Offers ports of the lab's loopback on the caller's loopback, under the same numbers.

A socket belongs to the network namespace in which it was made, not to that of the process which holds it
(network_namespaces(7)).
So the outer half is a listening socket made by the caller and handed down; the inner half is a process inside the lab
that accepts
on it and dials its own 127.0.0.1.

    caller ──► 127.0.0.1:PORT (outside) ══ this process, inside ══► 127.0.0.1:PORT (inside)

Run as `python -m nixops_lab.forwarder FD:PORT …`.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

CHUNK_BYTES = 64 * 1024


def listen(wanted: Mapping[str, int]) -> dict[str, socket.socket]:
    """The outer half: name → socket listening on 127.0.0.1.

    A wanted port of 0, or one that is taken, becomes any free one.
    """
    listening = {}
    for name, port in wanted.items():
        try:
            listening[name] = socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError:
            listening[name] = socket.create_server(("127.0.0.1", 0), backlog=128)
    return listening


def arguments(listening: Sequence[socket.socket]) -> list[str]:
    """How the inner half is told which inherited socket stands for which port."""
    return [f"{outer.fileno()}:{outer.getsockname()[1]}" for outer in listening]


async def forward(outer: socket.socket, port: int) -> asyncio.Server:
    """The inner half for one port. Nobody inside listening: the caller's connection is reset."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            _reset(writer)
            return
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        for side in (writer, inner_writer):
            side.close()
            with suppress(OSError):
                await side.wait_closed()

    return await asyncio.start_server(connected, sock=outer)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Bytes, then the end of the stream: each direction ends on its own, as in TCP.

    A reset on one side resets the other.
    """
    try:
        while chunk := await source.read(CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()
        sink.write_eof()
    except OSError:
        _reset(sink)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes at once and so that the other side knows it: lingering for 0 s is how TCP is told to reset (socket(7))."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve(pairs: Sequence[str]) -> None:
    servers = []
    for pair in pairs:
        handle, port = pair.split(":")
        servers.append(await forward(socket.socket(fileno=int(handle)), int(port)))
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
