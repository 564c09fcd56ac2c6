"""A client of Nix' worker protocol, as far as adding content to a store needs it.

The store computes each path from the content, so nothing can be planted under a name that is not its own. Source of the
wire format: Nix, src/libstore/{worker-protocol.hh,daemon.cc,remote-store.cc}.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from enum import IntEnum

from nixops_operator.adapters.nix.child import Lines, child
from nixops_operator.nix.nar import padded

_HELLO_FROM_CLIENT = 0x6E697863
_HELLO_FROM_DAEMON = 0x6478696F
_VERSION = 0x120  # 1.32: structured errors and framed uploads; spoken by Nix 2.4 and all that came after it
_OLDEST_VERSION = 0x120

_ADD_TO_STORE = 7
_QUERY_VALID_PATHS = 31


class _Message(IntEnum):
    """What a daemon may say while it works."""

    LOG = 0x6F6C6D67
    START_ACTIVITY = 0x53545254
    STOP_ACTIVITY = 0x53544F50
    RESULT = 0x52534C54
    ERROR = 0x63787470
    LAST = 0x616C7473


_STRING_LIMIT = 4 * 1024**2
_FRAME = 1024**2


class DaemonError(Exception):
    """The daemon refused, or said something that is not the protocol."""


class Daemon:
    """One connection. Not to be used by two tasks at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def greet(self) -> None:
        """Agree on a version. Raises DaemonError if there is none."""
        self._writer.write(_number(_HELLO_FROM_CLIENT))
        if await self._read_number() != _HELLO_FROM_DAEMON:
            raise DaemonError("no Nix daemon answered")
        if await self._read_number() < _OLDEST_VERSION:
            raise DaemonError("the Nix daemon is older than Nix 2.4")
        # The two zeros: no CPU affinity, no reserved space.
        self._writer.write(_number(_VERSION) + _number(0) + _number(0))
        await self._messages()

    async def valid_paths(self, paths: Collection[str]) -> set[str]:
        """Those of `paths` that the store has. One round trip; nothing is substituted."""
        self._writer.write(_number(_QUERY_VALID_PATHS) + _strings(paths) + _number(0))
        await self._messages()
        return set(await self._read_strings())

    async def add_text(self, name: str, content: bytes, references: Collection[str]) -> str:
        """Store a text, as derivations are; return its path. The references must be valid."""
        return await self._add(name, "text:sha256", references, (content,))

    async def add_tree(self, name: str, nar: Iterable[bytes], references: Collection[str] = ()) -> str:
        """Store the tree of a NAR, which comes in parts of any size; return its path."""
        return await self._add(name, "fixed:r:sha256", references, nar)

    async def _add(self, name: str, method: str, references: Collection[str], content: Iterable[bytes]) -> str:
        self._writer.write(
            _number(_ADD_TO_STORE) + padded(name.encode()) + padded(method.encode()) + _strings(references) + _number(0)
        )
        for frame in _frames(content):
            self._writer.write(_number(len(frame)) + frame)
            await self._writer.drain()
        self._writer.write(_number(0))
        await self._messages()
        path = await self._read_text()
        for _ in range(2):
            await self._read_text()  # deriver, NAR hash
        await self._read_strings()  # references
        for _ in range(3):
            await self._read_number()  # registration time, NAR size, whether built here
        await self._read_strings()  # signatures
        await self._read_text()  # content address
        return path

    async def _messages(self) -> None:
        """Read log messages up to the end of the daemon's work. Raises DaemonError if it failed."""
        await self._writer.drain()
        while (kind := await self._read_number()) != _Message.LAST:
            match kind:
                case _Message.LOG:
                    await self._read_text()
                case _Message.START_ACTIVITY:
                    for _ in range(3):
                        await self._read_number()
                    await self._read_text()
                    await self._skip_fields()
                    await self._read_number()
                case _Message.STOP_ACTIVITY:
                    await self._read_number()
                case _Message.RESULT:
                    await self._read_number()
                    await self._read_number()
                    await self._skip_fields()
                case _Message.ERROR:
                    raise DaemonError(await self._read_error())
                case _:
                    raise DaemonError(f"the Nix daemon sent an unknown message {kind:#x}")

    async def _skip_fields(self) -> None:
        for _ in range(await self._read_number()):
            await (self._read_text() if await self._read_number() else self._read_number())

    async def _read_error(self) -> str:
        await self._read_text()  # always "Error"
        await self._read_number()  # level
        await self._read_text()  # name
        message = await self._read_text()
        await self._read_number()  # no position
        for _ in range(await self._read_number()):
            await self._read_number()
            await self._read_text()
        return message

    async def _read_number(self) -> int:
        return int.from_bytes(await self._reader.readexactly(8), "little")

    async def _read_text(self) -> str:
        return (await read_string(self._reader, _STRING_LIMIT)).decode(errors="replace")

    async def _read_strings(self) -> list[str]:
        return [await self._read_text() for _ in range(await self._read_number())]


async def read_string(reader: asyncio.StreamReader, limit: int) -> bytes:
    """One padded byte string, see `nar.padded`. Raises ValueError if it is longer than `limit` bytes,
    asyncio.IncompleteReadError if the stream ends."""
    length = int.from_bytes(await reader.readexactly(8), "little")
    if length > limit:
        raise ValueError(f"a string of {length} bytes")
    content = await reader.readexactly(length)
    await reader.readexactly(-length % 8)
    return content


@contextlib.asynccontextmanager
async def local_store(environment: Mapping[str, str]) -> AsyncIterator[Daemon]:
    """A connection to the store at /nix of this process, through a `nix-daemon` of its own that lives as long.

    Raises DaemonError, naming what the daemon said last if it ended.
    """
    messages = Lines()
    async with child(("nix-daemon", "--stdio"), environment) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - child() makes pipes
        reading = asyncio.ensure_future(messages.read(process.stderr))
        try:
            daemon = Daemon(process.stdout, process.stdin)
            await daemon.greet()
            yield daemon
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await reading
            raise DaemonError("; ".join(messages.kept[-3:]) or "the Nix daemon ended") from error
        finally:
            reading.cancel()


def _frames(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of equal size, but for the last one; none is empty."""
    frame = bytearray()
    for part in parts:
        for start in range(0, len(part), _FRAME):
            frame += part[start : start + _FRAME]
            if len(frame) >= _FRAME:
                yield bytes(frame[:_FRAME])
                del frame[:_FRAME]
    if frame:
        yield bytes(frame)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _strings(texts: Collection[str]) -> bytes:
    return _number(len(texts)) + b"".join(padded(text.encode()) for text in sorted(texts))
