"""The two halves: a socket made outside, a process inside that accepts on it and dials its own loopback."""

import asyncio
import socket

import pytest

from nixops_lab import forwarder


async def echo_in_capitals(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only when the other side has said everything: the end of its stream must come through."""
    said = await reader.read()
    writer.write(said.upper())
    writer.close()
    await writer.wait_closed()


def test_a_free_port_is_kept_and_a_taken_one_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listening = forwarder.listen({"taken": port, "any": 0})
    numbers = {name: outer.getsockname()[1] for name, outer in listening.items()}
    for outer in listening.values():
        outer.close()
    assert port not in numbers.values()
    assert len(set(numbers.values())) == 2
    again = forwarder.listen({"kept": port})
    assert again["kept"].getsockname()[1] == port
    again["kept"].close()


def test_the_inner_half_is_told_each_socket_and_its_port() -> None:
    listening = forwarder.listen({"api": 0})["api"]
    assert forwarder.arguments([listening]) == [f"{listening.fileno()}:{listening.getsockname()[1]}"]
    listening.close()


async def test_bytes_and_the_end_of_the_stream_pass_in_both_directions() -> None:
    inner = await asyncio.start_server(echo_in_capitals, "127.0.0.1", 0)
    outer = forwarder.listen({"it": 0})["it"]
    address = outer.getsockname()
    async with inner, await forwarder.forward(outer, inner.sockets[0].getsockname()[1]):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x" * 300_000)
        writer.write_eof()
        assert await reader.read() == b"X" * 300_000
        writer.close()
        await writer.wait_closed()


async def test_nobody_inside_is_felt_at_once_outside() -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    outer = forwarder.listen({"it": 0})["it"]
    address = outer.getsockname()
    async with await forwarder.forward(outer, port):
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_a_reset_inside_is_a_reset_outside() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        )
        writer.transport.abort()

    inner = await asyncio.start_server(reset, "127.0.0.1", 0)
    outer = forwarder.listen({"it": 0})["it"]
    address = outer.getsockname()
    async with inner, await forwarder.forward(outer, inner.sockets[0].getsockname()[1]):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
