"""Unpacking a tarball that somebody else made, as builtins.fetchTarball does: the one folder in it is the tree.

Whatever its entries are called, nothing is written outside of the given folder: no absolute name, no `..`, no entry
behind a link, and no link that leads out (CVE-2022-24877 and CVE-2022-24348 were of that kind). Devices, pipes and hard
links are refused. Owners, times and other modes than "executable" are left out, as a NAR knows none.
"""

from __future__ import annotations

import asyncio
import bz2
import errno
import lzma
import os
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, Protocol, cast

_XZ_MEMORY = 256 * 1024**2  # bytes; `xz -9` takes 65 MiB
_PIECE = 1024 * 1024
_DEPTH = 64  # folders in folders
_HEADERS = 1024 * 1024
"""Bytes between the content of one file and the next entry: padding, and headers. tarfile reads each header whole,
however large it says that it is."""
_EACH = 4096  # bytes of padding and headers that an entry has on average, generously: mostly 512 to 2048

_NOT_OF_THE_DISK = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL)
"""What comes of an entry's name or of where its link leads, and would come of it on every disk."""


class BadArchiveError(ValueError):
    """The text says what is wrong with it, for people."""


@dataclass(frozen=True)
class TreeLimits:
    """Of one unpacked tree. nixpkgs of 2025 has about 50,000 files of together 300 MiB, and one more file a package."""

    files: int = 250_000
    size: int = 2 * 1024**3  # bytes


class StoppedError(Exception):
    """Nobody wants the tree any more."""


async def unpacked(archive: Path, folder: Path, limits: TreeLimits) -> Path:
    """As `unpack`, in a thread. When it is cancelled nothing is written any more: the folder is about to go."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(unpack, archive, folder, limits, stop.is_set))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({task})
        raise


def unpack(archive: Path, folder: Path, limits: TreeLimits, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Unpack into an empty folder; the tree, which is the one folder in there. `stopped`: asked now and then whether to
    give it up. Raises BadArchiveError, OSError, StoppedError."""
    seen = 0
    written = 0
    links: set[Path] = set()
    with _opened(archive, limits) as (tar, content):
        while (member := _next(tar, content)) is not None:
            if stopped():
                raise StoppedError
            seen += 1
            if seen > limits.files:
                raise BadArchiveError(f"more than {limits.files} files")
            place = _place(member.name, folder)
            if place is None:
                continue  # the root itself
            if any(parent in links for parent in place.parents):
                raise BadArchiveError(f"{_shown(member.name)} lies behind a link")
            for count in _laid(tar, member, place):
                written += count
                if written > limits.size:
                    raise BadArchiveError(_too_large(limits))
                if stopped():
                    raise StoppedError
            if member.issym():
                links.add(place)
    return _one_folder(folder, links)


def _next(tar: tarfile.TarFile, content: _Content) -> tarfile.TarInfo | None:
    """The next entry; None at the end, which must be that of the whole file. Of those before nothing is kept."""
    content.allow(_HEADERS)
    member = tar.next()
    tar.members, tar.pax_headers = [], {}  # type: ignore[attr-defined]
    if member is None:
        content.drain()
    elif member.isreg():
        content.allow(member.size + _HEADERS)
    return member


