"""What an evaluation exports is read without believing it, and without holding much of it in memory."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from nixops_operator.adapters.nix.exported import NotAnExportError, exported_paths
from nixops_operator.nix.nar import nar_of, padded
from unit.fake_time import run

MIB = 1024**2
PATH = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a"
OTHER = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-b"


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def nar_of_file(content: bytes) -> bytes:
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")")
    return b"".join(map(padded, words))


def export(*paths: tuple[str, bytes]) -> bytes:
    """Of these NARs."""
    each = (
        number(1) + nar + number(0x4558494E) + padded(path.encode()) + number(1) + padded(OTHER.encode())
        + padded(b"") + number(0)
        for path, nar in paths
    )  # fmt: skip
    return b"".join(each) + number(0)


Seen = list[tuple[str, frozenset[str], bytes, bytes, bytes | None]]


def read(stream: bytes, folder: Path, count: int = 1, limit: int = 100 * MIB) -> Seen:
    """Path, references, digest, NAR and text of each."""

    async def go() -> Seen:
        reader = asyncio.StreamReader()
        reader.feed_data(stream)
        reader.feed_eof()
        return [
            (one.path, one.references, one.nar.digest, b"".join(one.nar.parts()), one.text)
            async for one in exported_paths(reader, count, folder, limit)
        ]

    return run(go())


@pytest.mark.parametrize(
    ("nar", "text"),
    [
        pytest.param(nar_of_file(b"Derive(...)"), b"Derive(...)", id="a text"),
        pytest.param(nar_of_file(b""), b"", id="an empty one"),
        pytest.param(nar_of_file(b"x" * (3 * MIB + 1)), b"x" * (3 * MIB + 1), id="one that goes to disk meanwhile"),
        pytest.param(nar_of_file(b"x" * (32 * MIB + 1)), None, id="a file too large for a text"),
        pytest.param(nar_of({"a/b": b"1", "c": b"x" * 2 * MIB}), None, id="a folder"),
    ],
)
def test_a_path_is_read_as_it_was_written(nar: bytes, text: bytes | None, tmp_path: Path) -> None:
    found = read(export((PATH, nar)), tmp_path)
    assert found == [(PATH, frozenset({OTHER}), hashlib.sha256(nar).digest(), nar, text)]
    assert list(tmp_path.iterdir()) == []


def test_several_exports_behind_each_other_are_one(tmp_path: Path) -> None:
    stream = export((PATH, nar_of_file(b"1"))) + export((OTHER, nar_of_file(b"2")))
    assert [path for path, *_ in read(stream, tmp_path, count=2)] == [PATH, OTHER]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        pytest.param(export((PATH, nar_of_file(bytes(5 * MIB)))), r"more than 4 MiB \(setting", id="too large a file"),
        pytest.param(
            export((PATH, nar_of({"a": bytes(3 * MIB), "b": bytes(3 * MIB)}))), "more than 4 MiB", id="too many"
        ),
        pytest.param(export((PATH, nar_of_file(b"1"))) * 2, "comes twice", id="one twice"),
        pytest.param(export((PATH, nar_of_file(bytes(2 * MIB))))[:MIB], "bytes read", id="it breaks off in a file"),
        pytest.param(export((PATH, padded(b"nix-archive-2"))), "instead of b'nix-archive-1'", id="no NAR"),
    ],
)
def test_what_is_no_export_is_refused(stream: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(NotAnExportError, match=why):
        read(stream, tmp_path, count=2, limit=4 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_is_only_claimed_takes_no_memory(tmp_path: Path) -> None:
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents")
    claimed = number(1) + b"".join(map(padded, words)) + number(2**62)
    with pytest.raises(NotAnExportError, match="bytes read"):
        read(claimed + b"x" * 100, tmp_path)
