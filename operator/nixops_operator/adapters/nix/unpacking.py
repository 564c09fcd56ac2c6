"""Unpacking a tarball that somebody else made, as builtins.fetchTarball does: the one folder in it is the tree.

Whatever its entries are called, nothing is written outside of the given folder: no absolute name, no `..`, no entry
behind a link, and no link that leads out (CVE-2022-24877 and CVE-2022-24348 were of that kind). Devices, pipes and hard
links are refused. Owners, times and other modes than "executable" are left out, as a NAR knows none.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ_MEMORY = 256 * 1024**2  # bytes; `xz -9` takes 65 MiB
_PIECE = 1024 * 1024
_DEPTH = 64  # folders in folders


class BadArchiveError(ValueError):
    """The text says what is wrong with it, for people."""


@dataclass(frozen=True)
class TreeLimits:
    """Of one unpacked tree. nixpkgs of 2025 has about 50,000 files of together 300 MiB, and one more file a package."""

    files: int = 250_000
    size: int = 2 * 1024**3  # bytes


class StoppedError(Exception):
    """Nobody wants the tree any more."""


def unpack(archive: Path, folder: Path, limits: TreeLimits, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Unpack into an empty folder; the tree, which is the one folder in there. `stopped`: asked now and then whether to
    give it up. Raises BadArchiveError, OSError, StoppedError."""
    seen = 0
    written = 0
    links: set[Path] = set()
    with _opened(archive) as tar:
        for member in tar:
            seen += 1
            if seen > limits.files:
                raise BadArchiveError(f"more than {limits.files} files")
            place = _place(member.name, folder)
            if place is None:
                continue  # the root itself
            if any(parent in links for parent in place.parents):
                raise BadArchiveError(f"{_shown(member.name)} lies behind a link")
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() or place.exists():
                raise BadArchiveError(f"{_shown(member.name)} is there twice")
            if member.issym():
                place.symlink_to(member.linkname)
                links.add(place)
            elif member.isreg():
                for count in _written(tar, member, place):
                    written += count
                    if written > limits.size:
                        raise BadArchiveError(f"more than {limits.size // 1024**2} MiB when unpacked")
                    if stopped():
                        raise StoppedError
            else:
                raise BadArchiveError(f"{_shown(member.name)} is neither file, folder nor symbolic link")
    return _one_folder(folder, links)


def _written(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> Iterator[int]:
    """Writes the file piece by piece; tells the length of each before it is written."""
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
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start.startswith(_ZSTD):
            raise BadArchiveError("it is compressed by zstd, which is not understood; take its .tar.gz or .tar.xz")
        try:
            inner: IO[bytes] = BufferedReader(_Xz(file), _PIECE) if start == _XZ else file
            with tarfile.open(fileobj=inner, mode="r|" if start == _XZ else "r|*") as tar:
                yield tar
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
            if isinstance(error, BadArchiveError):
                raise
            raise BadArchiveError(f"it is no tarball, or broken: {error}") from error
        except OSError as error:
            if error.errno is None or "gzip" in str(error).lower():  # as gzip and bz2 say it
                raise BadArchiveError(f"it is no tarball, or broken: {error}") from error
            raise


class _Xz(RawIOBase):
    """Decompresses with a bound of memory, which lzma.LZMAFile has not: a small file may ask for 4 GiB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._decompressor.eof:
            given = self._file.read(65536) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not given:
                raise EOFError("it ends too early")
            piece = self._decompressor.decompress(given, len(view))
            if piece:
                view[: len(piece)] = piece
                return len(piece)
        return 0


def _shown(name: str) -> str:
    """A name in a message: short, and no control characters."""
    return repr(name[:80])
