"""Reading what `nix-store --export` writes, from a process that is not trusted.

Format: Nix, src/libstore/export-import.cc and the manual's "Nix Archive (NAR) format".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nixops_operator.adapters.nix.daemon import read_string
from nixops_operator.nix.nar import padded

_MORE, _END = 1, 0
_PATH_FOLLOWS = 0x4558494E
_NAR_LIMIT = 64 * 1024**2  # bytes of one path: derivations and configuration files are small
_TOKEN_LIMIT = 4096  # bytes of a NAR's keyword, file name or link target
_DEPTH_LIMIT = 64  # folders in folders
_REFERENCES_LIMIT = 100_000


class NotAnExportError(Exception):
    """The stream is not what `nix-store --export` writes, or too large."""


@dataclass(frozen=True)
class ExportedPath:
    """One store path as the exporter claims it to be."""

    path: str
    references: frozenset[str]
    nar: bytes
    text: bytes | None  # the content, if it is one plain file


async def exported_paths(reader: asyncio.StreamReader, count: int) -> AsyncIterator[ExportedPath]:
    """`count` paths, each once, in the order in which they come: references first. They may be spread over several
    exports, one behind the other. Raises NotAnExportError."""
    seen: set[str] = set()
    try:
        while True:
            before = len(seen)
            while (mark := await _number(reader)) == _MORE:
                exported = await _exported_path(reader)
                if exported.path in seen:
                    raise NotAnExportError(f"{exported.path} comes twice")
                seen.add(exported.path)
                yield exported
            if mark != _END:
                raise NotAnExportError(f"unknown mark {mark}")
            if len(seen) >= count:
                return
            if len(seen) == before:
                raise NotAnExportError(f"{len(seen)} paths of {count}")
    except (asyncio.IncompleteReadError, UnicodeDecodeError, ValueError) as error:
        raise NotAnExportError(str(error)) from error


async def _exported_path(reader: asyncio.StreamReader) -> ExportedPath:
    nar = _Nar(reader)
    text = await nar.read()
    if await _number(reader) != _PATH_FOLLOWS:
        raise NotAnExportError("a NAR without its path")
    path = (await read_string(reader, _TOKEN_LIMIT)).decode()
    count = await _number(reader)
    if count > _REFERENCES_LIMIT:
        raise NotAnExportError(f"{count} references")
    references = frozenset([(await read_string(reader, _TOKEN_LIMIT)).decode() for _ in range(count)])
    await read_string(reader, _TOKEN_LIMIT)  # deriver: not needed, not believed
    if await _number(reader) != 0:
        raise NotAnExportError("a signature where none can be")
    return ExportedPath(path, references, bytes(nar.seen), text)


class _Nar:
    """Reads one NAR to its end, which only its grammar tells, and keeps its bytes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.seen = bytearray()

    async def read(self) -> bytes | None:
        """The content, if the archive is one plain file, not executable."""
        await self._expect(b"nix-archive-1")
        return await self._node(0)

    async def _node(self, depth: int) -> bytes | None:
        if depth > _DEPTH_LIMIT:
            raise NotAnExportError("too many folders in folders")
        await self._expect(b"(")
        await self._expect(b"type")
        match await self._token():
            case b"regular":
                return await self._file()
            case b"symlink":
                await self._expect(b"target")
                await self._token()
                await self._expect(b")")
            case b"directory":
                await self._folder(depth)
            case kind:
                raise NotAnExportError(f"a node of type {kind!r}")
        return None

    async def _file(self) -> bytes | None:
        token = await self._token()
        is_plain = token != b"executable"
        if not is_plain:
            await self._expect(b"")
            token = await self._token()
        content = b""
        if token == b"contents":
            content = await self._token(_NAR_LIMIT)
            token = await self._token()
        if token != b")":
            raise NotAnExportError(f"{token!r} in a file")
        return content if is_plain else None

    async def _folder(self, depth: int) -> None:
        while (token := await self._token()) == b"entry":
            await self._expect(b"(")
            await self._expect(b"name")
            await self._token()
            await self._expect(b"node")
            await self._node(depth + 1)
            await self._expect(b")")
        if token != b")":
            raise NotAnExportError(f"{token!r} in a folder")

    async def _expect(self, wanted: bytes) -> None:
        if (token := await self._token()) != wanted:
            raise NotAnExportError(f"{token!r} instead of {wanted!r}")

    async def _token(self, limit: int = _TOKEN_LIMIT) -> bytes:
        token = await read_string(self._reader, limit)
        self.seen += padded(token)
        if len(self.seen) > _NAR_LIMIT:
            raise NotAnExportError(f"a path of more than {_NAR_LIMIT // 1024**2} MiB")
        return token


async def _number(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(8), "little")
