"""Servers where no fetch may go, and a name server that leads there: `python trap.py FILE ADDRESS…`, as root in the
lab's network. Each connection to port 80 of an address is a line of FILE, `ADDRESS` alone; `ready` is the first.

Names are answered by what they say: `at-10-96-0-1.example` has that address, `at-A-and-B.example` both.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from pathlib import Path

PORT, NAMES_PORT = 80, 53
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret"
_A, _IN = 1, 1


def addresses_of(name: str) -> list[str]:
    """None for a name that says none."""
    return [found.replace("-", ".") for found in re.findall(r"\d{1,3}(?:-\d{1,3}){3}", name.split(".", 1)[0])]


def answer(question: bytes) -> bytes:
    """To one question of RFC 1035; there are addresses of version 4 alone."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind = int.from_bytes(question[at + 1 : at + 3], "big")
    found = addresses_of(".".join(labels))
    records = [socket.inet_aton(each) for each in found] if kind == _A else []
    head = question[:2] + struct.pack(">HHHHH", 0x8180 if found else 0x8183, 1, len(records), 0, 0)
    name_again = b"\xc0\x0c"
    body = b"".join(name_again + struct.pack(">HHIH", _A, _IN, 0, 4) + each for each in records)
    return head + question[12 : at + 5] + body


class Names(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(answer(data), addr)


async def serve(file: Path, addresses: list[str]) -> None:
    """Until it is ended."""

    def tell(line: str) -> None:
        with file.open("a") as to:
            to.write(f"{line}\n")

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tell(writer.get_extra_info("sockname")[0])
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    for address in addresses:
        await asyncio.start_server(connected, address, PORT)
    await asyncio.get_running_loop().create_datagram_endpoint(Names, ("127.0.0.1", NAMES_PORT))
    tell("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
