"""Reading what `nix-store --export` writes, from a process that is not trusted.

Format: Nix, src/libstore/export-import.cc and the manual's "Nix Archive (NAR) format".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from nixops_operator.adapters.nix.daemon import read_string
from nixops_operator.nix.nar import padded

_MORE, _END = 1, 0
_PATH_FOLLOWS = 0x4558494E
_IN_MEMORY = 1024**2  # bytes of one path: derivations and configuration files are smaller, all else goes to disk
_TEXT_LIMIT = 32 * 1024**2  # bytes of one plain file that may be a derivation
_CHUNK = 256 * 1024
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
    nar: SpooledNar
    text: bytes | None  # the content, if it is one plain file of no great size


class SpooledNar:
    """The bytes of one NAR, in memory or, if they are many, in a file without a name. Raises OSError."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`folder`: where files go; `limit`: bytes."""
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(folder))  # noqa: SIM115 - see close
        self._hash = hashlib.sha256()
        self._limit = limit
        self._size = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        return self._hash.digest()

    def append(self, part: bytes) -> None:
        """Raises NotAnExportError if it becomes too large."""
        self._size += len(part)
        if self._size > self._limit:
            raise NotAnExportError(f"a path of more than {self._limit // 1024**2} MiB (setting nix.evaluation.disk)")
        self._hash.update(part)
        self._file.write(part)

    def parts(self) -> Iterator[bytes]:
        """From the beginning."""
        self._file.seek(0)
        while part := self._file.read(_CHUNK):
            yield part

    def close(self) -> None:
        self._file.close()


async def exported_paths(
    reader: asyncio.StreamReader, count: int, folder: Path, limit: int
) -> AsyncIterator[ExportedPath]:
    """`count` paths, each once, in the order in which they come: references first. They may be spread over several
    exports, one behind the other. Each is there until the next is asked for; large ones lie in `folder`, none is larger
    than `limit` bytes. Raises NotAnExportError, OSError."""
    seen: set[str] = set()
    try:
        while len(seen) < count:
            before = len(seen)
            while (mark := await _number(reader)) == _MORE:
                with contextlib.closing(SpooledNar(folder, limit)) as nar:
                    exported = await _exported_path(reader, nar)
                    if exported.path in seen:
                        raise NotAnExportError(f"{exported.path} comes twice")
                    seen.add(exported.path)
                    yield exported
            if mark != _END:
                raise NotAnExportError(f"unknown mark {mark}")
            if len(seen) == before:
                raise NotAnExportError(f"{len(seen)} paths of {count}")
    except (asyncio.IncompleteReadError, UnicodeDecodeError, ValueError) as error:
        raise NotAnExportError(str(error)) from error


async def _exported_path(reader: asyncio.StreamReader, nar: SpooledNar) -> ExportedPath:
    text = await _Nar(reader, nar).read()
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
    return ExportedPath(path, references, nar, text)


class _Nar:
    """Reads one NAR to its end, which only its grammar tells, into `seen`."""

    def __init__(self, reader: asyncio.StreamReader, seen: SpooledNar) -> None:
        self._reader = reader
        self._seen = seen

    async def read(self) -> bytes | None:
        """The content, if the archive is one plain file, not executable, and no larger than a text may be."""
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
        content: bytes | None = b""
        if token == b"contents":
            content = await self._content()
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

    async def _token(self) -> bytes:
        token = await read_string(self._reader, _TOKEN_LIMIT)
        self._seen.append(padded(token))
        return token

    async def _content(self) -> bytes | None:
        """A file's; None if it is larger than a text may be."""
        length = await _number(self._reader)
        self._seen.append(length.to_bytes(8, "little"))
        kept: bytearray | None = bytearray() if length <= _TEXT_LIMIT else None
        left = length
        while left:
            part = await self._reader.readexactly(min(left, _CHUNK))
            left -= len(part)
            self._seen.append(part)
            if kept is not None:
                kept += part
        await self._reader.readexactly(-length % 8)
        self._seen.append(bytes(-length % 8))
        return bytes(kept) if kept is not None else None


async def _number(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(8), "little")
