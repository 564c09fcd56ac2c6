"""Tarballs that somebody else made: what of them becomes a tree, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.unpacking import BadArchiveError, StoppedError, TreeLimits, unpack

LIMITS = TreeLimits(files=20, size=100_000)
Make = Callable[[tarfile.TarFile], None]


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "", mode: int = 0o644) -> Make:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mode = kind, len(content), link, mode
        tar.addfile(info, io.BytesIO(content))

    return add


def tarball(folder: Path, *entries: Make, compression: str = "gz") -> Path:
    path = folder / "archive"
    with tarfile.open(path, f"w:{compression}") as tar:
        for add in entries:
            add(tar)
    return path


def unpacked(tmp_path: Path, *entries: Make, compression: str = "gz") -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return unpack(tarball(tmp_path, *entries, compression=compression), folder, LIMITS)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_the_one_folder_is_the_tree(tmp_path: Path, compression: str) -> None:
    tree = unpacked(
        tmp_path,
        entry("nixpkgs-1/", tarfile.DIRTYPE),
        entry("nixpkgs-1/lib/default.nix", content=b"{ }"),
        entry("nixpkgs-1/run", content=b"#!", mode=0o700),
        entry("nixpkgs-1/here", tarfile.SYMTYPE, link="lib/../lib/default.nix"),
        entry("nixpkgs-1/nowhere", tarfile.SYMTYPE, link="absent"),
        compression=compression,
    )
    assert tree.name == "nixpkgs-1"
    assert sorted(each.name for each in tree.iterdir()) == ["here", "lib", "nowhere", "run"]
    assert (tree / "lib/default.nix").read_bytes() == b"{ }"
    assert [bool((tree / name).stat().st_mode & 0o100) for name in ("run", "lib/default.nix")] == [True, False]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        pytest.param([entry("/etc/x")], "leads out", id="absolute"),
        pytest.param([entry("a/../../x")], "leads out", id="dots"),
        pytest.param([entry("a/l", tarfile.SYMTYPE, link="/etc"), entry("a/b")], "leads out", id="an absolute link"),
        pytest.param([entry("a/l", tarfile.SYMTYPE, link="../../x"), entry("a/b")], "leads out", id="a link out"),
        pytest.param(
            [
                entry("a/b/c/d", tarfile.SYMTYPE, link="../../x"),
                entry("a/l", tarfile.SYMTYPE, link="b/c/d/../../../q"),
                entry("a/x/f"),
            ],
            "leads out",
            id="a link out by way of another",
        ),
        pytest.param([entry("a/l", tarfile.SYMTYPE, link="."), entry("a/l/x")], "behind a link", id="behind a link"),
        pytest.param([entry("a/x"), entry("a/l", tarfile.LNKTYPE, link="a/x")], "neither", id="a hard link"),
        pytest.param([entry("a/x", tarfile.CHRTYPE)], "neither", id="a device"),
        pytest.param([entry("a/x", tarfile.FIFOTYPE)], "neither", id="a pipe"),
        pytest.param([entry("a/x"), entry("a/x")], "twice", id="a name twice"),
        pytest.param([entry("a/x"), entry("b/x")], "exactly one folder", id="two folders"),
        pytest.param([entry("x")], "exactly one folder", id="a file alone"),
        pytest.param([entry("l", tarfile.SYMTYPE, link=".")], "exactly one folder", id="a link alone"),
        pytest.param([], "exactly one folder", id="nothing"),
        pytest.param([entry(f"a/{n}") for n in range(21)], "more than 20 files", id="many files"),
        pytest.param([entry("a/x", content=bytes(100_001))], "MiB when unpacked", id="a bomb"),
        pytest.param([entry("/".join("a" * 70))], "folders in folders", id="deep"),
        pytest.param([entry("a/x"), entry("a/x/y")], "'a/x/y' cannot be unpacked: File exists", id="a file as folder"),
        pytest.param([entry("a/x"), entry("a/x", tarfile.DIRTYPE)], "'a/x' cannot be", id="a folder over a file"),
        pytest.param([entry("a/" + "n" * 300)], "cannot be unpacked: File name too long", id="a long name"),
        pytest.param([entry("a/l", tarfile.SYMTYPE, link="n" * 5000)], "too long", id="a long link"),
        pytest.param([entry("a/l", tarfile.SYMTYPE)], "'a/l' cannot be unpacked", id="an empty link"),
    ],
)
def test_what_is_refused(tmp_path: Path, entries: list[Make], words: str) -> None:
    with pytest.raises(BadArchiveError, match=words):
        unpacked(tmp_path, *entries)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["archive", "out"]


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(tarfile.XHDTYPE, 32 * 1024**2)], id="one large header"),
        pytest.param([(tarfile.GNUTYPE_LONGNAME, 32 * 1024**2)], id="a name of megabytes"),
        pytest.param([(tarfile.XGLTYPE, 512)] * 4000, id="many headers"),
    ],
)
@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_headers_are_not_read_without_a_bound(
    tmp_path: Path, headers: list[tuple[bytes, int]], compression: str
) -> None:
    """A few kB of them may be gigabytes, and tarfile holds each whole in memory: the operator's own."""
    content = bytearray()
    for kind, size in headers:
        info = tarfile.TarInfo("h")
        info.type, info.size = kind, size
        content += info.tobuf(tarfile.USTAR_FORMAT) + bytes(size)
    path = tmp_path / "archive"
    path.write_bytes(COMPRESS[compression](bytes(content)))
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    with pytest.raises(BadArchiveError, match=r"more than 1 MiB of headers|broken"):
        unpack(path, tmp_path / "out", TreeLimits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024**2  # of which xz takes eight


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_one_stream_may_follow_another(tmp_path: Path, compression: str) -> None:
    """As pbzip2, pigz and bgzip write them."""
    whole = tarball(
        tmp_path, entry("a/x", content=b"1" * 3000), entry("a/y", content=b"2"), compression=""
    ).read_bytes()
    parts = [COMPRESS[compression](whole[start : start + 700]) for start in range(0, len(whole), 700)]
    path = tmp_path / "archive"
    path.write_bytes(b"".join(parts) + bytes(512))
    (tmp_path / "out").mkdir()
    tree = unpack(path, tmp_path / "out", LIMITS)
    assert {each.name: each.stat().st_size for each in tree.iterdir()} == {"x": 3000, "y": 1}


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_tarball_that_breaks_off_in_a_header_is_not_taken_for_whole(tmp_path: Path, compression: str) -> None:
    """Else its hash would be told as the right one."""
    whole = tarball(tmp_path, entry("a/x"), entry("a/y"), compression="").read_bytes()
    ended = COMPRESS[compression](whole[:700])
    path = tmp_path / "archive"
    path.write_bytes(ended[:-4])
    (tmp_path / "out").mkdir()
    with pytest.raises(BadArchiveError, match="no tarball, or broken"):
        unpack(path, tmp_path / "out", LIMITS)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_half_a_tarball_is_none(tmp_path: Path, compression: str) -> None:
    path = tarball(tmp_path, entry("a/x", content=os.urandom(50_000)), compression=compression)
    path.write_bytes(path.read_bytes()[:20_000])
    (tmp_path / "out").mkdir()
    with pytest.raises(BadArchiveError, match="no tarball, or broken"):
        unpack(path, tmp_path / "out", LIMITS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"<html>not found</html>", "no tarball", id="a page"),
        pytest.param(b"", "no tarball|exactly one", id="empty"),
        pytest.param(b"\x1f\x8b\x08garbage garbage", "no tarball", id="a broken gzip"),
        pytest.param(b"PK\x03\x04xxxx", "zip", id="zip"),
        pytest.param(b"\x28\xb5\x2f\xfdxxxx", "zstd", id="zstd"),
        pytest.param(
            lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1024**3}]), "no tarball", id="greedy xz"
        ),
    ],
)
def test_what_is_no_tarball(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadArchiveError, match=words):
        unpack(tmp_path / "archive", tmp_path / "out", LIMITS)


def test_what_nobody_wants_any_more_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    archive = tarball(tmp_path, *(entry(f"a/{name}", content=b"x") for name in "bcd"))
    with pytest.raises(StoppedError):
        unpack(archive, folder, LIMITS, (folder / "a/c").exists)
    assert not (folder / "a/d").exists()