def _laid(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> Iterator[int]:
    """Lays an entry into its place, a file piece by piece; tells the length of each before it is written."""
    try:
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() or place.exists():
            raise BadArchiveError(f"{_shown(member.name)} is there twice")
        if member.issym():
            place.symlink_to(member.linkname)
        elif member.isreg():
            yield from _written(tar, member, place)
        else:
            raise BadArchiveError(f"{_shown(member.name)} is neither file, folder nor symbolic link")
    except OSError as error:
        if error.errno not in _NOT_OF_THE_DISK:
            raise
        raise BadArchiveError(f"{_shown(member.name)} cannot be unpacked: {error.strerror}") from error


def _written(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> Iterator[int]:
    """As `_laid`, of a file."""
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101 - a regular file has a content
    mode = 0o755 if member.mode & 0o100 else 0o644
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
        while piece := content.read(_PIECE):
            yield len(piece)
            file.write(piece)


def _place(name: str, folder: Path) -> Path | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadArchiveError(f"{_shown(name)} leads out of the archive")
    if len(parts) > _DEPTH:
        raise BadArchiveError(f"more than {_DEPTH} folders in folders")
    return folder.joinpath(*parts) if parts else None


def _one_folder(folder: Path, links: set[Path]) -> Path:
    """The tree. Links are followed only here, when all is there and none of them is written through."""
    inside = list(folder.iterdir())
    if len(inside) != 1 or inside[0].is_symlink() or not inside[0].is_dir():
        found = ", ".join(sorted(_shown(each.name) for each in inside)[:5]) or "nothing"
        raise BadArchiveError(f"it has to hold exactly one folder, and holds {found}")
    tree = inside[0].resolve()
    for link in links:
        if not _ends_inside(link, tree):
            raise BadArchiveError(f"the link {_shown(str(link.relative_to(folder)))} leads out of the archive")
    return inside[0]


def _ends_inside(link: Path, tree: Path) -> bool:
    try:
        return not link.readlink().is_absolute() and link.resolve().is_relative_to(tree)
    except (OSError, RuntimeError):  # a circle leads nowhere
        return True


@contextmanager
def _opened(archive: Path, limits: TreeLimits) -> Iterator[tuple[tarfile.TarFile, _Content]]:
    with archive.open("rb") as file:
        start = file.read(_MAGIC)
        file.seek(0)
        for magic, kind in _NOT_UNDERSTOOD:
            if start.startswith(magic):
                raise BadArchiveError(f"it is {kind}, which is not understood; take its .tar.gz or .tar.xz")
        try:
            found = next((one for one in _DECOMPRESSORS if start.startswith(one[0])), None)
            content = _Content(BufferedReader(_Decompressed(file, *found), _PIECE) if found else file, limits)
            with tarfile.open(fileobj=cast(IO[bytes], content), mode="r|") as tar:  # of a stream it only reads
                yield tar, content
        except BadArchiveError:
            raise
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, RecursionError) as error:
            raise BadArchiveError(f"it is no tarball, or broken: {error}") from error
        except OSError as error:
            if error.errno is None:  # as bz2 says it
                raise BadArchiveError(f"it is no tarball, or broken: {error}") from error
            raise


class _Content:
    """The decompressed tarball, of which no more is read than may be."""

    def __init__(self, inner: IO[bytes], limits: TreeLimits) -> None:
        self._inner = inner
        self._limits = limits
        self._left = limits.size + limits.files * _EACH + _HEADERS
        self._allowed = _HEADERS

    def allow(self, count: int) -> None:
        """So many bytes from here on."""
        self._allowed = count

    def read(self, count: int) -> bytes:
        """Raises BadArchiveError, OSError, and what decompressors raise."""
        part = self._inner.read(count)
        self._left -= len(part)
        self._allowed -= len(part)
        if self._left < 0:
            raise BadArchiveError(_too_large(self._limits))
        if self._allowed < 0:
            raise BadArchiveError(f"more than {_HEADERS // 1024**2} MiB of headers before one entry")
        return part

    def drain(self) -> None:
        """Read to the end: a checksum stands there, and where it is missing, more is. tarfile takes a header that
        breaks off for the end."""
        self.allow(self._left)
        while self.read(_PIECE):
            pass


class _Decompressor(Protocol):
    """As those of bz2 and lzma are."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """The decompressor of zlib, which leaves to others what it has not looked at yet."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with gzip's header and checksum

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECOMPRESSORS: tuple[tuple[tuple[bytes, ...], Callable[[], _Decompressor]], ...] = (
    ((b"\x1f\x8b",), _Gzip),
    ((b"BZh",), bz2.BZ2Decompressor),
    ((b"\xfd7zXZ\x00", b"\x5d\x00\x00"), lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)),
)
"""How a stream begins, the longest in _MAGIC bytes; what decompresses it."""
_MAGIC = 6
_NOT_UNDERSTOOD = (
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"PK\x03\x04", "a zip archive"),
)


class _Decompressed(RawIOBase):
    """Decompresses piece by piece, with a bound of memory: what is decompressed at once may be a thousand times as
    large as what it came from, and a small file of xz may ask for 4 GiB. One stream may follow another, as pbzip2 and
    pigz write them."""

    def __init__(self, file: IO[bytes], magics: tuple[bytes, ...], made: Callable[[], _Decompressor]) -> None:
        self._file = file
        self._magics = magics
        self._made = made
        self._decompressor = made()
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._decompressor.eof or self._begins_another():
            is_hungry = self._decompressor.needs_input
            given = self._more() if is_hungry else b""
            piece = self._decompressor.decompress(given, len(view))
            if piece:
                view[: len(piece)] = piece
                return len(piece)
            if is_hungry and not given and not self._decompressor.eof:
                raise EOFError("it ends too early")
        return 0

    def _more(self) -> bytes:
        given, self._ahead = self._ahead or self._file.read(65536), b""
        return given

    def _begins_another(self) -> bool:
        """Whether another stream follows, perhaps after zeros. Anything else is left alone, as gzip(1) does."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while len(rest) < _MAGIC and (more := self._more()):
            rest = (rest + more).lstrip(b"\0")
        if not rest.startswith(self._magics):
            return False
        self._ahead, self._decompressor = rest, self._made()
        return True


def _too_large(limits: TreeLimits) -> str:
    return f"more than {limits.size // 1024**2} MiB when unpacked"


def _shown(name: str) -> str:
    """A name in a message: short, and no control characters."""
    return repr(name[:80])
